"""One message on its way through the mda: a copy for each recipient, each with an answer of its own. Sans I/O.

A small message waits here until it is whole and then goes to each maildir actor in one; a large one is passed on as it comes,
no faster than the slowest of its maildir actors takes it in. Each recipient has a copy that is sent by itself, two addresses of one
user too. What a maildir actor is sent, and how, is the shell's business (routing.py): it gives `Route`s, and calls `routed`, `accepted`,
`failed` and `late`.
"""

from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from popkernel.proto import messages as m

__all__ = ["AWAY", "MANY", "MOST_STREAMS", "SLOW", "SMALL", "Copy", "Transaction"]

SMALL = 128 * 1024  # octets of a message that goes in one
FRAME = 32 * 1024  # octets of a large message that are worth a frame
WINDOW = 256 * 1024  # octets of a large message that a maildir actor may have before it and not yet in its files
MOST_STREAMS = 16  # large messages under way to one actor: each is an open file there, of 64 descriptors that it has
AT_ONCE = 16  # copies of one small message that are under way together
_MOST_CHUNKS = 64  # pieces in which content waits

AWAY = "4.3.0 the mailbox is not available now, try again later"
SLOW = "4.4.1 the mailbox takes too long, try again later"
MANY = "4.5.3 too many addresses of one mailbox for a large message, send it to the others after this"


class Way(Protocol):
    """A channel to a maildir actor, as a transaction sees it: route.py."""

    send: Callable[[tuple[Any, ...], bytes], None]

    def take(self, copy: "Copy") -> None:
        """It is under way."""

    def drop(self, copy: "Copy") -> None:
        """It is no more."""


class Copy:
    """A message for one recipient."""

    __slots__ = ("address", "indexes", "number", "retried", "route", "transaction", "unwritten", "user", "wanted", "window")

    def __init__(self, transaction: "Transaction", index: int, address: str, user: str) -> None:
        self.transaction = transaction
        self.indexes = [index]  # of the client's recipients: several where it named this one more than once
        self.address = address
        self.user = user
        self.number = 0  # of the delivery, once it is under way
        self.route: Way | None = None
        self.unwritten = 0  # octets on their way into the file
        self.window = WINDOW  # octets that may be: the copies for one user share what their actor may have before it
        self.retried = False  # it was refused by an actor that was going
        self.wanted = False  # it waits for a route, or for its turn on it


class Transaction:
    """One message. `want(copy)`: find that copy a route. `answer(index, text, taken)`: the client's answer for that recipient."""

    __slots__ = (
        "_answer", "_chunks", "_early", "_named", "_number", "_recipients", "_streams", "_todo", "_unsent", "_want", "active", "announced",
        "copies", "large", "open", "owner", "routing", "sender", "size", "whole",
    )

    def __init__(
        self, owner: Any, sender: str, number: Callable[[], int], want: Callable[[Copy], None],
        answer: Callable[[int, str, bool], None], announced: int = 0,
    ) -> None:
        """`owner`: whatever the shell wants to find again. `number`: gives a delivery's number, never the same again.

        `announced`: octets the sender says it will have, 0 where it does not.
        """
        self.owner = owner
        self.sender = sender
        self.announced = announced
        self.copies: list[Copy] = []
        self.open: set[Copy] = set()  # not answered yet
        self.large = False
        self.whole = False
        self.size = 0
        self.active = 0  # small: copies under way
        self.routing = 0  # large: copies that wait for their route, or their turn on it
        self._named: dict[tuple[str, str], Copy] = {}  # local part as it was written, domain in lower case
        self._recipients = 0
        self._chunks: list[bytes] = []
        self._early: list[tuple[int, str, bool]] = []  # answers there were before the client could have them
        self._streams: dict[Copy, None] = {}  # large: copies that are not answered, in their order
        self._todo: deque[Copy] = deque()
        self._unsent = 0  # large: octets of chunks that are not yet sent on
        self._number = number
        self._want = want
        self._answer = answer

    def add(self, address: str, user: str) -> None:
        """Another recipient, found good. One that was named before has its answer, and no second copy."""
        index = self._recipients
        self._recipients += 1
        local, _, domain = address.rpartition("@")
        named = self._named.setdefault((local, domain.lower() if local else domain), copy := Copy(self, index, address, user))
        if named is not copy:
            named.indexes.append(index)
            return
        self.copies.append(copy)
        self.open.add(copy)

    @property
    def paused(self) -> bool:
        """Whether the client must wait before it sends more."""
        if not self.large:
            return False
        return bool(self.routing) or any(copy.unwritten > copy.window for copy in self._streams)

    # -- the client
    def content(self, data: bytes) -> None:
        """More of the message."""
        self.size += len(data)
        self._chunks.append(data)
        if self.large:
            self._unsent += len(data)
            if self._unsent >= FRAME:
                self._send_on()
        elif self.size > SMALL:
            self._grow_large()
        if len(self._chunks) > _MOST_CHUNKS:
            self._chunks = [b"".join(self._chunks)]

    def _send_on(self) -> None:
        """In frames that are worth it: who sends octet by octet fills no queue."""
        data = b"".join(self._chunks)
        self._chunks, self._unsent = [], 0
        for copy in list(self._streams):
            self._pass_on(copy, data)

    def done(self) -> None:
        """It is whole."""
        self.whole = True
        if self.large:
            if self._unsent:
                self._send_on()
            for index, text, taken in self._early:
                self._answer(index, text, taken)
            for copy in list(self._streams):
                if copy.route is not None:
                    copy.route.send(m.Commit(copy.number), b"")
            return
        if len(self._chunks) != 1:
            self._chunks = [b"".join(self._chunks)]
        self._todo.extend(self.copies)
        self.more()

    def more(self) -> None:
        """Set off as many copies of a small message as may be under way together."""
        while self._todo and self.active < AT_ONCE:
            copy = self._todo.popleft()
            if copy in self.open:
                self.active += 1
                self._want(copy)

    def cancel(self) -> None:
        """The client broke off, or takes it back."""
        for copy in list(self.open):
            self._abort(copy)
        self.open.clear()
        self._streams.clear()
        self._todo.clear()
        self._chunks = []

    def late(self) -> None:
        """It takes too long: who has not answered by now will not be waited for."""
        for copy in list(self.open):
            hangs = copy.route is None or copy.unwritten > copy.window
            if copy in self.open and (self.whole or hangs):
                self._abort(copy)
                self._end(copy, SLOW, taken=False)

    def _abort(self, copy: Copy) -> None:
        if copy.route is not None:
            copy.route.drop(copy)
            if self.large:
                copy.route.send(m.Abort(copy.number), b"")

    # -- the maildir actors
    def routed(self, copy: Copy, route: Way) -> None:
        """There is a route for that copy, and room on it: off it goes."""
        if copy not in self.open:
            return
        copy.number = self._number()
        copy.route, copy.wanted = route, False
        route.take(copy)
        if not self.large:
            route.send(m.Post(copy.number, self.sender, copy.address, b""), self._chunks[0])
            return
        self.routing -= 1
        route.send(m.Deliver(copy.number, self.sender, copy.address, self.announced), b"")
        for chunk in self._chunks:
            self._pass_on(copy, chunk)
        if not self.routing:
            self._chunks = []

    def accepted(self, copy: Copy, message: m.Accepted) -> None:
        """Content is in the file, or all of it safe."""
        copy.unwritten -= message.octets
        if message.safe:
            self._end(copy, "2.0.0 safe", taken=True)

    def again(self, copy: Copy) -> bool:
        """A copy that was refused is to set off once more, as if it had not: whether it can, small and not tried twice."""
        if self.large or copy.retried or copy not in self.open or copy.route is None:
            return False
        copy.retried = True
        copy.route.drop(copy)
        copy.route = None
        return True

    def failed(self, copy: Copy, text: str = AWAY) -> None:
        """The copy was refused, or there is no route for it, or its maildir actor is gone. `text` begins with the status."""
        if copy in self.open:
            self._end(copy, text, taken=False)

    def _end(self, copy: Copy, text: str, *, taken: bool) -> None:
        self.open.discard(copy)
        if copy.route is not None:
            copy.route.drop(copy)
        elif self.large:
            self.routing -= 1
            if not self.routing:
                self._chunks = []
        self.active -= not self.large
        for index in copy.indexes:
            if self.whole:
                self._answer(index, text, taken)
            else:
                self._early.append((index, text, taken))
        if self.large:
            self._streams.pop(copy, None)
        elif self.whole:
            self.more()
        if not self.open:
            self._chunks = []  # copies and message hold one another, until the collector comes by

    def _grow_large(self) -> None:
        self.large = True
        self.routing = len(self.copies)
        mailboxes: dict[str, list[Copy]] = {}
        for copy in self.copies:
            mailboxes.setdefault(copy.user, []).append(copy)
        for copies in mailboxes.values():
            for copy in copies[MOST_STREAMS:]:  # they would wait for those before them, and those for the rest of the message
                self._end(copy, MANY, taken=False)
            for copy in copies[:MOST_STREAMS]:
                copy.window = WINDOW // min(len(copies), MOST_STREAMS)
                self._streams[copy] = None
        for copy in list(self._streams):
            self._want(copy)

    def _pass_on(self, copy: Copy, data: bytes) -> None:
        if copy.route is not None:
            copy.unwritten += len(data)
            copy.route.send(m.Content(copy.number, b""), data)
