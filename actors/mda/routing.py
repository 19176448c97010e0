"""The mda's channels to the maildir actors: made by the kernel, one a user, each given up where its actor answers no more."""

from collections.abc import Callable
from itertools import chain
from typing import Any

from popkernel.actors.mda.route import Route
from popkernel.actors.mda.transaction import AWAY, SLOW, Copy, Transaction
from popkernel.kernel.runtime.actor import Actor
from popkernel.kernel.runtime.channel import Channel, Message, adopt
from popkernel.proto import messages as m
from popkernel.proto.topology import edge

__all__ = ["CROWDED", "Routes"]

CROWDED = "4.3.2 too many messages wait for this mailbox, try again later"
_DOUBT = 10.0  # seconds without a word after which the kernel is asked to see whether an actor is alive
_SILENT = 3.0  # seconds without a word after which few connections may wait for one mailbox


class Routes:
    """`ask(user, copy)`: ask the kernel for a channel to that user's actor. `resume(owner)`: go on with a copy's client, soon."""

    def __init__(self, actor: Actor, ask: Callable[[str, Copy], None], resume: Callable[[Any], None]) -> None:
        self.actor = actor
        self.ask = ask
        self.resume = resume
        self.by_user: dict[str, Route] = {}
        self.wanting: dict[str, list[Copy]] = {}  # user -> copies that wait for a route
        self.most = 3000  # channels kept; idle ones beyond that are closed
        self.connections = 200  # that the mda takes; _bound() says how many of them one mailbox may hold
        self.patience = edge("mda", "maildir.{user}").deadline
        self.doubt = min(_DOUBT, self.patience / 2)

    # -- copies
    def want(self, copy: Copy) -> None:
        """Find a route for that copy, from what is there or from the kernel; one question a user at a time."""
        copy.wanted = True
        route = self.by_user.get(copy.user)
        senders = self._senders(copy.user)
        if copy.transaction not in senders and len(senders) >= self._bound(route, large=copy.transaction.large):
            self.actor.loop.soon(lambda: self._turn_away(copy))  # not at once: a transaction may be about to want its next copies
            return
        if route is not None:
            self._set_off(route.ask(copy))
            return
        waiting = self.wanting.setdefault(copy.user, [])
        waiting.append(copy)
        if len(waiting) == 1:
            self.ask(copy.user, copy)

    def _senders(self, user: str) -> list[Transaction]:
        """The messages that are under way to that user or wait, the first come first."""
        route = self.by_user.get(user)
        there = () if route is None else (route.copies.values(), *route.waiting)
        return list(dict.fromkeys(copy.transaction for copy in chain(*there, self.wanting.get(user, ()))))

    def _bound(self, route: Route | None, *, large: bool) -> int:
        """How many connections may wait for that mailbox: a quarter is always left for the others' mail."""
        silent = route is not None and route.owes and self.actor.loop.now - route.heard > _SILENT
        return max(1, self.connections // 8 if silent else self.connections * (2 if large else 3) // 4)

    def _turn_away(self, copy: Copy) -> None:
        copy.wanted = False
        copy.transaction.failed(copy, CROWDED)
        self.resume(copy.transaction.owner)

    def withdraw(self, copy: Copy) -> None:
        """It is wanted no more. Else who comes and goes would fill the queue of an actor that does nothing."""
        copy.wanted = False
        route = self.by_user.get(copy.user)
        for queue in (*(route.waiting if route is not None else ()), self.wanting.get(copy.user, [])):
            if copy in queue:
                queue.remove(copy)

    def found(self, user: str) -> None:
        """The kernel has said where that user's actor is."""
        route = self.by_user.get(user)
        for copy in self.wanting.pop(user, ()):
            if route is None:
                copy.transaction.failed(copy)
                self.resume(copy.transaction.owner)
            else:
                self._set_off(route.ask(copy))

    def refused(self, user: str, text: str) -> None:
        """The kernel has said that there is none, or has said nothing. `text` begins with the status."""
        for copy in self.wanting.pop(user, ()):
            copy.transaction.failed(copy, text)
            self.resume(copy.transaction.owner)

    def _set_off(self, copies: list[Copy]) -> None:
        for copy in copies:
            if copy.transaction.large:
                self.resume(copy.transaction.owner)

    # -- channels
    def join(self, user: str, fd: int) -> None:
        """A channel to that user's maildir actor; one to an earlier actor is over."""
        earlier = self.by_user.pop(user, None)
        route = self.open(user, Channel(self.actor.loop, adopt(fd), self.actor.boot.name, f"maildir.{user}", self.hear, self.gone))
        if earlier is not None:
            earlier.leaving = True
            self._elsewhere(earlier)
            self.tidy(earlier)
        if len(self.by_user) > self.most:
            self._drop_idle()
        self._set_off(route.go())

    def open(self, user: str, channel: Channel) -> Route:
        """A route over that channel, in force from now on."""
        route = self.by_user[user] = Route(user, lambda message, bulk: self._send(route, message, bulk))
        route.channel = channel
        route.heard = self.actor.loop.now
        channel.tag = route
        channel.on_drained = lambda: self.tidy(route)
        return route

    def _drop_idle(self) -> None:
        for route in [r for r in self.by_user.values() if not r.owes and not r.copies][: self.most // 4 + 1]:
            self._forget(route)
            route.channel.close()

    @staticmethod
    def _send(route: Route, message: Message, bulk: bytes) -> None:
        if bulk:
            route.channel.send_bulk(message, bulk)
        else:
            route.channel.send(message)

    def hear(self, channel: Channel, message: Message, fds: list[int]) -> None:
        """A maildir actor says something."""
        del fds
        route: Route = channel.tag
        route.heard = self.actor.loop.now
        if type(message) is m.Leaving:
            route.leaving = True
            self._forget(route)
        else:
            copy = route.copies.get(message[0])
            if copy is None:
                return  # given up meanwhile
            if type(message) is m.Accepted:
                if message.octets > max(copy.unwritten, copy.transaction.size):
                    channel.close()
                    self.gone(channel, "credit for more than it was sent")
                    return
                copy.transaction.accepted(copy, message)
                if copy.transaction.large and not message.safe:
                    self.resume(copy.transaction.owner)
            elif type(message) is m.Rejected and route.leaving and copy.transaction.again(copy):
                self.want(copy)  # refused by an actor that had taken its leave: the next one may see it otherwise
            elif type(message) is m.Rejected:
                copy.transaction.failed(copy, f"{message.status} {message.text}")
                self.resume(copy.transaction.owner)
        self.tidy(route)

    def gone(self, channel: Channel, why: str) -> None:
        """What it had not confirmed the sender tries again; what it was not sent goes to the next one."""
        if why:
            self.actor.refuse(channel, why)
        self._lost(channel.tag, AWAY)

    def _lost(self, route: Route, text: str) -> None:
        self._forget(route)  # first: the next copies of what fails now must not come here
        for copy in list(route.copies.values()):
            copy.transaction.failed(copy, text)
            self.resume(copy.transaction.owner)

    def _forget(self, route: Route) -> None:
        if self.by_user.get(route.user) is route:
            del self.by_user[route.user]
        self._elsewhere(route)

    def _elsewhere(self, route: Route) -> None:
        for copy in route.dismiss():
            if copy in copy.transaction.open:
                self.want(copy)

    def tidy(self, route: Route) -> None:
        """Something on it is over: whose turn is it, or was that all?"""
        self._set_off(route.go())
        if route.leaving and not route.copies:
            route.channel.close()

    # -- deadlines
    def sweep(self) -> None:
        """Give up those that owe an answer and have said nothing for as long as the table allows."""
        now = self.actor.loop.now
        for route in [*self.by_user.values()]:
            if not route.owes:
                route.heard = now
                continue
            self._thin_out(route)
            if now - route.heard > self.patience:
                self._give_up(route)
            elif now - route.heard > self.doubt and now - route.doubted > self.doubt:
                route.doubted = now
                self.actor.tell(m.Late(f"maildir.{route.user}"))  # mail for others may wait behind this user's

    def _thin_out(self, route: Route) -> None:
        """Who waits behind those that may wait, and has nothing under way there, tries again later."""
        senders = self._senders(route.user)
        bound = self._bound(route, large=False)
        if len(senders) > bound:
            staying = {*senders[:bound], *(copy.transaction for copy in route.copies.values())}
            for copy in [c for queue in route.waiting for c in queue if c.transaction not in staying]:
                self.withdraw(copy)
                self._turn_away(copy)

    def _give_up(self, route: Route) -> None:
        """Its mail is tried again later. The kernel hears that the channel is lost, and sees for itself whether the actor is alive."""
        self.actor.log(4, f"maildir.{route.user} has answered nothing for {self.patience} s")
        first = next(iter(route.copies.values()), None)
        route.channel.close()
        self._lost(route, SLOW)
        if first is not None and route.user not in self.wanting:
            self.ask(route.user, first)
