"""Test ZMTP 3.1: whole, byte by byte, hostile, and with libzmq at the other end."""

import os
import socket
import tracemalloc

import msgpack
import pytest
import zmq
from hypothesis import given, settings
from hypothesis import strategies as st
from popkernel.kernel.runtime.channel import Channel
from popkernel.kernel.runtime.loop import Loop
from popkernel.proto import messages as m
from popkernel.proto.bus.zmtp import PREFACE, Reader, ZmtpError, frame_head, preface
from popkernel.proto.topology import edge

LIMIT = 320 * 1024


def framed(*frames):
    return b"".join(frame_head(len(f)) + f for f in frames)


def reader(limit=LIMIT, **options):
    made = Reader(limit, **options)
    assert made.feed(PREFACE) == []
    return made


SIZES = [0, 1, 254, 255, 256, 257, 65535, 65536, LIMIT - 1, LIMIT]


@pytest.mark.parametrize("size", SIZES)
def test_frames_of_every_size(size):
    assert reader().feed(framed(bytes(size))) == [bytes(size)]


@settings(max_examples=60)
@given(st.lists(st.binary(max_size=700), max_size=6), st.data())
def test_any_fragmentation_gives_the_same_frames(frames, data):
    stream, found, made = PREFACE + framed(*frames), [], Reader(1000)
    while stream:
        size = data.draw(st.integers(1, max(1, len(stream))))
        found += made.feed(stream[:size])
        stream = stream[size:]
    assert found == frames
    assert made.empty


@settings(max_examples=60)
@given(st.lists(st.sampled_from([0, 5, 65535, 65536, 70000, 200000]), max_size=5), st.data())
def test_large_frames_however_they_come(sizes, data):
    """Feeds some octets by `feed` and reads some into `room`, as a channel does."""
    frames = [bytes([n + 1]) * size for n, size in enumerate(sizes)]
    stream, found, made = PREFACE + framed(*frames), [], Reader(LIMIT)
    while stream:
        size = data.draw(st.integers(1, 150000))
        room = made.room()
        if room is not None and data.draw(st.booleans()):
            size = min(size, len(room), len(stream))
            room[:size] = stream[:size]
            found += made.took(size)
        else:
            found += made.feed(stream[:size])
        stream = stream[size:]
    assert found == frames
    assert made.empty


def test_byte_by_byte_and_all_at_once():
    frames = [b"", b"a", b"b" * 255, b"c" * 256, b"d" * 2000]
    stream, found, made = PREFACE + framed(*frames), [], Reader(LIMIT)
    for octet in stream:
        found += made.feed(bytes((octet,)))
    assert found == frames == Reader(LIMIT).feed(stream)


HOSTILE = {
    "more": b"\1\1x",
    "long more": b"\3" + (1).to_bytes(8, "big") + b"x",
    "unknown flags": b"\x08\1x",
    "all flags": b"\xff" * 9,
    "too large": b"\2" + (LIMIT + 1).to_bytes(8, "big"),
    "giant": b"\2" + (2**63 - 1).to_bytes(8, "big"),
    "top bit": b"\2" + b"\xff" * 8,
    "long command": b"\6" + (600).to_bytes(8, "big"),
    "command and more": b"\5\1x",
}


@pytest.mark.parametrize("octets", HOSTILE.values(), ids=HOSTILE)
def test_refused_before_an_octet_is_taken(octets):
    tracemalloc.start()
    try:
        with pytest.raises(ZmtpError):
            reader().feed(octets)
        with pytest.raises(ZmtpError):
            slow = reader()
            for octet in octets:
                slow.feed(bytes((octet,)))
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_more_is_refused_with_its_first_two_octets():
    with pytest.raises(ZmtpError, match="several frames"):
        reader().feed(b"\1\xff")


def test_commands_are_tolerated_but_not_without_end():
    ping = b"\4\7" + b"\4PING\0\1"
    made = reader()
    assert made.feed(ping + framed(b"a") + ping) == [b"a"]
    assert made.commands == [b"\4PING\0\1"] * 2
    with pytest.raises(ZmtpError, match="commands"):
        made.feed(ping * 100)


GREETINGS = {
    "http": b"GET / HTTP/1.1\r\n\r\n",
    "old": b"\xff" + bytes(8) + b"\x7f\1\0",
    "nothing like it": bytes(64),
    "tls": b"\x16\3\1\2\0\1\0\1\xfc\3\3",
    "curve": PREFACE[:12] + b"CURVE" + bytes(15) + PREFACE[32:],
    "message first": PREFACE[:64] + framed(b"a" * 20),
    "wrong command": PREFACE[:64] + b"\4\6\5HELLO",
    "no type": PREFACE[:64] + b"\4\6\5READY",
    "other type": preface(b"ROUTER"),
    "broken property": PREFACE[:64] + b"\4\x0c\5READY\3abc\0\0",
    "huge property": PREFACE[:64] + b"\4\x0e\5READY\3abc\xff\xff\xff\xff",
}


@pytest.mark.parametrize("octets", GREETINGS.values(), ids=GREETINGS)
def test_a_wrong_greeting(octets):
    with pytest.raises(ZmtpError):
        Reader(LIMIT).feed(octets + bytes(80))


@pytest.mark.parametrize("kind", [b"DEALER", b"REQ"])
def test_types_that_fit(kind):
    assert Reader(LIMIT, (b"DEALER", b"REQ")).feed(preface(kind) + framed(b"a")) == [b"a"]


@settings(max_examples=200)
@given(st.binary(max_size=300), st.booleans())
def test_random_octets_never_raise_anything_else(octets, greeted):
    made = reader() if greeted else Reader(LIMIT)
    try:
        made.feed(octets)
    except ZmtpError:
        pass


def test_a_resumed_reader_begins_behind_the_preface():
    made = Reader(LIMIT)
    made.resume()
    assert made.feed(framed(b"a")) == [b"a"]


# -- libzmq
@pytest.fixture
def libzmq(tmp_path):
    """Provide connect(TYPE, **options): a connected libzmq socket, and the plain socket accepted for it."""
    path = str(tmp_path / "s")
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(path)
    listening.listen()
    context = zmq.Context()
    opened = [listening]

    def connect(kind=zmq.PAIR, **options):
        peer = context.socket(kind)
        peer.linger = 0
        peer.rcvtimeo = peer.sndtimeo = 10000
        for name, value in options.items():
            setattr(peer, name, value)
        peer.connect(f"ipc://{path}")
        sock, _ = listening.accept()
        sock.settimeout(10)
        opened.append(sock)
        opened.append(peer)
        return peer, sock

    yield connect
    for one in opened:
        one.close()
    context.term()


def receive(made, sock, count):
    frames = []
    while len(frames) < count:
        data = sock.recv(1 << 16)
        assert data
        frames += made.feed(data)
    return frames


def test_frames_from_and_to_libzmq(libzmq):
    peer, sock = libzmq()
    sock.sendall(PREFACE)
    made = Reader(LIMIT)
    for size in (1, 2, 255, 256, 4096, 65536, LIMIT):
        data = os.urandom(size)
        peer.send(data)
        assert receive(made, sock, 1) == [data]
        sock.sendall(frame_head(size) + data)
        assert peer.recv() == data
    many = [os.urandom(n) for n in range(1, 300)]
    for data in many:
        peer.send(data)
    assert receive(made, sock, len(many)) == many


def test_a_message_of_several_frames_from_libzmq_is_refused_at_once(libzmq):
    peer, sock = libzmq()
    sock.sendall(PREFACE)
    peer.send_multipart([b"a", b"b"])
    with pytest.raises(ZmtpError, match="several frames"):
        receive(Reader(LIMIT), sock, 1)


def test_too_large_a_frame_from_libzmq_is_refused_before_it_is_read(libzmq):
    peer, sock = libzmq()
    sock.sendall(PREFACE)
    peer.send(bytes(LIMIT + 1))
    made = Reader(LIMIT)
    with pytest.raises(ZmtpError, match="allowed"):
        while True:
            made.feed(sock.recv(200))


def test_heartbeats_of_libzmq_are_tolerated(libzmq):
    peer, sock = libzmq(heartbeat_ivl=20, heartbeat_timeout=5000)
    sock.sendall(PREFACE)
    made = Reader(LIMIT)
    while not any(c.startswith(b"\4PING") for c in made.commands):
        made.feed(sock.recv(1 << 16))
    peer.send(b"still here")
    assert receive(made, sock, 1) == [b"still here"]


def test_a_peer_of_another_type_is_refused(libzmq):
    _, sock = libzmq(zmq.DEALER)
    sock.sendall(preface(b"ROUTER"))
    with pytest.raises(ZmtpError, match="socket type"):
        receive(Reader(LIMIT), sock, 1)


def test_a_channel_with_libzmq_at_the_other_end(libzmq):
    """Exchange messages of an edge with a Channel.

    A Channel sends its preface with its first message, without waiting for the other's, which libzmq does not
    accept: so the handshake comes first.
    """
    peer, sock = libzmq()
    sock.sendall(PREFACE)
    theirs = Reader(LIMIT)
    peer.send(b"", zmq.DONTWAIT)
    assert receive(theirs, sock, 1) == [b""]
    loop, came, gone = Loop(), [], []

    def on_message(_, message, fds):
        came.append(message)
        loop.stop()

    def on_dropped(_, why):
        gone.append(why)
        loop.stop()

    channel = Channel(loop, sock.dup(), "maildir.alice", "listener", on_message, on_dropped, resumed=True)
    channel.send(m.MaildropReady(3, 300))
    assert msgpack.unpackb(peer.recv()) == [1, 3, 300]
    mail = os.urandom(edge("maildir.{user}", "listener").octets - 64)
    channel.send_bulk(m.MailContent([1, 2, 3, 1], b""), memoryview(mail))
    while channel.waiting:
        loop.turn()
    assert msgpack.unpackb(peer.recv()) == [3, [1, 2, 3, 1], mail]
    peer.send(msgpack.packb([1, 1, 2, 0]))
    loop.run()
    assert came == [m.Retrieve(1, 2, 0)]
    peer.send_multipart([msgpack.packb([1, 1, 2, 0]), b""])
    loop.run()
    assert gone == ["a message of several frames"]
    assert len(came) == 1
