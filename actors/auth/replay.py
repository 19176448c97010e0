"""A recorded auth on the stage: each login it was asked for, what the check came to, and whom it told.

Passwords and hashes take no part.
"""

from collections import deque
from collections.abc import Sequence
from typing import Any

from popkernel.actors.auth import main
from popkernel.kernel.stage import LeftError, Stage, boot_of
from popkernel.proto import messages as m
from popkernel.proto.recording import Frame
from popkernel.proto.topology import kind_of

__all__ = ["play"]


class _Work(deque[Any]):
    """The logins that wait; the recording says where they were too many."""

    full = False

    def __len__(self) -> int:
        return 1 << 20 if self.full else super().__len__()


class _Auth(main.Auth):
    """The shell itself, without its table and its threads."""

    def _read(self, path: str) -> Any:
        del path
        return {}


def play(stage: Stage, name: str, settings: dict[str, Any], frames: Sequence[Frame]) -> None:
    """Play the frames of auth, from its Settings on."""
    with stage.set_up(main):
        auth = _Auth(boot_of(name, {"auth_table": ""}))
        auth.work = work = _Work()
        stage.enter(auth, frames[0].turn / 1e9)
        for listener in settings.get("listeners", ()):
            _join(stage, auth, listener)
        waiting: dict[tuple[str, int], deque[m.Login]] = {}
        for stage.at, frame in enumerate(frames):
            try:
                stage.clock(frames)
                _play(stage, auth, waiting, work, frames, frame)
                stage.loop.settle()
            except LeftError:
                return


def _join(stage: Stage, auth: _Auth, listener: str) -> None:
    auth.listeners[listener] = stage.channel(  # type: ignore[assignment]
        stage.loop, None, auth.boot.name, listener, auth._on_login, auth._on_listener_gone,  # noqa: SLF001
    )


def _play(
    stage: Stage, auth: _Auth, waiting: dict[tuple[str, int], deque[m.Login]], work: _Work, frames: Sequence[Frame], frame: Frame,
) -> None:
    if frame.way == "in":
        following = frames[stage.at + 1] if stage.at + 1 < len(frames) else None
        work.full = frame.name == "Login" and following is not None and following.name == "Full"
        if kind_of(frame.peer) == "listener" and frame.peer not in auth.listeners:
            _join(stage, auth, frame.peer)
        stage.tell(frame)
        work.full = False
        while work:
            listener, login = work.popleft()
            waiting.setdefault((listener, login.session), deque()).append(login)
    elif frame.name == "Checked":
        queue = waiting.get((frame.fields["listener"], frame.session))
        if queue:
            auth._answer(frame.fields["listener"], queue.popleft(), good=frame.fields["good"])  # noqa: SLF001
        else:
            stage.skipped.add(frame.session)
