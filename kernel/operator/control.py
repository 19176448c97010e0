"""Serve the control socket: ZeroMQ requests (DEALER to ROUTER) of one msgpack map each.

Only root and the service's own user may connect. A bad request costs its own connection and nothing else.
"""

import contextlib
import errno
import os
import socket
import struct
from collections.abc import Callable, Mapping
from typing import Any

import msgpack
from popkernel.kernel.runtime.loop import READ, WRITE, Loop
from popkernel.proto.bus.zmtp import Reader, ZmtpError, frame_head, preface
from popkernel.proto.schema import printable

__all__ = ["Client", "ControlServer", "packed"]

_PREFACE = preface(b"ROUTER")
_MOST_CLIENTS = 32
_RETRY_SECONDS = 1.0  # until connections are accepted again
_MOST_REQUEST = 4096  # octets
_LONGEST_CLAIM = 64  # characters
_MOST_UNSENT = 64 << 20  # octets of answers that a client has not read
_MOST_PUSHED = 8 << 20  # octets of frames that a viewer has not read


class ControlServer:
    """Accept connections, check their uid, and pass on their commands."""

    def __init__(
        self,
        loop: Loop,
        sock: socket.socket,
        command: Callable[["Client", dict[str, Any]], None],
        trace: Callable[["Client", dict[str, Any]], None],
        names: Mapping[int, str],
    ) -> None:
        """Begin to accept.

        Args:
            loop: of the kernel.
            sock: the listening socket.
            command: takes the client and its request.
            trace: takes the client and its request to trace.
            names: of the uids that may connect, for the log.
        """
        self._loop = loop
        self._sock = sock
        self._command = command
        self._trace = trace
        self._names = names
        self._own = os.geteuid()
        self.clients: set[Client] = set()
        loop.add(sock.fileno(), self._accept)

    def _accept(self, events: int) -> None:
        del events
        try:
            sock, _ = self._sock.accept()
        except BlockingIOError:
            return
        except OSError:  # no room for a descriptor: the client waits, and the loop does not spin
            self._loop.remove(self._sock.fileno())
            self._loop.later(_RETRY_SECONDS, lambda: self._loop.add(self._sock.fileno(), self._accept))
            return
        uid = peer_uid(sock)
        if len(self.clients) >= _MOST_CLIENTS or uid not in (0, self._own):
            sock.close()
            return
        self.clients.add(Client(self._loop, sock, self, uid, self._names.get(uid, "")))

    def ask(self, client: "Client", frame: bytes) -> None:
        """Handle one request of a client, a frame of msgpack."""
        try:
            request = msgpack.unpackb(frame, max_map_len=16, max_array_len=64, max_ext_len=0)
            name = request["command"]
        except Exception:  # noqa: BLE001  msgpack has many errors for a bad request
            client.answer({"ok": False, "error": "a request is a map with a command"})
            return
        client.claim = _claim(request)
        (self._trace if name == "trace" else self._command)(client, request)


class Client:
    """One connection of an operator's program; `uid` and `name` are its user's."""

    def __init__(
        self, loop: Loop, sock: socket.socket, server: ControlServer, uid: int, name: str = ""
    ) -> None:
        self.uid = uid
        self.name = name
        self.claim = ""  # who the program says that it acts for: sudo's user
        self.on_room: Callable[[], None] | None = None  # called when all pushed frames are sent
        self.on_end: Callable[[], None] | None = None
        self._loop = loop
        self._sock = sock
        self._server = server
        self._reader = Reader(_MOST_REQUEST, (b"DEALER", b"REQ"))
        self._out = bytearray(_PREFACE)
        self._closed = False
        sock.setblocking(False)
        loop.add(sock.fileno(), self._ready, READ | WRITE)

    def _ready(self, events: int) -> None:
        if events & WRITE:
            self._flush()
        if events & ~WRITE and not self._closed:
            self._read()

    def _read(self) -> None:
        try:
            data = self._sock.recv(4096)
            frames = self._reader.feed(data)
        except (BlockingIOError, InterruptedError):
            return
        except (OSError, ZmtpError):
            data, frames = b"", []
        if not data:
            self.close()
            return
        for frame in frames:
            self._server.ask(self, bytes(frame))

    @property
    def author(self) -> dict[str, str | int]:
        """Return who this is, as fields for the log. Only the uid, and its name, are certain."""
        claim = {"claim": self.claim} if self.claim else {}
        return {"by": self.name or f"uid {self.uid}", "uid": self.uid, **claim}

    def answer(self, answer: dict[str, Any]) -> None:
        """Send an answer, unless the connection is closed."""
        self.answer_packed(packed(answer))

    def answer_packed(self, data: bytes) -> None:
        """Send an answer that is packed, unless the connection is closed."""
        if self._closed:
            return
        self._out += frame_head(len(data)) + data
        if len(self._out) > _MOST_UNSENT:
            self.close()
            return
        self._flush()

    def push(self, frame: bytes) -> bool:
        """Send a frame of a trace. Return False if it is lost, because too many octets wait already."""
        if self._closed or len(self._out) + len(frame) > _MOST_PUSHED:
            return False
        waited = bool(self._out)
        self._out += frame_head(len(frame))
        self._out += frame
        if not waited:
            self._flush()
        return True

    def _flush(self) -> None:
        try:
            sent = self._sock.send(self._out) if self._out else 0
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EINTR):
                self.close()
                return
            sent = 0
        del self._out[:sent]
        if sent and not self._out and self.on_room is not None:
            self.on_room()
        self._loop.change(self._sock.fileno(), READ | (WRITE if self._out else 0))

    def close(self) -> None:
        """Close the connection, and call `on_end`."""
        if not self._closed:
            self._closed = True
            self._loop.remove(self._sock.fileno())
            with contextlib.suppress(OSError):
                self._sock.close()
            self._server.clients.discard(self)
            if self.on_end is not None:
                self.on_end()


def packed(value: Any) -> bytes:
    """Pack an answer or a part of one. A path need not be UTF-8: it is escaped as in the log."""
    data: bytes = msgpack.packb(value, unicode_errors="backslashreplace")
    return data


def _claim(request: dict[str, Any]) -> str:
    """Return whom a program says that it acts for, fit for a line of the log."""
    claim = request.get("claim", "")
    return printable(claim)[:_LONGEST_CLAIM] if isinstance(claim, str) else ""


def peer_uid(sock: socket.socket) -> int:
    """Return the uid at the other end of a unix socket, -1 if the system does not tell it."""
    try:
        if hasattr(socket, "SO_PEERCRED"):
            return int(struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[1])
        # OpenBSD's <sys/socket.h>: struct sockpeercred { uid_t uid; gid_t gid; pid_t pid; }
        so_peercred = 0x1022
        return int(struct.unpack("2Ii", sock.getsockopt(socket.SOL_SOCKET, so_peercred, 12))[0])
    except OSError:
        return -1
