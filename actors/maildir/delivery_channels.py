"""Where mail comes in: the maildir actor's channels to the mda, and how it takes leave of them.

An actor that is to go says Leaving on each; the mda then sends nothing new, and closes the channel once all it sent is
answered. So nothing that crossed that word is lost, or delivered twice.
"""

from typing import Any, Protocol

from popkernel.actors.maildir.deliveries import Deliveries
from popkernel.actors.maildir.session import Session
from popkernel.actors.maildir.store.maildrop import Maildrop, StoreError
from popkernel.actors.maildir.store.quota import Quota
from popkernel.kernel.runtime.actor import Boot
from popkernel.kernel.runtime.channel import Channel, Message, adopt
from popkernel.kernel.runtime.loop import Loop, Timer
from popkernel.proto import messages as m

__all__ = ["Reception"]

_SWEEP_AFTER = 1.0  # seconds from the first delivery: nobody waits for the sweep

_MOST_CHANNELS = 4  # an mda has one, and one it is done with; after a reload there are two mdas


class Shell(Protocol):
    """As much of the maildir actor as its delivery side sees."""

    boot: Boot
    loop: Loop
    drop: Maildrop | None
    trouble: StoreError
    session: Session | None
    leaving: bool
    stopping: bool
    final: bool

    @staticmethod
    def clock() -> float:
        """Wall time in seconds."""

    def leave(self) -> None:
        """Tell the kernel that whoever comes next is for another process."""

    def rest(self) -> None:
        """Something has ended: go, if that is wanted and nothing is open any more."""

    def tell(self, message: Message) -> None:
        """Say something to the kernel."""

    def log(self, level: int, text: str) -> None:
        """A line for the log."""

    def refuse(self, channel: Channel, why: str) -> None:
        """A peer broke the rules."""


class Reception:
    """The delivery side of a maildir actor's shell."""

    def __init__(self, actor: Shell) -> None:
        self.actor = actor
        self.channels: list[Channel] = []
        self.deliveries: Deliveries | None = None
        self.told: set[Channel] = set()  # channels that Leaving was said on
        self.sweeping: Timer | None = None

    @property
    def busy(self) -> bool:
        """Whether a message is on its way in."""
        return self.deliveries is not None and bool(self.deliveries.open)

    def receive(self, message: m.Receive, fds: list[int]) -> None:
        """A channel to the mda."""
        del message
        actor = self.actor
        if self.deliveries is None:
            self.deliveries = self._begin()
        if len(self.channels) >= _MOST_CHANNELS:
            oldest = self.channels[0]
            oldest.close()
            self._on_mda_gone(oldest, "")
        self.channels.append(Channel(actor.loop, adopt(fds[0]), actor.boot.name, "mda", self._on_mda, self._on_mda_gone))

    def _begin(self, sweep: float = _SWEEP_AFTER) -> Deliveries:
        actor, config, drop = self.actor, self.actor.boot.config, self.actor.drop
        quota: Quota | None = None
        if drop is not None:
            quota = drop.quota = Quota(drop.root, config["quota"], actor.clock)
            if sweep >= 0:
                self.sweeping = actor.loop.later(sweep, self._sweep)
        return Deliveries(
            drop, actor.trouble, quota, full="4.2.2" if config["quota_temporary"] else "5.2.2",
            log=lambda level, text: actor.log(level, f"{actor.boot.name}: {text}"), leave=self._leave,
        )

    def _leave(self) -> None:
        """The maildir was moved. The mdas hear that before they hear what was refused: that goes to the next actor.

        With a session open there will be no other for a while: each message is refused, and tried again later.
        """
        self.actor.leave()
        if self.actor.session is None:
            self.left()

    def moved(self) -> None:
        """A session has found out that the maildir was moved."""
        if self.deliveries is not None:
            self.deliveries.moved()

    def failed(self) -> None:
        """The maildir could not be read, so this actor goes."""
        if self.deliveries is not None:
            self.deliveries.failed()

    def settings(self, now: float) -> dict[str, Any]:
        """What is under way, for who watches: the channels in their order, what comes in on each, and when tmp will be swept."""
        deliveries = self.deliveries
        return {
            "mda": [
                {"told": channel in self.told, "open": deliveries.settings(channel) if deliveries is not None else []}
                for channel in self.channels
            ],
            "received": deliveries is not None,
            "sweep": max(0.0, self.sweeping.due - now) if self.sweeping is not None else -1.0,
        }

    def _sweep(self) -> None:
        self.sweeping = None
        actor = self.actor
        assert actor.drop is not None
        try:
            swept = actor.drop.sweep_tmp()
        except StoreError as error:
            actor.log(4, f"{actor.boot.name}: {error}")
            return
        if swept:
            actor.log(5, f"{actor.boot.name}: swept {swept} old files out of tmp")

    def _on_mda(self, channel: Channel, message: Message, fds: list[int]) -> None:
        del fds
        actor, deliveries = self.actor, self.deliveries
        assert deliveries is not None
        if actor.leaving and type(message) is m.Deliver and not (actor.stopping or actor.final or deliveries.stale):
            actor.leaving = False  # a large one crossed our leave: stay for it
            actor.tell(m.Busy())
        try:
            deliveries.take(channel, message)
        except ValueError as error:
            channel.close()
            self._on_mda_gone(channel, str(error))
            return
        if deliveries.stale and not deliveries.open:
            actor.leave()
            actor.rest()

    def _on_mda_gone(self, channel: Channel, why: str) -> None:
        if why:
            self.actor.refuse(channel, why)
        assert self.deliveries is not None
        self.deliveries.gone(channel)
        self.told.discard(channel)
        if channel in self.channels:
            self.channels.remove(channel)
        self.actor.rest()

    def left(self) -> bool:
        """The actor is to go: take leave of every mda. True once none is left."""
        for channel in self.channels:
            if channel not in self.told:
                self.told.add(channel)
                channel.send(m.Leaving())
        return not self.channels
