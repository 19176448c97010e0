"""Ask a running server, and follow its actors' messages, over its control socket.

    from popkernel.kernel.client import Client

    server = Client()
    print(server.ask("status")["uptime"])
    with server.follow(types=["LoginDenied"]) as trace:
        for frame in trace:
            print(frame.fields["user"], frame.fields["address"])

Only root and the user who runs the server may ask and follow. A question is one frame of msgpack, {"command":
...}, from a ZeroMQ DEALER. The answer is one frame, a map with "ok" and, where that is false, "error" and
"code". After the answer to "trace" come the frames of the trace. The server does not wait for a slow reader:
frames that a program does not read in time are lost, and a frame named "Lost" says how many.

pyzmq takes long to import, so only a connection imports it: `passwd` and the commands' help do not need it.
"""

import errno
import os
import socket
import stat
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from types import TracebackType
from typing import Any, Self

import msgpack
from popkernel.kernel.config.keys import default_run_dir, system_run_dir
from popkernel.kernel.config.loading import ConfigError, control_path
from popkernel.kernel.runtime.exit_codes import EXITS
from popkernel.proto.trace.recording import Frame, RecordingError
from popkernel.proto.trace.session_names import session_of

__all__ = ["ANSWER_SECONDS", "Client", "ClientError", "Trace", "plain", "runs_at"]

ANSWER_SECONDS = 10.0
_ATTACH_SECONDS = 2.0  # until all actors have said that they are traced
_CODES = frozenset(row.code for row in EXITS.values())
_LARGEST_QUESTION = 4000  # octets
_LARGEST_ANSWER = 64 << 20  # octets; 10,000 sessions and as many actors need less
_LARGEST_FRAME = 256 << 20  # octets; the kernel's whole state, in a recording of it, is one frame
_LONGEST_CLAIM = 64  # characters
_MOST_WAITING = 4096  # frames that libzmq reads ahead of this program
# milliseconds until libzmq reconnects a trace: never, since frames missed meanwhile could not be counted
_NEVER = 1 << 30
# Keys that the answer to "trace" must have, and their types.
_TRACE_ANSWER: dict[str, type] = {
    "topology": str,
    "version": str,
    "wall": int,
    "monotonic": int,
    "watches": dict,
    "running": list,
    "awaits": list,
}


class ClientError(Exception):
    """The server could not be asked, or refused (`refused`); `code` is a sysexits(3) code."""

    def __init__(self, text: str, code: int, *, refused: bool = False) -> None:
        super().__init__(text)
        self.code = code
        self.refused = refused


class Client:
    """Ask and trace the server of a run directory, over a new connection each time."""

    def __init__(self, run_dir: str | None = None) -> None:
        """Take the server's run directory; None: the default one.

        Raises:
            ConfigError: its path is too long for a socket in it.
        """
        self.run_dir = run_dir or default_run_dir()
        self.path = control_path(self.run_dir)

    def ask(self, command: str, seconds: float = ANSWER_SECONDS, **more: Any) -> dict[str, Any]:
        """Ask one question ("status", "stop", "who"), and return the server's answer.

        `more`: the question's other parts; kernel/operator/commands.py takes them.

        Raises:
            ClientError: no server (69), no permission (77), no answer in time (75), no valid answer (70), or
                the server's own refusal, with the code it gives.
        """
        self.probe("ask as root, or as the user who started it")
        question = {"command": command, **_claim(), **more}
        with closing(_Connection(self.path, question, _LARGEST_ANSWER)) as connection:
            data = connection.receive(time.monotonic() + seconds)
        if data is None:
            raise ClientError(
                f"the server on {self.run_dir} gave no answer in {seconds:g} seconds; "
                "try again, or look at its log",
                os.EX_TEMPFAIL,
            )
        return _accept(data, self.run_dir, "; stop it by the means of its version")

    def follow(
        self,
        *,
        actor: str = "",
        user: str = "",
        session: int = 0,
        edge: str = "",
        types: Sequence[str] = (),
        address: str = "",
        slow: int = 0,
        payload: bool = False,
        decisions: bool = False,
    ) -> "Trace":
        """Trace the server from now on. A frame is shown if it meets all conditions that are given.

        Args:
            actor: an instance, or a kind for all of its instances.
            user: a mail user.
            session: number of a session.
            edge: an edge of the topology, "listener:auth".
            types: names of messages.
            address: of clients, or a network of them.
            slow: milliseconds that a client must have waited for one answer; then its session is shown.
            payload: with mail content; for root.
            decisions: with the kernel's state and decisions.

        Raises:
            ClientError: as of ask(), or the server knows no such actor, user, edge or message.
        """
        question = {
            "command": "trace",
            **_claim(),
            "actor": actor,
            "user": user,
            "session": session,
            "edge": edge,
            "types": list(types),
            "address": address,
            "slow": slow,
            "payload": payload,
            "decisions": decisions,
        }
        if len(_pack(question)) > _LARGEST_QUESTION:
            raise ClientError("that is too much to ask for: fewer types", os.EX_USAGE)
        self.probe("only root, or the user who runs the server, may watch it")
        return Trace(self.run_dir, _Connection(self.path, question, _LARGEST_FRAME, once=True))

    def probe(self, mend: str) -> None:
        """Connect plainly, to find out whether a server listens: ZeroMQ would wait without end for one.

        The socket may be replaced before ZeroMQ connects: then no answer comes in time.

        Args:
            mend: added to the error's text where permission is missing.

        Raises:
            ClientError: no server (69), no permission (77), or it takes no connection now (75).
        """
        try:
            owner = os.stat(self.run_dir).st_uid
            if not stat.S_ISSOCK(os.stat(self.path).st_mode):
                raise ClientError(
                    f"{self.path} is no socket; give the server's own --run-dir", os.EX_UNAVAILABLE
                )
            # Anyone can make a directory in /tmp and answer there.
            if os.geteuid() not in {0, owner} and owner != 0:
                raise ClientError(
                    f"{self.run_dir} belongs to uid {owner}, not to you; give your own --run-dir",
                    os.EX_NOPERM,
                )
            with closing(socket.socket(socket.AF_UNIX)) as probe:
                probe.settimeout(ANSWER_SECONDS)
                probe.connect(self.path)
        except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError):
            what = f"no popkernel runs on {self.run_dir}; {self._other()}"
            raise ClientError(what, os.EX_UNAVAILABLE) from None
        except PermissionError:
            raise ClientError(f"{self.path}: not permitted; {mend}", os.EX_NOPERM) from None
        except OSError as error:
            code = os.EX_TEMPFAIL if error.errno in {errno.EAGAIN, None} else os.EX_OSERR
            raise ClientError(f"{self.path}: {error}; try again", code) from None

    def _other(self) -> str:
        """Return what to do if no server runs here. An ordinary user's default is not the system's server."""
        others = system_run_dir()
        if self.run_dir == default_run_dir() != others and os.path.exists(control_path(others)):
            return f"one runs on {others}: ask as root, or give another -f or --run-dir"
        return "start it, or give another -f or --run-dir"


class Trace:
    """Iterate over the frames of a trace, until the server ends. As a context manager, detach on exit."""

    def __init__(self, run_dir: str, connection: "_Connection") -> None:
        self._run_dir = run_dir
        self._connection = connection
        self._early: deque[Frame] = deque()  # frames that came before all actors were traced
        self.lost = 0
        """Number of frames lost so far, because this program read too slowly."""
        self.sessions: set[int] | None = None
        """Sessions of clients and of mail servers at the start; None if listeners or mda are not traced."""
        try:
            self.answer = self._answer()
            self._wait_until_traced()
        except BaseException:
            connection.close()
            raise

    @property
    def ended(self) -> bool:
        """Return whether the connection has ended, and all frames that came before were taken."""
        return self._connection.ended

    def _answer(self) -> dict[str, Any]:
        data = self._receive(time.monotonic() + ANSWER_SECONDS)
        if data is None:
            closed = "closed the connection: not permitted, or too many watch already"
            why = closed if self.ended else f"gave no answer in {ANSWER_SECONDS:g} seconds"
            raise ClientError(f"the server on {self._run_dir} {why}", os.EX_TEMPFAIL)
        answer = _accept(data, self._run_dir)
        whole = (
            all(type(answer.get(key)) is kind for key, kind in _TRACE_ANSWER.items())
            and type(answer.get("maildir", b"")) is bytes
        )
        if not whole or not all(type(name) is str for name in answer["running"] + answer["awaits"]):
            raise ClientError(_STRANGER.format(self._run_dir), os.EX_SOFTWARE)
        return answer

    def _wait_until_traced(self) -> None:
        """Wait until each actor has sent its Settings: from then on, none of its frames is missed.

        An actor that hangs is not waited for beyond the time limit.
        """
        awaited = set(self.answer["awaits"])
        until = time.monotonic() + _ATTACH_SECONDS
        while awaited and (data := self._receive(until)) is not None:
            frame = self._frame(data)
            self._early.append(frame)
            if frame.name in ("Settings", "Ended"):
                awaited.discard(frame.actor if frame.name == "Settings" else frame.peer)
        if not awaited:
            self.sessions = self._sessions()

    def _sessions(self) -> set[int] | None:
        settings = {frame.actor: frame.fields for frame in self._early if frame.name == "Settings"}
        names = [name for name in self.answer["running"] if name.startswith(("gate", "listener."))]
        # isolation = "connection": each session has a listener of its own, whose name tells its number
        gated = any(name.startswith("gate") for name in names)
        if "mda" not in settings or not (gated or any(actor.startswith("listener") for actor in settings)):
            return None  # they are not traced
        numbers = [number for fields in settings.values() for number in _rows(fields, "sessions")]
        numbers += [row[0] for row in _rows(settings["mda"], "clients") if type(row) is list and row]
        return {number for number in numbers if type(number) is int} | {session_of(name) for name in names}

    def _receive(self, until: float | None) -> bytes | None:
        data = self._connection.receive(until)
        if data is None and self._connection.foreign:
            raise ClientError(
                f"what answers on {self._run_dir} is no popkernel: it does not speak ZMTP 3", os.EX_SOFTWARE
            )
        return data

    def _frame(self, data: bytes) -> Frame:
        try:
            frame = Frame.of_map(_unpack(data))
        except RecordingError as error:
            raise ClientError(
                f"the server on {self._run_dir} is of another version: {error}", os.EX_SOFTWARE
            ) from None
        self.lost += frame.lost
        return frame

    def next_frame(self, seconds: float | None = None) -> Frame | None:
        """Return the next frame; None if none comes in time, or the server has ended (`ended`)."""
        if self._early:
            return self._early.popleft()
        data = self._receive(None if seconds is None else time.monotonic() + seconds)
        return None if data is None else self._frame(data)

    def __iter__(self) -> Iterator[Frame]:
        while (frame := self.next_frame()) is not None:
            yield frame

    def close(self) -> None:
        """Detach from the server, which goes on serving."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Connection:
    """Send a question over a DEALER, and receive what comes back.

    With `once`, the end of the connection sets `ended`; else libzmq connects again.
    """

    def __init__(self, path: str, question: dict[str, Any], largest: int, *, once: bool = False) -> None:
        import zmq

        self.ended = self.foreign = False  # foreign: the other end does not speak ZMTP 3
        # _over: the connection has ended, but frames that came before may still wait
        self._over = self._closed = False
        self._context = zmq.Context()
        try:
            self._socket = self._context.socket(zmq.DEALER)
            self._socket.setsockopt(zmq.MAXMSGSIZE, largest)
            self._socket.setsockopt(zmq.RCVHWM, _MOST_WAITING)
            self._poller = zmq.Poller()
            self._poller.register(self._socket, zmq.POLLIN)
            self._monitor = None
            if once:
                self._socket.setsockopt(zmq.RECONNECT_IVL, _NEVER)
                failed = zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
                self._monitor = self._socket.get_monitor_socket(zmq.EVENT_DISCONNECTED | failed)
                self._poller.register(self._monitor, zmq.POLLIN)
            # octets, since a path need not be UTF-8; the stubs lack them
            self._socket.connect(os.fsencode(f"ipc://{path}"))  # type: ignore[arg-type]
            with suppress(zmq.Again):  # the other end has ended already, or is foreign
                self._socket.send(_pack(question), zmq.NOBLOCK)
        except zmq.ZMQError as error:
            self.close()
            raise ClientError(f"{path}: {error}", os.EX_IOERR) from None
        except BaseException:
            self.close()
            raise

    def receive(self, until: float | None) -> bytes | None:
        """Return the octets of the next frame; None if none comes before time.monotonic() is `until`."""
        import zmq
        from zmq.utils.monitor import recv_monitor_message

        while not self._closed:
            try:
                return self._socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                if self._over:
                    self.ended = True
                    return None
            left = None if until is None else max(0, int((until - time.monotonic()) * 1000))
            ready = dict(self._poller.poll(left))
            if not ready:
                return None
            # libzmq reports the end after it has queued all frames; after a frame beyond MAXMSGSIZE it may
            # drop those that were not read yet
            if self._monitor is not None and self._monitor in ready:
                event = recv_monitor_message(self._monitor)
                closed = event["event"] == zmq.EVENT_DISCONNECTED or event["value"] in (
                    errno.EPIPE,
                    errno.ECONNRESET,
                )
                self.foreign |= not closed
                self._over = True
        return None

    def close(self) -> None:
        self.ended = self._closed = True
        self._context.destroy(linger=0)


def runs_at(run_dir: str) -> bool:
    """Return whether a server runs on this run directory, even one that this user may not ask."""
    try:
        Client(run_dir).probe("")
    except ClientError as error:
        return error.code != os.EX_UNAVAILABLE
    except ConfigError:
        return False
    return True


def plain(value: Any) -> str:
    """Return any value as one line without control characters, so that no name can control the terminal."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "backslashreplace")
    if isinstance(value, list | tuple):
        value = " ".join(plain(item) for item in value)
    return "".join(letter if letter.isprintable() else "?" for letter in str(value))


_STRANGER = "what answers on {} is no popkernel, or one of another version"


def _accept(data: bytes, run_dir: str, mend: str = "") -> dict[str, Any]:
    """Decode and return an answer.

    Raises:
        ClientError: it is no valid answer, or a refusal.
    """
    answer = _unpack(data)
    if not isinstance(answer, dict) or not isinstance(answer.get("ok"), bool):
        raise ClientError(_STRANGER.format(run_dir) + mend, os.EX_SOFTWARE)
    if not answer["ok"]:
        why = answer.get("error")
        text = (
            "\n".join(plain(line) for line in why.split("\n"))
            if why and isinstance(why, str)
            else "the server gave no reason"
        )
        code = answer.get("code")
        if not isinstance(code, int) or code not in _CODES:
            code = EXITS["unavailable"].code
        raise ClientError(text, code, refused=True)
    return answer


def _claim() -> dict[str, str]:
    """Return who runs this as another user, by sudo(8) or doas(1): for the server's log, as a claim."""
    name = os.environ.get("SUDO_USER") or os.environ.get("DOAS_USER")
    return {"claim": name[:_LONGEST_CLAIM]} if name else {}


def _rows(fields: dict[str, Any], key: str) -> list[Any]:
    """Return the list `key` of an actor's Settings, [] if it is no list: an actor may send anything."""
    value = fields.get(key)
    return value if type(value) is list else []


def _pack(question: dict[str, Any]) -> bytes:
    # Arguments of a command line need not be UTF-8. Escaped, they are a text that the server takes: it has no
    # such name.
    data: bytes = msgpack.packb(question, unicode_errors="backslashreplace")
    return data


def _unpack(data: bytes) -> Any:
    """Decode a frame; None if it is not msgpack."""
    try:
        return msgpack.unpackb(data, strict_map_key=False, unicode_errors="surrogateescape")
    except (ValueError, TypeError, msgpack.exceptions.UnpackException):
        # TypeError: a list as the key of a map
        return None
