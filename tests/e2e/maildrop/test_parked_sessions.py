"""Test parked sessions: the process ends, the session goes on.

Numbers, marks, UIDLs and the lease survive; a kill removes nothing.
"""

import os
import poplib

import pytest

from tests.support.processes import continue_process, kill, stop_process
from tests.support.service import Service
from tests.support.waiting import wait_for

MAIL = [b"Subject: %d\n\nmessage %d\n" % (n, n) for n in range(1, 7)]


@pytest.fixture
def service():
    with Service(
        users=("alice", "bob"), mail=MAIL, park_seconds=1, warm_seconds=0, warm_memory="0"
    ) as running:
        yield running


def asleep(service, user="alice"):
    """Wait until that user's session is parked and its process gone."""
    wait_for(lambda: not service.running(f"maildir.{user}"))
    assert [lease["user"] for lease in service.status()["leases"]] == [user]


def files(service, user="alice"):
    maildir = service.site.mail_users[user].maildir
    return sorted(
        name.partition(":")[0] for part in ("cur", "new") for name in os.listdir(os.path.join(maildir, part))
    )


def test_marks_numbers_and_uidls_survive_sleep(service):
    client = service.pop3()
    uidls = client.uidl()[1]
    client.dele(2)
    client.retr(3)
    asleep(service)
    assert client.stat() == (5, sum(int(line.split()[1]) for line in client.list()[1]))
    assert client.uidl()[1] == [u for u in uidls if not u.startswith(b"2 ")]
    with pytest.raises(poplib.error_proto):
        client.retr(2)
    asleep(service)
    assert client.rset().startswith(b"+OK")
    assert client.retr(2)[1][-1] == b"message 2"
    client.dele(6)
    asleep(service)
    client.quit()
    assert len(files(service)) == 5


def test_a_kill_between_removes_nothing(service):
    client = service.pop3()
    client.dele(1)
    asleep(service)
    before = files(service)
    client.noop()
    kill(service.actor("spawner")["pid"])
    service.wait_log("spawner ended")
    wait_for(lambda: service.actor("spawner"), until=lambda row: row and row["state"] == "serving")
    assert client.list(3)  # the next spawner's child continues the session
    kill(wait_for(lambda: service.actor("maildir.alice"))["pid"])
    with pytest.raises((poplib.error_proto, OSError)):
        client.list(4)
        client.list(4)
    client.close()
    assert files(service) == before


def test_the_lease_is_kept_and_freed(service):
    client = service.pop3()
    client.stat()
    asleep(service)
    with pytest.raises(poplib.error_proto, match="IN-USE"):
        service.pop3()
    client.close()
    again = wait_for(lambda: login_or_none(service))
    assert again.stat()[0] == 6
    again.quit()


def login_or_none(service):
    try:
        return service.pop3()
    except poplib.error_proto:
        return None


def test_new_mail_waits_and_foreign_changes_are_noticed(service):
    client = service.pop3()
    client.list()
    asleep(service)
    maildir = service.site.mail_users["alice"].maildir
    path = os.path.join(maildir, "new", "2000000000.0badcafe.host")
    with open(path, "wb") as file:
        file.write(b"Subject: new\n\nlate\n")
    os.chown(path, service.site.mail_users["alice"].uid, service.site.mail_users["alice"].gid)
    assert len(client.list()[1]) == 6
    asleep(service)
    cur = os.path.join(maildir, "cur")
    os.unlink(os.path.join(cur, sorted(os.listdir(cur))[2]))
    with pytest.raises(poplib.error_proto, match="SYS/TEMP"):
        client.list()
    client.close()
    assert len(files(service)) == 6


def test_commands_race_with_sleep(service):
    client = service.pop3()
    for n in range(16):
        wait_for(lambda: n % 2 or not service.running("maildir.alice"), seconds=10)
        assert client.list(n % 6 + 1).startswith(b"+OK %d " % (n % 6 + 1))
    client.quit()


def many(count, service_kwargs=None):
    users = [f"user{n:04d}" for n in range(count)]
    with Service(
        users=users, mail=MAIL[:2], park_seconds=1, warm_seconds=0, warm_memory="0", login_seconds=300
    ) as service:
        clients = [service.pop3(user) for user in users]
        for client in clients:
            client.dele(1)
        wait_for(lambda: not any(service.running(f"maildir.{user}") for user in users[::5]), seconds=60)
        assert len(service.status()["leases"]) == count
        for client in clients:
            client.sock.sendall(b"LIST\r\n")
        for client in clients:
            assert client._getlongresp()[1][0].startswith(b"2 ")
        for client in clients:
            client.quit()
        assert all(len(files(service, user)) == 1 for user in users)


def test_forty_sessions_sleep_and_wake():
    many(40)


@pytest.mark.load
def test_a_thousand_sessions_sleep_and_wake():
    many(1000)


def woken(service):
    """Return how many users have an actor, or one to be forked."""
    return sum(a["name"].startswith("maildir.") for a in service.status()["actors"])


def test_the_spawner_gets_a_few_of_many_woken_sessions_at_a_time():
    """The spawner must answer its liveness check however many sessions wake at once."""
    users = tuple(f"u{n}" for n in range(300))
    with Service(users=users, mail=MAIL[:2], park_seconds=1, warm_seconds=0, warm_memory="0") as service:
        clients = [service.pop3(user) for user in users]
        wait_for(lambda: not woken(service))
        spawner = service.actor("spawner")["pid"]
        before = service.actor("listener.0")["messages_out"]
        stop_process(spawner)
        try:
            for client in clients:
                client.sock.sendall(b"UIDL 2\r\n")
            wait_for(
                lambda: service.actor("listener.0")["messages_out"],
                until=lambda many: many >= before + len(clients),
            )
            assert 0 < woken(service) <= 256
        finally:
            continue_process(spawner)
        assert all(client.file.readline().startswith(b"+OK 2 ") for client in clients)
        for client in clients:
            client.quit()
