"""Send mail over the mda's channels to the maildir actors.

The kernel makes them, one for each user. A channel is closed if its actor no longer answers.
"""

import socket
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

from popkernel.actors.mda.route import Route
from popkernel.actors.mda.transaction import (
    AWAY,
    SLOW,
    Action,
    Answer,
    Copy,
    FindRoute,
    Resume,
    Send,
    Transaction,
)
from popkernel.kernel.runtime.actor import Actor
from popkernel.kernel.runtime.channel import Channel, Message
from popkernel.proto import messages as m
from popkernel.proto.log_levels import WARNING
from popkernel.proto.topology import edge

__all__ = ["CROWDED", "Routes"]

CROWDED = "4.3.2 too many messages wait for this mailbox, try again later"
_DOUBT = 10.0  # seconds of silence after which the kernel is asked to check an actor
_SILENT = 3.0  # seconds of silence after which few connections may wait for a mailbox


class Routes:
    """The routes, and the shell of the transactions.

    `ask(user, copy)`: ask the kernel for a channel to that user's actor. `answer`: answer a copy's client.
    `resume(owner)`: continue with a copy's client soon.
    """

    def __init__(
        self,
        actor: Actor,
        ask: Callable[[str, Copy], None],
        answer: Callable[[Answer], None],
        resume: Callable[[Any], None],
    ) -> None:
        self.actor = actor
        self.ask = ask
        self.answer = answer
        self.resume = resume
        self.by_user: dict[str, Route] = {}
        self.wanting: dict[str, list[Copy]] = {}  # user -> copies that wait for a route
        self.most = 3000  # channels; idle ones beyond that are closed
        # connections of the mda; _bound() says how many of them may wait for one mailbox
        self.connections = 200
        self.patience = edge("mda", "maildir.{user}").deadline
        self.doubt = min(_DOUBT, self.patience / 2)

    def do(self, actions: Sequence[Action]) -> None:
        """Do a transaction's actions, in order."""
        for action in actions:
            match action:
                case Send(route, message, bulk):
                    assert isinstance(route, Route)
                    if bulk:
                        route.channel.send_bulk(message, bulk)
                    else:
                        route.channel.send(message)
                case FindRoute(copy):
                    if copy in copy.transaction.open:
                        self.want(copy)
                case Answer():
                    self.answer(action)
                case Resume(owner):
                    self.resume(owner)

    def _go(self, route: Route, actions: Sequence[Action]) -> None:
        """Start as many copies as there is room for. Sending each one takes room."""
        while actions:
            self.do(actions)
            actions = route.go()

    # -- copies
    def want(self, copy: Copy) -> None:
        """Find a route for a copy, an open one or from the kernel: one lookup for each user at a time."""
        copy.wanted = True
        route = self.by_user.get(copy.user)
        senders = self._senders(copy.user)
        if copy.transaction not in senders and len(senders) >= self._bound(
            route, large=copy.transaction.large
        ):
            # not at once: the transaction may be about to want its next copies
            self.actor.loop.soon(lambda: self._refuse_copy(copy))
            return
        if route is not None:
            self._go(route, route.ask(copy))
            return
        waiting = self.wanting.setdefault(copy.user, [])
        waiting.append(copy)
        if len(waiting) == 1:
            self.ask(copy.user, copy)

    def _senders(self, user: str) -> list[Transaction]:
        """Return the messages that are under way to that user or wait, the oldest first."""
        route = self.by_user.get(user)
        there = () if route is None else (route.copies.values(), *route.waiting)
        return list(dict.fromkeys(copy.transaction for copy in chain(*there, self.wanting.get(user, ()))))

    def _bound(self, route: Route | None, *, large: bool) -> int:
        """Return how many connections may wait for a mailbox.

        A quarter of all is always left for other mailboxes.
        """
        silent = route is not None and route.owes and self.actor.loop.now - route.heard > _SILENT
        return max(1, self.connections // 8 if silent else self.connections * (2 if large else 3) // 4)

    def _refuse_copy(self, copy: Copy) -> None:
        copy.wanted = False
        self.do(copy.transaction.failed(copy, CROWDED))

    def withdraw(self, copy: Copy) -> None:
        """Take a copy out of the queues.

        Else clients that connect and leave would fill the queue of an actor that does nothing.
        """
        copy.wanted = False
        route = self.by_user.get(copy.user)
        for queue in (*(route.waiting if route is not None else ()), self.wanting.get(copy.user, [])):
            if copy in queue:
                queue.remove(copy)

    def found(self, user: str) -> None:
        """Start the copies that wait for a user: the kernel has answered."""
        route = self.by_user.get(user)
        for copy in self.wanting.pop(user, ()):
            if route is None:
                self.do(copy.transaction.failed(copy))
            else:
                self._go(route, route.ask(copy))

    def refused(self, user: str, text: str) -> None:
        """Fail the copies that wait for a user: the kernel refused, or did not answer.

        `text` begins with the status.
        """
        for copy in self.wanting.pop(user, ()):
            self.do(copy.transaction.failed(copy, text))

    # -- channels
    def join(self, user: str, fd: int) -> None:
        """Take a channel to a user's maildir actor, in place of one to an earlier actor."""
        earlier = self.by_user.pop(user, None)
        route = self.open(user, fd)
        if earlier is not None:
            earlier.leaving = True
            self._reroute(earlier)
            self.tidy(earlier)
        if len(self.by_user) > self.most:
            self._drop_idle()
        self._go(route, route.go())

    def open(self, user: str, end: socket.socket | int) -> Route:
        """Open a route over that channel, in use from now on."""
        actor = self.actor
        channel = actor.world.channel(
            actor.loop, end, actor.boot.name, f"maildir.{user}", self.on_message, self.gone
        )
        route = self.by_user[user] = Route(user)
        route.channel = channel
        route.heard = actor.loop.now
        channel.tag = route
        channel.on_drained = lambda: self.tidy(route)
        return route

    def _drop_idle(self) -> None:
        for route in [r for r in self.by_user.values() if not r.owes and not r.copies][: self.most // 4 + 1]:
            self._forget(route)
            route.channel.close()

    def on_message(self, channel: Channel, message: Message, fds: list[int]) -> None:
        """Process a message from a maildir actor."""
        del fds
        route: Route = channel.tag
        route.heard = self.actor.loop.now
        if type(message) is m.ActorLeaving:
            route.leaving = True
            self._forget(route)
        else:
            copy = route.copies.get(message[0])
            if copy is None:
                return  # the copy was given up
            if type(message) is m.DeliveryAccepted:
                if message.octets > max(copy.unwritten, copy.transaction.size):
                    channel.close()
                    self.gone(channel, "credit for more octets than were sent to it")
                    return
                self.do(copy.transaction.accepted(copy, message))
            elif type(message) is m.DeliveryRejected and route.leaving and copy.transaction.again(copy):
                # refused by an actor that was leaving: the next one may accept it
                self.want(copy)
            elif type(message) is m.DeliveryRejected:
                self.do(copy.transaction.failed(copy, f"{message.status} {message.text}"))
        self.tidy(route)

    def gone(self, channel: Channel, why: str) -> None:
        """Fail what the actor had not confirmed, and send the rest to the next actor.

        The senders try failed mail again.
        """
        if why:
            self.actor.refuse(channel, why)
        self._lost(channel.tag, AWAY)

    def _lost(self, route: Route, text: str) -> None:
        self._forget(route)  # first: further copies of failed messages must not come here
        for copy in list(route.copies.values()):
            self.do(copy.transaction.failed(copy, text))

    def _forget(self, route: Route) -> None:
        if self.by_user.get(route.user) is route:
            del self.by_user[route.user]
        self._reroute(route)

    def _reroute(self, route: Route) -> None:
        for copy in route.dismiss():
            if copy in copy.transaction.open:
                self.want(copy)

    def tidy(self, route: Route) -> None:
        """Start the next copies, and close a route that is leaving once nothing is under way."""
        self._go(route, route.go())
        if route.leaving and not route.copies:
            route.channel.close()

    # -- deadlines
    def sweep(self) -> None:
        """Give up routes that owe an answer and have been silent as long as the table allows."""
        now = self.actor.loop.now
        for route in [*self.by_user.values()]:
            if not route.owes:
                route.heard = now
                continue
            self._enforce_bound(route)
            if now - route.heard > self.patience:
                self._give_up(route)
            elif now - route.heard > self.doubt and now - route.doubted > self.doubt:
                route.doubted = now
                # mail for other users may wait behind this user's
                self.actor.send(m.PeerTimeout(f"maildir.{route.user}"))

    def _enforce_bound(self, route: Route) -> None:
        """Refuse copies beyond the bound, of messages with nothing under way there."""
        senders = self._senders(route.user)
        bound = self._bound(route, large=False)
        if len(senders) > bound:
            staying = {*senders[:bound], *(copy.transaction for copy in route.copies.values())}
            for copy in [c for queue in route.waiting for c in queue if c.transaction not in staying]:
                self.withdraw(copy)
                self._refuse_copy(copy)

    def _give_up(self, route: Route) -> None:
        """Close the route and fail its copies; the senders try again later.

        The kernel learns that the channel is lost, and checks whether the actor is alive.
        """
        self.actor.log(WARNING, "lmtp.maildir_silent", user=route.user, seconds=round(self.patience))
        first = next(iter(route.copies.values()), None)
        route.channel.close()
        self._lost(route, SLOW)
        if first is not None and route.user not in self.wanting:
            self.ask(route.user, first)
