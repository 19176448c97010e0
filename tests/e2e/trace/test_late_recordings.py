"""Start recordings late: what began before is replayed, or left out with a note, but is no difference."""

import contextlib
import os

import pytest
from popkernel.kernel.replay.runner import replay
from popkernel.proto.trace.recording import read

from tests.replay.make import has, record
from tests.support.lmtp import Lmtp, socket_path
from tests.support.service import Service
from tests.support.waiting import wait_for

MAIL = [b"Subject: %d\n\nWords of mail.\n" % number for number in range(3)]
SMALL = b"Subject: new\r\n\r\nDelivered.\r\n" + b"line\r\n" * 20
LARGE = b"Subject: large\r\n\r\n" + b"a line of mail, of which there are many\r\n" * 10000
ALICE = ("--user", "alice", "--with-maildir")
WHOLE = pytest.param((*ALICE, "--payload"), id="payload", marks=pytest.mark.root("mail content"))
CUT = pytest.param(ALICE, id="cut")


@pytest.fixture
def service():
    with Service(mail=MAIL, users=["alice", "bob"]) as running:
        yield running


@pytest.fixture
def lmtp(service):
    """Provide connections to the service's mda, closed at the end."""
    with contextlib.ExitStack() as stack:

        def connect():
            mda = Lmtp(socket_path(service))
            stack.callback(mda.close)
            mda.ehlo()
            return mda

        yield connect


def deliver(service, user="alice", mail=SMALL):
    mda = Lmtp(socket_path(service))
    try:
        mda.sendmail("sender@example.org", [user], mail)
        mda.quit()
    finally:
        mda.close()


def compared(results, name="maildir.alice"):
    return results[name].compared


def session(service, user="alice"):
    pop = service.pop3(user)
    pop.stat(), pop.uidl(), pop.list(), pop.retr(1), pop.quit()


def ended(many=1):
    """Return a condition: `many` sessions are over, as the kernel records it."""
    return has("ConnectionEnded", many, actor="kernel", way="in")


def left(many):
    """Return a condition: alice's actor too has sent its frames, which come later than the kernel's."""
    closed = has("QuitDone", many, actor="maildir.alice", way="out")
    return lambda recording: ended(many)(recording) and closed(recording)


def accepted(recording, many=1):
    return (
        sum(f.name == "DeliveryAccepted" and f.fields["safe"] for f in recording.frames if f.way == "out")
        >= many
    )


class Begun:
    """Record from now on, until `until` is satisfied; the replay must have no differences."""

    def __init__(self, service, tmp_path, arguments):
        self.service, self.path, self.arguments = service, tmp_path / "late.rec", arguments

    def __call__(self, act, until=left(1)):
        record(self.service, self.arguments, act, until, self.path)
        self.recording = read(self.path.read_bytes())
        results = {r.actor: r for r in replay(self.recording)}
        text = "\n".join(
            f"{r.actor} {d.where}: {d.title} {' '.join(d.lines)}"
            for r in results.values()
            for d in r.differences
        )
        assert not text, f"{text}\n{[(r.actor, r.notes) for r in results.values()]}"
        return results


@pytest.fixture
def begun(service, tmp_path):
    return lambda *arguments: Begun(service, tmp_path, arguments)


@pytest.mark.parametrize("arguments", [WHOLE, CUT])
def test_a_delivery_to_an_actor_that_is_there(service, begun, arguments):
    """Its channel from the mda is older than the recording."""
    deliver(service)

    def act():
        deliver(service)
        deliver(service, mail=LARGE)
        session(service)
        session(service)

    results = begun(*arguments)(act, left(2))
    assert compared(results) > (10 if "--payload" in arguments else 7)
    assert compared(results, "listener.0") > 10
    assert ("--payload" in arguments) == (not results["maildir.alice"].notes)


@pytest.mark.parametrize("arguments", [WHOLE, CUT])
def test_an_actor_that_has_served_and_delivered(service, begun, arguments):
    session(service)
    deliver(service)
    session(service)

    def act():
        session(service)
        deliver(service)
        deliver(service)
        session(service)

    assert compared(begun(*arguments)(act, left(2))) > (10 if "--payload" in arguments else 7)


@pytest.mark.parametrize("arguments", [WHOLE, CUT])
def test_deliveries_for_others_between(service, begun, arguments):
    """The mda counts all deliveries; one user's recording shows that user's."""

    def act():
        deliver(service, "bob")
        deliver(service, "alice")
        for _ in range(3):
            deliver(service, "bob")
        deliver(service, "alice")
        session(service)

    results = begun(*arguments)(act)
    assert compared(results) >= (7 if "--payload" in arguments else 2)
    assert ("--payload" in arguments) == (compared(results, "mda") > 10)


@pytest.mark.parametrize("arguments", [WHOLE, CUT])
def test_a_session_that_is_open(service, begun, arguments):
    pop = service.pop3()
    pop.retr(1), pop.dele(2)

    def act():
        pop.stat(), pop.dele(3), pop.retr(1), pop.list(), pop.quit()
        deliver(service)
        session(service)

    results = begun(*arguments)(act, left(2))
    assert results["listener.0"].notes
    assert results["maildir.alice"].compared > 5


@pytest.mark.parametrize("arguments", [WHOLE, CUT])
def test_a_session_that_is_parked(tmp_path, arguments):
    with Service(mail=MAIL, users=["alice", "bob"], park_seconds=1, warm_seconds=1) as service:
        pop = service.pop3()
        pop.dele(2)
        wait_for(lambda: service.actor("maildir.alice") is None)

        def act():
            pop.stat(), pop.retr(1), pop.quit()
            session(service)

        results = Begun(service, tmp_path, arguments)(act, left(2))
        assert results["maildir.alice"].compared > 5


@pytest.mark.parametrize("arguments", [WHOLE, CUT])
def test_a_session_that_will_be_parked(tmp_path, arguments):
    with Service(mail=MAIL, users=["alice", "bob"], park_seconds=2, warm_seconds=1) as service:
        pop = service.pop3()
        pop.dele(2)

        def act():
            wait_for(lambda: service.actor("maildir.alice") is None)
            pop.stat(), pop.retr(1), pop.quit()

        assert Begun(service, tmp_path, arguments)(act)["maildir.alice"].compared > 1


@pytest.mark.parametrize("mail", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("arguments", [WHOLE, CUT])
def test_a_delivery_that_is_half_way(service, begun, lmtp, arguments, mail):
    half = lmtp()
    half.mail("sender@example.org"), half.rcpt("alice"), half.docmd("DATA")
    half.send(mail[: len(mail) // 2])
    if mail is LARGE:
        folder = os.path.join(service.site.mail_users["alice"].maildir, "tmp")
        wait_for(lambda: [f for f in os.listdir(folder) if os.stat(f"{folder}/{f}").st_size > 100000])

    def act():
        half.send(mail[len(mail) // 2 :] + b".\r\n")
        assert half.getreply()[0] == 250
        deliver(service)
        half.sendmail("sender@example.org", ["alice"], SMALL)
        session(service)
        half.quit()

    assert begun(*arguments)(act)["maildir.alice"].compared > 2


@pytest.mark.parametrize("arguments", [WHOLE, CUT])
def test_an_lmtp_connection_that_is_open(service, begun, lmtp, arguments):
    used, fresh = lmtp(), lmtp()
    used.sendmail("sender@example.org", ["alice"], SMALL)

    def act():
        used.sendmail("sender@example.org", ["alice"], SMALL)
        fresh.sendmail("sender@example.org", ["bob", "alice"], SMALL)
        deliver(service)
        used.quit(), fresh.quit()
        session(service)

    results = begun(*arguments)(act)
    assert compared(results) >= (7 if "--payload" in arguments else 3)
    assert ("--payload" in arguments) == (compared(results, "mda") > 10)


def test_an_answer_that_is_under_way(tmp_path):
    """What a session still owes is unknown; after it has removed mail, later listings are unknown too."""
    with Service(
        mail=[b"Subject: large\n\n" + (b"x" * 70 + b"\n") * 120_000, *MAIL], users=["alice"]
    ) as service:
        pop = service.pop3()
        pop._putcmd("RETR 1")
        pop.file.readline()

        def act():
            while pop.file.readline() != b".\r\n":
                pass
            pop.dele(2), pop.quit()
            deliver(service)
            session(service)

        results = Begun(service, tmp_path, ALICE)(act, left(2))
        assert "2 sessions had begun" in results["maildir.alice"].notes[-1]
        assert compared(results) >= 1


def test_two_recordings_at_a_time(service, tmp_path):
    """The second gets the state at its own start, and the first does not get it again."""
    first, second = tmp_path / "first.rec", tmp_path / "second.rec"

    def inner():
        deliver(service)
        session(service)

    def outer():
        session(service)
        deliver(service)
        record(service, ALICE, inner, ended(), second)

    record(service, ALICE, outer, ended(2), first)
    for path in (first, second):
        recording = read(path.read_bytes())
        assert [f.actor for f in recording.frames if f.name == "Settings"].count("listener.0") == 1
        assert not [(r.actor, d.title, d.lines) for r in replay(recording) for d in r.differences]


def test_a_reload_and_a_login_begun_before(service, begun):
    """The old listener lives on for a session that is not replayed."""
    open_, asking = service.pop3("alice"), service.pop3(login=False)
    asking.user("bob")

    def act():
        later = service.pop3("bob")
        service.change_files()
        service.command("reload")
        later.stat(), later.quit()
        service.status()
        asking.pass_("secret"), asking.quit()
        open_.retr(1), open_.quit()
        service.status()

    results = begun()(act, ended(3))
    assert compared(results, "listener.0") > 5


def test_late_recording_of_everything(service, begun, lmtp):
    """Without filters the kernel's decisions are replayed too."""
    session(service, "bob")
    deliver(service, "bob")
    open_, mda = service.pop3("alice"), lmtp()
    mda.sendmail("sender@example.org", ["alice"], SMALL)
    asking = service.pop3(login=False)
    asking.user("bob")

    def act():
        asking.pass_("secret"), asking.stat(), asking.quit()
        mda.sendmail("sender@example.org", ["alice", "bob"], SMALL)
        open_.retr(1), open_.quit()
        session(service, "bob")
        mda.quit()

    results = begun()(act, ended(3))
    assert results["kernel"].compared > 5
    assert results["listener.0"].compared > 5
