"""A channel: one connected pair of unix-domain sockets, of which this process holds one end; ZMTP frames of msgpack on it.

The kernel makes every channel and hands each end to exactly one actor: there is no name to connect to, and the socket, never
a field in a message, says who speaks. Every message is checked against the topology table on its way out and in.
"""

import contextlib
import errno
import os
import socket
import sys
from collections.abc import Callable, Sequence
from typing import Any

from popkernel.kernel.runtime.loop import READ, WRITE, Loop
from popkernel.proto.bus.zmtp import PREFACE, Reader, ZmtpError, frame_head
from popkernel.proto.codec import BadMessageError, Codec, whole
from popkernel.proto.messages import CARRIES
from popkernel.proto.schema import UnsayableError
from popkernel.proto.topology import kind_of

__all__ = ["Channel", "Tap", "adopt", "codec", "counts", "pair"]

Message = tuple[Any, ...]
Tap = Callable[[str, "Channel", Message], None]  # (way "in" or "out", the channel, the message); ("gone", the channel, (why,))

_SOCKET_BUFFER = 1 << 20  # octets; root may pass wmem_max, others get what they may have
_SCRATCH = memoryview(bytearray(320 * 1024))  # one process, one loop: what is read is parsed before the next read
_LITTLE = _SCRATCH[:16384]  # for channels that carry descriptors: their messages are small, and each costs thought
_TURN = 1 << 20  # octets of one channel in a turn of the loop; the rest is there in the next
_MOST_FDS = 8  # that may wait for the rest of their message
_MOST_PARTS = 256  # pieces for one sendmsg(2): over IOV_MAX (1024, 16 in the standard's least) it takes none at all
_FDS = socket.CMSG_SPACE(_MOST_FDS * 4)
_CUT = int(socket.MSG_CTRUNC)  # the enumeration makes a new object of each `&`
_codecs: dict[tuple[str, str], Codec] = {}
_carrying: dict[Codec, bool] = {}
_AGAIN = (errno.EAGAIN, errno.EWOULDBLOCK, errno.EINTR)
# The system is short of something, and no event tells when it no longer is: memory, or too many descriptors of this uid are under way, all
# its processes' together, unix(7), as when many actors of one uid park at once.
_CROWDED = (errno.ETOOMANYREFS, errno.ENOBUFS, errno.ENOMEM)
_CROWDED_SECONDS = 0.02


class _Counts:
    """Messages that this process took and gave, for `popkernel status`; descriptors that its channels hold besides their own."""

    __slots__ = ("held", "messages_in", "messages_out")

    def __init__(self) -> None:
        self.messages_in = 0
        self.messages_out = 0
        self.held = 0


class _Watch:
    """The tap: None unless somebody watches this process. One branch a message is all that it costs then."""

    __slots__ = ("tap",)

    def __init__(self) -> None:
        self.tap: Tap | None = None


# Objects with slots: to write to a class makes CPython forget all that it has cached of it, at each message.
counts = _Counts()
watch = _Watch()


def pair() -> tuple[socket.socket, socket.socket]:
    """A new channel's two ends, not inheritable, not blocking, with room for bulk frames. OSError where the system has no room for it."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        for end in ends:
            end.setblocking(False)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BUFFER)
    except OSError:
        for end in ends:
            end.close()
        raise
    return ends


def adopt(fd: int) -> socket.socket:
    """The end of a channel that came as a descriptor. `pair` made it not blocking, for whoever holds it."""
    return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, fileno=fd)


def codec(source: str, target: str) -> Codec:
    """The codec of an edge of the table; made once a process."""
    key = (source, target)
    found = _codecs.get(key)
    if found is None:
        found = _codecs[key] = Codec(source, target)
    return found


def _takes_fds(incoming: Codec) -> bool:
    """Whether descriptors may come along; found out once an edge, for a channel is made for each session."""
    found = _carrying.get(incoming)
    if found is None:
        found = any(CARRIES.get(c, 0) or "fresh" in c.__annotations__ for c in incoming.edge.messages)
        _carrying[incoming] = found
    return found


class Channel:
    """One end. `on_message(channel, message, fds)` for each message taken; `on_gone(channel, why)` once at its end.

    `why` is "" for an ordinary end of the peer, else what the peer did wrong. The receiver of a message owns its descriptors.
    """

    __slots__ = (
        "_decode",
        "_decode_bulk",
        "_fds",
        "_loop",
        "_on_gone",
        "_on_message",
        "_out",
        "_queue",
        "_reader",
        "_said",
        "_short",
        "_takes_fds",
        "fd",
        "gone",
        "me",
        "on_drained",
        "on_lost",
        "peer",
        "sock",
        "tag",
        "views",
    )

    def __init__(
        self,
        loop: Loop,
        sock: socket.socket,
        me: str,
        peer: str,
        on_message: Callable[["Channel", Message, list[int]], None],
        on_gone: Callable[["Channel", str], None],
        *,
        resumed: bool = False,
    ) -> None:
        """`me` and `peer` are instances (`listener.0`); KeyError where the table has no edges between them.

        `resumed`: an earlier holder of this end has done the handshake both ways (a parked session).
        """
        mine, theirs = kind_of(me), kind_of(peer)
        incoming, self._out = codec(theirs, mine), codec(mine, theirs)
        self._decode, self._decode_bulk = incoming.decode, incoming.decode_bulk
        self.views = False  # whether the owner takes bulk as a view of its frame; while somebody watches it is octets all the same
        self._takes_fds = _takes_fds(incoming)
        self._reader = Reader(incoming.octets)
        self._said = resumed
        if resumed:
            self._reader.resume()
        self._loop = loop
        self._on_message = on_message
        self._on_gone = on_gone
        self._fds: list[int] = []
        self._queue: list[tuple[bytes, Sequence[int]]] = []
        self.sock = sock
        self.fd = sock.fileno()
        self.me = me
        self.peer = peer
        self.gone = False
        self._short = False  # a descriptor that came had no room in this process
        self.on_drained: Callable[[], None] | None = None  # called when the last that waited has been sent
        self.on_lost: Callable[[Message], None] | None = None  # called with a message whose descriptor had no room; None: the channel ends
        self.tag: Any = None  # whatever the owner wants to find again
        loop.add(self.fd, self._ready)

    # -- out
    def send(self, message: Message, fds: Sequence[int] = ()) -> None:
        """Send, now if the socket takes it, else from the queue. A copy of `fds` travels along; the caller closes its own.

        OSError where it has to wait and this process has no room for that copy: then nothing of it is sent.
        """
        if self.gone:
            return
        data = self._encode(message)
        self._count(message)
        self._write([frame_head(len(data)), data], fds)

    def send_all(self, messages: Sequence[Message]) -> None:
        """Several messages in one system call."""
        if self.gone:
            return
        parts: list[bytes] = []
        for message in messages:
            data = self._encode(message)
            self._count(message)
            parts += (frame_head(len(data)), data)
        self._write(parts, ())

    def send_bulk(self, message: Message, data: memoryview | bytes) -> int:
        """Send a message whose last field is `data`, without copying it; octets of the frame."""
        if self.gone:
            return 0
        try:
            parts = self._out.encode_bulk(message, data)
        except BadMessageError as error:
            raise UnsayableError(str(error)) from None
        if watch.tap is not None:
            message = whole(message, data)
        self._count(message)
        size = sum(map(len, parts))
        self._write([frame_head(size), *parts], ())
        return size

    def _encode(self, message: Message) -> bytes:
        """What can't be said is our own mistake: never to be taken for the peer's, whose message we may be answering."""
        try:
            return self._out.encode(message)
        except BadMessageError as error:
            raise UnsayableError(str(error)) from None

    def _count(self, message: Message) -> None:
        counts.messages_out += 1
        if watch.tap is not None:
            watch.tap("out", self, message)

    def _write(self, parts: Sequence[bytes | memoryview], fds: Sequence[int]) -> None:
        if len(parts) > _MOST_PARTS:
            parts = [b"".join(parts)]
        if self._queue:
            self._enqueue(b"".join(parts), _copies(fds))
            return
        if not self._said:
            parts = [PREFACE, *parts]
        try:
            if fds:
                sent = self.sock.sendmsg(parts, [(socket.SOL_SOCKET, socket.SCM_RIGHTS, _int_array(fds))])
            else:
                sent = self.sock.sendmsg(parts)
        except OSError as error:
            if error.errno in _CROWDED:
                self._enqueue(b"".join(parts), _copies(fds))
                self._said = True
                self._loop.later(_CROWDED_SECONDS, self._go_on)
                return
            if error.errno not in _AGAIN:
                return  # the peer is gone; what it said before it went is still to be read, then its end
            sent = 0
        if sent != sum(map(len, parts)):
            rest = b"".join(parts)[sent:]
            self._enqueue(rest, _copies(fds) if not sent else ())
            self._go_on()
        self._said = True

    def _go_on(self) -> None:
        """Send what waits, as soon as the socket takes it."""
        if not self.gone:
            self._loop.change(self.fd, READ | WRITE)

    def _enqueue(self, data: bytes, fds: Sequence[int]) -> None:
        self._queue.append((data, fds))
        if len(self._queue) > self._out.edge.depth:
            self._fail(f"does not read: {len(self._queue)} frames wait")

    @property
    def waiting(self) -> bool:
        """Whether something is still to be sent: a bulk sender makes no more frames then."""
        return bool(self._queue)

    def _flush(self) -> None:
        while self._queue:
            data, fds = self._queue[0]
            try:
                ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, _int_array(fds))] if fds else []
                sent = self.sock.sendmsg([data], ancillary)
            except OSError as error:
                if error.errno in _AGAIN:
                    return
                if error.errno in _CROWDED:
                    self._loop.change(self.fd, READ)
                    self._loop.later(_CROWDED_SECONDS, self._go_on)
                    return
                sent = len(data)  # as in _write
            _forget(fds)
            if sent < len(data):
                self._queue[0] = (data[sent:], ())
                return
            del self._queue[0]
        self._loop.change(self.fd, READ)
        if self.on_drained is not None:
            self.on_drained()

    # -- in
    def _ready(self, events: int) -> None:
        if events & WRITE:
            self._flush()
        if events & ~WRITE and not self.gone:
            self.read()

    def read(self) -> None:
        """Take what is there, up to a bound: who writes faster than we read must not keep us from the others.

        Also called by an owner who must know now (the kernel, before it judges auth's word).
        """
        left = _TURN
        while left > 0 and not self.gone:
            room = _SCRATCH
            try:
                if self._takes_fds:
                    size, ancillary, flags, _ = self.sock.recvmsg_into([_LITTLE], _FDS, socket.MSG_CMSG_CLOEXEC)
                    if flags & _CUT:
                        self._short = True
                    for level, kind, data in ancillary:
                        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                            came = memoryview(data[: len(data) & ~3]).cast("i").tolist()
                            counts.held += len(came)
                            self._fds += came
                else:
                    room = self._reader.room() or _SCRATCH
                    size = self.sock.recv_into(room)
            except OSError as error:
                if error.errno not in _AGAIN and error.errno not in _CROWDED:
                    self._fail("")
                return
            if not size:
                self._fail("")
                return
            left -= max(16 * size, _TURN // 64) if self._takes_fds else size
            try:
                frames = self._reader.feed(_SCRATCH[:size]) if room is _SCRATCH else self._reader.took(size)
            except ZmtpError as error:
                self._fail(str(error))
                return
            for frame in frames:
                if not self._take(frame):
                    return
            if self._fds and (self._reader.empty or len(self._fds) > _MOST_FDS):  # they come with their message's first octet
                self._fail("descriptors that no message carries")
                return
            if size < len(room) and not self._takes_fds:
                return

    def _take(self, frame: bytes | bytearray) -> bool:
        """Hand one message on; whether the channel is still there after that."""
        try:
            message = self._decode_bulk(frame) if self.views and watch.tap is None else self._decode(frame)
        except BadMessageError as error:
            self._fail(str(error))
            return False
        need = CARRIES.get(type(message), 0) or int(getattr(message, "fresh", False))
        if need > len(self._fds):
            return self._lacks(message)
        fds: list[int] = []
        if need:
            fds, self._fds, self._short = self._fds[:need], self._fds[need:], False
            counts.held -= need
        counts.messages_in += 1
        if watch.tap is not None:
            watch.tap("in", self, message)
        self._on_message(self, message, fds)
        return not self.gone

    def _lacks(self, message: Message) -> bool:
        """It came without its descriptor: its sender's fault, unless it was this process that had no room for it."""
        if not self._short:
            self._fail(f"{type(message).__name__} without its descriptor")
        elif self.on_lost is None:
            self._fail("")
        else:
            self._short = False
            self.on_lost(message)
        return not self.gone

    # -- the end
    def _fail(self, why: str) -> None:
        if not self.gone:
            self.close()
            if watch.tap is not None:
                watch.tap("gone", self, (why,))
            self._on_gone(self, why)

    def release(self) -> socket.socket | None:
        """Give the socket up without closing it, to hand it on; None where something half-read or unsent is held."""
        if self._queue or not self._reader.empty or self._fds or self.gone:
            return None
        self.gone = True
        self._loop.remove(self.fd)
        return self.sock

    def close(self) -> None:
        """Close this end; the owner is not called. Twice is once."""
        if self.gone:
            return
        self.gone = True
        self._loop.remove(self.fd)
        self.sock.close()
        counts.held -= len(self._fds)
        discard(self._fds)
        for _, fds in self._queue:
            _forget(fds)
        self._queue.clear()
        self._fds.clear()


def discard(fds: Sequence[int]) -> None:
    """Close descriptors that somebody handed over. What they are was that one's choice, and so whether closing tells of an error (FUSE)."""
    for fd in fds:
        with contextlib.suppress(OSError):  # it is closed all the same, close(2)
            os.close(fd)


def _copies(fds: Sequence[int]) -> list[int]:
    """All of them or, with OSError, none."""
    copies: list[int] = []
    try:
        for fd in fds:
            copies.append(os.dup(fd))
            counts.held += 1
    except OSError:
        _forget(copies)
        raise
    return copies


def _forget(copies: Sequence[int]) -> None:
    for fd in copies:
        os.close(fd)
        counts.held -= 1


def _int_array(fds: Sequence[int]) -> bytes:
    return b"".join(fd.to_bytes(4, sys.byteorder) for fd in fds)
