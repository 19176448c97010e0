"""Test the actor's tap: no cost when off, never blocking, bounded, and counting what it drops."""

import base64
import socket
from types import SimpleNamespace

import msgpack
import pytest
from popkernel.actors.mda.main import Mda
from popkernel.kernel.operator.tracing import TapEnd
from popkernel.kernel.runtime import tap as tap_room
from popkernel.kernel.runtime.actor import Boot
from popkernel.kernel.runtime.channel import codec, watch
from popkernel.kernel.runtime.loop import Loop
from popkernel.kernel.runtime.tap import ActorTap, note
from popkernel.proto import messages as m
from popkernel.proto.bus.zmtp import Reader
from popkernel.proto.trace.client_input import lmtp_commands, redacted_line
from popkernel.proto.trace.redaction import recut, shown


class FromChannel:
    peer = "auth"
    tag = None


@pytest.fixture
def tapped():
    mine, its = socket.socketpair()
    its.setblocking(False)
    tap = watch.tap = ActorTap(Loop(), mine, "listener.0", lambda channel, message: 7, payload=False)
    yield tap, its
    _readers.clear()
    tap.close()
    its.close()
    watch.tap = None


_readers = {}


def frames(its):
    """Return the frames since the last call."""
    reader, decode, found = _readers.setdefault(its, Reader(1 << 20)), codec("listener", "tap").decode, []
    try:
        while data := its.recv(1 << 20):
            found += [decode(f) for f in reader.feed(data)]
    except BlockingIOError:
        pass
    return found


def test_closed_is_off(tapped):
    tap, its = tapped
    tap.close()
    assert watch.tap is None
    note("Typed", 1, {"lines": []})
    tap("in", FromChannel(), m.LoginRefused(1, "", ""))
    assert its.recv(10) == b""


@pytest.mark.parametrize(("shown", "faults"), [(b"", []), (b"no greeting", ["no ZMTP 3 greeting"])])
def test_an_actor_that_ends_before_its_first_frame_breaks_no_rule(shown, faults):
    mine, its = socket.socketpair()
    mine.setblocking(False)
    said = []
    taps = SimpleNamespace(bad_tap=lambda process, why: said.append(why))
    end = TapEnd(Loop(), mine, SimpleNamespace(kind="listener", name="listener.1.20"), taps)
    its.sendall(shown)
    its.close()
    end.read(1 << 20)
    assert end.closed
    assert said == faults


def test_a_message_without_its_secret(tapped):
    tap, its = tapped
    tap("out", FromChannel(), m.LoginRequest(7, "alice", b"hunter2", "127.0.0.1:1", "PASS"))
    tap.flush()
    (frame,) = frames(its)
    assert msgpack.unpackb(frame.fields) == {
        "session": 7,
        "user": "alice",
        "secret": "[secret]",
        "address": "127.0.0.1:1",
        "mechanism": "PASS",
    }
    assert (frame.way, frame.peer, frame.session) == ("out", "auth", 7)


def test_an_unread_tap_drops_and_counts(tapped):
    tap, its = tapped
    for _ in range(40_000):
        tap("in", FromChannel(), m.LoginRefused(1, "AUTH", "x" * 100))
    assert len(tap._held) <= tap_room._MOST_HELD + 1000
    first = frames(its)
    tap.flush()
    first += frames(its)
    for _ in range(200):
        tap.flush()
        first += frames(its)
    tap("in", FromChannel(), m.LoginRefused(2, "", ""))
    tap.flush()
    last = frames(its)[-1]
    assert last.lost > 0
    assert len(first) + last.lost == 40_000


def test_a_kernel_that_is_gone_costs_the_actor_nothing(tapped):
    tap, its = tapped
    its.close()
    tap("in", FromChannel(), m.LoginRefused(1, "", ""))
    tap.flush()
    assert watch.tap is None


def test_content_is_cut_and_cut_again():
    mail = m.MailContent([1, 3, 3, 1], b"abc")
    assert shown(mail, payload=False)[0]["data"] == {"octets cut": 3}
    whole = shown(mail, payload=True)[0]
    assert whole["data"] == {"content": b"abc"}
    assert recut(whole)["data"] == {"octets cut": 3}
    assert recut({"said": [b"+OK", {"content": b"abc"}]}) == {"said": [b"+OK", {"octets cut": 3}]}


@pytest.mark.parametrize(
    ("line", "shows"),
    [
        (b"PASS s3cret", b"PASS [secret]"),
        (b"pass  s3cret ", b"pass [secret]"),
        (b"PASS", b"PASS"),
        (b"PASS\ts3cret", b"[unknown]"),
        (b" PASS s3cret", b"[unknown]"),
        (b"PASSs3cret", b"[unknown]"),
        (b"AUTH PLAIN czNjcmV0", b"[unknown]"),
        (b"s3cret", b"[unknown]"),
        (b"USER alice", b"USER alice"),
        (b"USER alice s3cret", b"USER [not one word]"),
        (b"USER \xff", b"USER [not one word]"),
        (b"RETR 1", b"RETR 1"),
        (b"RETR s3cret", b"RETR [no number]"),
        (b"TOP 1 2", b"TOP 1 2"),
        (b"QUIT s3cret", b"QUIT [argument]"),
        (b"\0", b"\0"),
        (b"", b"[unknown]"),
    ],
)
def test_redaction_of_client_input(line, shows):
    assert redacted_line(line) == shows


WORDS = (b"s3cret", b"p4ss word", b"\xff\xfe\xfd\xfc", b"-----", "pässwörter".encode(), b"x" * 300, b"=AUTH=")
FORMS = (
    b"%s",
    b"PASS %s",
    b"pass\t%s",
    b"AUTH PLAIN %s",
    b"AUTH LOGIN %s",
    b"AUTH %s",
    b"APOP x %s",
    b"RETR %s",
    b"TOP 1 %s",
    b"STAT %s",
    b"QUIT %s",
    b"CAPA\r%s",
    b"USER x %s",
    b"USER\t%s",
    b"XCLIENT %s",
    b"%s USER x",
    b" USER %s",
    b"LIST 1\0%s",
    b"STLS\0%s",
    b"NOOP  %s ",
)


@pytest.mark.parametrize("form", FORMS)
def test_unknown_input_is_hidden(form):
    """Deny by default, for unknown commands and their further lines too."""
    for word in WORDS:
        for secret in (
            word,
            base64.b64encode(word),
            base64.b64encode(b"\0alice\0" + word),
            word.hex().encode() + b"h",
        ):
            line = redacted_line(form % secret)
            assert secret not in line
            assert len(line) < 30


@pytest.mark.parametrize(
    ("data", "shows"),
    [
        (b"LHLO x\r\nMAIL FROM:<a>\r\n", [b"LHLO x", b"MAIL FROM:<a>"]),
        (b"RCPT TO:<a>\r\nDATA\r\n", [b"RCPT TO:<a>", b"DATA"]),
        (b"DATA\r\nDear all\r\n", None),
        (b"DATA\r\nMAIL is late\r\n", None),
        (b"QUIT", None),
        (b"AUTH PLAIN x\r\n", None),
    ],
)
def test_redaction_of_lmtp_input(data, shows):
    assert lmtp_commands(data) == shows


def test_a_lost_lmtp_client_is_shown(tapped):
    """A replay, whose clients accept everything, must know of it."""
    _, its = tapped
    config = {
        "hostname": "localhost",
        "seconds": 9,
        "most": 9,
        "each": 9,
        "trusted": [0],
        "message_octets": 1000,
    }
    mine, client = socket.socketpair()
    client.close()
    # a plain program: signals stay as they are
    mda = Mda(Boot("mda", mine, 0, 0, config, sandboxed=False, program=b""))
    mda.connected(mine, 0)
    watch.tap.flush()
    assert [(f.way, f.name, f.session) for f in frames(its)] == [
        ("in", "Connected", 1),
        ("out", "Reply", 1),
        ("in", "Gone", 1),
    ]
    assert mda.sessions() == 0
