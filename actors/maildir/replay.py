"""A recorded maildir actor on the stage: over a copy of its maildir, with the clock and the random numbers that it had."""

from collections import deque
from collections.abc import Sequence
from typing import Any

from popkernel.actors.maildir import main, reception
from popkernel.actors.maildir.policy import policy_of
from popkernel.actors.maildir.store import Maildrop, StoreError
from popkernel.kernel.stage import LeftError, Stage, boot_of
from popkernel.proto.recording import Frame, RecordingError
from popkernel.proto.shown import is_cut

__all__ = ["play"]


class _Actor(main.MaildirActor):
    """The shell itself; what it reads of clock and randomness comes from the recording."""

    clocks: deque[float]
    last = 0.0

    def clock(self) -> float:  # type: ignore[override]
        if self.clocks:
            self.last = self.clocks.popleft()
        return self.last


def play(stage: Stage, name: str, settings: dict[str, Any], frames: Sequence[Frame], maildir: str) -> None:
    """Play the frames of one life of a maildir actor, over the maildir at that path, which changes as it did then."""
    missing = [key for key in ("hostname", "quota", "quota_temporary") if key not in settings]
    if missing:
        raise RecordingError("the maildir actor's settings are other ones now: record it anew")
    with stage.set_up(main, reception, give_back=lambda: None):
        actor = _Actor(boot_of(name, {"maildir": maildir.encode(), **settings}))
        actor.clocks = deque(f.fields["seconds"] for f in frames if f.name == "Clock")
        octets = deque(f.fields["octets"] for f in frames if f.name == "Random")
        stage.enter(actor, frames[0].turn / 1e9)
        try:
            actor.drop = Maildrop(
                maildir, hostname=settings["hostname"], clock=actor.clock, random=lambda many: octets.popleft() if octets else bytes(many),
                policy=policy_of(settings),
            )
        except StoreError as error:
            actor.trouble = error
        try:
            _play_all(stage, frames)
        finally:
            if actor.drop is not None:
                actor.drop.close()


def _play_all(stage: Stage, frames: Sequence[Frame]) -> None:
    begun: set[int] = set()
    for stage.at, frame in enumerate(frames):
        if frame.way == "in" and frame.name in ("Open", "Wake") and is_cut(frame.fields.get("state")) < 0:
            begun.add(frame.session)
        if frame.session and frame.session not in begun:
            stage.skipped.add(frame.session)
            continue
        try:
            stage.clock(frames)
            if frame.way == "in":
                stage.tell(frame)
                stage.loop.settle()
        except LeftError:
            return
