"""Send a traced actor's messages and notes to the kernel, which passes them on to the operator.

The kernel's side is kernel/operator/tracing.py. A tap never waits, and its buffer is bounded: frames that do
not fit are dropped and counted. No secret enters it: messages are redacted by the table before they are
encoded, client input by `popkernel.proto.trace.client_input`.
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
from popkernel.proto.messages import TraceFrame, TraceStart, TraceStop
from popkernel.proto.topology import kind_of
from popkernel.proto.trace.redaction import content, cut, shown

__all__ = ["ActorTap", "note", "piece"]

_MOST_HELD = 2 << 20  # octets in the buffer while the kernel does not read
_MOST_FIELDS = 400 * 1024  # octets; larger fields are left out of a frame
_BATCH = 64 * 1024  # octets at which the buffer is written before the end of the loop's turn
_pack = msgpack.Packer(use_bin_type=True, autoreset=True).pack
_HIDDEN = (TraceStart, TraceStop)  # messages about the trace itself


class ActorTap:
    """Take frames while the actor is traced; set as `watch.tap`."""

    __slots__ = (
        "_closed",
        "_encode",
        "_held",
        "_loop",
        "_lost",
        "_scheduled",
        "_session_of",
        "_sock",
        "_waiting",
        "payload",
    )

    def __init__(
        self,
        loop: Loop,
        sock: socket.socket,
        me: str,
        session_of: Callable[[Channel, Message], int],
        *,
        payload: bool,
    ) -> None:
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
        """Take a message, or the end of a channel."""
        if way == "gone":
            self._put("in", channel.peer, "Gone", self._session_of(channel, message), 0, {"why": message[0]})
            return
        if type(message) in _HIDDEN:
            return
        fields, octets = shown(message, payload=self.payload)
        self._put(
            way, channel.peer, type(message).__name__, self._session_of(channel, message), octets, fields
        )

    def note(
        self,
        name: str,
        session: int,
        fields: dict[str, Any],
        *,
        way: str = "note",
        peer: str = "",
        octets: int = 0,
    ) -> None:
        """Take what is no message: client input, a reading of the clock. `fields` must hold no secret."""
        self._put(way, peer, name, session, octets, fields)

    def _timer(self, session: int) -> None:
        """Note a timer's call, so that a replay calls its timers at the same points."""
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
        # nanoseconds, divided again, give the same float to the last bit, and so do sums made from it
        turn = round(loop.now * 1e9)
        data = self._encode(
            TraceFrame(
                time.monotonic_ns(), turn, loop.ending, way, peer, name, session, octets, self._lost, packed
            )
        )
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
        """Write what the socket takes now. An actor that ends calls it last."""
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
        """End the trace. A second call does nothing."""
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


def note(
    name: str, session: int, fields: dict[str, Any], *, way: str = "note", peer: str = "", octets: int = 0
) -> None:
    """Give a note to the tap, if there is one.

    Callers on a hot path check `watch.tap` themselves before they make `fields`.
    """
    if type(watch.tap) is ActorTap:
        watch.tap.note(name, session, fields, way=way, peer=peer, octets=octets)


def piece(data: bytes) -> dict[str, Any]:
    """Return mail content as a note's field: whole if the trace shows content, else its size."""
    return content(data) if type(watch.tap) is ActorTap and watch.tap.payload else cut(len(data))
