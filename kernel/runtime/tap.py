"""The tap of a watched actor: what it takes and gives, on its way to whoever watches. The kernel's side is kernel/operator/tracing.py.

A tap never waits, and holds no more than a bounded amount: what does not fit is dropped and counted. Nothing secret gets in here:
messages are redacted by the table before they are encoded, and what a client types comes through `popkernel.proto.trace.client_input`.
"""

import contextlib
import errno
import socket
import time
from collections.abc import Callable
from typing import Any

import msgpack
from popkernel.kernel.runtime.channel import Channel, Message, codec, watch
from popkernel.kernel.runtime.loop import WRITE, Loop
from popkernel.proto.bus.zmtp import PREFACE, frame_head
from popkernel.proto.messages import Tapped, Unwatch, Watch
from popkernel.proto.topology import kind_of
from popkernel.proto.trace.redaction import content, cut, shown

__all__ = ["ActorTap", "note", "piece"]

_MOST_HELD = 2 << 20  # octets that wait for a kernel that does not read
_MOST_FIELDS = 400 * 1024  # octets; a frame's fields are left out beyond
_BATCH = 64 * 1024  # octets written at once, before the turn of the loop is over
_pack = msgpack.Packer(use_bin_type=True, autoreset=True).pack
_HIDDEN = (Watch, Unwatch)  # the watching itself


class ActorTap:
    """Set as `watch.tap` while somebody watches."""

    __slots__ = ("_closed", "_encode", "_held", "_loop", "_lost", "_scheduled", "_session_of", "_sock", "_waiting", "payload")

    def __init__(self, loop: Loop, sock: socket.socket, me: str, session_of: Callable[[Channel, Message], int], *, payload: bool) -> None:
        self._loop = loop
        self._sock = sock
        self._session_of = session_of
        self._encode = codec(kind_of(me), "tap").encode
        self._held = bytearray(PREFACE)
        self._lost = 0
        self._scheduled = False  # a flush at the end of this turn
        self._waiting = False  # for the socket to take more
        self._closed = False
        self.payload = payload
        sock.setblocking(False)
        loop.on_timer = self._timer

    def __call__(self, way: str, channel: Channel, message: Message) -> None:
        """A message that passed."""
        if way == "gone":
            self._put("in", channel.peer, "Gone", self._session_of(channel, message), 0, {"why": message[0]})
            return
        if type(message) in _HIDDEN:
            return
        fields, octets = shown(message, payload=self.payload)
        self._put(way, channel.peer, type(message).__name__, self._session_of(channel, message), octets, fields)

    def note(self, name: str, session: int, fields: dict[str, Any], *, way: str = "note", peer: str = "", octets: int = 0) -> None:
        """Something that is no message: what a client typed, a clock that was read. `fields` must be fit to be shown."""
        self._put(way, peer, name, session, octets, fields)

    def _timer(self, session: int) -> None:
        """A replay's timers fire when they did here."""
        self._put("note", "", "Timer", session, 0, {})

    def _put(self, way: str, peer: str, name: str, session: int, octets: int, fields: dict[str, Any]) -> None:
        if self._closed:
            return
        packed = _pack(fields)
        if len(self._held) + len(packed) > _MOST_HELD:
            self._lost += 1
            return
        if len(packed) > _MOST_FIELDS:
            packed = _pack(cut(len(packed)))
        loop = self._loop
        turn = round(loop.now * 1e9)  # divided again it is the same number to the last bit, and so is all that is counted from it
        data = self._encode(Tapped(time.monotonic_ns(), turn, loop.ending, way, peer, name, session, octets, self._lost, packed))
        self._lost = 0
        self._held += frame_head(len(data))
        self._held += data
        if self._waiting:
            return
        if len(self._held) >= _BATCH:
            self.flush()
        elif not self._scheduled:
            self._scheduled = True
            self._loop.soon(self._turn_over)

    def _turn_over(self) -> None:
        self._scheduled = False
        self.flush()

    def flush(self) -> None:
        """Write what the socket takes now. Also the last act of an actor that ends."""
        if self._closed or not self._held:
            return
        try:
            sent = self._sock.send(self._held)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EINTR, errno.ENOBUFS):
                self.close()
                return
            sent = 0
        del self._held[:sent]
        if bool(self._held) != self._waiting:
            self._waiting = not self._waiting
            if self._waiting:
                self._loop.add(self._sock.fileno(), self._ready, WRITE)
            else:
                self._loop.remove(self._sock.fileno())

    def _ready(self, events: int) -> None:
        del events
        self.flush()

    def close(self) -> None:
        """The end of the watching. Twice is once."""
        if self._closed:
            return
        self._closed = True
        if self._waiting:
            self._loop.remove(self._sock.fileno())
        self._held.clear()
        with contextlib.suppress(OSError):
            self._sock.close()
        if watch.tap is self:
            watch.tap = None
            self._loop.on_timer = None


def note(name: str, session: int, fields: dict[str, Any], *, way: str = "note", peer: str = "", octets: int = 0) -> None:
    """Tell the tap, if there is one. Callers on a hot path look at `watch.tap` themselves before they make `fields`."""
    if type(watch.tap) is ActorTap:
        watch.tap.note(name, session, fields, way=way, peer=peer, octets=octets)


def piece(data: bytes) -> dict[str, Any]:
    """Mail content among the fields of a note: whole where that was asked for, else its size."""
    return content(data) if type(watch.tap) is ActorTap and watch.tap.payload else cut(len(data))
