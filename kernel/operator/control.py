"""The operator's socket: ZeroMQ requests (DEALER to ROUTER) of one msgpack map each, from root or the service's own user.

It is an outside socket: whatever comes over it costs its own connection and nothing else.
"""

import contextlib
import errno
import os
import socket
import struct
from collections.abc import Callable
from typing import Any

import msgpack
from popkernel.kernel.runtime.loop import READ, WRITE, Loop
from popkernel.proto.bus.zmtp import Reader, ZmtpError, frame_head, preface

__all__ = ["ControlServer"]

_PREFACE = preface(b"ROUTER")
_MOST_CLIENTS = 32
_AGAIN_SECONDS = 1.0  # until connections are taken again
_MOST_REQUEST = 4096  # octets
_MOST_UNSENT = 64 << 20  # octets of an answer that nobody reads
_MOST_PUSHED = 8 << 20  # octets of frames that a viewer has not read

Answer = Callable[[dict[str, Any]], None]


class ControlServer:
    """Accepts, checks who asks, passes the command on."""

    def __init__(
        self, loop: Loop, sock: socket.socket, command: Callable[[str, Answer], None], trace: Callable[["Client", dict[str, Any]], None],
    ) -> None:
        """`trace` takes the request of a client who stays to watch."""
        self._loop = loop
        self._sock = sock
        self._command = command
        self._trace = trace
        self._own = os.geteuid()
        self.clients: set[Client] = set()
        loop.add(sock.fileno(), self._accept)

    def _accept(self, events: int) -> None:
        del events
        try:
            sock, _ = self._sock.accept()
        except BlockingIOError:
            return
        except OSError:  # no room for it: who asks waits, and this process does not turn in a circle
            self._loop.remove(self._sock.fileno())
            self._loop.later(_AGAIN_SECONDS, lambda: self._loop.add(self._sock.fileno(), self._accept))
            return
        uid = peer_uid(sock)
        if len(self.clients) >= _MOST_CLIENTS or uid not in (0, self._own):
            sock.close()
            return
        self.clients.add(Client(self._loop, sock, self, uid))

    def ask(self, client: "Client", frame: bytes) -> None:
        """One request."""
        try:
            request = msgpack.unpackb(frame, max_map_len=16, max_array_len=64, max_ext_len=0)
            name = request["command"]
        except Exception:  # noqa: BLE001  whatever msgpack finds wrong with it, it is no request
            client.answer({"ok": False, "error": "a request is a map with a command"})
            return
        if name == "trace":
            self._trace(client, request)
        else:
            self._command(name if isinstance(name, str) else "", client.answer)


class Client:
    """One connection of an operator's program."""

    def __init__(self, loop: Loop, sock: socket.socket, server: ControlServer, uid: int) -> None:
        self.uid = uid
        self.on_room: Callable[[], None] | None = None  # all that was pushed has been read
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

    def answer(self, answer: dict[str, Any]) -> None:
        """Send an answer, if there is still somebody to take it."""
        if self._closed:
            return
        data: bytes = msgpack.packb(answer, unicode_errors="backslashreplace")  # a path need not be UTF-8; as the log shows it
        self._out += frame_head(len(data)) + data
        if len(self._out) > _MOST_UNSENT:
            self.close()
            return
        self._flush()

    def push(self, frame: bytes) -> bool:
        """Send a frame that nobody asked for, if there is room: False where it is lost, because too many wait already."""
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
        """The end of this connection."""
        if not self._closed:
            self._closed = True
            self._loop.remove(self._sock.fileno())
            with contextlib.suppress(OSError):
                self._sock.close()
            self._server.clients.discard(self)
            if self.on_end is not None:
                self.on_end()


def peer_uid(sock: socket.socket) -> int:
    """Who is at the other end, as the system says; -1 where it does not."""
    try:
        if hasattr(socket, "SO_PEERCRED"):
            return int(struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[1])
        so_peercred = 0x1022  # OpenBSD's <sys/socket.h>: struct sockpeercred { uid_t uid; gid_t gid; pid_t pid; }
        return int(struct.unpack("2Ii", sock.getsockopt(socket.SOL_SOCKET, so_peercred, 12))[0])
    except OSError:
        return -1
