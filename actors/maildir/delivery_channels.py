"""Receive mail: a maildir actor's channels to the mda, and how it leaves them.

An actor that is to end sends ActorLeaving on each channel. The mda then sends nothing new, and closes the
channel once all it sent is answered. So nothing that crossed ActorLeaving is lost or delivered twice.
"""

from collections.abc import Sequence
from typing import Any, Protocol

from popkernel.actors.maildir.actions import Delivered, DeliveryAction, Leave, Note, Refuse
from popkernel.actors.maildir.deliveries import Deliveries
from popkernel.actors.maildir.session import Session
from popkernel.actors.maildir.store.errors import StoreError
from popkernel.actors.maildir.store.maildrop import Maildrop
from popkernel.actors.maildir.store.quota import Quota
from popkernel.kernel.runtime.actor import Boot
from popkernel.kernel.runtime.channel import Channel, Message
from popkernel.kernel.runtime.loop import Loop, Timer
from popkernel.kernel.runtime.world import World
from popkernel.proto import messages as m
from popkernel.proto.log_levels import INFO, NOTICE, WARNING

__all__ = ["DeliveryChannels"]

_SWEEP_AFTER = 1.0  # seconds after the first delivery: the sweep is not urgent

_MOST_CHANNELS = 4  # an mda has one, and perhaps one it has finished with; after a reload there are two mdas


class Shell(Protocol):
    """What the delivery side uses of the maildir actor."""

    boot: Boot
    world: World
    loop: Loop
    drop: Maildrop | None
    trouble: StoreError
    session: Session | None
    leaving: bool
    stopping: bool
    final: bool

    def leave(self) -> None:
        """Tell the kernel that the next session and delivery are for another process."""

    def rest(self) -> None:
        """End the actor if it is to leave and nothing is open."""

    def send(self, message: Message) -> None:
        """Send a message to the kernel."""

    def log(self, level: int, event: str, /, **fields: str | int) -> None:
        """Log an event."""

    def tell(self, level: int, event: str, /, **fields: str | int) -> None:
        """Send an event for the log and the history."""

    def refuse(self, channel: Channel, why: str) -> None:
        """Report a peer that broke the protocol."""


class DeliveryChannels:
    """The delivery side of a maildir actor's shell."""

    def __init__(self, actor: Shell) -> None:
        self.actor = actor
        self.channels: list[Channel] = []
        self.deliveries: Deliveries | None = None
        self.told: set[Channel] = set()  # channels that ActorLeaving was sent on
        self.sweeping: Timer | None = None

    @property
    def busy(self) -> bool:
        """Return whether a large message is coming in."""
        return self.deliveries is not None and bool(self.deliveries.open)

    def receive(self, message: m.DeliveryChannel, fds: list[int]) -> None:
        """Take a channel to the mda."""
        del message
        actor = self.actor
        if self.deliveries is None:
            self.deliveries = self.begin()
        if len(self.channels) >= _MOST_CHANNELS:
            oldest = self.channels[0]
            oldest.close()
            self.on_mda_gone(oldest, "")
        self.channels.append(
            actor.world.channel(actor.loop, fds[0], actor.boot.name, "mda", self.on_mda, self.on_mda_gone)
        )

    def begin(self, sweep: float = _SWEEP_AFTER) -> Deliveries:
        actor, config, drop = self.actor, self.actor.boot.config, self.actor.drop
        quota: Quota | None = None
        if drop is not None:
            quota = drop.quota = Quota(drop.root, config["quota"], actor.world.clock)
            if sweep >= 0:
                self.sweeping = actor.loop.later(sweep, self._sweep)
        return Deliveries(
            drop,
            actor.trouble,
            quota,
            actor.world.clock,
            full="4.2.2" if config["quota_temporary"] else "5.2.2",
        )

    def _leave(self) -> None:
        """Leave, because the maildir was moved.

        ActorLeaving goes to the mdas before the refusals, so that they send the refused mail to the next
        actor.

        While a session is open there is no next actor: each message is refused, and tried again later.
        """
        self.actor.leave()
        if self.actor.session is None:
            self.left()

    def moved(self) -> None:
        """Refuse deliveries: a session found that the maildir was moved."""
        if self.deliveries is not None:
            self._do(self.deliveries.moved())

    def failed(self) -> None:
        """Refuse deliveries: the maildir could not be read, and this actor leaves."""
        if self.deliveries is not None:
            self._do(self.deliveries.failed())

    def _do(self, actions: Sequence[DeliveryAction]) -> None:
        """Do those actions of deliveries that are no answers."""
        for action in actions:
            match action:
                case Leave():
                    self._leave()
                case Refuse(channel, message):
                    channel.send(message)
                case Note(event, fields):
                    self.actor.log(WARNING, event, **fields)
                case Delivered(fields):
                    self.actor.tell(INFO, "delivery.done", **fields)

    def settings(self, now: float) -> dict[str, Any]:
        """Return the state for traces: channels in order, large messages on each, time until the sweep."""
        deliveries = self.deliveries
        return {
            "mda": [
                {
                    "told": channel in self.told,
                    "open": deliveries.settings(channel) if deliveries is not None else [],
                }
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
            actor.log(WARNING, "maildir.sweep_failed", error=str(error))
            return
        if swept:
            actor.log(NOTICE, "maildir.swept", files=swept)

    def on_mda(self, channel: Channel, message: Message, fds: list[int]) -> None:
        del fds
        actor, deliveries = self.actor, self.deliveries
        assert deliveries is not None
        if (
            actor.leaving
            and type(message) is m.DeliveryBegin
            and not (actor.stopping or actor.final or deliveries.stale)
        ):
            actor.leaving = False  # it crossed ActorLeaving: stay for it
            actor.send(m.RetireRefused())
        try:
            actions = deliveries.take(channel, message)
        except ValueError as error:
            channel.close()
            self.on_mda_gone(channel, str(error))
            return
        for action in actions:
            match action:
                case m.DeliveryAccepted() | m.DeliveryRejected():
                    channel.send(action)
                case _:
                    self._do([action])
        if deliveries.stale and not deliveries.open:
            actor.leave()
            actor.rest()

    def on_mda_gone(self, channel: Channel, why: str) -> None:
        if why:
            self.actor.refuse(channel, why)
        assert self.deliveries is not None
        self.deliveries.gone(channel)
        self.told.discard(channel)
        if channel in self.channels:
            self.channels.remove(channel)
        self.actor.rest()

    def left(self) -> bool:
        """Send ActorLeaving to every mda. Returns whether no channel is left."""
        for channel in self.channels:
            if channel not in self.told:
                self.told.add(channel)
                channel.send(m.ActorLeaving())
        return not self.channels
