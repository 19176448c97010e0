"""A recorded auth on the stage: each login it was asked for, what the check came to, and whom it told.

Passwords and hashes take no part.
"""

from collections import deque
from collections.abc import Sequence
from typing import Any

from popkernel.actors.auth import main
from popkernel.actors.auth.passwords import Table, decoys
from popkernel.kernel.replay.harness import LeftError, Stage, boot_of
from popkernel.proto import messages as m
from popkernel.proto.topology import kind_of
from popkernel.proto.trace.recording import Frame

__all__ = ["play"]


class _Auth(main.Auth):
    """The shell itself, without its table, its threads and its guard: when each login was answered, and how, is recorded."""

    def _read(self, path: str, *, fold: bool) -> Table:
        del path
        return Table({}, decoys(), fold=fold)

    def _look(self, attempt: main.Attempt) -> None:
        self.work.append(attempt)


def play(stage: Stage, name: str, settings: dict[str, Any], frames: Sequence[Frame]) -> None:
    """Play the frames of auth, from its Settings on."""
    with stage.set_up(main):
        auth = _Auth(boot_of(name, {"penalty_seconds": 0, "auth_cache_seconds": 0}))
        stage.enter(auth, frames[0].turn / 1e9)
        for listener in settings.get("listeners", ()):
            _join(stage, auth, listener)
        waiting: dict[tuple[str, int], deque[m.Login]] = {}
        try:
            for frame in stage.play(frames):
                _play(stage, auth, waiting, frame)
        except LeftError:
            stage.left(frames)


def _join(stage: Stage, auth: _Auth, listener: str) -> None:
    auth.listeners[listener] = stage.channel(  # type: ignore[assignment]
        stage.loop, None, auth.boot.name, listener, auth._on_login, auth._on_listener_gone,  # noqa: SLF001
    )


def _play(stage: Stage, auth: _Auth, waiting: dict[tuple[str, int], deque[m.Login]], frame: Frame) -> None:
    if frame.way == "in":
        if kind_of(frame.peer) == "listener" and frame.peer not in auth.listeners:
            _join(stage, auth, frame.peer)
        stage.tell(frame)
        while auth.work:
            listener, login, *_ = auth.work.popleft()
            waiting.setdefault((listener, login.session), deque()).append(login)
    elif frame.name in ("Checked", "Full"):
        listener = frame.fields["listener"]
        queue = waiting.get((listener, frame.session))
        if queue and frame.name == "Checked":
            fields = frame.fields
            login = queue.popleft()._replace(user=fields["user"])  # as the table writes it, which is not here
            auth._answer(listener, login, good=fields["good"], why=fields["why"])  # noqa: SLF001
        elif queue:
            fields = frame.fields
            auth._refuse(listener, queue.popleft(), fields["text"], fields["why"], fields["seconds"])  # noqa: SLF001
        else:
            stage.skipped.add(frame.session)
