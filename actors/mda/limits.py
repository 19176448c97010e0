"""Who may have how many LMTP connections: no user, and nobody on TCP, can keep the mail server out. Sans I/O."""

from collections import Counter
from collections.abc import Collection

__all__ = ["TCP", "Limits"]

TCP = -1  # in the place of a uid: could be anybody of this machine


class Limits:
    """A quarter of all connections is kept for `trusted` uids; others have at most half together, and TCP half."""

    def __init__(self, most: int, each: int, trusted: Collection[int]) -> None:
        """`each`: connections of one uid that is not trusted."""
        self.most = most
        self.each = each
        self.trusted = frozenset(trusted)
        self.held: Counter[int] = Counter()
        self.guests = 0  # of uids that are not trusted, TCP included

    def take(self, uid: int) -> str:
        """Another connection: "" where it may be, and it is counted; else the refusal."""
        if self.held.total() >= self.most:
            return "4.3.2 too many connections, try again later"
        if uid not in self.trusted:
            half = (self.most + 1) // 2
            bound = half if uid == TCP else min(self.each, half - (self.guests - self.held[TCP] - self.held[uid]))
            if self.held[uid] >= bound or self.guests >= self.most - self.most // 4:
                return "4.3.2 too many connections of yours, try again later"
            self.guests += 1
        self.held[uid] += 1
        return ""

    def leave(self, uid: int) -> None:
        """A counted connection is over."""
        self.held[uid] -= 1
        if not self.held[uid]:
            del self.held[uid]
        self.guests -= uid not in self.trusted
