"""Watch a running server from a program of your own, as `popkernel trace` does.

    from popkernel.kernel.client import Watcher

    for frame in Watcher(types=["LoginFailed"]):
        print(frame.fields["user"], frame.fields["address"])

Only root, or the user who runs the server, can attach. The server never waits for a watcher: what it does not read in time it loses,
and gets a frame named "Lost" that says how many.
"""

import errno
import os
import select
import socket
import time
from collections import deque
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, Self

import msgpack
from popkernel.kernel.config.keys import control_path, default_run_dir
from popkernel.kernel.runtime.exit_codes import EXITS
from popkernel.proto.bus.zmtp import Reader, ZmtpError, frame_head, preface
from popkernel.proto.trace.recording import Frame, RecordingError
from popkernel.proto.trace.session_names import session_of

__all__ = ["Frame", "WatchError", "Watcher"]

_CODES = frozenset(row.code for row in EXITS.values())
_PREFACE = preface(b"DEALER")
_MOST_FRAME = 256 << 20  # octets; the kernel's whole state, in a recording of it, is one frame
_PATIENCE = 10.0  # seconds for the answer
_ATTACHING = 2.0  # seconds for all actors to be watched


class WatchError(Exception):
    """The server can't be watched; `code` is a sysexits(3) code."""

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.code = code


class Watcher:
    """An attached viewer: iterate over it for frames, until the server ends. A context manager, which detaches.

    `actor` (an instance, or a kind for all of it), `user`, `session`, `edge` ("listener:auth") and `types` (message names) narrow what
    is shown; all that are given must hold. `payload`: mail content too, for root. `decisions`: the kernel's state and decisions.
    """

    def __init__(
        self, run_dir: str | None = None, *, actor: str = "", user: str = "", session: int = 0, edge: str = "", types: Sequence[str] = (),
        payload: bool = False, decisions: bool = False,
    ) -> None:
        """WatchError where there is no server, it may not be watched, or it knows no such actor, user, edge or message."""
        self.run_dir = run_dir or default_run_dir()
        self._reader = Reader(_MOST_FRAME, (b"ROUTER",))
        self._frames: deque[bytes] = deque()
        self.ended = False  # the server has closed the connection
        self.lost = 0  # frames so far that came too fast for this watcher
        self._early: deque[Frame] = deque()
        self.sessions: set[int] | None = None
        """Those that were there at the begin, of clients and of mail servers; None where those who know did not say."""
        wish = {
            "command": "trace", "actor": actor, "user": user, "session": session, "edge": edge, "types": list(types), "payload": payload,
            "decisions": decisions,
        }
        request = msgpack.packb(wish)
        if len(request) > 4000:
            raise WatchError("that is too much to ask for: fewer types", os.EX_USAGE)
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._connect()
            self._sock.sendall(_PREFACE + frame_head(len(request)) + request)
            self.answer = self._answer()
            self._wait_until_watched()
        except BaseException:
            self._sock.close()
            raise

    def _connect(self) -> None:
        path = control_path(self.run_dir)
        try:
            owner = os.stat(self.run_dir).st_uid
            if owner not in (0, os.geteuid()) and os.geteuid() != 0:  # anyone can make a directory in /tmp and answer there
                raise WatchError(f"{self.run_dir} belongs to uid {owner}, not to you; give your own --run-dir", os.EX_NOPERM)
            self._sock.settimeout(_PATIENCE)
            self._sock.connect(path)
        except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError):
            raise WatchError(f"no popkernel runs on {self.run_dir}; start it, or give another --run-dir", os.EX_UNAVAILABLE) from None
        except PermissionError:
            raise WatchError(
                f"{path}: not permitted; only root, or the user who runs the server, may watch it", os.EX_NOPERM,
            ) from None
        except OSError as error:
            code = os.EX_TEMPFAIL if error.errno in (errno.EAGAIN, None) else os.EX_OSERR
            raise WatchError(f"{path}: {error}; try again", code) from None

    def _answer(self) -> dict[str, Any]:
        until = time.monotonic() + _PATIENCE
        data = self._next(until)
        if data is None:
            why = (
                "closed the connection: not permitted, or too many watch already"
                if self.ended
                else f"gave no answer in {_PATIENCE:g} seconds"
            )
            raise WatchError(f"the server on {self.run_dir} {why}", os.EX_TEMPFAIL)
        answer = _unpack(data)
        if type(answer) is not dict or type(answer.get("ok")) is not bool:
            raise WatchError(f"what answers on {self.run_dir} is no popkernel, or one of another version", os.EX_SOFTWARE)
        if not answer["ok"]:
            code = answer.get("code")
            raise WatchError(str(answer.get("error")), code if code in _CODES else os.EX_USAGE)
        return answer

    def _wait_until_watched(self) -> None:
        """Each actor says what it goes by when it begins to be watched: after that, nothing is missed.

        One that is stuck is not waited for.
        """
        awaited = set(self.answer.get("awaits", ()))
        until = time.monotonic() + _ATTACHING
        while awaited and (data := self._next(until)) is not None:
            frame = self._frame(data)
            self._early.append(frame)
            if frame.name in ("Settings", "Ended"):
                awaited.discard(frame.actor if frame.name == "Settings" else frame.peer)
        if not awaited:
            self.sessions = self._sessions()

    def _sessions(self) -> set[int] | None:
        scene = {frame.actor: frame.fields for frame in self._early if frame.name == "Settings"}
        alone = [name for name in self.answer.get("running", ()) if name.startswith(("gate", "listener."))]
        apart = any(name.startswith("gate") for name in alone)  # isolation = "connection": a listener for each
        if "mda" not in scene or not (apart or any(actor.startswith("listener") for actor in scene)):
            return None  # they are not watched
        found = {number for fields in scene.values() for number in fields.get("sessions", ())}
        return found | {client[0] for client in scene["mda"].get("clients", ())} | {session_of(name) for name in alone}

    def _next(self, until: float | None) -> bytes | None:
        """The octets of the next frame; None where there is none in time, or never again."""
        while not self._frames and not self.ended:
            left = None if until is None else max(0.0, until - time.monotonic())
            if not select.select([self._sock], [], [], left)[0]:
                return None
            try:
                data = self._sock.recv(1 << 20)
                self._frames += map(bytes, self._reader.feed(data))
            except (ConnectionResetError, TimeoutError):
                data = b""
            except ZmtpError as error:
                raise WatchError(f"what answers on {self.run_dir} is no popkernel: {error}", os.EX_SOFTWARE) from None
            self.ended = not data
        return self._frames.popleft() if self._frames else None

    def fileno(self) -> int:
        """For select(2); frames may be there already, too: ask `next_frame(0)` first."""
        return self._sock.fileno()

    def next_frame(self, seconds: float | None = None) -> Frame | None:
        """The next frame; None where none comes within so many seconds, or the server has ended (`ended`)."""
        if self._early:
            return self._early.popleft()
        data = self._next(None if seconds is None else time.monotonic() + seconds)
        return None if data is None else self._frame(data)

    def _frame(self, data: bytes) -> Frame:
        try:
            frame = Frame.of_map(_unpack(data))
        except RecordingError as error:
            raise WatchError(f"the server on {self.run_dir} is of another version: {error}", os.EX_SOFTWARE) from None
        self.lost += frame.lost
        return frame

    def __iter__(self) -> Iterator[Frame]:
        while (frame := self.next_frame()) is not None:
            yield frame

    def close(self) -> None:
        """Detach. Nothing of it is felt by the server, but that it need not show anything any more."""
        self._sock.close()
        self.ended = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _unpack(data: bytes) -> Any:
    try:
        return msgpack.unpackb(data, strict_map_key=False, unicode_errors="surrogateescape")
    except (ValueError, msgpack.exceptions.UnpackException):
        return None
