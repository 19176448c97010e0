"""Test which maildir actors and which spawner a reload keeps: those whose row and settings did not change."""

import os

from tests.e2e.reload.test_reload import rewrite
from tests.support.pop3 import RawPop3
from tests.support.service import serve
from tests.support.waiting import wait_for

MAIL = [b"Subject: 1\n\nx\n"]
USERS = ("alice", "bob", "carol")


def log_in(service, *users):
    for user in users:
        with RawPop3(service) as client:
            assert client.login(user).startswith(b"+OK"), user
            assert client.ask(b"QUIT").startswith(b"+OK")


def pids(service):
    """Return the numbers of the maildir actors that still run, by user, and those of all spawners."""
    rows = service.status()["actors"]
    actors = {a["name"].removeprefix("maildir."): a["pid"] for a in rows if a["name"].startswith("maildir.")}
    return actors, {a["pid"] for a in rows if a["name"].startswith("spawner")}


def reload(service, configuration):
    with open(service.toml) as file:
        before = file.read()
    rewrite(service.toml, lambda _: before + configuration)
    assert service.command("reload").stdout.startswith("reloaded\n")


def test_a_reload_keeps_actors_whose_row_and_settings_are_the_same():
    """A changed quota ends one user's actor, a changed row another's, changed settings of all mail all."""
    with serve(users=USERS, mail=MAIL) as service:
        log_in(service, *USERS)
        warm, spawners = pids(service)
        reload(service, "")
        log_in(service, *USERS)
        assert pids(service) == (warm, spawners)

        base = os.path.dirname(service.site.mail_users["bob"].maildir)
        os.rename(f"{base}/bob", f"{base}/moved")
        rewrite(service.site.user_table, lambda text: text.replace(f"{base}/bob\n", f"{base}/moved\n"))
        reload(service, "idle_seconds = 700\n")
        log_in(service, *USERS)
        now, same = pids(service)
        assert same == spawners, "no directory above a maildir is another"
        assert [now[u] == warm[u] for u in USERS] == [True, False, True]

        reload(service, 'quota_users = ["carol=1G"]\n')
        log_in(service, *USERS)
        after, both = pids(service)
        assert len(both) == 2 and both > spawners, "the old spawner stays for its warm actors"
        assert [after[u] == now[u] for u in USERS] == [True, True, False]

        reload(service, "set_seen = false\n")
        wait_for(lambda: pids(service)[1].isdisjoint(both))
        log_in(service, *USERS)
        last, _ = pids(service)
        assert not set(last.values()) & set(after.values())


def test_a_session_that_is_open_keeps_its_changed_actor_until_its_end():
    with serve(users=USERS, mail=MAIL) as service, RawPop3(service) as client:
        assert client.login("alice").startswith(b"+OK")
        (warm, _) = pids(service)
        reload(service, 'quota_users = ["alice=1G"]\n')
        assert client.ask(b"STAT").startswith(b"+OK 1 ")
        assert pids(service)[0] == warm
        assert client.ask(b"QUIT").startswith(b"+OK")
        log_in(service, "alice")
        assert pids(service)[0]["alice"] != warm["alice"]
