"""Kill each actor with -9 during a session: a clean end, no lost mail, a service that recovers."""

import pytest

from tests.support.awkward import BIG, sent
from tests.support.maildirs import mail_of
from tests.support.pop3 import RawPop3
from tests.support.processes import kill, pid_of, stop_process
from tests.support.service import serve
from tests.support.waiting import wait_for

MAIL = [b"Subject: 1\n\nsmall\n", BIG, b"Subject: 3\n\nlast\n"]
# the session ends with [SYS/TEMP]; the spawner's children end with it
FATAL = {"maildir.alice", "spawner"}


@pytest.fixture(scope="module")
def service():
    with serve(
        mail={"alice": MAIL, "bob": MAIL[:1] * 300}, restart_intensity=1000, restart_seconds=2
    ) as running:
        yield running


def whole_again(service, victim, restarts_before, mail):
    """Check that a new login works and has all the mail, and that status has counted the restart."""

    def logs_in():
        try:
            with RawPop3(service) as client:
                answer = client.login()
                return (
                    answer.startswith(b"+OK")
                    and client.ask(b"STAT").startswith(b"+OK")
                    and client.ask(b"QUIT").startswith(b"+OK")
                )
        except (OSError, EOFError):
            return False

    wait_for(logs_in)
    assert mail_of(service) == mail
    if victim != "maildir.alice":
        row = wait_for(lambda: service.actor(victim), until=lambda r: r and r["state"] == "serving")
        assert row["restarts"] == restarts_before + 1


def restarts(service, victim):
    row = service.actor(victim)
    return row["restarts"] if row else 0


@pytest.mark.parametrize("victim", ["spawner", "auth", "listener", "maildir.alice"])
@pytest.mark.parametrize("moment", ["idle", "RETR", "DELE"])
def test_killed_in_a_session(service, victim, moment):
    mail = mail_of(service)
    with RawPop3(service, buffer=65536) as client:
        assert client.login().startswith(b"+OK")
        before = restarts(service, victim)
        pid = pid_of(service, victim)
        if moment == "DELE":
            assert client.ask(b"DELE 1").startswith(b"+OK")
        if moment == "RETR":
            assert client.ask(b"RETR 2").startswith(b"+OK")
            client.some(100_000)
        kill(pid)
        if victim == "auth":  # the session goes on
            if moment == "RETR":
                assert client.message() == sent(BIG)
            assert client.ask(b"RSET").startswith(b"+OK")
            assert client.ask(b"QUIT").startswith(b"+OK")
        else:
            said = client.end()
            if moment == "RETR":
                # cut off, and nothing was inserted into the message
                assert not said.endswith(b"\r\n.\r\n") and b"-ERR" not in said
                assert sent(BIG).startswith(said)
            elif victim in FATAL:
                assert said.startswith(b"-ERR [SYS/TEMP]") and said.count(b"\n") == 1
            else:
                assert said == b""
    whole_again(service, victim, before, mail)


def test_sessions_of_a_killed_listener_are_in_the_log(service):
    """One line for each that had logged in and was not over; a session after QUIT has its own already."""
    before = len(service.read_log())
    with RawPop3(service) as quits, RawPop3(service) as alice, RawPop3(service) as bob, RawPop3(service):
        assert quits.login().startswith(b"+OK") and quits.ask(b"QUIT").startswith(b"+OK")
        quits.end()
        assert alice.login().startswith(b"+OK") and bob.login("bob").startswith(b"+OK")
        wait_for(lambda: " why=quit user=alice " in service.read_log()[before:])
        names = {row["user"]: row["session"] for row in service.status()["sessions"]}
        kill(pid_of(service, "listener"))
        assert alice.end() + bob.end() == b""
    wait_for(lambda: "listener.0 ended: signal SIGKILL" in service.read_log()[before:])
    log = service.read_log()[before:]
    for user in ("alice", "bob"):
        assert log.count(f"session over: session={names[user]} why=listener user={user} ms=") == 1
    assert log.count(" why=listener ") == 2


@pytest.mark.parametrize("victim", ["spawner", "auth", "listener", "maildir.alice"])
def test_killed_during_login(service, victim):
    """The victim is stopped first, so that it dies while a login waits for it."""
    mail = mail_of(service)
    with RawPop3(service) as client:  # warm the actor up, or retire it where the spawner is needed
        assert client.login().startswith(b"+OK")
        client.ask(b"QUIT")
    if victim == "spawner":
        kill(pid_of(service, "maildir.alice"))
        wait_for(lambda: service.actor("maildir.alice") is None)
    pid, before = pid_of(service, victim), restarts(service, victim)
    with RawPop3(service) as client:
        assert client.ask(b"USER alice").startswith(b"+OK")
        stop_process(pid)
        client.send(b"PASS secret\r\n")
        # the kernel has taken the lease, so auth's grant has arrived
        if victim not in ("listener", "auth"):
            wait_for(lambda: any(a["name"] == "maildir.alice" for a in kernel_rows(service)))
        kill(pid)
        if victim == "auth":
            assert client.line().startswith(b"+OK")  # it waited for the next one
            assert client.ask(b"QUIT").startswith(b"+OK")
        elif victim == "listener":
            assert client.end() == b""
        else:
            assert client.line().startswith(b"-ERR [SYS/TEMP]")
            assert client.ask(b"USER alice").startswith(b"+OK")  # the connection is as before PASS
            assert client.ask(b"QUIT").startswith(b"+OK")
    whole_again(service, victim, before, mail)


def test_a_login_waits_for_the_next_auth_however_many_failed_before(service):
    with RawPop3(service) as client:
        for _ in range(3):
            assert client.login(password="wrong").startswith(b"-ERR [AUTH]")
        pid = pid_of(service, "auth")
        client.ask(b"USER alice")
        stop_process(pid)
        client.send(b"PASS secret\r\n")
        kill(pid)
        assert client.line().startswith(b"+OK")
        assert client.ask(b"QUIT").startswith(b"+OK")
    wait_for(lambda: service.actor("auth"), until=lambda r: r and r["state"] == "serving")


def kernel_rows(service):
    return service.status()["actors"] if service.status()["leases"] else []


@pytest.mark.parametrize("victim", ["spawner", "auth", "listener", "maildir.alice"])
def test_killed_during_quit(service, victim):
    """It is stopped before QUIT: nothing marked is removed, and the client is not told that it was."""
    mail = mail_of(service)
    with RawPop3(service) as client:
        assert client.login().startswith(b"+OK")
        assert client.ask(b"DELE 2").startswith(b"+OK")
        if victim == "auth":
            assert client.ask(b"RSET").startswith(b"+OK")
        pid, before = pid_of(service, victim), restarts(service, victim)
        halted = pid_of(service, "maildir.alice") if victim == "spawner" else pid
        stop_process(halted)
        client.send(b"QUIT\r\n")
        if victim in FATAL:
            # the listener has taken QUIT: it answered a CountersRequest after it
            wait_for(lambda: "update" if service.actor("listener") else "")
        kill(pid)
        said = client.end()
        if victim == "auth":
            assert said.startswith(b"+OK")
        elif victim == "listener":
            assert said == b""
        else:
            assert said.startswith(b"-ERR [SYS/TEMP]") and said.count(b"\n") == 1
    whole_again(service, victim, before, mail)


def test_killed_while_removing(service):
    """At any point of a QUIT the remaining mail is whole, and the next session lists it."""
    for _ in range(6):
        with RawPop3(service) as client:
            assert client.login("bob").startswith(b"+OK")
            total = int(client.ask(b"STAT").split()[1])
            if not total:
                break
            before = mail_of(service, "bob")
            assert len(before) == total
            many = min(total, 60)
            client.send(b"".join(b"DELE %d\r\n" % n for n in range(1, many + 1)))
            for _n in range(many):
                assert client.line().startswith(b"+OK")
            pid = pid_of(service, "maildir.bob")
            client.send(b"QUIT\r\n")
            kill(pid)
            said = client.end()
        after = mail_of(service, "bob")
        assert after.items() <= before.items() and len(after) >= total - many
        if said.startswith(b"+OK"):
            assert len(after) == total - many
        with RawPop3(service) as client:
            wait_for(lambda: client.login("bob").startswith(b"+OK"))  # noqa: B023
            assert int(client.ask(b"STAT").split()[1]) == len(after)


def test_everyone_else_is_served_on(service):
    """One user's actor dies; another's session goes on."""
    with RawPop3(service) as other, RawPop3(service) as client:
        assert other.login("bob").startswith(b"+OK")
        assert client.login().startswith(b"+OK")
        kill(pid_of(service, "maildir.alice"))
        assert client.end().startswith(b"-ERR [SYS/TEMP]")
        assert other.ask(b"STAT").startswith(b"+OK")
        assert other.ask(b"QUIT").startswith(b"+OK")


def test_login_while_there_is_no_spawner(service):
    """A dead spawner whose restart is not due yet: [SYS/TEMP], and then the maildrop is free.

    An actor that nobody forks must not keep the lease.
    """
    answers = []

    def logs_in():
        with RawPop3(service) as client:
            answers.append(client.login())
            return answers[-1].startswith(b"+OK") and client.ask(b"QUIT").startswith(b"+OK")

    for _ in range(7):  # the pauses grow: none, 0.1 s, 0.2 s, 0.4 s; on a busy machine a login takes longer
        kill(wait_for(lambda: (service.actor("spawner") or {"pid": 0})["pid"]))
        wait_for(logs_in)
        if refused := any(a.startswith(b"-ERR [SYS/TEMP]") for a in answers):
            break
    assert refused
    assert all(a.startswith((b"+OK", b"-ERR [SYS/TEMP]")) for a in answers), answers


@pytest.mark.parametrize("victim", ["gate", "listener"])
def test_sessions_of_a_killed_gate_or_of_one_of_its_listeners_are_in_the_log(victim):
    """With isolation = "connection" a gate's end ends all its listeners, a listener's end its one session."""
    with (
        serve(mail=(), isolation="connection") as service,
        RawPop3(service) as alice,
        RawPop3(service) as bob,
    ):
        assert alice.login().startswith(b"+OK") and bob.login("bob").startswith(b"+OK")
        names = {row["user"]: (row["session"], row["listener"]) for row in service.status()["sessions"]}
        kill(pid_of(service, "gate" if victim == "gate" else names["alice"][1]))
        assert alice.end() == b""
        lost = ["alice", "bob"] if victim == "gate" else ["alice"]
        log = service.wait_log(" why=listener ", count=len(lost))
        for user in lost:
            assert log.count(f"session over: session={names[user][0]} why=listener user={user} ms=") == 1
        if victim == "listener":
            assert bob.ask(b"QUIT").startswith(b"+OK")
            log = service.wait_log(" why=quit user=bob ")
        assert log.count(" why=listener ") == len(lost)
