"""A recorded mda on the stage: from what LMTP clients sent to what it told them, the kernel and the maildir actors.

Mail is what it works on, so it plays what was recorded with its payload; of other recordings only what is no mail.
"""

from collections.abc import Sequence
from typing import Any

from popkernel.actors.mda import main, routes
from popkernel.kernel.loop import READ
from popkernel.kernel.stage import LeftError, Stage, StageSocket, boot_of
from popkernel.proto.recording import Frame, RecordingError
from popkernel.proto.shown import is_cut

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


class _Mda(main.Mda):
    """The shell itself, but for what belongs to the system."""

    stage: Stage

    def _flush(self, client: main.Client) -> bool:
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


def _flushed(flush: Any, client: main.Client, take_out: Any) -> bool:
    lmtp = client.lmtp
    client.lmtp = _Seen(lmtp, take_out)  # type: ignore[assignment]
    try:
        return bool(flush(client))
    finally:
        client.lmtp = lmtp


def play(stage: Stage, name: str, settings: dict[str, Any], frames: Sequence[Frame]) -> None:
    """Play the frames of the mda, from its Settings on."""
    with stage.set_up(main, routes, give_back=lambda: None):
        mda = _enter(stage, name, settings, frames[0].turn / 1e9)
        clients: dict[int, main.Client] = {}
        begun: set[int] = set()
        for stage.at, frame in enumerate(frames):
            if frame.session and frame.session not in begun and frame.name != "Connected":
                stage.skipped.add(frame.session)
            if frame.name == "Typed" and any(is_cut(line) >= 0 for line in frame.fields["lines"]):
                stage.skipped.add(frame.session)
            begun.add(frame.session)
            if frame.session in stage.skipped:
                continue
            try:
                stage.clock(frames)
                if frame.way != "in":
                    continue
                if frame.peer == "client":
                    _client(mda, clients, frame)
                else:
                    stage.tell(frame)
                stage.loop.settle()
            except LeftError:
                return


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
        mda.routes.open(user, stage.channel(stage.loop, None, name, f"maildir.{user}", mda.routes.hear, mda.routes.gone))  # type: ignore[arg-type]
    stage.loop.later(main._SWEEP, mda._sweep)  # noqa: SLF001
    return mda


def _client(mda: _Mda, clients: dict[int, main.Client], frame: Frame) -> None:
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
