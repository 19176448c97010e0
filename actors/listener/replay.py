"""A recorded listener on the stage: from what its clients typed to what it told them, auth, the kernel and the maildir actors."""

from collections.abc import Sequence
from typing import Any

from popkernel.actors.listener import connections, peers
from popkernel.actors.listener.admission import Admission
from popkernel.actors.listener.connection import Connection
from popkernel.actors.listener.connections import Connections
from popkernel.actors.listener.limits import Bounds, Limits
from popkernel.actors.listener.main import Listener, Parts
from popkernel.actors.listener.peers import Peers
from popkernel.actors.listener.session.policy import Policy
from popkernel.actors.listener.session.session import Session
from popkernel.actors.listener.single_listener import SingleListener
from popkernel.actors.listener.tls import Served
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


class _Admission(Admission):
    """Who came in is in the recording."""

    def report(self, why: str, host: str, what: str = "refused") -> None:
        """For the log of the service."""


class _Connections(Connections):
    """Connections whose TLS and sockets are none."""

    stage: Stage

    def _start_tls(self, client: Connection) -> None:
        client.handshake = True

    def _begin(self, address: str, *, tls: bool) -> Session:
        session = super()._begin(address, tls=tls)
        session.replies.shown = [bytes(part) for part in session.replies.out]  # the greeting
        return session

    def _show(self, session: Session) -> None:
        said = session.replies.take_shown()
        form = content if self.stage.payload else (lambda data: cut(len(data)))
        pieces: list[Any] = [form(part[0]) if type(part) is tuple else part for part in said]
        octets = sum(len(part[0] if type(part) is tuple else part) for part in said)
        self.stage.notes("client", "Reply", session.id, {"said": pieces}, octets)


class _Peers(Peers):
    """Where others' logins are not in the recording, its word counts on whether there was room for this one."""

    stage: Stage
    frames: Sequence[Frame]

    def _turn_of(self, login: m.Login, host: str) -> str | None:
        if not self.stage.guided:
            return super()._turn_of(login, host)
        queued = self.stage.behind(self.frames, "Queued", login.session)
        return "" if queued is None else str(queued.fields["refused"]) or None


_PARTS: Parts = (_Admission, _Connections, _Peers)
_Played = Listener | SingleListener


def play(stage: Stage, name: str, settings: dict[str, Any], frames: Sequence[Frame]) -> None:
    """Play the frames of one listener, from its Settings on."""
    with stage.set_up(peers, connections):
        listener = _enter(stage, name, settings, frames[0].turn / 1e9)
        begun: set[int] = set()
        _peers(listener).frames = frames
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


def _pass_by(listener: _Played, frame: Frame) -> None:
    """What a session that is not played does to those that are: its login takes a turn, and its report takes others' along."""
    limits = listener.admission.limits
    if frame.name == "Login" and not limits.knows(frame.session):
        limits.login(frame.session, frame.fields["user"], _host(frame.fields["address"]))
    elif frame.name in ("Opened", "Denied", "Turned", "LoginFailed") or (frame.name == "Gone" and frame.peer == "client"):
        listener.peers.login_over(frame.session)
    elif frame.name == "Ended":
        listener.peers.login_over(frame.session)
        listener.peers.reports.send()


def _host(address: str) -> str:
    return address.rpartition(":")[0].strip("[]")


def _enter(stage: Stage, name: str, settings: dict[str, Any], start: float) -> _Played:
    try:
        policy = Policy(*settings["policy"])
        bounds = Bounds(*settings["bounds"])
        auth = settings["auth"]
    except (KeyError, TypeError, AttributeError):
        raise RecordingError("the listener's settings are other ones now: record it anew") from None
    config = {"version": "", "served": Served(None, [])}  # type: ignore[arg-type]
    listener: _Played = (SingleListener if settings.get("alone") else Listener)(boot_of(name, config), _PARTS)
    listener.connections.policy = policy
    # Who came in is in the recording; whose turn it is to log in is decided again.
    limits = listener.admission.limits = Limits(bounds._replace(sessions=0, sessions_address=0, per_minute=0, handshakes=0))
    _connections(listener).stage = _peers(listener).stage = stage
    if isinstance(listener, SingleListener):
        listener.left = settings.get("left", policy.login_seconds)
    stage.enter(listener, start)
    stage.skipped |= set(settings.get("sessions", ()))
    for session, user, host in settings.get("logins", ()):
        limits.login(session, user, host)
    limits.turn = settings.get("turn", 0)
    listener.connections.draining = settings.get("draining", False)
    if settings.get("watch", -1.0) >= 0:
        listener.peers.timer = stage.loop.later(settings["watch"], listener.peers.go_on_watching)
    if auth:
        listener.peers.auth = stage.channel(stage.loop, None, name, auth, listener.peers.on_auth, listener.peers.on_auth_gone)  # type: ignore[assignment]
    return listener


def _connections(listener: _Played) -> _Connections:
    assert isinstance(listener.connections, _Connections)
    return listener.connections


def _peers(listener: _Played) -> _Peers:
    assert isinstance(listener.peers, _Peers)
    return listener.peers


def _play(stage: Stage, listener: _Played, frames: Sequence[Frame], frame: Frame) -> None:
    if frame.peer == "client" and frame.way == "in":
        _client(stage, listener, frames, frame)
    elif frame.way == "in":
        client = listener.connections.by_session.get(frame.session)
        if client is not None:
            _leave(stage, client, frames)
        stage.tell(frame)
    elif frame.name == "Turn" and stage.guided:
        client = listener.peers.awaiting.get(frame.session)
        if frame.fields["refused"]:
            listener.peers.refuse_login(frame.session, "SYS/TEMP", frame.fields["refused"])
        elif client is not None and client.session.authorization.login is not None:
            listener.peers.ask(client, client.session.authorization.login)
    elif frame.name == "Ended" and stage.guided:
        listener.peers.reports.send()  # with those of sessions that the recording does not have
    elif frame.name == "Unsent":
        client = listener.connections.by_session.get(frame.session)
        if client is not None and client.unsent and client.unsent != frame.fields["octets"]:
            _socket(client).leaves = frame.fields["octets"]
            listener.connections.ready(client, WRITE)  # the loop's part is played here


def _socket(client: Connection) -> _ClientSocket:
    sock: Any = client.sock
    assert isinstance(sock, _ClientSocket)
    return sock


def _leave(stage: Stage, client: Connection, frames: Sequence[Frame]) -> None:
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


def _client(stage: Stage, listener: _Played, frames: Sequence[Frame], frame: Frame) -> None:
    """What a client does."""
    if frame.name == "Connected":
        host, port = _host(frame.fields["address"]), frame.fields["address"].rpartition(":")[2]
        listener.connections.serial = frame.session - 1
        refused = frame.fields.get("refused", "")
        if not refused:
            listener.admission.limits.come(host, listener.loop.now)
        sock: Any = _ClientSocket()
        listener.connections.admit(sock, host, int(port), frame.fields["tls"], refused)
        if isinstance(listener, SingleListener):
            listener.no_other()
        return
    client = listener.connections.by_session.get(frame.session)
    if client is None:
        return
    _leave(stage, client, frames)
    if frame.name == "Secured":
        listener.connections.shaken(client, frame.fields["version"])
    elif frame.name == "Typed":
        lines = [b"x" * AUTH_LINE_LIMIT if line == TOO_LONG else line for line in frame.fields["lines"]]
        _socket(client).typed.append(b"".join(line + b"\r\n" for line in lines) if lines else _Nothing())
        listener.connections.ready(client, READ)
    elif frame.name == "Gone":
        listener.connections.over(client, frame.fields["why"])
