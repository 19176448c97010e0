"""A recorded listener on the stage: from what its clients typed to what it told them, auth, the kernel and the maildir actors."""

from collections.abc import Sequence
from typing import Any

from popkernel.actors.listener import connections, main
from popkernel.actors.listener.connection import Client
from popkernel.actors.listener.limits import Bounds, Limits
from popkernel.actors.listener.session.policy import Policy
from popkernel.actors.listener.session.session import Session
from popkernel.actors.listener.single_listener import Lone
from popkernel.kernel.replay.harness import LeftError, Stage, StageSocket, boot_of
from popkernel.kernel.runtime.loop import READ, WRITE
from popkernel.proto import messages as m
from popkernel.proto.pop3.commands import TOO_LONG
from popkernel.proto.pop3.sasl import AUTH_LINE_LIMIT
from popkernel.proto.trace.recording import Frame, RecordingError
from popkernel.proto.trace.redaction import content, cut

__all__ = ["play"]


class _Nothing(bytes):
    """Octets came, but not yet a line's end: nothing that may be recorded. Not the end of the connection."""

    __slots__ = ()

    def __bool__(self) -> bool:
        return True


class _ClientSocket(StageSocket):
    """A client's: what it typed is read from here, and it takes all but `leaves` octets of what it is sent."""

    def __init__(self) -> None:
        super().__init__()
        self.typed: list[bytes] = []
        self.leaves = 0
        self._open = True

    def setblocking(self, flag: bool) -> None:
        """It never blocks."""

    def setsockopt(self, *arguments: int) -> None:
        """It has no options."""

    def fileno(self) -> int:
        return super().fileno() if self._open else -1

    def close(self) -> None:
        self._open = False

    def recv(self, most: int) -> bytes:
        del most
        if not self.typed:
            raise BlockingIOError
        return self.typed.pop(0)

    def send(self, data: memoryview) -> int:
        taken = len(data) - self.leaves
        if taken <= 0:
            raise BlockingIOError
        return taken


class _Listener(main.Listener):
    """The shell itself, but for what belongs to the system."""

    stage: Stage
    frames: Sequence[Frame]

    def _bound(self, why: str, host: str, what: str = "refused") -> None:
        """For the log of the service."""

    def _start_tls(self, client: Client) -> None:
        client.handshake = True

    def _show(self, session: Session) -> None:
        said = session.replies.take_shown()
        form = content if self.stage.payload else (lambda data: cut(len(data)))
        pieces: list[Any] = [form(part[0]) if type(part) is tuple else part for part in said]
        octets = sum(len(part[0] if type(part) is tuple else part) for part in said)
        self.stage.notes("client", "Reply", session.id, {"said": pieces}, octets)

    def _admit(self, sock: Any, host: str, port: int, *, tls: bool, refused: str) -> None:
        if not refused:
            self.limits.come(host, self.loop.now)
        with self.stage.set_up(connections, Session=_shown_session):  # the greeting is said while the session is made
            super()._admit(sock, host, port, tls=tls, refused=refused)

    def _turn_of(self, login: m.Login, host: str) -> str | None:
        """Where others' logins are not in the recording, its word counts on whether there was room for this one."""
        if not self.stage.guided:
            return super()._turn_of(login, host)
        queued = self.stage.behind(self.frames, "Queued", login.session)
        return "" if queued is None else str(queued.fields["refused"]) or None

    def read_keys(self) -> Any:
        return None, []

    def fail(self, status: int, text: str) -> Any:
        raise RecordingError(f"{text} ({status})")


class _Lone(_Listener, Lone):
    """One that ends with its client."""

    def _admit(self, sock: Any, host: str, port: int, *, tls: bool, refused: str) -> None:
        super()._admit(sock, host, port, tls=tls, refused=refused)
        self.no_other()


def _shown_session(*arguments: Any, **more: Any) -> Session:
    session = Session(*arguments, **more)
    session.replies.shown = [bytes(part) for part in session.replies.out]
    return session


def play(stage: Stage, name: str, settings: dict[str, Any], frames: Sequence[Frame]) -> None:
    """Play the frames of one listener, from its Settings on."""
    with stage.set_up(main, connections):
        listener = _enter(stage, name, settings, frames[0].turn / 1e9)
        begun: set[int] = set()
        listener.frames = frames
        try:
            for frame in stage.play(frames):
                if frame.session and frame.session not in begun and frame.name != "Connected":
                    stage.skipped.add(frame.session)
                begun.add(frame.session)
                if frame.session in stage.skipped:
                    _pass_by(listener, frame)
                else:
                    _play(stage, listener, frames, frame)
        except LeftError:
            stage.left(frames)


def _pass_by(listener: _Listener, frame: Frame) -> None:
    """What a session that is not played does to those that are: its login takes a turn, and its report takes others' along."""
    if frame.name == "Login" and not listener.limits.knows(frame.session):
        listener.limits.login(frame.session, frame.fields["user"], _host(frame.fields["address"]))
    elif frame.name in ("Opened", "Denied", "Turned", "LoginFailed") or (frame.name == "Gone" and frame.peer == "client"):
        listener._login_over(frame.session)  # noqa: SLF001
    elif frame.name == "Ended":
        listener._login_over(frame.session)  # noqa: SLF001
        listener._send_reports()  # noqa: SLF001


def _host(address: str) -> str:
    return address.rpartition(":")[0].strip("[]")


def _enter(stage: Stage, name: str, settings: dict[str, Any], start: float) -> _Listener:
    try:
        policy = Policy(*settings["policy"])
        bounds = Bounds(*settings["bounds"])
        auth = settings["auth"]
    except (KeyError, TypeError, AttributeError):
        raise RecordingError("the listener's settings are other ones now: record it anew") from None
    listener = (_Lone if settings.get("alone") else _Listener)(boot_of(name, {"version": ""}))
    listener.policy = policy
    # Who came in is in the recording; whose turn it is to log in is decided again.
    listener.limits = Limits(bounds._replace(sessions=0, sessions_address=0, per_minute=0, handshakes=0))
    listener.stage = stage
    if isinstance(listener, _Lone):
        listener.left = settings.get("left", policy.login_seconds)
    stage.enter(listener, start)
    stage.skipped |= set(settings.get("sessions", ()))
    for session, user, host in settings.get("logins", ()):
        listener.limits.login(session, user, host)
    listener.limits.turn = settings.get("turn", 0)
    listener.draining = settings.get("draining", False)
    if settings.get("watch", -1.0) >= 0:
        listener.watching = stage.loop.later(settings["watch"], listener._watch_answers)  # noqa: SLF001
    if auth:
        listener.auth = stage.channel(stage.loop, None, name, auth, listener._on_auth, listener._on_auth_gone)  # type: ignore[assignment]  # noqa: SLF001
    return listener


def _play(stage: Stage, listener: _Listener, frames: Sequence[Frame], frame: Frame) -> None:
    if frame.peer == "client" and frame.way == "in":
        _client(stage, listener, frames, frame)
    elif frame.way == "in":
        client = listener.clients.get(frame.session)
        if client is not None:
            _leave(stage, client, frames)
        stage.tell(frame)
    elif frame.name == "Turn" and stage.guided:
        client = listener.awaiting.get(frame.session)
        if frame.fields["refused"]:
            listener._no(frame.session, "SYS/TEMP", frame.fields["refused"])  # noqa: SLF001
        elif client is not None and client.session.authorization.login is not None:
            listener._ask(client, client.session.authorization.login)  # noqa: SLF001
    elif frame.name == "Ended" and stage.guided:
        listener._send_reports()  # noqa: SLF001  with those of sessions that the recording does not have
    elif frame.name == "Unsent":
        client = listener.clients.get(frame.session)
        if client is not None and client.unsent and client.unsent != frame.fields["octets"]:
            _socket(client).leaves = frame.fields["octets"]
            listener._ready(client, WRITE)  # noqa: SLF001  the loop's part is played here


def _socket(client: Client) -> _ClientSocket:
    sock: Any = client.sock
    assert isinstance(sock, _ClientSocket)
    return sock


def _leave(stage: Stage, client: Client, frames: Sequence[Frame]) -> None:
    """How much of its answer the client leaves for later, as the recording has it behind this frame, in the same turn."""
    leaves, turn = client.unsent, frames[stage.at].turn
    for later in frames[stage.at + 1 :]:
        if later.turn != turn:
            break
        if later.session == client.session.id:
            if later.way == "in":
                break
            if later.name == "Unsent":
                leaves = later.fields["octets"]
                break
    _socket(client).leaves = leaves


def _client(stage: Stage, listener: _Listener, frames: Sequence[Frame], frame: Frame) -> None:
    """What a client does."""
    if frame.name == "Connected":
        host, port = _host(frame.fields["address"]), frame.fields["address"].rpartition(":")[2]
        listener.serial = frame.session - 1
        refused = frame.fields.get("refused", "")
        listener._admit(_ClientSocket(), host, int(port), tls=frame.fields["tls"], refused=refused)  # noqa: SLF001
        return
    client = listener.clients.get(frame.session)
    if client is None:
        return
    _leave(stage, client, frames)
    if frame.name == "Secured":
        listener._shaken(client, frame.fields["version"])  # noqa: SLF001
    elif frame.name == "Typed":
        lines = [b"x" * AUTH_LINE_LIMIT if line == TOO_LONG else line for line in frame.fields["lines"]]
        _socket(client).typed.append(b"".join(line + b"\r\n" for line in lines) if lines else _Nothing())
        listener._ready(client, READ)  # noqa: SLF001
    elif frame.name == "Gone":
        listener._over(client, frame.fields["why"])  # noqa: SLF001
