"""Replay recordings of one user, session or actor: no differences, whatever else happened meanwhile."""

import contextlib
import os
import socket
import ssl
import struct
import threading

import pytest
from popkernel.kernel.replay import snapshots
from popkernel.kernel.replay.runner import replay
from popkernel.proto.trace.recording import read
from popkernel.proto.trace.session_names import session_number

from tests.replay.make import asks, follow, has, record, seen, stopped
from tests.support.lmtp import lmtp
from tests.support.pop3 import RawPop3, connect
from tests.support.service import Service
from tests.support.waiting import wait_for

MAIL = [b"Subject: %d\n\nWords of mail.\n" % number for number in range(3)]
SMALL = b"Subject: new\r\n\r\nDelivered.\r\n"
root = pytest.mark.root("mail content")


def serve(**site):
    return Service(
        **{"mail": MAIL, "users": ["alice", "bob"], "listeners": 1, "allow_plaintext": True, **site}
    )


@pytest.fixture(scope="module")
def service():
    with serve() as running:
        yield running


@pytest.fixture
def recorded(service, tmp_path):
    return lambda *arguments, **more: recording_of(service, tmp_path, *arguments, **more)


def recording_of(service, tmp_path, arguments, act, until):
    """Return what was recorded meanwhile; its replay must have no differences."""
    path = tmp_path / "filtered.rec"
    if arguments[0] == "--session":
        follow(service, session_number(arguments[1]), act, until, path)
    else:
        record(service, arguments, act, until, path)
    recording = read(path.read_bytes())
    results = {r.actor: r for r in replay(recording)}
    text = "\n".join(
        f"{r.actor} {d.where}: {d.title} {' '.join(d.lines)}" for r in results.values() for d in r.differences
    )
    assert not text, f"{text}\n{[(r.actor, r.notes) for r in results.values()]}"
    return recording, results


def ended(many=1):
    """Return a condition: `many` sessions were reported as over by the listener."""
    return has("ConnectionEnded", many, actor="listener.")


def reset(sock):
    """Reset the connection, rather than end one direction."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def names(recording):
    return [f.name for f in recording.frames]


def session_fails(service, user):
    with RawPop3(service, "", timeout=20) as raw:
        raw.ask(b"USER " + user.encode())
        raw.ask(b"PASS wrong")


def whole_session(service, user="alice"):
    pop = service.pop3(user)
    pop.stat(), pop.retr(1), pop.uidl(), pop.quit()


def test_a_session_after_anothers_that_failed(service, recorded):
    """Reports travel together, and the other session's report starts their delay."""

    def act():
        session_fails(service, "bob")
        whole_session(service)

    recording, results = recorded(("--user", "alice", "--with-maildir"), act, ended())
    assert results["listener.0"].compared > 6
    assert "bob" not in str(recording.frames)


def test_sessions_among_those_of_others(service, recorded):
    def act():
        others = [threading.Thread(target=session_fails, args=(service, "bob")) for _ in range(10)]
        for other in others:
            other.start()
        for _ in range(3):
            whole_session(service)
        for other in others:
            other.join()

    recorded(("--user", "alice", "--with-maildir"), act, ended(3))


def test_a_login_that_waits_for_its_turn_behind_anothers(tmp_path):
    with serve(max_logins=1) as service:

        def act():
            with stopped(service, "auth"):
                asks(service, "bob", "")
                seen(service, "")
                alice = asks(service, "alice", "")
                seen(service, "")
            alice.line()
            alice.ask(b"QUIT")

        recording, results = recording_of(service, tmp_path, ("--user", "alice"), act, ended())
        assert names(recording).count("Queued") == names(recording).count("Turn") == 1
        assert results["listener.0"].compared > 5


def test_a_login_that_another_left_no_room_for(tmp_path):
    """They are of the same user: the recording has the second session alone."""
    with serve(max_logins_user=1) as service:

        def act():
            with stopped(service, "auth"):
                asks(service, "alice", "")
                seen(service, "")
                second = asks(service, "alice", "")
                assert b"too many logins" in second.line()
                second.ask(b"QUIT")

        recording, results = recording_of(service, tmp_path, ("--session", "1.4"), act, ended())
        assert [f.fields["refused"] for f in recording.frames if f.name == "Queued"] == [
            "too many logins of this user from your address at once, try again",
        ]
        assert results["listener.0"].compared >= 5


def test_a_client_that_goes_while_its_login_waits_for_anothers(tmp_path):
    with serve(max_logins=1) as service:

        def act():
            with stopped(service, "auth"):
                asks(service, "bob", "")
                seen(service, "")
                second = asks(service, "alice", "")
                seen(service, "")
                reset(second.sock)
                seen(service, "")

        recording, _ = recording_of(service, tmp_path, ("--session", "1.4"), act, ended())
        assert "Queued" in names(recording)
        assert "LoginRequest" not in names(recording)


@pytest.mark.parametrize("lines", [b"CAPA\r\n", b"QUIT\r\n"], ids=["asks", "quits"])
def test_a_client_that_is_gone_when_it_is_answered(service, recorded, lines):
    """Octets that were not sent to it are not counted."""

    def act():
        sock = connect(service.plain)
        sock.recv(100)
        with stopped(service, "listener.0"):
            sock.sendall(lines)
            reset(sock)

    recorded(("listener.0",), act, ended())


@root
def test_answers_of_two_mailboxes_that_come_in_one_turn(service, recorded):
    """The client gets them at once."""
    folders = [service.site.mail_users[user].maildir + "/new" for user in ("alice", "bob")]
    before = [len(os.listdir(folder)) for folder in folders]
    mda = lmtp(service)
    mda.sendmail("sender@example.org", ["alice"], SMALL)
    mda.sendmail("sender@example.org", ["bob"], SMALL)

    def delivered():
        return [len(os.listdir(folder)) for folder in folders]

    wait_for(lambda: delivered() == [b + 1 for b in before])

    def act():
        with contextlib.ExitStack() as until_both_have_answered:
            with stopped(service, "maildir.alice", "maildir.bob"):
                mda.mail("sender@example.org"), mda.rcpt("alice"), mda.rcpt("bob"), mda.docmd("DATA")
                mda.send(SMALL + b".\r\n")
                other = lmtp(service)
                other.ehlo(), other.quit()  # earlier commands have been passed on by now
                until_both_have_answered.enter_context(stopped(service, "mda"))
            wait_for(lambda: delivered() == [b + 2 for b in before])
            for user in ("alice", "bob"):
                whole_session(service, user)  # an actor that serves it has sent its answer to the mda
        assert [mda.getreply()[0] for _ in range(2)] == [250, 250]
        mda.quit()

    recording, _ = recorded(
        ("mda", "--payload"),
        act,
        lambda recording: has("DeliveryAccepted", 2)(recording) and has("Reply", 6)(recording),
    )
    assert [b"250 2.0.0 safe\r\n" * 2] in [f.fields["said"] for f in recording.frames if f.name == "Reply"]


@root
def test_a_recipient_that_the_mda_knows_of_a_connection_before_the_recording(service, recorded):
    def deliver():
        mda = lmtp(service)
        mda.sendmail("sender@example.org", ["alice", "alice+list"], SMALL)
        mda.quit()

    deliver()
    recording, results = recorded(
        ("--user", "alice", "--with-maildir", "--payload"), deliver, has("DeliveryAccepted", 2)
    )
    assert names(recording).count("Known") == 2
    assert results["mda"].compared >= 5


def test_a_viewer_of_one_user_sees_no_other(service, recorded):
    """Neither by the frames with which actors begin."""
    whole_session(service, "bob")
    mda = lmtp(service)
    mda.sendmail("sender@example.org", ["bob"], SMALL)
    open_ = service.pop3("bob")

    def act():
        whole_session(service)
        open_.stat(), open_.quit()

    recording, _ = recorded(("--user", "alice", "--with-maildir"), act, ended())
    assert "bob" not in str(recording.frames)
    recording, _ = recorded(("--session", next_session(service)), lambda: whole_session(service), ended())
    assert "bob" not in str(recording.frames)


def next_session(service):
    """Return the name of the next session; status shows that of a logged-in one."""
    pop = service.pop3("bob")
    name = next(s["session"] for s in service.status()["sessions"] if s["user"] == "bob")
    pop.quit()
    listener, _, count = name.partition(".")
    return f"{listener}.{int(count) + 1}"


@root
def test_a_session_before_which_another_of_the_same_user_was_open(service, tmp_path):
    """The end of the earlier session is not recorded.

    With the user's mail given, the maildir actor is replayed all the same.
    """
    path = tmp_path / "session.rec"
    listener, _, count = next_session(service).partition(".")
    open_ = service.pop3()
    session = session_number(f"{listener}.{int(count) + 1}")

    def act():
        open_.stat(), open_.quit()
        whole_session(service)

    over, left = has("ConnectionEnded"), has("QuitDone", actor="maildir.alice", way="out")
    # the maildir actor's last frame may come later than the listener's
    follow(service, session, act, lambda recording: over(recording) and left(recording), path)
    mail = tmp_path / "mail"
    snapshots.put(snapshots.take(os.fsencode(service.site.mail_users["alice"].maildir)), str(mail))
    (result,) = replay(read(path.read_bytes()), actor="maildir.alice", maildir=str(mail))
    assert result.compared > 4
    assert not result.differences, result.differences


def test_a_client_that_was_silent_at_its_gate(tmp_path):
    """The gate passes on how much of its time to log in is left."""
    with serve(isolation="connection", login_seconds=3, lmtp=False) as service:

        def act():
            with connect(service.tls) as silent:
                silent.settimeout(0.5)
                with pytest.raises(TimeoutError):
                    silent.recv(1)
                silent.settimeout(20)
                context = ssl.create_default_context(cafile=service.site.cert)
                context.check_hostname = False
                with context.wrap_socket(silent) as client:
                    while client.recv(100):
                        pass

        recording_of(service, tmp_path, ("listener",), act, ended())
