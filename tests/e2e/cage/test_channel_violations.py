"""Break the rules of channels: the offender is ended, logged and counted; other sessions go on."""

import contextlib
import os
import poplib

import pytest
from popkernel.kernel.operator.log_quota import MOST

from tests.support.saboteur.garbage import KINDS, SAYINGS
from tests.support.saboteur.service import Sabotaged, needs_sandbox
from tests.support.waiting import wait_for

pytestmark = needs_sandbox
MAIL = (b"a: b\n\nc\n",)
# Whole messages that the actor may send, but that are untrue: those of the first group end it.
LIES = (
    "hello twice",
    "fds",
    "broke",
    "log lines",
    "log nested",
    "log others",
    "log level",
    "log fields",
    "log less",
)
HARMLESS = ("log", "accuse auth", "accuse spawner", "accuse bob", "accuse listener", "accuse kernel")
LINES = [("log", ": line "), ("accuse", " refused a message on x: a lie")]
PARKED = ("parked another", "parked a file", "parked a channel")


def user_of(plan):
    return plan.replace(" ", "-")


def row(service, name):
    return next((a for a in service.status()["actors"] if a["name"] == name), None)


@pytest.fixture(scope="module")
def hostile():
    """Run a service with one user for each misbehaviour, which comes 50 ms after the user's session opens."""
    plans = (
        [f"kernel {kind}" for kind in KINDS]
        + [f"other {kind}" for kind in KINDS]
        + [f"say {what}" for what in SAYINGS]
    )
    users = {user_of(plan): "secret" for plan in plans} | {"bob": "secret"}
    with Sabotaged(
        {"garbage": {f"maildir.{user_of(plan)}": plan for plan in plans}}, users=users, mail=MAIL
    ) as service:
        service.pids_before = {a["name"]: a["pid"] for a in service.status()["actors"]}
        yield service


@pytest.fixture
def bob(hostile):
    """Provide a session that is open before and must work afterwards."""
    client = hostile.pop3("bob")
    yield client
    assert client.stat()[0] == 1
    assert client.retr(1)[1] == [b"a: b", b"", b"c"]
    client.quit()
    assert {
        a["name"]: a["pid"] for a in hostile.status()["actors"] if not a["name"].startswith("maildir")
    } == hostile.pids_before


def cut_off(client):
    """Wait for the session's end as its client sees it."""
    try:
        with pytest.raises(Exception, match=r"SYS/TEMP|EOF"):
            for _ in range(1000):
                client.list()
                client.stat()
    finally:
        client.close()


@pytest.mark.parametrize("kind", KINDS)
def test_garbage_from_a_maildir_actor_to_the_kernel(hostile, bob, kind):
    user, before = user_of(f"kernel {kind}"), hostile.status()["refused_messages"]
    client = hostile.pop3(user)
    log = hostile.wait_log(f"maildir.{user} broke the rules on its channel to the kernel")
    assert log.count(f"maildir.{user} broke the rules") == 1
    hostile.wait_log(f"maildir.{user} ended")
    cut_off(client)
    assert hostile.status()["refused_messages"] == before + 1
    assert hostile.serves(user)


@pytest.mark.parametrize("kind", KINDS)
def test_garbage_from_a_maildir_actor_to_the_listener(hostile, bob, kind):
    user, before = user_of(f"other {kind}"), hostile.status()["refused_messages"]
    client = hostile.pop3(user)
    hostile.wait_log(f"listener.0 refused a message on maildir.{user}>listener.0")
    hostile.wait_log(f"maildir.{user} ended")
    cut_off(client)
    assert hostile.status()["refused_messages"] == before + 1
    assert hostile.serves(user)


@pytest.mark.parametrize("what", LIES)
def test_a_lie_of_a_maildir_actor_to_the_kernel_ends_it(hostile, bob, what):
    user = user_of(f"say {what}")
    client = hostile.pop3(user)
    hostile.wait_log(f"maildir.{user} ended")
    cut_off(client)
    assert hostile.serves(user)
    log = hostile.read_log()
    assert "\n1970-01-01" not in log
    assert not what.startswith("log ") or f"maildir.{user}: " not in log


@pytest.mark.parametrize("what", HARMLESS)
def test_a_lie_of_a_maildir_actor_about_others_changes_nothing(hostile, bob, what):
    user = user_of(f"say {what}")
    client = hostile.pop3(user)
    log = hostile.wait_log("forged" if what == "log" else f"maildir.{user} refused a message on x: a lie")
    assert client.stat()[0] == 1
    client.quit()
    lines = [
        line.partition("popkernel: ")[2]
        for line in log.splitlines()
        if "forged" in line and "1970" not in line
    ]
    assert all(line.startswith(("warning: maildir.say-log: ", "error: maildir.say-broke ")) for line in lines)


@pytest.mark.parametrize(("what", "line"), LINES)
def test_more_lines_than_the_log_takes_are_cut_and_cost_nothing_else(hostile, bob, what, line):
    """Accusations count once for each user: see test_three_users_actors_end_a_listener."""
    user = f"say-{what}-much"
    client = hostile.pop3(user)
    hostile.wait_log(f"maildir.{user}{line}", count=MOST)
    assert client.stat()[0] == 1
    client.quit()
    # Its lease ends with its last message: the kernel has read all earlier ones.
    wait_for(
        lambda: hostile.status(),
        until=lambda status: user not in {lease["user"] for lease in status["leases"]},
    )
    assert hostile.read_log().count(f"maildir.{user}{line}") == MOST
    assert f"maildir.{user} broke the rules" not in hostile.read_log()


@pytest.mark.parametrize(("what", "line"), LINES)
def test_a_flood_of_log_lines_ends_its_sender(hostile, bob, what, line):
    """Its own session is told so and ends, and its user can log in again."""
    user = f"say-{what}-flood"
    client = hostile.pop3(user)
    hostile.wait_log(
        f"maildir.{user} broke the rules on its channel to the kernel: messages without end; ended"
    )
    hostile.wait_log(f"maildir.{user} ended")
    cut_off(client)
    assert hostile.read_log().count(f"maildir.{user} broke the rules") == 1
    assert hostile.read_log().count(f"maildir.{user}{line}") == MOST
    assert hostile.serves(user)


def test_a_report_about_others_sessions_changes_nothing(hostile, bob):
    client = hostile.pop3("say-closed-another")
    wait_for(lambda: row(hostile, "maildir.say-closed-another"))
    assert client.stat()[0] == 1
    assert {lease["user"] for lease in hostile.status()["leases"]} >= {"bob", "say-closed-another"}
    client.quit()


@pytest.mark.parametrize("what", PARKED)
def test_a_false_parked_session_harms_its_user_alone(hostile, bob, what):
    user = user_of(f"say {what}")
    client = hostile.pop3(user)
    if what == "parked another":
        wait_for(lambda: row(hostile, f"maildir.{user}"))
    else:
        # Also 50 ms after it was opened; tests/unit/test_parking.py tests a file instead of a channel.
        hostile.wait_log(f"maildir.{user} broke the rules on its channel to the kernel: a session parked")
    try:
        client.stat()
        client.quit()
    except (OSError, poplib.error_proto):  # it is the user's own session
        client.close()
    wait_for(lambda: hostile.serves(user))


@pytest.mark.parametrize("what", ["moved another", "moved a file", "moved a channel"])
def test_a_false_moved_session_harms_its_user_alone(hostile, bob, what):
    """The kernel believes that the actor is leaving, and ends it if it stays."""
    user = user_of(f"say {what}")
    client = hostile.pop3(user)
    with contextlib.suppress(OSError, poplib.error_proto, EOFError):  # it is the user's own session
        client.stat()
        client.quit()
    client.close()
    wait_for(lambda: hostile.serves(user))


def test_a_session_that_is_parked_again_and_again_ends_its_actor(hostile, bob):
    """An unread command of the client would wake it each time: half a core for kernel and actor."""
    client = hostile.pop3("say-park-again")
    hostile.wait_log(
        "maildir.say-park-again broke the rules on its channel to the kernel: a session parked that "
        "was not silent for so long"
    )
    cut_off(client)
    hostile.wait_log("maildir.say-park-again ended")
    assert "say-park-again" not in {lease["user"] for lease in hostile.status()["leases"]}
    wait_for(lambda: hostile.serves("say-park-again"))


def test_three_users_actors_end_a_listener_that_speaks_garbage_to_them():
    """One or two alone do not: a user's process must not be able to end everyone's listener."""
    plan = {"garbage": {"listener": "armed"}}
    with Sabotaged(plan, users=("one", "two", "three", "bob"), mail=MAIL) as service:
        pid = row(service, "listener.0")["pid"]
        for count, user in enumerate(("one", "two", "three"), 1):
            client = service.pop3(user)
            evil = service.send_login(f"evil-maildir.{user}-unknown-code")
            service.wait_log("refused a message on listener>maildir", count=count)
            evil.close()
            client.close()
        wait_for(lambda: (row(service, "listener.0") or {}).get("pid") not in (pid, 0, None))
        wait_for(service.serves)


@pytest.fixture(scope="module")
def listeners():
    """Run two listeners; the one that takes the login of "evil-..." misbehaves."""
    users = [f"user{n}" for n in range(30)] + ["bob"]
    with Sabotaged(
        {"garbage": {"listener": "armed"}},
        users=users,
        mail=MAIL,
        listeners=2,
        restart_intensity=1000,
        restart_seconds=1,
    ) as service:
        yield service


def sessions_on_both(service):
    """Open sessions until each listener has one; return {listener: client}.

    The system decides which listener takes a connection.
    """
    found, spare = {}, []
    for user in service.site.passwords:
        client = service.pop3(user)
        listener = wait_for(
            lambda user=user: next(
                (s["listener"] for s in service.status()["sessions"] if s["user"] == user), None
            )
        )
        if listener in found:
            spare.append(client)
        else:
            found[listener] = client
        if len(found) == 2:
            break
    for client in spare:
        client.quit()
    if len(found) < 2:
        for client in found.values():
            client.quit()
        pytest.skip("one listener took every connection")
    return found


@pytest.mark.parametrize("where", ["kernel", "other"])
@pytest.mark.parametrize("kind", ["octets", "unknown code", "too deep", "multipart"])
def test_garbage_from_a_listener(listeners, where, kind):
    clients = sessions_on_both(listeners)
    before = {a["name"]: a["pid"] for a in listeners.status()["actors"]}
    count = listeners.status()["refused_messages"]
    assert "EOF" in listeners.login_error(f"evil-{where}-{kind.replace(' ', '-')}")
    wait_for(lambda: listeners.status()["refused_messages"] == count + 1)
    after = wait_for(
        lambda: {
            a["name"]: a["pid"] for a in listeners.status()["actors"] if a["state"] in ("serving", "running")
        },
        until=lambda now: {"listener.0", "listener.1"} <= set(now) and now != before,
    )
    evil = next(name for name in ("listener.0", "listener.1") if after[name] != before[name])
    assert [name for name in before if not name.startswith("maildir") and after[name] != before[name]] == [
        evil
    ]
    said = (
        "broke the rules on its channel to the kernel"
        if where == "kernel"
        else "refused a message on listener"
    )
    assert said in listeners.read_log()
    for listener, client in clients.items():
        if listener != evil:
            assert client.stat()[0] == 1
            client.quit()
        client.close()
    wait_for(listeners.serves)


@pytest.mark.parametrize("where", ["kernel", "other"])
def test_garbage_from_auth(where):
    with Sabotaged({"garbage": {"auth": "armed"}}, mail=MAIL) as service:
        client = service.pop3("alice")
        before = {a["name"]: a["pid"] for a in service.status()["actors"]}
        # the next auth is asked too, a third one is not
        assert "SYS/TEMP" in service.login_error(f"evil-{where}-unknown-code")
        service.wait_log("auth ended", count=2)
        assert client.stat()[0] == 1
        client.quit()
        wait_for(service.serves)
        after = {
            a["name"]: a["pid"] for a in service.status()["actors"] if not a["name"].startswith("maildir")
        }
        assert [name for name in after if after[name] != before[name]] == ["auth"]
        assert service.status()["refused_messages"] == service.read_log().count("auth ended") == 2


def test_garbage_from_the_spawner_to_the_kernel():
    with Sabotaged({"garbage": {"spawner": "kernel wrong type"}}, mail=MAIL) as service:
        assert "SYS/TEMP" in service.login_error("alice")
        service.wait_log("spawner broke the rules on its channel to the kernel")
        service.wait_log("spawner ended")
        assert row(service, "auth")["restarts"] == 0


def test_garbage_from_init_ends_the_service_and_leaves_nothing():
    with Sabotaged({"garbage": {"init": "unknown code"}}, mail=MAIL, expect_ready=False) as service:
        log = service.wait_log("the kernel is gone")  # possibly before mailboxes were checked
        assert service.process.wait(10) == os.EX_SOFTWARE and "ready: " in log
