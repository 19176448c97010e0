"""A way to one user's maildir actor: what is under way on it, and what waits for its turn. Sans I/O.

An actor has few descriptors and one thread, and who sends it mail may be anybody: it is given no more at a time than it can
hold, and nothing new while it has not taken in what it was sent. What has to wait stays with its client.
"""

from collections import deque
from collections.abc import Callable
from typing import Any

from popkernel.actors.mda.transaction import MOST_STREAMS, Copy

__all__ = ["MOST_POSTS", "Route"]

MOST_POSTS = 8  # small messages under way; each may wait some seconds for the popcache's lock


class Route:
    """A channel to a user's maildir actor. `send(message, bulk)` sends. Small ones never wait for large ones, nor so for clients."""

    __slots__ = ("channel", "copies", "doubted", "heard", "leaving", "posts", "send", "streams", "user", "waiting")

    def __init__(self, user: str, send: Callable[[tuple[Any, ...], bytes], None]) -> None:
        self.user = user
        self.send = send
        self.channel: Any = None
        self.copies: dict[int, Copy] = {}  # by the delivery's number
        self.posts = self.streams = 0
        self.waiting: tuple[deque[Copy], deque[Copy]] = (deque(), deque())  # small ones, large ones
        self.leaving = False  # nothing new on it; to be closed when nothing is under way
        self.doubted = 0.0  # seconds: when the kernel was last asked to see whether the actor is alive
        self.heard = 0.0  # seconds: when the actor last said something, or owed nothing

    def ask(self, copy: Copy) -> list[Copy]:
        """That copy wants to set off; as `go`."""
        self.waiting[copy.transaction.large].append(copy)
        return self.go()

    def go(self) -> list[Copy]:
        """Let set off, in their order, as many as there is room for; those that did."""
        gone: list[Copy] = []
        for queue in self.waiting:
            while queue and self._room(large=queue is self.waiting[1]):
                copy = queue.popleft()
                if copy in copy.transaction.open:
                    copy.transaction.routed(copy, self)
                    gone.append(copy)
        return gone

    def _room(self, *, large: bool) -> bool:
        return not self.behind and (self.streams < MOST_STREAMS if large else self.posts < MOST_POSTS)

    @property
    def behind(self) -> bool:
        """Whether the actor has not taken in all that it was sent."""
        return self.channel is not None and bool(self.channel.waiting)

    @property
    def owes(self) -> bool:
        """Whether the actor is to say something."""
        return self.behind or any(copy.transaction.whole or copy.unwritten > 0 for copy in self.copies.values())

    def take(self, copy: Copy) -> None:
        """It is under way."""
        self.copies[copy.number] = copy
        self._count(copy, 1)

    def drop(self, copy: Copy) -> None:
        """It is no more."""
        if self.copies.pop(copy.number, None) is not None:
            self._count(copy, -1)

    def _count(self, copy: Copy, by: int) -> None:
        if not copy.transaction.large:
            self.posts += by
        else:
            self.streams += by

    def dismiss(self) -> list[Copy]:
        """Those that waited, small ones first: for another route."""
        left = [*self.waiting[0], *self.waiting[1]]
        for queue in self.waiting:
            queue.clear()
        return left
