"""A recorded maildir actor on the stage: over a copy of its maildir, with the clock and the random numbers that it had.

What it was in the middle of when the recording began is in its Settings: it goes on from there, or the session is left out.
"""

import os
from collections import deque
from collections.abc import Sequence
from typing import Any

from popkernel.actors.maildir import delivery_channels, main
from popkernel.actors.maildir.session import Session
from popkernel.actors.maildir.store.delivery import Delivery
from popkernel.actors.maildir.store.maildrop import Maildrop, StoreError
from popkernel.actors.maildir.store.policy import policy_of
from popkernel.actors.maildir.store.quota import NAME as QUOTA_FILE
from popkernel.kernel.replay.harness import LeftError, Stage, boot_of
from popkernel.proto.pop3.octets import SizeCounter
from popkernel.proto.trace.recording import MOST_OCTETS, Frame, RecordingError
from popkernel.proto.trace.redaction import is_cut

__all__ = ["play"]

_MOST_WRITTEN = 2 * MOST_OCTETS
_NO_MAIL = "mail that was delivered is not in the recording, for want of --payload: sessions that began behind it are left out"


class _Source:
    """What was read of clock or randomness, each reading behind the frame that caused it; more readings give `more()`."""

    def __init__(self, stage: Stage, frames: Sequence[Frame], name: str, field: str) -> None:
        self._stage = stage
        self._read: dict[int, deque[Any]] = {}
        cause = 0
        for index, frame in enumerate(frames):
            if frame.way == "in" or frame.name == "Timer":
                cause = index
            elif frame.name == name:
                self._read.setdefault(cause, deque()).append(frame.fields[field])

    def next(self) -> Any:
        """The next of them; None where the recorded program did not read."""
        there = self._read.get(self._stage.at)
        return there.popleft() if there else None


class _Actor(main.MaildirActor):
    """The shell itself; what it reads of clock and randomness comes from the recording."""

    clocks: _Source
    last = 0.0
    wall = 0.0  # less the loop's clock

    def clock(self) -> float:  # type: ignore[override]
        now = self.clocks.next()
        if now is None:
            now = max(self.last, self.wall + self.loop.now) if self.wall else self.last
        self.last = now
        return self.last


class _Resumed(Delivery):
    """A delivery that had begun before the recording: its file is in the copy of tmp/."""

    __slots__ = ()

    def __init__(self, drop: Maildrop, name: bytes, octets: int) -> None:
        if type(name) is not bytes or b"/" in name or octets < 0:
            raise RecordingError("a delivery whose file is none of the maildir's")
        self._drop = drop
        self._source = self._name = name
        self._counter = SizeCounter()
        self._fd = os.open(name, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=drop.tmp)
        if os.fstat(self._fd).st_size < octets:
            os.close(self._fd)
            raise FileNotFoundError
        os.ftruncate(self._fd, octets)
        while piece := os.read(self._fd, 1 << 20):
            self._counter.feed(piece)


class _Bounded(Delivery):
    """A recording says what is written, as often as it likes: all of it together has an end."""

    __slots__ = ()

    def write(self, data: bytes) -> None:
        drop = self._drop
        assert isinstance(drop, _Drop)
        drop.left -= len(data)
        if drop.left < 0:
            raise RecordingError(f"its deliveries are more than {_MOST_WRITTEN >> 20} MiB: too much for a replay")
        super().write(data)


class _Drop(Maildrop):
    """The copy of the maildir."""

    left = 0  # octets that may still be written

    def deliver_begin(self) -> Delivery:
        return _Bounded(self)


def play(stage: Stage, name: str, settings: dict[str, Any], frames: Sequence[Frame], maildir: str) -> None:
    """Play the frames of one life of a maildir actor, over the maildir at that path, which changes as it did then."""
    missing = [key for key in ("hostname", "quota", "quota_temporary") if key not in settings]
    if missing:
        raise RecordingError("the maildir actor's settings are other ones now: record it anew")
    with stage.set_up(main, delivery_channels, give_back=lambda: None):
        actor = _Actor(boot_of(name, {**settings, "maildir": maildir.encode()}))
        start = frames[0].turn / 1e9
        actor.clocks = _Source(stage, frames, "Clock", "seconds")
        actor.wall = settings.get("wall", start) - start
        octets = _Source(stage, frames, "Random", "octets")
        stage.enter(actor, start)
        try:
            actor.drop = drop = _Drop(
                maildir, hostname=settings["hostname"], clock=actor.clock, random=lambda many: octets.next() or bytes(many),
                policy=policy_of(settings),
            )
            drop.left = _MOST_WRITTEN
        except StoreError as error:
            actor.trouble = error
        counted = bool(settings["quota"]) or os.path.exists(os.path.join(os.fsencode(maildir), QUOTA_FILE))
        try:
            begun = set() if "mda" not in settings else _set_scene(stage, actor, settings)
            _play_all(stage, frames, begun, counted=counted)
        finally:
            if actor.drop is not None:
                actor.drop.close()


def _set_scene(stage: Stage, actor: _Actor, settings: dict[str, Any]) -> set[int]:
    """What was there when the recording began. The sessions that can go on."""
    actor.leaving, actor.stopping = settings["leaving"], settings["stopping"]
    if actor.drop is not None and settings["named"]:
        actor.drop.named = tuple(settings["named"])
    _receive(stage, actor, settings)
    if settings.get("tidying", -1.0) >= 0 and actor.drop is not None:
        actor.drop.untidy = True
        actor.tidying = stage.loop.later(settings["tidying"], actor._tidy)  # noqa: SLF001
    if not settings["session"]:
        return set()
    number, park, silent = settings["session"]
    if stage.session not in (0, number):
        return set()  # when it ends is not in the recording
    stage.skipped.add(number)
    if actor.drop is None or settings["state"] is None or stage.strange:
        return set()
    try:
        actor.session = Session.wake(actor.drop, actor.drop.listing(), settings["state"])
    except StoreError:
        return set()
    channel: Any = stage.channel(stage.loop, None, actor.boot.name, "listener", actor._on_session, actor._on_session_gone)  # noqa: SLF001
    channel.tag, channel.on_drained = number, actor._answer  # noqa: SLF001
    actor.channel, actor.number, actor.park_seconds = channel, number, park
    actor.silent_since = stage.loop.now - silent
    if settings["parking"] >= 0:
        actor.parking = stage.loop.later(settings["parking"], actor._park)  # noqa: SLF001
    stage.skipped.discard(number)
    return {number}


def _receive(stage: Stage, actor: _Actor, settings: dict[str, Any]) -> None:
    """The channels from the mda, and what was coming in on them."""
    there = actor.reception
    if settings["received"]:
        there.deliveries = there._begin(sweep=settings["sweep"])  # noqa: SLF001
    for row in settings["mda"]:
        channel: Any = stage.channel(stage.loop, None, actor.boot.name, "mda", there._on_mda, there._on_mda_gone)  # noqa: SLF001
        there.channels.append(channel)
        if row["told"]:
            there.told.add(channel)
        for one in row["open"]:
            assert there.deliveries is not None
            try:
                if actor.drop is None or stage.strange:
                    raise FileNotFoundError
                there.deliveries.resume(channel, _Resumed(actor.drop, one[-1], one[-2]), one)
            except OSError:
                stage.unknown.add(one[0])


def _play_all(stage: Stage, frames: Sequence[Frame], begun: set[int], *, counted: bool) -> None:
    try:
        for frame in stage.play(frames):
            if not _play_frame(stage, frame, begun, counted=counted):
                return
    except LeftError:
        stage.left(frames)


def _play_frame(stage: Stage, frame: Frame, begun: set[int], *, counted: bool) -> bool:
    """Whether what comes behind it can be played."""
    if frame.way == "in" and frame.name in ("Open", "Wake") and is_cut(frame.fields.get("state")) < 0:
        if stage.strange:
            stage.skipped.add(frame.session)
        else:
            begun.add(frame.session)
    if frame.way == "in" and not _mail(stage, frame, counted=counted):
        return False
    if frame.session and frame.session not in begun:
        stage.skipped.add(frame.session)
        if frame.name == "Quit":
            stage.strange = True
    elif frame.way == "in":
        stage.tell(frame)
    return True


def _mail(stage: Stage, frame: Frame, *, counted: bool) -> bool:
    """Whether this can be played, if it is mail that comes in; what comes behind it when the mail itself is not in the recording."""
    if frame.name not in ("Post", "Content", "Commit"):
        return True
    if frame.fields["delivery"] in stage.unknown:
        stage.strange = True
        stage.halt("a delivery that had begun before the recording")
        return False
    if is_cut(frame.fields.get("data")) >= 0:
        stage.strange = True
        stage.remark(_NO_MAIL)
    if stage.strange and counted:
        stage.halt("a delivery to a maildir with a quota, of which too little is in the recording")
        return False
    return True
