"""Trace faults, attacked from inside: refused messages, broken promises, ends, restarts, leases."""

import pytest
from popkernel.proto.trace.recording import read

from tests.support.processes import kill
from tests.support.saboteur.service import Sabotaged, needs_sandbox
from tests.support.tracing.trace_command import Trace, frames_of, session, watcher
from tests.support.waiting import wait_for

pytestmark = needs_sandbox
MAIL = (b"a: b\n\nc\n",)
PLAN = {
    "garbage": {
        "maildir.garbles": "kernel wrong type",
        "maildir.babbles": "other unknown code",
        "maildir.lies": "say hello twice",
    },
    "deadly": {"maildir.forks": ["fork"], "maildir.silent": ["ptrace, its signals blocked"]},
}
TAPS = ("deep", "no map", "note", "others")
PLAN["garbage"] |= {f"maildir.tap-{what.replace(' ', '-')}": f"say tap {what}" for what in TAPS}


@pytest.fixture(scope="module")
def hostile():
    users = dict.fromkeys(
        (
            "garbles",
            "babbles",
            "lies",
            "forks",
            "silent",
            "bob",
            *(f"tap-{what.replace(' ', '-')}" for what in TAPS),
        ),
        "secret",
    )
    with Sabotaged(PLAN, users=users, mail=MAIL) as service:
        yield service


@pytest.mark.parametrize(
    ("user", "says"),
    [
        ("garbles", "• kernel refused what maildir.garbles said: Hello.pid: "),
        ("babbles", "• listener.0 refused what maildir.babbles said: "),
        ("lies", "• kernel refused what maildir.lies said: hello, again"),
    ],
)
def test_a_refused_message_is_shown_with_its_reason(hostile, user, says):
    trace = Trace(hostile, "--user", user)
    client = hostile.pop3(user)
    trace.until(f"maildir.{user} ended: ")
    told = trace.until(f"{user}'s maildrop: lease of session")
    client.close()
    trace.stop()
    assert f"{user}'s maildrop: lease given to session" in told
    reason = next(line for line in told.splitlines() if says in line).partition(says)[2]
    assert reason or says.endswith("again")


@pytest.mark.parametrize("what", TAPS)
def test_an_actor_with_impossible_frames_is_ended_alone(hostile, what):
    user = f"tap-{what.replace(' ', '-')}"
    kernel = next(a["pid"] for a in hostile.status()["actors"] if a["name"] == "kernel")
    trace = Trace(hostile)
    client = hostile.pop3(user)
    trace.until(f"• kernel refused what maildir.{user} said: TraceFrame")
    told = trace.until(f"{user}'s maildrop: lease of session")
    client.close()
    trace.stop()
    assert "forged" not in told
    assert hostile.serves("bob")
    assert next(a["pid"] for a in hostile.status()["actors"] if a["name"] == "kernel") == kernel


def test_a_broken_promise_is_shown_with_the_call(hostile, tmp_path):
    recording = tmp_path / "broken.rec"
    trace = Trace(hostile, "maildir.forks", "--record", str(recording))
    assert "SYS/TEMP" in hostile.login_error("forks")
    told = trace.until("maildir.forks ended: ")
    trace.stop()
    assert "• maildir.forks broke its promises: " in told
    assert "would need proc" in told
    notes = {f.name: f.fields for f in read(recording.read_bytes()).frames if f.way == "note"}
    assert notes["Broke"]["promise"] == "proc"
    assert "signal SIGSYS" in notes["Ended"]["how"] or "broken promise" in notes["Ended"]["how"]


def test_an_end_by_sigsys_is_a_broken_promise_without_a_report(hostile, tmp_path):
    """glibc 2.41 blocks every signal around clone, so that a fork in the sandbox ends without a report."""
    before, recording = hostile.status()["broken_promises"], tmp_path / "silent.rec"
    trace = Trace(hostile, "maildir.silent", "--record", str(recording))
    assert "SYS/TEMP" in hostile.login_error("silent")
    told = trace.until("maildir.silent ended: ")
    trace.stop()
    assert "• maildir.silent broke its promises: call unknown: its signals were blocked\n" in told
    notes = {f.name: f.fields for f in read(recording.read_bytes()).frames if f.way == "note"}
    assert notes["Broke"]["call"] == "call unknown: its signals were blocked"
    assert notes["Ended"]["how"] == "signal SIGSYS (a broken promise)"
    hostile.wait_log(
        "error: maildir.silent broke its promises: call unknown: its signals were blocked; ended"
    )
    assert hostile.status()["broken_promises"] == before + 1
    assert hostile.serves("silent")


def test_in_json_and_as_a_diagram_too(hostile):
    """The user's second actor behaves: kill it, and see its end and its lease's."""
    json_, diagram = (
        Trace(hostile, "--user", "bob", "--format", "json"),
        Trace(hostile, "--user", "bob", "--format", "mermaid"),
    )
    client = hostile.pop3("bob")
    kill(hostile.actor("maildir.bob")["pid"])
    assert '"name": "LeaseOver"' in json_.until("LeaseOver")
    assert "Note over maildir_bob: maildir.bob ended: signal SIGKILL" in diagram.until("lease of session")
    client.close()
    json_.stop(), diagram.stop()


def test_restarts_leases_and_a_new_auth_are_shown(hostile):
    trace = Trace(hostile, "--format", "pretty")
    session(hostile, "bob")
    kill(hostile.actor("auth")["pid"])
    told = trace.until("• auth serves")
    assert "• auth ended: signal SIGKILL" in told
    assert "• auth starts again in 0.0 s" in told
    session(hostile, "bob")
    trace.until("bob's maildrop: lease of session", 2)  # the client hears of its QUIT before the viewer does
    told = trace.stop()
    assert told.count("bob's maildrop: lease given") == told.count("bob's maildrop: lease of session") == 2
    assert told.count("auth → kernel              LoginGranted") == 2


def test_an_actor_that_goes_away_while_it_is_watched(hostile):
    """The viewer stays, and sees the end and the next actor."""
    pop = hostile.pop3("bob")
    trace = Trace(hostile, "maildir.bob")
    kill(hostile.actor("maildir.bob")["pid"])
    trace.until("maildir.bob ended: signal SIGKILL")
    pop.close()
    wait_for(lambda: hostile.serves("bob"))
    told = trace.until("SessionClosed")
    trace.stop()
    assert told.index("ended: signal SIGKILL") < told.index("maildir.bob serves")


def test_a_listener_that_dies_with_its_sessions(hostile):
    with watcher(hostile) as viewer:
        pop = hostile.pop3("bob")
        kill(hostile.actor("listener")["pid"])
        found = frames_of(viewer, lambda f: f.name == "Began" and f.peer == "listener.0")
        pop.close()
    notes = [(f.name, f.peer) for f in found if f.way == "note"]
    assert (
        notes.index(("Lease", "maildir.bob"))
        < notes.index(("Ended", "listener.0"))
        < notes.index(("Restart", "listener.0"))
    )
    wait_for(lambda: hostile.serves("bob"))
