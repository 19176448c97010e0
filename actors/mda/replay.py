"""Replay a recorded mda: from what LMTP clients sent to what it sent to them and to the other actors.

It needs the mail: connections with mail are replayed only where this was recorded with --payload. A
connection that had begun before the recording is continued where it was between two messages. Of others only
their effects on later ones are kept.
"""

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

from popkernel.actors.mda import main
from popkernel.actors.mda.connection import Client
from popkernel.actors.mda.route import Route
from popkernel.kernel.replay.harness import Harness, LeftError, ReplaySocket, no_socket
from popkernel.kernel.runtime.loop import READ
from popkernel.proto.lmtp.session import Lmtp
from popkernel.proto.trace.recording import Frame, RecordingError
from popkernel.proto.trace.redaction import is_cut

__all__ = ["play"]


class _ClientSocket(ReplaySocket):
    """An LMTP client's socket: gives what the client sent; takes and notes all that it is sent."""

    def __init__(self, harness: Harness, number: int) -> None:
        super().__init__()
        self._harness = harness
        self._connection = number
        self.typed: list[bytes] = []

    def recv(self, most: int) -> bytes:
        del most
        if not self.typed:
            raise BlockingIOError
        return self.typed.pop(0)

    def send(self, data: bytes) -> int:
        self._harness.notes("client", "Reply", self._connection, {"said": [data]}, len(data))
        return len(data)


_NUMBERED = {"RecipientLookup": "request", "DeliveryWhole": "delivery", "DeliveryBegin": "delivery"}


class _Mda(main.Mda):
    """The mda, with the recorded numbers: connections that are left out took some of them."""

    harness: Harness
    frames: Sequence[Frame]
    numbers: list[int]  # of the frames that are played, rising

    def next_number(self) -> int:
        at = bisect_right(self.numbers, self.number)
        self.number = self.numbers[at] if at < len(self.numbers) else self.number + 1
        return self.number

    def recipient(self, client: Client, address: str) -> None:
        """Take from the recording which recipients were known, where it lacks others' mail."""
        if self.harness.guided:
            known = self.harness.behind(self.frames, "Known", client.id, address=address)
            self.known.pop((client.uid, address), None)
            if known is not None:
                self.known[client.uid, address] = user = known.fields["user"]
                if user not in self.routes.by_user:
                    _route(self, user)
        super().recipient(client, address)


def play(harness: Harness, name: str, settings: dict[str, Any], frames: Sequence[Frame]) -> None:
    """Play the frames of the mda, beginning at its Settings."""
    mda = _enter(harness, name, settings, frames[0].turn / 1e9)
    clients = _rested(harness, mda, settings.get("clients", ()))
    _left_out(harness, frames, set(clients))
    mda.numbers = sorted(
        frame.fields[_NUMBERED[frame.name]]
        for frame in frames
        if frame.way == "out" and frame.name in _NUMBERED and frame.session not in harness.skipped
    )
    mda.frames = frames
    aside = _LeftOut(harness, mda, settings)
    try:
        for frame in harness.play(frames):
            if frame.session in harness.skipped:
                aside.pass_by(frame)
            elif frame.way == "in" and frame.peer == "client":
                _client(harness, mda, clients, frame)
            elif frame.way == "in":
                harness.tell(frame)
    except LeftError:
        harness.left(frames)


def _rested(harness: Harness, mda: _Mda, rows: Sequence[Any]) -> dict[int, Client]:
    """Resume connections that were between two messages; the others are left out."""
    clients: dict[int, Client] = {}
    for number, uid, counted, rest, seconds in rows:
        if counted:
            mda.limits.take(uid)
        if not rest:
            harness.skipped.add(number)
            continue
        sock: Any = _ClientSocket(harness, number)
        client = Client(sock, uid, Lmtp(mda.hostname, mda.message_octets), number)
        client.lmtp.resume(rest)
        client.counted = counted
        client.deadline = harness.loop.now + seconds
        clients[number] = client
        mda.clients.add(client)
    return clients


def _left_out(harness: Harness, frames: Sequence[Frame], begun: set[int]) -> None:
    """Leave out connections whose beginning, mail or other recipients are not in the recording."""
    alone = harness.whole or bool(harness.user)
    if not alone:
        harness.remark(
            "LMTP connections, of which a recording of one session has too little: "
            "record their user, or the mda"
        )
    for frame in frames:
        mine = (alone and frame.session in begun) or (alone and frame.name == "Connected")
        begun.add(frame.session)
        no_mail = frame.name == "Typed" and any(is_cut(line) >= 0 for line in frame.fields["lines"])
        if frame.session and (not mine or no_mail or (harness.user and _others(frame, harness.user))):
            harness.skipped.add(frame.session)


def _others(frame: Frame, user: str) -> bool:
    """Return whether a frame is about another user's mailbox: the end of that channel is not recorded."""
    if frame.name == "RecipientFound":
        return bool(frame.fields["user"] != user)
    return frame.peer.startswith("maildir.") and frame.peer != f"maildir.{user}"


class _LeftOut:
    """Keep what connections that are left out change for the others: known users, channels, and counts."""

    def __init__(self, harness: Harness, mda: _Mda, settings: dict[str, Any]) -> None:
        self.harness = harness
        self.mda = mda
        self.asked = {request: (uid, address) for request, uid, address in settings.get("asked", ())}
        # deliveries of connections left out: each takes a place on its route
        self.under_way: dict[int, tuple[Route, str]] = {}
        self.uids = {
            number: uid
            for number, uid, counted, rest, _ in settings.get("clients", ())
            if counted and not rest
        }

    def pass_by(self, frame: Frame) -> None:
        """Apply a frame of a connection that is left out."""
        fields, mda = frame.fields, self.mda
        if frame.name == "Connected" and not mda.limits.take(fields["uid"]):
            self.uids[frame.session] = fields["uid"]
        elif (frame.name == "Gone" and frame.peer == "client") or (
            frame.name == "Reply" and _is_last(fields["said"])
        ):
            if frame.session in self.uids:
                mda.limits.leave(self.uids.pop(frame.session))
        elif frame.name in ("DeliveryWhole", "DeliveryBegin"):
            self._begins(frame)
        elif frame.name in ("DeliveryRejected", "DeliveryAbort") or (
            frame.name == "DeliveryAccepted" and fields["safe"]
        ):
            self._is_over(fields["delivery"])
        elif frame.name == "RecipientLookup" and not fields["lost"]:
            self.asked[fields["request"]] = fields["uid"], fields["address"]
        elif frame.name == "RecipientFound":
            if fields["fresh"]:
                _route(mda, fields["user"])
            if fields["request"] in self.asked:
                mda.known[self.asked.pop(fields["request"])] = fields["user"]

    def _begins(self, frame: Frame) -> None:
        route = self.mda.routes.by_user.get(frame.peer.removeprefix("maildir."))
        if route is not None:
            kind = "posts" if frame.name == "DeliveryWhole" else "streams"
            setattr(route, kind, getattr(route, kind) + 1)
            self.under_way[frame.fields["delivery"]] = route, kind

    def _is_over(self, delivery: int) -> None:
        if delivery in self.under_way:
            route, kind = self.under_way.pop(delivery)
            setattr(route, kind, getattr(route, kind) - 1)
            self.mda.routes.tidy(route)


def _is_last(said: Sequence[bytes]) -> bool:
    """Return whether the mda ends the connection with this reply."""
    return b"".join(said).splitlines()[-1:][0][:4] in (b"221 ", b"421 ") if any(said) else False


def _route(mda: _Mda, user: str) -> None:
    earlier = mda.routes.by_user.get(user)
    if earlier is not None:
        earlier.channel.close()
    mda.routes.open(user, no_socket())


def _enter(harness: Harness, name: str, settings: dict[str, Any], start: float) -> _Mda:
    try:
        config = {key: settings[key] for key in ("hostname", "seconds", "most", "message_octets")}
        # recordings made before connections were counted by user lack these
        before = {"each": config["most"], "trusted": [0]}
        config |= {key: settings.get(key, before[key]) for key in before}
        mda = _Mda(harness.boot(name, config, start))
        mda.number = settings["number"]
        mda.draining = bool(settings.get("draining", False))
        mda.known = {(uid, address): user for uid, address, user in settings["known"]}
        users = settings["routes"]
    except (KeyError, TypeError, ValueError):
        raise RecordingError("the mda's settings have changed: record it anew") from None
    mda.harness = harness
    harness.enter(mda)
    for user in users:
        _route(mda, user)
    mda.sweeping = harness.loop.later(settings.get("sweep", main.SWEEP_SECONDS), mda.sweep)
    return mda


def _client(harness: Harness, mda: _Mda, clients: dict[int, Client], frame: Frame) -> None:
    """Play what a client does."""
    if frame.name == "Connected":
        mda.serial = frame.session - 1
        before = set(mda.clients)
        new: Any = _ClientSocket(harness, frame.session)
        mda.connected(new, frame.fields["uid"])
        clients |= {client.id: client for client in mda.clients - before}
        return
    client = clients.get(frame.session)
    if client is None or client not in mda.clients:
        return
    sock: Any = client.sock
    if frame.name == "Typed":
        lines = frame.fields["lines"]
        sock.typed.append(
            b"".join(line["content"] if type(line) is dict else line + b"\r\n" for line in lines)
        )
    elif frame.name == "Gone":
        sock.typed.append(b"")
    mda.ready(client, READ)
