"""Replay a recorded maildir actor over a copy of its maildir, with the recorded clock and random octets.

Its Settings say what was under way when the recording began: the replay continues that, or leaves the session
out.
"""

import os
from collections.abc import Sequence
from typing import Any

from popkernel.actors.maildir.main import MaildirActor
from popkernel.actors.maildir.session import Session
from popkernel.actors.maildir.store.delivery import Delivery
from popkernel.actors.maildir.store.errors import StoreError
from popkernel.actors.maildir.store.maildrop import Maildrop
from popkernel.actors.maildir.store.policy import policy_of
from popkernel.actors.maildir.store.quota import NAME as QUOTA_FILE
from popkernel.kernel.replay.harness import Harness, LeftError, Readings, no_socket
from popkernel.proto.pop3.octets import SizeCounter
from popkernel.proto.trace.recording import MOST_OCTETS, Frame, RecordingError
from popkernel.proto.trace.redaction import is_cut

__all__ = ["play"]

_MOST_WRITTEN = 2 * MOST_OCTETS
_NO_MAIL = (
    "mail that was delivered is not in the recording, for want of --payload: "
    "sessions that began after it are left out"
)


class _Clock:
    """Wall time as recorded. A reading that the recording lacks advances with the loop's clock."""

    def __init__(self, harness: Harness, frames: Sequence[Frame], wall: float) -> None:
        """`wall`: wall time minus the loop's clock, seconds; 0 if the recording lacks it."""
        self._loop = harness.loop
        self._readings = Readings(harness, frames, "Clock", "seconds")
        self._wall = wall
        self._last = 0.0

    def __call__(self) -> float:
        now = self._readings.next()
        if now is None:
            now = max(self._last, self._wall + self._loop.now) if self._wall else self._last
        self._last = now
        return self._last


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
    """A delivery that counts its octets: a recording may hold any number, and a replay must have a bound."""

    __slots__ = ()

    def write(self, data: bytes) -> None:
        drop = self._drop
        assert isinstance(drop, _Drop)
        drop.left -= len(data)
        if drop.left < 0:
            raise RecordingError(
                f"its deliveries are more than {_MOST_WRITTEN >> 20} MiB: too much for a replay"
            )
        super().write(data)


class _Drop(Maildrop):
    """The copy of the maildir that the replay works on."""

    left = 0  # octets that may still be written

    def deliver_begin(self) -> Delivery:
        return _Bounded(self)


def play(
    harness: Harness, name: str, settings: dict[str, Any], frames: Sequence[Frame], maildir: str
) -> None:
    """Play the frames of one life of a maildir actor over a maildir, and change that as it did."""
    missing = [key for key in ("hostname", "quota", "quota_temporary") if key not in settings]
    if missing:
        raise RecordingError("the maildir actor's settings have changed: record it anew")
    start = frames[0].turn / 1e9
    clock = _Clock(harness, frames, settings.get("wall", start) - start)
    drawn = Readings(harness, frames, "Random", "octets")
    boot = harness.boot(
        name,
        {**settings, "maildir": maildir.encode()},
        start,
        clock=clock,
        random=lambda many: drawn.next() or bytes(many),
    )
    actor = MaildirActor(boot)
    harness.enter(actor)
    try:
        actor.drop = drop = _Drop(
            maildir,
            hostname=settings["hostname"],
            clock=boot.world.clock,
            random=boot.world.random,
            policy=policy_of(settings),
        )
        drop.left = _MOST_WRITTEN
    except StoreError as error:
        actor.trouble = error
    counted = bool(settings["quota"]) or os.path.exists(os.path.join(os.fsencode(maildir), QUOTA_FILE))
    try:
        begun = set() if "mda" not in settings else _set_scene(harness, actor, settings)
        _play_all(harness, frames, begun, counted=counted)
    finally:
        if actor.drop is not None:
            actor.drop.close()


def _set_scene(harness: Harness, actor: MaildirActor, settings: dict[str, Any]) -> set[int]:
    """Restore the state at the beginning of the recording. Returns the sessions that can go on."""
    actor.leaving, actor.stopping = settings["leaving"], settings["stopping"]
    if actor.drop is not None and settings["named"]:
        actor.drop.named = tuple(settings["named"])
    _receive(harness, actor, settings)
    if settings.get("tidying", -1.0) >= 0 and actor.drop is not None:
        actor.drop.untidy = True
        actor.tidying = harness.loop.later(settings["tidying"], actor.tidy)
    if not settings["session"]:
        return set()
    number, park, silent = settings["session"]
    if harness.session not in (0, number):
        return set()  # its end is not in the recording
    harness.skipped.add(number)
    if actor.drop is None or settings["state"] is None or harness.strange:
        return set()
    try:
        actor.session = Session.wake(actor.drop, actor.drop.listing(), settings["state"])
    except StoreError:
        return set()
    channel = harness.channel(
        harness.loop, no_socket(), actor.boot.name, "listener", actor.on_session, actor.on_session_gone
    )
    channel.tag, channel.on_drained = number, actor.answer
    actor.channel, actor.number, actor.park_seconds = channel, number, park
    actor.silent_since = harness.loop.now - silent
    if settings["parking"] >= 0:
        actor.parking = harness.loop.later(settings["parking"], actor.park)
    harness.skipped.discard(number)
    return {number}


def _receive(harness: Harness, actor: MaildirActor, settings: dict[str, Any]) -> None:
    """Restore the channels to the mda, and the large messages that were coming in on them."""
    receiver = actor.delivery_channels
    if settings["received"]:
        receiver.deliveries = receiver.begin(sweep=settings["sweep"])
    for row in settings["mda"]:
        channel = harness.channel(
            harness.loop, no_socket(), actor.boot.name, "mda", receiver.on_mda, receiver.on_mda_gone
        )
        receiver.channels.append(channel)
        if row["told"]:
            receiver.told.add(channel)
        for one in row["open"]:
            assert receiver.deliveries is not None
            try:
                if actor.drop is None or harness.strange:
                    raise FileNotFoundError
                receiver.deliveries.resume(channel, _Resumed(actor.drop, one[-1], one[-2]), one)
            except OSError:
                harness.unknown.add(one[0])


def _play_all(harness: Harness, frames: Sequence[Frame], begun: set[int], *, counted: bool) -> None:
    try:
        for frame in harness.play(frames):
            if not _play_frame(harness, frame, begun, counted=counted):
                return
    except LeftError:
        harness.left(frames)


def _play_frame(harness: Harness, frame: Frame, begun: set[int], *, counted: bool) -> bool:
    """Play a frame. Returns whether the frames after it can be played."""
    if (
        frame.way == "in"
        and frame.name in ("SessionOpen", "SessionWake")
        and is_cut(frame.fields.get("state")) < 0
    ):
        if harness.strange:
            harness.skipped.add(frame.session)
        else:
            begun.add(frame.session)
    if frame.way == "in" and not _mail(harness, frame, counted=counted):
        return False
    if frame.session and frame.session not in begun:
        harness.skipped.add(frame.session)
        if frame.name == "Quit":
            harness.strange = True
    elif frame.way == "in":
        harness.tell(frame)
    return True


def _mail(harness: Harness, frame: Frame, *, counted: bool) -> bool:
    """Return whether a frame can be played.

    Its mail may be cut, or belong to a delivery that began before the recording.
    """
    if frame.name not in ("DeliveryWhole", "DeliveryContent", "DeliveryCommit"):
        return True
    if frame.fields["delivery"] in harness.unknown:
        harness.strange = True
        harness.halt("a delivery that had begun before the recording")
        return False
    if is_cut(frame.fields.get("data")) >= 0:
        harness.strange = True
        harness.remark(_NO_MAIL)
    if harness.strange and counted:
        harness.halt("a delivery to a maildir with a quota, of which too little is in the recording")
        return False
    return True
