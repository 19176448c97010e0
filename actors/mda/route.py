"""Bound what is sent to one user's maildir actor, and queue the rest. Sans I/O.

An actor has few descriptors and one thread, and anybody may send it mail. So it gets no more at a time than
it can hold, and nothing new while it has not read all it was sent. What must wait stays with its client.
"""

from collections import deque
from typing import Any

from popkernel.actors.mda.transaction import MOST_STREAMS, Action, Copy

__all__ = ["MOST_POSTS", "Route"]

MOST_POSTS = 8  # small messages under way; each may wait seconds for the popcache lock


class Route:
    """A channel to a user's maildir actor.

    Small messages never wait for large ones, and so not for a client's octets.
    """

    __slots__ = (
        "channel",
        "copies",
        "doubted",
        "heard",
        "leaving",
        "posts",
        "streams",
        "user",
        "waiting",
    )

    def __init__(self, user: str) -> None:
        self.user = user
        self.channel: Any = None
        self.copies: dict[int, Copy] = {}  # by the delivery's number
        self.posts = self.streams = 0
        self.waiting: tuple[deque[Copy], deque[Copy]] = (deque(), deque())  # small ones, large ones
        self.leaving = False  # nothing new is sent; it is closed when nothing is under way
        self.doubted = 0.0  # when the kernel was last asked to check the actor, loop's clock
        self.heard = 0.0  # when the actor last sent something, or owed nothing, loop's clock

    def ask(self, copy: Copy) -> list[Action]:
        """Queue a copy, then do as `go`."""
        self.waiting[copy.transaction.large].append(copy)
        return self.go()

    def go(self) -> list[Action]:
        """Start the next copy if there is room. Call again once its actions are done: they take room."""
        for queue in self.waiting:
            while queue and self._room(large=queue is self.waiting[1]):
                copy = queue.popleft()
                if copy in copy.transaction.open:
                    return copy.transaction.routed(copy, self)
        return []

    def _room(self, *, large: bool) -> bool:
        return not self.behind and (self.streams < MOST_STREAMS if large else self.posts < MOST_POSTS)

    @property
    def behind(self) -> bool:
        """Return whether the actor has not read all it was sent."""
        return self.channel is not None and bool(self.channel.waiting)

    @property
    def owes(self) -> bool:
        """Return whether the actor owes an answer."""
        return self.behind or any(
            copy.transaction.whole or copy.unwritten > 0 for copy in self.copies.values()
        )

    def take(self, copy: Copy) -> None:
        """Count a copy as under way."""
        self.copies[copy.number] = copy
        self._count(copy, 1)

    def drop(self, copy: Copy) -> None:
        """Count out a copy."""
        if self.copies.pop(copy.number, None) is not None:
            self._count(copy, -1)

    def _count(self, copy: Copy, by: int) -> None:
        if not copy.transaction.large:
            self.posts += by
        else:
            self.streams += by

    def dismiss(self) -> list[Copy]:
        """Remove and return the copies that wait, small ones first, for another route."""
        left = [*self.waiting[0], *self.waiting[1]]
        for queue in self.waiting:
            queue.clear()
        return left
