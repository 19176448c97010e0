"""Replay a recorded listener: from what its clients sent to what it sent to them and to the other actors."""

from collections.abc import Sequence
from typing import Any

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
from popkernel.kernel.replay.harness import Harness, LeftError, ReplaySocket, no_socket
from popkernel.kernel.runtime.loop import READ, WRITE
from popkernel.proto import messages as m
from popkernel.proto.pop3.commands import TOO_LONG
from popkernel.proto.pop3.sasl import AUTH_LINE_LIMIT
from popkernel.proto.trace.recording import Frame, RecordingError
from popkernel.proto.trace.redaction import content, cut

__all__ = ["play"]


class _Nothing(bytes):
    """Octets without a line end, which are not recorded. True, for it is not the end of the connection."""

    __slots__ = ()

    def __bool__(self) -> bool:
        return True


class _ClientSocket(ReplaySocket):
    """A client's socket: gives what the client typed, and takes all but `leaves` octets of each answer."""

    def __init__(self) -> None:
        super().__init__()
        self.typed: list[bytes] = []
        self.leaves = 0
        self._open = True

    def setblocking(self, flag: bool) -> None:
        """Do nothing: it never blocks."""

    def setsockopt(self, *arguments: int) -> None:
        """Do nothing: it has no options."""

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
    """Admission without its log: the recording has who was admitted."""

    def report(self, why: str, host: str, what: str = "refused") -> None:
        """Log nothing."""


class _Connections(Connections):
    """Connections without real TLS and sockets."""

    harness: Harness

    def start_tls(self, client: Connection) -> None:
        client.handshake = True

    def new_session(self, address: str, *, tls: bool, refusal: str) -> Session:
        session = super().new_session(address, tls=tls, refusal=refusal)
        session.watch()
        return session

    def show(self, session: Session, said: Sequence[bytes | tuple[bytes]]) -> None:
        form = content if self.harness.payload else (lambda data: cut(len(data)))
        pieces: list[Any] = [form(part[0]) if type(part) is tuple else part for part in said]
        octets = sum(len(part[0] if type(part) is tuple else part) for part in said)
        self.harness.notes("client", "Reply", session.id, {"said": pieces}, octets)


class _Peers(Peers):
    """Take from the recording whether a login had room, where it lacks the others' logins."""

    harness: Harness
    frames: Sequence[Frame]

    def turn_of(self, login: m.LoginRequest, host: str) -> str | None:
        if not self.harness.guided:
            return super().turn_of(login, host)
        queued = self.harness.behind(self.frames, "Queued", login.session)
        return "" if queued is None else str(queued.fields["refused"]) or None


_PARTS: Parts = (_Admission, _Connections, _Peers)
_Played = Listener | SingleListener


def play(harness: Harness, name: str, settings: dict[str, Any], frames: Sequence[Frame]) -> None:
    """Play the frames of one listener, beginning at its Settings."""
    listener = _enter(harness, name, settings, frames[0].turn / 1e9)
    begun: set[int] = set()
    _peers(listener).frames = frames
    try:
        for frame in harness.play(frames):
            if frame.session and frame.session not in begun and frame.name != "Connected":
                harness.skipped.add(frame.session)
            begun.add(frame.session)
            if frame.session in harness.skipped:
                _pass_by(listener, frame)
            else:
                _play(harness, listener, frames, frame)
    except LeftError:
        harness.left(frames)


def _pass_by(listener: _Played, frame: Frame) -> None:
    """Do what a session that is left out does to the others.

    Its login takes a place in the queue, and its report is sent together with theirs.
    """
    limits = listener.admission.limits
    if frame.name == "LoginRequest" and not limits.knows(frame.session):
        limits.login(frame.session, frame.fields["user"], _host(frame.fields["address"]))
    elif frame.name in ("SessionAdmitted", "LoginRefused", "SessionRefused", "LoginFailed") or (
        frame.name == "Gone" and frame.peer == "client"
    ):
        listener.peers.login_over(frame.session)
    elif frame.name == "ConnectionEnded":
        listener.peers.login_over(frame.session)
        listener.peers.reports.send()


def _host(address: str) -> str:
    return address.rpartition(":")[0].strip("[]")


def _enter(harness: Harness, name: str, settings: dict[str, Any], start: float) -> _Played:
    try:
        policy = Policy(*settings["policy"])
        bounds = Bounds(*settings["bounds"])
        auth = settings["auth"]
    except (KeyError, TypeError, AttributeError):
        raise RecordingError("the listener's settings have changed: record it anew") from None
    config = {"version": "", "served": Served(None, [])}  # type: ignore[arg-type]
    boot = harness.boot(name, config, start)
    listener: _Played = (SingleListener if settings.get("alone") else Listener)(boot, _PARTS)
    listener.connections.policy = policy
    # Who was admitted is in the recording; the turns of logins are decided again.
    limits = listener.admission.limits = Limits(
        bounds._replace(sessions=0, sessions_address=0, per_minute=0, handshakes=0)
    )
    _connections(listener).harness = _peers(listener).harness = harness
    if isinstance(listener, SingleListener):
        listener.left = settings.get("left", policy.login_seconds)
    harness.enter(listener)
    harness.skipped |= set(settings.get("sessions", ()))
    for session, user, host in settings.get("logins", ()):
        limits.login(session, user, host)
    limits.turn = settings.get("turn", 0)
    listener.connections.draining = settings.get("draining", False)
    if settings.get("watch", -1.0) >= 0:
        listener.peers.timer = harness.loop.later(settings["watch"], listener.peers.go_on_watching)
    if auth:
        listener.peers.auth = harness.channel(
            harness.loop, no_socket(), name, auth, listener.peers.on_auth, listener.peers.on_auth_gone
        )
    return listener


def _connections(listener: _Played) -> _Connections:
    assert isinstance(listener.connections, _Connections)
    return listener.connections


def _peers(listener: _Played) -> _Peers:
    assert isinstance(listener.peers, _Peers)
    return listener.peers


def _play(harness: Harness, listener: _Played, frames: Sequence[Frame], frame: Frame) -> None:
    if frame.peer == "client" and frame.way == "in":
        _client(harness, listener, frames, frame)
    elif frame.way == "in":
        client = listener.connections.by_session.get(frame.session)
        if client is not None:
            _leave(harness, client, frames)
        harness.tell(frame)
    elif frame.name == "Turn" and harness.guided:
        client = listener.peers.awaiting.get(frame.session)
        if client is not None and client.login is not None:
            listener.peers.ask(client, client.login)
    elif frame.name == "ConnectionEnded" and harness.guided:
        listener.peers.reports.send()  # with those of sessions that the recording does not have
    elif frame.name == "Unsent":
        client = listener.connections.by_session.get(frame.session)
        if client is not None and client.unsent and client.unsent != frame.fields["octets"]:
            _socket(client).leaves = frame.fields["octets"]
            listener.connections.ready(client, WRITE)  # as the loop would


def _socket(client: Connection) -> _ClientSocket:
    sock: Any = client.sock
    assert isinstance(sock, _ClientSocket)
    return sock


def _leave(harness: Harness, client: Connection, frames: Sequence[Frame]) -> None:
    """Set how many octets of its answer the client leaves: recorded after this frame, in the same turn."""
    leaves, turn = client.unsent, frames[harness.at].turn
    for later in frames[harness.at + 1 :]:
        if later.turn != turn:
            break
        if later.session == client.session.id:
            if later.way == "in":
                break
            if later.name == "Unsent":
                leaves = later.fields["octets"]
                break
    _socket(client).leaves = leaves


def _client(harness: Harness, listener: _Played, frames: Sequence[Frame], frame: Frame) -> None:
    """Play what a client does."""
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
    _leave(harness, client, frames)
    if frame.name == "Secured":
        listener.connections.shaken(client, frame.fields["version"])
    elif frame.name == "Typed":
        lines = [b"x" * AUTH_LINE_LIMIT if line == TOO_LONG else line for line in frame.fields["lines"]]
        _socket(client).typed.append(b"".join(line + b"\r\n" for line in lines) if lines else _Nothing())
        listener.connections.ready(client, READ)
    elif frame.name == "HungUp":
        _socket(client).typed.append(b"")
        listener.connections.ready(client, READ)
    elif frame.name == "Gone":
        listener.connections.over(client, frame.fields["why"])
