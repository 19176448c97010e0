"""A recorded mda on the stage: from what LMTP clients sent to what it told them, the kernel and the maildir actors.

Mail is what it works on, so it plays what was recorded with its payload; of other recordings only what is no mail. A connection that
had begun before the recording is played on where it was at rest then; of others only what outlives them is taken over.
"""

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

from popkernel.actors.mda import main, routing
from popkernel.actors.mda.connection import Client
from popkernel.actors.mda.route import Route
from popkernel.kernel.replay.harness import LeftError, Stage, StageSocket, boot_of
from popkernel.kernel.runtime.loop import READ
from popkernel.proto.lmtp.session import Lmtp
from popkernel.proto.trace.recording import Frame, RecordingError
from popkernel.proto.trace.redaction import is_cut

__all__ = ["play"]


class _ClientSocket(StageSocket):
    """An LMTP client's: what it sent is read from here, and it takes all it is sent."""

    def __init__(self) -> None:
        super().__init__()
        self.typed: list[bytes] = []

    def recv(self, most: int) -> bytes:
        del most
        if not self.typed:
            raise BlockingIOError
        return self.typed.pop(0)

    def send(self, data: bytes) -> int:
        return len(data)


_NUMBERED = {"Recipient": "request", "Post": "delivery", "Deliver": "delivery"}


class _Mda(main.Mda):
    """The shell itself, but for what belongs to the system, and for numbers that went to connections which are not played."""

    stage: Stage
    frames: Sequence[Frame]
    numbers: list[int]  # of what is played, rising

    def next_number(self) -> int:
        at = bisect_right(self.numbers, self.number)
        self.number = self.numbers[at] if at < len(self.numbers) else self.number + 1
        return self.number

    def _recipient(self, client: Client, address: str) -> None:
        """What it remembers came of others' mail too: where that is not in the recording, its word counts on what was known."""
        if self.stage.guided:
            known = self.stage.behind(self.frames, "Known", client.id, address=address)
            self.known.pop((client.uid, address), None)
            if known is not None:
                self.known[client.uid, address] = user = known.fields["user"]
                if user not in self.routes.by_user:
                    _route(self.stage, self, user)
        super()._recipient(client, address)

    def _flush(self, client: Client) -> bool:
        before = client.lmtp.take_out

        def take_out() -> bytes:
            out = before()
            if out:
                self.stage.notes("client", "Reply", client.id, {"said": [out]}, len(out))
            return out

        return _flushed(super()._flush, client, take_out)


class _Seen:
    """An Lmtp whose output is noted as it is taken."""

    def __init__(self, lmtp: Any, take_out: Any) -> None:
        self._lmtp = lmtp
        self.take_out = take_out

    def __getattr__(self, name: str) -> Any:
        return getattr(self._lmtp, name)


def _flushed(flush: Any, client: Client, take_out: Any) -> bool:
    lmtp = client.lmtp
    client.lmtp = _Seen(lmtp, take_out)  # type: ignore[assignment]
    try:
        return bool(flush(client))
    finally:
        client.lmtp = lmtp


def play(stage: Stage, name: str, settings: dict[str, Any], frames: Sequence[Frame]) -> None:
    """Play the frames of the mda, from its Settings on."""
    with stage.set_up(main, routing, give_back=lambda: None):
        mda = _enter(stage, name, settings, frames[0].turn / 1e9)
        clients = _rested(stage, mda, settings.get("clients", ()))
        _left_out(stage, frames, set(clients))
        mda.numbers = sorted(
            frame.fields[_NUMBERED[frame.name]] for frame in frames
            if frame.way == "out" and frame.name in _NUMBERED and frame.session not in stage.skipped
        )
        mda.frames = frames
        aside = _Aside(stage, mda, settings)
        try:
            for frame in stage.play(frames):
                if frame.session in stage.skipped:
                    aside.pass_by(frame)
                elif frame.way == "in" and frame.peer == "client":
                    _client(mda, clients, frame)
                elif frame.way == "in":
                    stage.tell(frame)
        except LeftError:
            stage.left(frames)


def _rested(stage: Stage, mda: _Mda, rows: Sequence[Any]) -> dict[int, Client]:
    """Connections that were there, between two messages; the others are left out."""
    clients: dict[int, Client] = {}
    for number, uid, counted, rest, seconds in rows:
        if counted:
            mda.limits.take(uid)
        if not rest:
            stage.skipped.add(number)
            continue
        client = Client(_ClientSocket(), uid, Lmtp(mda.hostname, mda.message_octets), number)  # type: ignore[arg-type]
        client.lmtp.go_on(rest)
        client.counted = counted
        client.deadline = stage.loop.now + seconds
        clients[number] = client
        mda.clients.add(client)
    return clients


def _left_out(stage: Stage, frames: Sequence[Frame], begun: set[int]) -> None:
    """Connections whose beginning, or whose mail, or whose other recipients, are not in the recording."""
    alone = stage.whole or bool(stage.user)
    if not alone:
        stage.remark("LMTP connections, of which a recording of one session has too little: record their user, or the mda")
    for frame in frames:
        mine = (alone and frame.session in begun) or (alone and frame.name == "Connected")
        begun.add(frame.session)
        no_mail = frame.name == "Typed" and any(is_cut(line) >= 0 for line in frame.fields["lines"])
        if frame.session and (not mine or no_mail or (stage.user and _others(frame, stage.user))):
            stage.skipped.add(frame.session)


def _others(frame: Frame, user: str) -> bool:
    """Whether this is about somebody else's mailbox: when that one's channel ends is not in the recording."""
    if frame.name == "Maildrop":
        return bool(frame.fields["user"] != user)
    return frame.peer.startswith("maildir.") and frame.peer != f"maildir.{user}"


class _Aside:
    """What connections that are not played leave behind for those that are: who is known, channels, and how many there are."""

    def __init__(self, stage: Stage, mda: _Mda, settings: dict[str, Any]) -> None:
        self.stage = stage
        self.mda = mda
        self.asked = {request: (uid, address) for request, uid, address in settings.get("asked", ())}
        self.under_way: dict[int, tuple[Route, str]] = {}  # deliveries of such connections: each has a place on its route
        self.uids = {number: uid for number, uid, counted, rest, _ in settings.get("clients", ()) if counted and not rest}

    def pass_by(self, frame: Frame) -> None:
        """A frame of such a connection."""
        fields, mda = frame.fields, self.mda
        if frame.name == "Connected" and not mda.limits.take(fields["uid"]):
            self.uids[frame.session] = fields["uid"]
        elif (frame.name == "Gone" and frame.peer == "client") or (frame.name == "Reply" and _is_last(fields["said"])):
            if frame.session in self.uids:
                mda.limits.leave(self.uids.pop(frame.session))
        elif frame.name in ("Post", "Deliver"):
            self._sets_off(frame)
        elif frame.name in ("Rejected", "Abort") or (frame.name == "Accepted" and fields["safe"]):
            self._is_over(fields["delivery"])
        elif frame.name == "Recipient" and not fields["lost"]:
            self.asked[fields["request"]] = fields["uid"], fields["address"]
        elif frame.name == "Maildrop":
            if fields["fresh"]:
                _route(self.stage, mda, fields["user"])
            if fields["request"] in self.asked:
                mda.known[self.asked.pop(fields["request"])] = fields["user"]


    def _sets_off(self, frame: Frame) -> None:
        route = self.mda.routes.by_user.get(frame.peer.removeprefix("maildir."))
        if route is not None:
            kind = "posts" if frame.name == "Post" else "streams"
            setattr(route, kind, getattr(route, kind) + 1)
            self.under_way[frame.fields["delivery"]] = route, kind

    def _is_over(self, delivery: int) -> None:
        if delivery in self.under_way:
            route, kind = self.under_way.pop(delivery)
            setattr(route, kind, getattr(route, kind) - 1)
            self.mda.routes.tidy(route)


def _is_last(said: Sequence[bytes]) -> bool:
    """Whether the mda ends the connection with this."""
    return b"".join(said).splitlines()[-1:][0][:4] in (b"221 ", b"421 ") if any(said) else False


def _route(stage: Stage, mda: _Mda, user: str) -> None:
    earlier = mda.routes.by_user.get(user)
    if earlier is not None:
        earlier.channel.gone = True
    mda.routes.open(user, stage.channel(stage.loop, None, mda.boot.name, f"maildir.{user}", mda.routes.hear, mda.routes.gone))  # type: ignore[arg-type]


def _enter(stage: Stage, name: str, settings: dict[str, Any], start: float) -> _Mda:
    try:
        config = {key: settings[key] for key in ("hostname", "seconds", "most", "message_octets")}
        before = {"each": config["most"], "trusted": [0]}  # of recordings from before connections were counted by user
        mda = _Mda(boot_of(name, config | {key: settings.get(key, before[key]) for key in before}))
        mda.number = settings["number"]
        mda.known = {(uid, address): user for uid, address, user in settings["known"]}
        users = settings["routes"]
    except (KeyError, TypeError, ValueError):
        raise RecordingError("the mda's settings are other ones now: record it anew") from None
    mda.stage = stage
    stage.enter(mda, start)
    for user in users:
        _route(stage, mda, user)
    mda.sweeping = stage.loop.later(settings.get("sweep", main._SWEEP), mda._sweep)  # noqa: SLF001
    return mda


def _client(mda: _Mda, clients: dict[int, Client], frame: Frame) -> None:
    """What a client does."""
    if frame.name == "Connected":
        mda.serial = frame.session - 1
        before = set(mda.clients)
        mda._begin(_ClientSocket(), frame.fields["uid"])  # type: ignore[arg-type]  # noqa: SLF001
        clients |= {client.id: client for client in mda.clients - before}
        return
    client = clients.get(frame.session)
    if client is None or client not in mda.clients:
        return
    sock: Any = client.sock
    if frame.name == "Typed":
        lines = frame.fields["lines"]
        sock.typed.append(b"".join(line["content"] if type(line) is dict else line + b"\r\n" for line in lines))
    elif frame.name == "Gone":
        sock.typed.append(b"")
    mda._ready(client, READ)  # noqa: SLF001
