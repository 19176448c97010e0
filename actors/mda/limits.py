"""Bound LMTP connections: no user, and nobody on TCP, can keep the mail server out. Sans I/O."""

from collections import Counter
from collections.abc import Collection

__all__ = ["TCP", "Limits"]

TCP = -1  # instead of a uid: any user of this machine


class Limits:
    """The bounds. A quarter of all connections is reserved for `trusted` uids.

    Other uids have at most half together, and TCP half.
    """

    def __init__(self, most: int, each: int, trusted: Collection[int]) -> None:
        """`most`: all connections. `each`: connections of one untrusted uid."""
        self.most = most
        self.each = each
        self.trusted = frozenset(trusted)
        self.held: Counter[int] = Counter()
        self.untrusted = 0  # connections of untrusted uids, TCP included

    def take(self, uid: int) -> str:
        """Count a connection. Returns "", or the refusal."""
        if self.held.total() >= self.most:
            return "4.3.2 too many connections, try again later"
        if uid not in self.trusted:
            half = (self.most + 1) // 2
            bound = (
                half
                if uid == TCP
                else min(self.each, half - (self.untrusted - self.held[TCP] - self.held[uid]))
            )
            if self.held[uid] >= bound or self.untrusted >= self.most - self.most // 4:
                return "4.3.2 too many connections of yours, try again later"
            self.untrusted += 1
        self.held[uid] += 1
        return ""

    def leave(self, uid: int) -> None:
        """Count out a connection."""
        self.held[uid] -= 1
        if not self.held[uid]:
            del self.held[uid]
        self.untrusted -= uid not in self.trusted
