"""Read and write ZMTP 3.1, ZeroMQ's wire protocol, for one connected pair of sockets. Sans I/O.

With the NULL mechanism only (ZeroMQ RFC 23 and 37).

Why not libzmq: it starts two threads a context, which a fork loses, a Landlock domain does not cover and a
spawn pays half its time for; and it does not bound a message of many frames. This reader refuses a frame that
announces another, or more octets than the edge allows, before it takes one octet of it. See
docs/architecture.md.
"""

from struct import Struct

__all__ = ["PREFACE", "Reader", "ZmtpError", "frame_head", "preface"]

_MORE, _LONG, _COMMAND = 1, 2, 4
_long = Struct(">BQ")
_GREETING = 64  # octets
_MOST_COMMAND = 512  # octets
_LARGE = 65536  # octets: a frame of this size or more gets its own buffer, so that no part is copied twice
_SIGNATURE = b"\xff\0\0\0\0\0\0\0\1\x7f"


def preface(socket_type: bytes = b"PAIR") -> bytes:
    """Return what a peer sends first: greeting and READY command."""
    greeting = (_SIGNATURE + b"\3\1" + b"NULL".ljust(20, b"\0") + b"\0").ljust(_GREETING, b"\0")
    body = b"\5READY" + b"\x0bSocket-Type" + len(socket_type).to_bytes(4, "big") + socket_type
    return greeting + bytes((_COMMAND, len(body))) + body


PREFACE = preface()


def frame_head(octets: int) -> bytes:
    """Return the head of a single-frame message of that many octets."""
    return bytes((0, octets)) if octets < 256 else _long.pack(_LONG, octets)


class ZmtpError(ValueError):
    """The peer violates ZMTP, or a limit of this reader."""


class Reader:
    """Turn octets into message frames.

    `limit`: the largest frame, in octets. `types`: the socket types that the peer may have.
    """

    __slots__ = ("_buffer", "_frame", "_have", "_need", "_ready", "_resumed", "commands", "limit", "types")

    def __init__(self, limit: int, types: tuple[bytes, ...] = (b"PAIR",)) -> None:
        self.limit = limit
        self.types = types
        self.commands: list[bytes] = []  # commands after READY (PING, SUBSCRIBE ...); the owner may read them
        self._buffer = b""
        self._ready = self._resumed = False
        self._need = 0  # octets that the buffer must hold before another parse can succeed
        self._frame: bytearray | None = None  # a large frame, of which `_have` octets have arrived
        self._have = 0

    @property
    def empty(self) -> bool:
        """Whether no half-read frame is held: only then can the channel be handed on."""
        return not self._buffer and self._frame is None

    def room(self) -> memoryview | None:
        """Return the buffer for the rest of a large frame. After writing into it call `took`, not `feed`."""
        return None if self._frame is None else memoryview(self._frame)[self._have :]

    def took(self, octets: int) -> list[bytes | bytearray]:
        """Note that so many octets were written into `room`. Returns the frame once it is whole."""
        frame = self._frame
        assert frame is not None
        self._have += octets
        if self._have < len(frame):
            return []
        self._frame = None
        return [frame]

    def resume(self) -> None:
        """Start on a channel that another process may have read from: without the preface, if that took it.

        The first octet tells: no frame begins like a greeting.
        """
        self._resumed = True

    def feed(self, data: bytes | memoryview) -> list[bytes | bytearray]:
        """Return all message frames that are whole by now. Raises ZmtpError if the peer broke the rules."""
        room = self.room()
        if room is not None:
            part = min(len(room), len(data))
            room[:part] = data[:part]
            first = self.took(part)
            return first + self.feed(data[part:]) if part < len(data) else first
        if self._buffer:
            self._buffer += data
            if len(self._buffer) < self._need:
                return []
            data = self._buffer
        position = 0
        if self._resumed and len(data):
            self._resumed = False
            self._ready = data[0] != _SIGNATURE[0]
        if not self._ready:
            position = self._handshake(data)
            if not self._ready:
                self._buffer = bytes(data)
                return []
        frames: list[bytes | bytearray] = []
        end = len(data)
        while position + 2 <= end:
            flags = data[position]
            if flags == 0:
                start = position + 2
                stop = start + data[position + 1]
            else:
                start, stop = self._long_or_command(data, position, flags)
            if stop > end or not start:
                break
            if flags & _COMMAND:
                self.commands.append(bytes(data[start:stop]))
            else:
                frames.append(bytes(data[start:stop]))
            position = stop
        self._keep(data, position, end)
        return frames

    def _keep(self, data: bytes | memoryview, position: int, end: int) -> None:
        """Keep the octets of an incomplete frame, and note how many it takes to complete."""
        self._need = 0
        if position == end:
            self._buffer = b""
            return
        if end - position >= 9 and data[position] & _LONG:
            size = int.from_bytes(data[position + 1 : position + 9], "big")
            if size >= _LARGE and not data[position] & _COMMAND:
                self._frame, self._have = bytearray(size), end - position - 9
                self._frame[: self._have] = data[position + 9 :]
                self._buffer = b""
                return
            self._need = 9 + size
        self._buffer = bytes(data[position:])

    def _long_or_command(self, data: bytes | memoryview, position: int, flags: int) -> tuple[int, int]:
        """Return start and end of a long frame or a command; (0, 0) if its head is incomplete."""
        if flags & _MORE:
            raise ZmtpError("a message of several frames")
        if flags & ~(_LONG | _COMMAND):
            raise ZmtpError("unknown frame flags")
        if flags & _LONG:
            if len(data) - position < 9:
                return 0, 0
            size = int.from_bytes(data[position + 1 : position + 9], "big")
            start = position + 9
        else:
            size = data[position + 1]
            start = position + 2
        if flags & _COMMAND:
            if size > _MOST_COMMAND or len(self.commands) > 64:
                raise ZmtpError("too many or too long commands")
        elif size > self.limit:
            raise ZmtpError(f"a frame of {size} octets, {self.limit} allowed")
        return start, start + size

    def _handshake(self, data: bytes | memoryview) -> int:
        """Read greeting and READY; return their length in octets, 0 if they are incomplete."""
        if bytes(data[: len(PREFACE)]) == PREFACE and b"PAIR" in self.types:
            self._ready = True
            return len(PREFACE)
        head = bytes(data[:_GREETING])
        if (
            head[:1] != _SIGNATURE[:1]
            or (len(head) > 9 and head[9] != 0x7F)
            or (len(head) > 10 and head[10] < 3)
        ):
            raise ZmtpError("no ZMTP 3 greeting")
        if len(head) < _GREETING:
            return 0
        if head[12:32] != b"NULL".ljust(20, b"\0"):
            raise ZmtpError("a mechanism that is not NULL")
        if len(data) < _GREETING + 2:
            return 0
        flags, size = data[_GREETING], data[_GREETING + 1]
        body = bytes(data[_GREETING + 2 : _GREETING + 2 + size])
        if flags != _COMMAND or (body and not b"\5READY".startswith(body[:6])):
            raise ZmtpError("no READY command")
        if len(body) < size:
            return 0
        if _properties(body[6:]).get(b"socket-type") not in self.types:
            raise ZmtpError("a socket type that does not fit")
        self._ready = True
        return _GREETING + 2 + size


def _properties(data: bytes) -> dict[bytes, bytes]:
    out: dict[bytes, bytes] = {}
    while data:
        n = data[0]
        size = int.from_bytes(data[1 + n : 5 + n], "big")
        if len(data) < 5 + n + size:
            raise ZmtpError("READY with a broken property")
        out[data[1 : 1 + n].lower()] = data[5 + n : 5 + n + size]
        data = data[5 + n + size :]
    return out
