"""Test channels over real socket pairs: messages, descriptors, back-pressure, hand-over and endings."""

import contextlib
import errno
import os
import resource
import selectors
import socket
import sys

import msgpack
import pytest
from popkernel.kernel.runtime import channel as channels
from popkernel.kernel.runtime.channel import Channel, adopt, pair
from popkernel.kernel.runtime.loop import Loop, SelectorPoller
from popkernel.proto import messages as m
from popkernel.proto.bus.zmtp import PREFACE, frame_head
from popkernel.proto.schema import UnsendableError
from popkernel.proto.topology import edge


class End:
    """Hold a channel, the messages received on it, and why it ended."""

    def __init__(self, loop, sock, me, peer, **options):
        self.came, self.fds, self.why = [], [], None
        self.channel = Channel(loop, sock, me, peer, self.on_message, self.on_dropped, **options)

    def on_message(self, _, message, fds):
        self.came.append(message)
        self.fds += fds

    def on_dropped(self, _, why):
        assert self.why is None, "its end was reported twice"
        self.why = why

    def close(self):
        self.channel.close()
        for fd in self.fds:
            os.close(fd)


@pytest.fixture(params=["poll", "selectors"])
def loop(request):
    made = Loop()
    if request.param == "selectors":
        made = Loop(many=True)
        made._poller.close()
        made._poller = SelectorPoller(selectors.PollSelector())
    yield made
    if hasattr(made._poller, "close"):
        made._poller.close()


@pytest.fixture
def joined(loop):
    """Provide join(me, peer), which returns two ends of a channel."""
    made = []

    def join(me="listener.0", peer="maildir.alice"):
        one, other = pair()
        made.extend((End(loop, one, me, peer), End(loop, other, peer, me)))
        return made[-2:]

    yield join
    for end in made:
        end.close()


@pytest.fixture
def against(loop):
    """Provide against(me, peer): one end, and the bare socket of a peer that may send anything."""
    made = []

    def build(me="maildir.alice", peer="kernel"):
        ours, bare = pair()
        end = End(loop, ours, me, peer)
        bare.setblocking(True)
        made.extend((end, bare))
        return end, bare

    yield build
    for one in made:
        one.close()


def framed(*fields):
    data = msgpack.packb(list(fields))
    return frame_head(len(data)) + data


def pass_fds(sock, data, fds):
    sock.sendmsg(
        [data],
        [(socket.SOL_SOCKET, socket.SCM_RIGHTS, b"".join(fd.to_bytes(4, sys.byteorder) for fd in fds))],
    )


def open_fds():
    return set(os.listdir("/proc/self/fd"))


def until(loop, what):
    for _ in range(10000):
        if what():
            return
        loop.turn()
    raise AssertionError("never")


def test_messages_both_ways_in_order(joined, loop):
    listener, maildir = joined()
    listener.channel.send(m.Retrieve(1, 1, 0))
    listener.channel.send_all([m.List(1, 2), m.Uidl(1, 2), m.Quit([1, 2])])
    maildir.channel.send(m.MaildropReady(1, 2))
    maildir.channel.send_bulk(m.MailContent([1, 5000, 5000, 1], b""), memoryview(bytes(5000)))
    until(loop, lambda: len(maildir.came) == 4 and len(listener.came) == 2)
    assert maildir.came == [m.Retrieve(1, 1, 0), m.List(1, 2), m.Uidl(1, 2), m.Quit([1, 2])]
    assert listener.came == [m.MaildropReady(1, 2), m.MailContent([1, 5000, 5000, 1], bytes(5000))]


def test_messages_of_other_edges_are_not_sent(joined, loop):
    listener, maildir = joined()
    for message in (
        m.MaildropReady(1, 1),
        m.LoginGranted("listener.0", 1, "a"),
        m.Retrieve(-1, 1, 0),
        m.Retrieve("1", 1, 0),
    ):
        with pytest.raises(UnsendableError):
            listener.channel.send(message)
    listener.channel.send(m.Reset())
    until(loop, lambda: maildir.came)
    assert maildir.came == [m.Reset()]


def test_a_channel_needs_an_edge(loop):
    one, other = pair()
    with one, other:
        for me, peer in (
            ("auth", "maildir.alice"),
            ("maildir.alice", "maildir.bob"),
            ("listener.0", "listener.1"),
            ("mda", "auth"),
            ("x", "kernel"),
        ):
            with pytest.raises(KeyError):
                Channel(loop, one, me, peer, lambda *_: None, lambda *_: None)


def test_descriptors_travel_with_their_messages(joined, loop):
    before = open_fds()
    kernel, maildir = joined("kernel", "maildir.alice")
    ends = [pair() for _ in range(3)]
    for number, (mine, its) in enumerate(ends, 1):
        kernel.channel.send(m.CountersRequest())
        kernel.channel.send(m.SessionOpen(number, *[0] * (len(m.SessionOpen._fields) - 1)), [its.fileno()])
        its.close()
        mine.sendall(b"%d" % number)
    until(loop, lambda: len(maildir.fds) == 3)
    for number, fd in enumerate(maildir.fds, 1):
        with adopt(os.dup(fd)) as sock:
            assert sock.recv(10) == b"%d" % number
        assert not os.get_inheritable(fd)
    for mine, _ in ends:
        mine.close()
    maildir.close()
    kernel.close()
    maildir.fds.clear()
    assert open_fds() == before


def test_a_peer_that_does_not_read_loses_its_channel(joined, loop):
    listener, maildir = joined()
    data = memoryview(bytes(300_000))
    depth = edge("maildir.{user}", "listener").depth
    for _ in range(depth + 50):
        maildir.channel.send_bulk(m.MailContent([], b""), data)
        if maildir.why is not None:
            break
    assert maildir.why.startswith("does not read")
    assert maildir.channel.closed


def test_waiting_messages_are_sent_in_order_and_reported(joined, loop):
    listener, maildir = joined()
    drained = []
    maildir.channel.on_drained = lambda: drained.append(1)
    numbers = range(1, 41)
    for number in numbers:
        maildir.channel.send_bulk(
            m.MailContent([number, 0, 0, 0], b""), memoryview(bytes([number]) * 100_000)
        )
    assert maildir.channel.waiting
    until(loop, lambda: len(listener.came) == 40)
    assert [message.parts[0] for message in listener.came] == list(numbers)
    assert all(set(message.data) == {message.parts[0]} for message in listener.came)
    assert drained
    assert not maildir.channel.waiting


def test_descriptors_that_wait_are_sent_too(joined, loop):
    kernel, maildir = joined("kernel", "maildir.alice")
    kernel.channel.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    while not kernel.channel.waiting:
        kernel.channel.send(m.CountersRequest())
    mine, its = pair()
    kernel.channel.send(m.SessionOpen(7, *[0] * (len(m.SessionOpen._fields) - 1)), [its.fileno()])
    its.close()
    until(loop, lambda: maildir.fds)
    assert maildir.came[-1].session == 7
    mine.close()
    with adopt(os.dup(maildir.fds[0])) as sock:
        assert sock.recv(1) == b""  # the same pair


class Crowded:
    """Fail a number of sendmsg calls, as for too many descriptors in flight or for lack of memory."""

    def __init__(self, sock, times, error):
        self.sock, self.times, self.error = sock, times, error

    def sendmsg(self, parts, ancillary=()):
        if (ancillary or self.error != errno.ETOOMANYREFS) and self.times:
            self.times -= 1
            raise OSError(self.error, os.strerror(self.error))
        return self.sock.sendmsg(parts, ancillary)

    def __getattr__(self, name):
        return getattr(self.sock, name)


@pytest.mark.parametrize("error", [errno.ETOOMANYREFS, errno.ENOMEM, errno.ENOBUFS])
def test_descriptors_wait_while_too_many_of_the_uid_are_under_way(joined, loop, error):
    """Lack of memory delays a message; it must neither be lost nor end the channel."""
    kernel, maildir = joined("kernel", "maildir.alice")
    kernel.channel.sock = Crowded(kernel.channel.sock, 3, error)
    mine, its = pair()
    kernel.channel.send(m.SessionOpen(7, *[0] * (len(m.SessionOpen._fields) - 1)), [its.fileno()])
    its.close()
    assert kernel.channel.waiting
    kernel.channel.send(m.CountersRequest())  # queued after it
    until(loop, lambda: len(maildir.came) == 2)
    assert [type(message) for message in maildir.came] == [m.SessionOpen, m.CountersRequest]
    assert not kernel.channel.waiting and not kernel.channel.sock.times
    mine.close()
    with adopt(os.dup(maildir.fds[0])) as sock:
        assert sock.recv(1) == b""  # the same pair


@contextlib.contextmanager
def no_room():
    """Leave this process no free descriptor."""
    least = os.dup(0)
    os.close(least)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (least, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def open_message(number):
    return m.SessionOpen(number, *[0] * (len(m.SessionOpen._fields) - 1))


def test_a_descriptor_that_cannot_wait_is_an_error_for_the_sender(joined, loop):
    """The sender gets the error, nothing of the message is sent, and the channel goes on."""
    kernel, maildir = joined("kernel", "maildir.alice")
    kernel.channel.sock = Crowded(kernel.channel.sock, 1, errno.ENOMEM)
    mine, its = pair()
    with no_room(), pytest.raises(OSError):
        kernel.channel.send(open_message(7), [its.fileno()])
    kernel.channel.send(open_message(8), [its.fileno()])
    until(loop, lambda: maildir.came)
    assert maildir.came == [open_message(8)] and channels.counts.held == 0
    mine.close()
    its.close()


@pytest.mark.parametrize("told", [True, False])
def test_a_descriptor_without_room(joined, loop, told):
    """The receiver reports the lost message; it is no violation by either side."""
    kernel, maildir = joined("kernel", "maildir.alice")
    lost = []
    maildir.channel.on_lost = lost.append if told else None
    mine, its = pair()
    with no_room():
        kernel.channel.send(open_message(7), [its.fileno()])
        until(loop, lambda: lost or maildir.why is not None)
    if told:
        kernel.channel.send(open_message(8), [its.fileno()])
        until(loop, lambda: maildir.came)
        assert (lost, maildir.came, maildir.why) == ([open_message(7)], [open_message(8)], None)
    else:
        assert maildir.why == "", "an ordinary end, no violation"
    assert channels.counts.held == 0
    mine.close()
    its.close()


def test_the_end_of_the_peer_is_reported_once_after_its_last_messages(joined, loop):
    listener, maildir = joined()
    maildir.channel.send(m.MaildropReady(1, 1))
    maildir.channel.close()
    maildir.channel.close()
    until(loop, lambda: listener.why is not None)
    assert listener.why == ""
    assert listener.came == [m.MaildropReady(1, 1)]
    listener.channel.send(m.Reset())  # ignored
    assert maildir.why is None


VIOLATIONS = {
    "no greeting": b"GET / HTTP/1.0\r\n\r\n" + bytes(80),
    "unknown code": PREFACE + framed(99),
    "no array": PREFACE + frame_head(1) + b"\xc0",
    "field too many": PREFACE + framed(5, 1, 2, 3, 4),
    "wrong type": PREFACE + framed(1, "1"),
    "multipart": PREFACE + b"\1\1x",
    "oversize": PREFACE + b"\2" + (1 << 40).to_bytes(8, "big"),
    "a message that carries, without": PREFACE + framed(1, 1, 0),
    "trailing": PREFACE + frame_head(3) + b"\x91\x05\x05",
    "commands": PREFACE + b"\4\5\4PING" * 100,
}


@pytest.mark.parametrize("octets", VIOLATIONS.values(), ids=VIOLATIONS)
@pytest.mark.parametrize("slowly", [False, True])
def test_a_violation_ends_the_channel_and_says_why(against, loop, octets, slowly):
    end, bare = against()
    for part in [bytes((o,)) for o in octets] if slowly else [octets]:
        try:
            bare.sendall(part)
        except OSError:
            break
        loop.turn() if end.why is None else None
    until(loop, lambda: end.why is not None)
    assert end.why
    assert end.channel.closed
    assert not end.came
    assert bare.recv(10) == b""


def test_good_messages_before_a_violation_are_taken(against, loop):
    end, bare = against()
    bare.sendall(PREFACE + framed(5) + framed(99) + framed(5))
    until(loop, lambda: end.why is not None)
    assert len(end.came) <= 1


def test_descriptors_that_no_message_carries_end_the_channel_and_are_closed(against, loop):
    end, bare = against()
    before = open_fds()
    with open(os.devnull) as null:
        pass_fds(
            bare,
            PREFACE + framed(1 + edge("kernel", "maildir.{user}").messages.index(m.CountersRequest)),
            [null.fileno()] * 3,
        )
        until(loop, lambda: end.why is not None)
        assert end.why == "descriptors that no message carries"
    assert len(open_fds()) == len(before) - 1  # and the channel's own is closed


def test_more_descriptors_than_a_message_carries(against, loop):
    end, bare = against()
    before = len(open_fds())
    with open(os.devnull) as null:
        fields = [1, *[0] * (len(m.SessionOpen._fields) - 1)]
        pass_fds(bare, PREFACE + framed(1, *fields), [null.fileno()] * 5)
        until(loop, lambda: end.why is not None)
    assert end.why == "descriptors that no message carries"
    assert len(end.fds) == 1
    assert len(open_fds()) == before  # one kept by the message's receiver, one fewer for the channel


def test_descriptors_hoarded_behind_half_a_message(against, loop):
    """Each part of an endless frame carries some: their number is limited."""
    end, bare = against()
    before = len(open_fds())
    with open(os.devnull) as null:
        pass_fds(bare, PREFACE + b"\2" + (200_000).to_bytes(8, "big"), [null.fileno()])
        for _ in range(30):
            try:
                pass_fds(bare, b"x", [null.fileno()] * 4)
            except OSError:
                break
            loop.turn()
            assert len(open_fds()) < before + 20
            if end.why is not None:
                break
    assert end.why == "descriptors that no message carries"


def test_descriptors_on_an_edge_without_them_are_not_received(against, loop):
    end, bare = against("maildir.alice", "listener")
    before = open_fds()
    with open(os.devnull) as null:
        pass_fds(bare, PREFACE + framed(6), [null.fileno()] * 8)
        until(loop, lambda: end.came)
    assert end.came == [m.Reset()]
    assert open_fds() == before


def test_a_released_channel_can_be_resumed(joined, loop):
    listener, maildir = joined()
    listener.channel.send(m.Reset())
    maildir.channel.send(m.MaildropReady(1, 1))
    until(loop, lambda: maildir.came and listener.came)
    sock = maildir.channel.release()
    assert sock is not None
    listener.channel.send(m.List(1, 1))  # waits in the socket
    again = End(loop, sock, "maildir.alice", "listener", resumed=True)
    again.channel.send(m.MaildropTotals(1, 1))
    until(loop, lambda: again.came and len(listener.came) == 2)
    assert again.came == [m.List(1, 1)]
    assert listener.came[1] == m.MaildropTotals(1, 1)
    again.close()


def test_a_half_read_channel_is_not_released(against, loop):
    end, bare = against()
    bare.sendall(PREFACE + frame_head(5) + b"\x92")
    loop.turn()
    assert end.channel.release() is None
    assert not end.channel.closed


def test_the_tap_sees_both_ways(joined, loop, monkeypatch):
    seen = []
    monkeypatch.setattr(
        channels.watch, "tap", lambda *words: seen.append(words[0] if isinstance(words[0], str) else words[1])
    )
    listener, maildir = joined()
    listener.channel.send(m.Reset())
    until(loop, lambda: maildir.came)
    assert len(seen) == 2
