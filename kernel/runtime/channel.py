"""Send and receive messages on one end of a channel: a pair of unix-domain sockets, msgpack in ZMTP frames.

The kernel makes every channel and hands each end to exactly one actor. There is no address to connect to, and
the socket identifies the sender, never a field of a message. Every message is checked against the topology
table when it is sent and when it is received.
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
from popkernel.proto.codec import Codec, whole
from popkernel.proto.messages import CARRIES
from popkernel.proto.schema import BadMessageError, UnsendableError
from popkernel.proto.topology import kind_of

__all__ = ["Channel", "Tap", "adopt", "codec", "counts", "pair"]

Message = tuple[Any, ...]
# (way "in" or "out", the channel, the message); ("gone", the channel, (why,))
Tap = Callable[[str, "Channel", Message], None]

_SOCKET_BUFFER = 1 << 20  # octets; the system lowers it to net.core.wmem_max
# shared by all channels: one loop parses what is read before the next read
_SCRATCH = memoryview(bytearray(320 * 1024))
# for channels that carry descriptors: their messages are small, and each takes long to handle
_LITTLE = _SCRATCH[:16384]
_TURN = 1 << 20  # octets read from one channel in a turn of the loop
_MOST_FDS = 8  # descriptors that may wait for the rest of their message
# parts in one sendmsg(2): with more than IOV_MAX (1024; POSIX: at least 16) it fails
_MOST_PARTS = 256
_FDS = socket.CMSG_SPACE(_MOST_FDS * 4)
_CUT = int(socket.MSG_CTRUNC)  # an int: `&` on the enumeration makes a new object each time
_codecs: dict[tuple[str, str], Codec] = {}
_carrying: dict[Codec, bool] = {}
_AGAIN = (errno.EAGAIN, errno.EWOULDBLOCK, errno.EINTR)
# The system is short of memory, or too many descriptors of this uid's processes are in flight, unix(7), as
# when many actors of one uid park at once. No event tells when that is over.
_CROWDED = (errno.ETOOMANYREFS, errno.ENOBUFS, errno.ENOMEM)
_CROWDED_SECONDS = 0.02


class _Counts:
    """Count messages, for `popkernel status`, and descriptors that channels hold besides their sockets."""

    __slots__ = ("held", "messages_in", "messages_out")

    def __init__(self) -> None:
        self.messages_in = 0
        self.messages_out = 0
        self.held = 0


class _Watch:
    """Hold the tap: None unless this process is traced. Without a trace it costs one branch a message."""

    __slots__ = ("tap",)

    def __init__(self) -> None:
        self.tap: Tap | None = None


# Objects, not class attributes: a write to a class makes CPython drop its caches for it, at each message.
counts = _Counts()
watch = _Watch()


def pair() -> tuple[socket.socket, socket.socket]:
    """Return a new channel's two ends: not inheritable, not blocking, with buffers for bulk frames.

    OSError: the system has no room for it.
    """
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
    """Make a socket of a channel's end that came as a descriptor. It is not blocking, as `pair` made it."""
    return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, fileno=fd)


def codec(source: str, target: str) -> Codec:
    """Return the codec of an edge of the topology; made once in a process."""
    key = (source, target)
    found = _codecs.get(key)
    if found is None:
        found = _codecs[key] = Codec(source, target)
    return found


def _takes_fds(incoming: Codec) -> bool:
    """Return whether messages of an edge may carry descriptors; cached, for each session makes a channel."""
    found = _carrying.get(incoming)
    if found is None:
        found = any(CARRIES.get(c, 0) or "fresh" in c.__annotations__ for c in incoming.edge.messages)
        _carrying[incoming] = found
    return found


class Channel:
    """Hold one end of a channel.

    `on_message(channel, message, fds)` is called for each message, `on_dropped(channel, why)` at the end.

    `why` is "" if the peer closed its end, else what the peer did wrong. The receiver owns a message's
    descriptors.
    """

    __slots__ = (
        "_decode",
        "_decode_bulk",
        "_fds",
        "_loop",
        "_on_dropped",
        "_on_message",
        "_out",
        "_queue",
        "_reader",
        "_said",
        "_short",
        "_takes_fds",
        "closed",
        "fd",
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
        end: socket.socket | int,
        me: str,
        peer: str,
        on_message: Callable[["Channel", Message, list[int]], None],
        on_dropped: Callable[["Channel", str], None],
        *,
        resumed: bool = False,
    ) -> None:
        """`me` and `peer` are instances (`listener.0`); KeyError if the topology has no edge between them.

        `end`: its socket, or the descriptor that came with a message; `pair` made it not blocking.

        `resumed`: an earlier holder of this end has done the handshake both ways (a parked session).
        """
        mine, theirs = kind_of(me), kind_of(peer)
        incoming, self._out = codec(theirs, mine), codec(mine, theirs)
        self._decode, self._decode_bulk = incoming.decode, incoming.decode_bulk
        # whether the owner takes bulk data as a view of its frame; during a trace it gets bytes all the same
        self.views = False
        self._takes_fds = _takes_fds(incoming)
        self._reader = Reader(incoming.octets)
        self._said = resumed
        if resumed:
            self._reader.resume()
        self._loop = loop
        self._on_message = on_message
        self._on_dropped = on_dropped
        self._fds: list[int] = []
        self._queue: list[tuple[bytes, Sequence[int]]] = []
        if isinstance(end, int):
            end = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, fileno=end)
        self.sock = end
        self.fd = end.fileno()
        self.me = me
        self.peer = peer
        self.closed = False
        self._short = False  # a descriptor that came had no room in this process
        self.on_drained: Callable[[], None] | None = None  # called when the queue has been sent
        # called with a message whose descriptor had no room; None: the channel ends
        self.on_lost: Callable[[Message], None] | None = None
        self.tag: Any = None  # for the owner's use
        loop.add(self.fd, self._ready)

    # -- out
    def send(self, message: Message, fds: Sequence[int] = ()) -> None:
        """Send a message, at once if the socket takes it, else later from the queue.

        Copies of `fds` are sent along; the caller closes its own. OSError: the message has to wait and this
        process has no room for the copies; then nothing of it is sent.
        """
        if self.closed:
            return
        data = self._encode(message)
        self._count(message)
        self._write([frame_head(len(data)), data], fds)

    def send_all(self, messages: Sequence[Message]) -> None:
        """Send several messages in one system call."""
        if self.closed:
            return
        parts: list[bytes] = []
        for message in messages:
            data = self._encode(message)
            self._count(message)
            parts += (frame_head(len(data)), data)
        self._write(parts, ())

    def send_bulk(self, message: Message, data: memoryview | bytes) -> int:
        """Send a message whose last field is `data`, without copying it; return the frame's octets."""
        if self.closed:
            return 0
        try:
            parts = self._out.encode_bulk(message, data)
        except BadMessageError as error:
            raise UnsendableError(str(error)) from None
        if watch.tap is not None:
            message = whole(message, data)
        self._count(message)
        size = sum(map(len, parts))
        self._write([frame_head(size), *parts], ())
        return size

    def _encode(self, message: Message) -> bytes:
        """Encode a message. A failure is this process's fault: it must not look like a peer's bad message."""
        try:
            return self._out.encode(message)
        except BadMessageError as error:
            raise UnsendableError(str(error)) from None

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
                return  # the peer is gone; its last messages are still to be read, then the channel's end
            sent = 0
        if sent != sum(map(len, parts)):
            rest = b"".join(parts)[sent:]
            self._enqueue(rest, _copies(fds) if not sent else ())
            self._go_on()
        self._said = True

    def _go_on(self) -> None:
        """Send the queue as soon as the socket takes it."""
        if not self.closed:
            self._loop.change(self.fd, READ | WRITE)

    def _enqueue(self, data: bytes, fds: Sequence[int]) -> None:
        self._queue.append((data, fds))
        if len(self._queue) > self._out.edge.depth:
            self._fail(f"does not read: {len(self._queue)} frames wait")

    @property
    def waiting(self) -> bool:
        """Return whether something is still to be sent: then a bulk sender makes no more frames."""
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
        if events & ~WRITE and not self.closed:
            self.receive()

    def receive(self) -> None:
        """Read and handle up to `_TURN` octets, so that a fast sender cannot starve other channels.

        An owner also calls it before a decision (the kernel, before it handles LoginGranted).
        """
        left = _TURN
        while left > 0 and not self.closed:
            room = _SCRATCH
            try:
                if self._takes_fds:
                    size, ancillary, flags, _ = self.sock.recvmsg_into(
                        [_LITTLE], _FDS, socket.MSG_CMSG_CLOEXEC
                    )
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
                if not self._receive(frame):
                    return
            # descriptors come with the first octet of their message
            if self._fds and (self._reader.empty or len(self._fds) > _MOST_FDS):
                self._fail("descriptors that no message carries")
                return
            if size < len(room) and not self._takes_fds:
                return

    def _receive(self, frame: bytes | bytearray) -> bool:
        """Hand one message to the owner; return whether the channel is still open."""
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
        return not self.closed

    def _lacks(self, message: Message) -> bool:
        """Handle a message that lacks its descriptor: the sender's fault, unless there was no room here."""
        if not self._short:
            self._fail(f"{type(message).__name__} without its descriptor")
        elif self.on_lost is None:
            self._fail("")
        else:
            self._short = False
            self.on_lost(message)
        return not self.closed

    # -- end
    def _fail(self, why: str) -> None:
        if not self.closed:
            self.close()
            if watch.tap is not None:
                watch.tap("gone", self, (why,))
            self._on_dropped(self, why)

    def release(self) -> socket.socket | None:
        """Return the socket without closing it, to hand it on; None if something is half read or unsent."""
        if self._queue or not self._reader.empty or self._fds or self.closed:
            return None
        self.closed = True
        self._loop.remove(self.fd)
        return self.sock

    def close(self) -> None:
        """Close this end, without calling the owner. A second call does nothing."""
        if self.closed:
            return
        self.closed = True
        self._loop.remove(self.fd)
        self.sock.close()
        counts.held -= len(self._fds)
        discard(self._fds)
        for _, fds in self._queue:
            _forget(fds)
        self._queue.clear()
        self._fds.clear()


def discard(fds: Sequence[int]) -> None:
    """Close received descriptors. The sender chose them, so close(2) may report any error (FUSE)."""
    for fd in fds:
        with contextlib.suppress(OSError):  # it is closed all the same, close(2)
            os.close(fd)


def _copies(fds: Sequence[int]) -> list[int]:
    """Copy descriptors: all or, with OSError, none."""
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
