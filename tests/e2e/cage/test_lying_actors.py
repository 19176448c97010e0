"""Run a hostile listener and a hostile auth that send whole but untrue messages.

They lie for others, repeatedly and without end. They get no mail and end only themselves, and the service
recovers. test_channel_violations.py sends malformed messages.
"""

import contextlib
import sys

import pytest

from tests.e2e.cage.test_channel_violations import MAIL, sessions_on_both
from tests.support.processes import kill
from tests.support.saboteur.service import Sabotaged, needs_sandbox
from tests.support.service import Service
from tests.support.waiting import wait_for

pytestmark = needs_sandbox
ENDS_IT = {
    "grant": "broke the rules on its channel to the kernel",
    "await flood": "announces logins without end; ended",
    "refuse flood": "accuses others again and again; ended",
    "no mechanism": "LoginRequest.mechanism: no such mechanism",
}
CHANGES_NOTHING = (
    "end others",
    "fail others",
    "late flood",
    "refuse others",
    "counters",
    "login flood",
    "login twice",
    "login unannounced",
)


def sabotaged():
    """Run two listeners that misbehave on a keyword, with enough users and restarts for it."""
    users = [f"user{n}" for n in range(30)] + ["bob"]
    plan = {"garbage": {"listener": "armed"}}
    return Sabotaged(
        plan,
        users=users,
        mail=MAIL,
        listeners=2,
        restart_intensity=1000,
        restart_seconds=1,
        login_seconds=60,
        verbose=1,
    )


@pytest.fixture(scope="module")
def service():
    with sabotaged() as running:
        yield running


def singletons(service):
    return {
        a["name"]: a["pid"]
        for a in service.status()["actors"]
        if not a["name"].startswith("maildir") and a["pid"] and a["state"] in ("serving", "running")
    }


def said_evil(service, what):
    """Return the client at whose login a listener misbehaves, and that listener."""
    return service.send_login("evil-say-" + what.replace(" ", "-"))


@contextlib.contextmanager
def on_both(service):
    """Provide a session on each listener, closed at the end: {listener: client}."""
    clients = sessions_on_both(service)
    try:
        yield clients
    finally:
        for client in clients.values():
            client.close()


def leases(service):
    return {lease["user"] for lease in service.status()["leases"]}


@pytest.mark.parametrize("what", ENDS_IT)
def test_a_listener_that_ends_itself(service, what):
    """Sessions on the other listener go on, and nobody's mail was opened."""
    with on_both(service) as clients:
        before, held = singletons(service), leases(service)
        count = service.read_log().count(ENDS_IT[what])
        with contextlib.closing(said_evil(service, what)):
            log = service.wait_log(ENDS_IT[what], count=count + 1, seconds=40)
            after = wait_for(
                lambda: singletons(service), until=lambda now: {*before} == {*now} and evil_of(before, now)
            )
        (evil,) = evil_of(before, after)
        assert (before["auth"] != after["auth"]) == (what == "refuse flood")  # which was believed for a while
        assert leases(service) <= held and "giving up" not in log
        for listener, client in clients.items():
            if listener != evil:
                assert client.stat()[0] == 1
                client.quit()
    wait_for(service.serves)


def evil_of(before, now):
    """Return the listeners that were replaced."""
    return {name for name in before if name.startswith("listener") and now[name] != before[name]}


@pytest.mark.parametrize("what", CHANGES_NOTHING)
def test_a_listener_that_is_not_believed(service, what):
    """A lying listener harms no session, on either listener.

    It names others' sessions, unknown actors and users whose password it does not have.
    """
    with on_both(service) as clients:
        before, held = singletons(service), leases(service)
        with contextlib.closing(said_evil(service, what)):
            wait_for(service.serves, seconds=40)  # bob's login comes after all of it
            assert singletons(service) == before
            assert leases(service) <= held | {"bob"}
            for listener, client in clients.items():
                # it may report this about its own sessions
                if what != "refuse others" or f"{listener} refused a message" not in service.read_log():
                    assert client.stat()[0] == 1
                    assert client.retr(1)[1] == [b"a: b", b"", b"c"]
                    client.quit()
    assert "\nlogin failed" not in service.read_log()
    wait_for(lambda: service.serves("user0"))


@pytest.fixture(scope="module")
def with_auth():
    with Sabotaged(
        {"garbage": {"auth": "armed"}}, users=["alice", "bob", "carol"], mail=MAIL, login_seconds=60
    ) as running:
        yield running


def test_unrequested_grants(with_auth):
    before = singletons(with_auth)
    with (
        contextlib.closing(with_auth.pop3("alice")) as client,
        contextlib.closing(with_auth.send_login("evil-say-grant-unasked")),
    ):
        with_auth.wait_log("was over before auth had its answer")
        assert leases(with_auth) == {"alice"}
        assert client.stat()[0] == 1
        client.quit()
    assert singletons(with_auth) == before


def test_a_grant_for_a_user_without_a_mailbox(with_auth):
    assert "wrong name or password" in with_auth.login_error("evil-say-grant-nobody")
    assert singletons(with_auth)


def test_grants_that_come_again(with_auth):
    """A repeated grant opens one session, and none after its end, though the client is still connected."""
    before = singletons(with_auth)
    first = with_auth.pop3(login=False)
    first.user("evil-say-grant-again")
    assert first.pass_("anything").startswith(b"+OK")  # auth alone says who a user is
    assert leases(with_auth) == {"bob"}
    assert "IN-USE" in with_auth.login_error("bob")
    assert first.stat()[0] == 1
    first.quit()
    wait_for(with_auth.serves)
    wait_for(lambda: leases(with_auth) == set())
    end = with_auth.status()["uptime"] + 4.5
    wait_for(lambda: with_auth.status()["uptime"] > end)
    assert leases(with_auth) == set() and singletons(with_auth) == before


def test_a_listener_s_lines_in_the_log_are_bounded():
    """fail2ban reads the log: lines left out are counted.

    Uses a service of its own, since failures of the last minute count towards the 500.
    """
    with sabotaged() as service:
        with contextlib.closing(said_evil(service, "event flood")):
            log = service.wait_log('2000 lines "login refused" of listener', seconds=30)
        assert log.count("login failed: ") == 500
        assert "reason=password" not in log  # only auth can say that
        wait_for(service.serves)


def test_a_user_who_kills_her_actor_repeatedly_has_a_log_quota():
    """A process with a mail user's uid may kill that user's maildir actor; each end is a line, up to a bound.

    Other users' lines are not lost.
    """
    few = "from popkernel.kernel.operator import log_quota; log_quota.MOST = 3"
    command = [sys.executable, "-c", f"{few}; from popkernel.cli.main import main; raise SystemExit(main())"]
    with Service(command=command, mail=MAIL) as service:
        for user in ["alice"] * 6 + ["bob"]:
            with contextlib.closing(service.pop3(user)):
                kill(service.actor(f"maildir.{user}")["pid"])
                wait_for(lambda: not service.running(f"maildir.{user}"))  # noqa: B023
        log = service.wait_log("3 lines of maildir.alice dropped")
        assert log.count("maildir.alice ended: signal SIGKILL") == 3
        assert log.count("maildir.bob ended: signal SIGKILL") == 1
