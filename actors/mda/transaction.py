"""Send one message to all its recipients: a copy for each, each with its own answer. Sans I/O.

Each method takes an event and returns the actions to be done now.

A small message is collected here and then sent whole to each maildir actor. A large one is passed on as it
comes, no faster than the slowest of its maildir actors reads it. Each recipient has a copy that is sent
separately, even if two addresses are of one user. routing.py does the actions, finds routes, and calls
`routed`, `accepted`, `failed` and `late`.
"""

from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from popkernel.proto import messages as m

__all__ = [
    "AWAY",
    "MANY",
    "MOST_STREAMS",
    "SLOW",
    "SMALL",
    "Action",
    "Answer",
    "Copy",
    "FindRoute",
    "Resume",
    "Send",
    "Transaction",
]

SMALL = 128 * 1024  # largest message that is sent whole, in octets
FRAME = 32 * 1024  # octets of a large message that make a frame
# octets of a large message sent to a maildir actor and not yet in its file
WINDOW = 256 * 1024
# large messages under way to one actor: each is an open file of its 64 descriptors
MOST_STREAMS = 16
AT_ONCE = 16  # copies of one small message under way together
_MOST_CHUNKS = 64  # pieces of content kept before they are joined

AWAY = "4.3.0 the mailbox is not available now, try again later"
SLOW = "4.4.1 the mailbox takes too long, try again later"
MANY = "4.5.3 too many addresses of one mailbox for a large message, send it to the others after this"


class RouteLike(Protocol):
    """What a transaction uses of a channel to a maildir actor: route.py."""

    def take(self, copy: "Copy") -> None:
        """Count a copy as under way."""

    def drop(self, copy: "Copy") -> None:
        """Count out a copy."""


class Copy:
    """A message for one recipient."""

    __slots__ = (
        "address",
        "indexes",
        "number",
        "retried",
        "route",
        "transaction",
        "unwritten",
        "user",
        "wanted",
        "window",
    )

    def __init__(self, transaction: "Transaction", index: int, address: str, user: str) -> None:
        self.transaction = transaction
        # indexes among the client's recipients: several if it gave this address more than once
        self.indexes = [index]
        self.address = address
        self.user = user
        self.number = 0  # number of the delivery, once it is under way
        self.route: RouteLike | None = None
        self.unwritten = 0  # octets sent and not yet in the file
        # bound of `unwritten`: the copies for one user share their actor's window
        self.window = WINDOW
        self.retried = False  # it was refused once by an actor that was leaving
        self.wanted = False  # it waits for a route, or for room on it


class FindRoute(NamedTuple):
    """Find a route for this copy, with room on it."""

    copy: Copy


class Send(NamedTuple):
    """Send a message to a maildir actor."""

    route: RouteLike
    message: tuple[Any, ...]
    bulk: bytes


class Answer(NamedTuple):
    """Answer the owner's client for recipient number `recipient`. `text` begins with an RFC 3463 status."""

    owner: Any
    recipient: int
    text: str
    taken: bool


class Resume(NamedTuple):
    """Continue with the owner's client: it may have waited for this."""

    owner: Any


Action = FindRoute | Send | Answer | Resume


class Transaction:
    """A message for one or more recipients."""

    __slots__ = (
        "_chunks",
        "_early",
        "_named",
        "_number",
        "_recipients",
        "_streams",
        "_todo",
        "_unsent",
        "active",
        "announced",
        "copies",
        "large",
        "open",
        "owner",
        "routing",
        "sender",
        "size",
        "whole",
    )

    def __init__(
        self,
        owner: Any,
        sender: str,
        number: Callable[[], int],
        announced: int = 0,
    ) -> None:
        """`owner`: an object of the shell, returned in actions.

        `number`: returns a new delivery number.

        `announced`: size that the sender announced, 0 if none.
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
        self.routing = 0  # large: copies that wait for a route, or for room on it
        self._named: dict[tuple[str, str], Copy] = {}  # by local part as given and domain in lower case
        self._recipients = 0
        self._chunks: list[bytes] = []
        self._early: list[Action] = []  # answers that came before the message was complete
        self._streams: dict[Copy, None] = {}  # large: unanswered copies, in order
        self._todo: deque[Copy] = deque()
        self._unsent = 0  # large: octets of chunks not sent yet
        self._number = number

    def add(self, address: str, user: str) -> None:
        """Add a valid recipient. An address that was given before gets no second copy."""
        index = self._recipients
        self._recipients += 1
        local, _, domain = address.rpartition("@")
        named = self._named.setdefault(
            (local, domain.lower() if local else domain), copy := Copy(self, index, address, user)
        )
        if named is not copy:
            named.indexes.append(index)
            return
        self.copies.append(copy)
        self.open.add(copy)

    @property
    def paused(self) -> bool:
        """Return whether the client must wait before it sends more."""
        if not self.large:
            return False
        return bool(self.routing) or any(copy.unwritten > copy.window for copy in self._streams)

    # -- the client
    def content(self, data: bytes) -> list[Action]:
        """Take more of the message."""
        self.size += len(data)
        self._chunks.append(data)
        actions: list[Action] = []
        if self.large:
            self._unsent += len(data)
            if self._unsent >= FRAME:
                actions = self._send_on()
        elif self.size > SMALL:
            actions = self._grow_large()
        if len(self._chunks) > _MOST_CHUNKS:
            self._chunks = [b"".join(self._chunks)]
        return actions

    def _send_on(self) -> list[Action]:
        """Send the collected octets on in one frame: a client that sends octet by octet fills no queue."""
        data = b"".join(self._chunks)
        self._chunks, self._unsent = [], 0
        return [send for copy in self._streams for send in self._pass_on(copy, data)]

    def done(self) -> list[Action]:
        """Send the message, or its end: it is complete."""
        self.whole = True
        if self.large:
            actions = self._send_on() if self._unsent else []
            actions += self._early
            for copy in self._streams:
                if copy.route is not None:
                    actions.append(Send(copy.route, m.DeliveryCommit(copy.number), b""))
            return actions
        if len(self._chunks) != 1:
            self._chunks = [b"".join(self._chunks)]
        self._todo.extend(self.copies)
        return self.more()

    def more(self) -> list[Action]:
        """Start as many copies of a small message as may be under way together."""
        actions: list[Action] = []
        while self._todo and self.active < AT_ONCE:
            copy = self._todo.popleft()
            if copy in self.open:
                self.active += 1
                actions.append(FindRoute(copy))
        return actions

    def cancel(self) -> list[Action]:
        """Abort all copies: the client broke off or cancelled."""
        actions = [send for copy in self.open for send in self._abort(copy)]
        self.open.clear()
        self._streams.clear()
        self._todo.clear()
        self._chunks = []
        return actions

    def late(self) -> list[Action]:
        """Fail the copies that took too long."""
        actions: list[Action] = []
        for copy in list(self.open):
            hangs = copy.route is None or copy.unwritten > copy.window
            if self.whole or hangs:
                actions += self._abort(copy)
                actions += self._end(copy, SLOW, taken=False)
        return actions

    def _abort(self, copy: Copy) -> list[Action]:
        if copy.route is None:
            return []
        copy.route.drop(copy)
        return [Send(copy.route, m.DeliveryAbort(copy.number), b"")] if self.large else []

    # -- the maildir actors
    def routed(self, copy: Copy, route: RouteLike) -> list[Action]:
        """Start a copy: there is a route for it, with room."""
        if copy not in self.open:
            return []
        copy.number = self._number()
        copy.route, copy.wanted = route, False
        route.take(copy)
        if not self.large:
            whole = m.DeliveryWhole(copy.number, self.sender, copy.address, b"")
            return [Send(route, whole, self._chunks[0])]
        self.routing -= 1
        begin = m.DeliveryBegin(copy.number, self.sender, copy.address, self.announced)
        actions: list[Action] = [Send(route, begin, b"")]
        for chunk in self._chunks:
            actions += self._pass_on(copy, chunk)
        if not self.routing:
            self._chunks = []
        actions.append(Resume(self.owner))
        return actions

    def accepted(self, copy: Copy, message: m.DeliveryAccepted) -> list[Action]:
        """Count octets as written to the file, or the message as safe."""
        copy.unwritten -= message.octets
        if message.safe:
            return self._end(copy, "2.0.0 safe", taken=True)
        return [Resume(self.owner)] if self.large else []

    def again(self, copy: Copy) -> bool:
        """Reset a refused copy so that it can be sent again.

        Returns False if it is large or was sent twice.
        """
        if self.large or copy.retried or copy not in self.open or copy.route is None:
            return False
        copy.retried = True
        copy.route.drop(copy)
        copy.route = None
        return True

    def failed(self, copy: Copy, text: str = AWAY) -> list[Action]:
        """Fail a copy: it was refused, has no route, or its maildir actor is gone.

        `text` begins with the status.
        """
        ended = self._end(copy, text, taken=False) if copy in self.open else []
        return [*ended, Resume(self.owner)]

    def _end(self, copy: Copy, text: str, *, taken: bool) -> list[Action]:
        self.open.discard(copy)
        if copy.route is not None:
            copy.route.drop(copy)
        elif self.large:
            self.routing -= 1
            if not self.routing:
                self._chunks = []
        self.active -= not self.large
        actions: list[Action] = [Answer(self.owner, index, text, taken) for index in copy.indexes]
        if not self.whole:
            self._early += actions
            actions = []
        if self.large:
            self._streams.pop(copy, None)
        elif self.whole:
            actions += self.more()
        if not self.open:
            self._chunks = []  # copies and transaction refer to each other, until the garbage collector runs
        return actions

    def _grow_large(self) -> list[Action]:
        self.large = True
        self.routing = len(self.copies)
        mailboxes: dict[str, list[Copy]] = {}
        for copy in self.copies:
            mailboxes.setdefault(copy.user, []).append(copy)
        actions: list[Action] = []
        for copies in mailboxes.values():
            # they would wait for those before them, which wait for the rest of the message
            for copy in copies[MOST_STREAMS:]:
                actions += self._end(copy, MANY, taken=False)
            for copy in copies[:MOST_STREAMS]:
                copy.window = WINDOW // min(len(copies), MOST_STREAMS)
                self._streams[copy] = None
        actions += map(FindRoute, self._streams)
        return actions

    def _pass_on(self, copy: Copy, data: bytes) -> list[Action]:
        if copy.route is None:
            return []
        copy.unwritten += len(data)
        return [Send(copy.route, m.DeliveryContent(copy.number, b""), data)]
