"""Bound connections, TLS handshakes and logins of a listener, by address, by user and in all. Pure: no clock.

Each operation takes constant time, and memory is bounded. An address is kept while it has a connection or its
rate bucket is not full, a user while a login of theirs is under way. A refusal names the bound.
"""

from collections import OrderedDict
from collections.abc import Mapping
from itertools import islice
from typing import NamedTuple

from popkernel.proto.access.fairness import Fair, Places
from popkernel.proto.access.networks import prefix_of
from popkernel.proto.access.user_names import fold

__all__ = ["KEYS", "Bounds", "Limits", "group"]

# addresses whose rate is kept; beyond that, the least recently used is dropped
_MOST_BUCKETS = 65536
# When all sessions are taken, a client that has not logged in is dropped for the next one, but none that
# waits for the server: for its password check, its mailbox, or its turn to shake hands. If at least one in
# _PART sessions is such a client, one of them goes at once: this may be a flood, and each still has the time
# in which so many connect. If there are few, they would drive each other out. So each of them has at least
# _SPARE seconds: five round trips of 0.4 s, which TLS and a login take.
_PART = 10
_SPARE = 2.0

_Who = tuple[str, str]  # a user, and the address group they come from

TOO_MANY = "too many connections, try again later"
TOO_MANY_ADDRESS = "too many connections from your address"
TOO_FAST = "too many connections a minute from your address, try again later"
TOO_MANY_HANDSHAKES = "too many TLS handshakes at once, try again"
TOO_MANY_LOGINS_USER = "too many logins of this user from your address at once, try again"
KEYS = {
    TOO_MANY: "max_sessions",
    TOO_MANY_ADDRESS: "max_sessions_address",
    TOO_FAST: "connects_per_minute",
    TOO_MANY_HANDSHAKES: "max_handshakes",
    TOO_MANY_LOGINS_USER: "max_logins_user",
}
"""The configuration key of each refusal, for the log."""


class Bounds(NamedTuple):
    """The bounds of one listener. Zero: no bound."""

    sessions: int = 10000
    sessions_address: int = 0
    prefix_v6: int = 64
    """Prefix length of an IPv6 address that counts as one customer."""
    handshakes: int = 0
    logins: int = 0
    logins_user: int = 0
    """Logins of one user from one address. Counted by user alone, an attacker could lock the user out."""
    per_minute: int = 0
    """Connections of one address; all of them may come at once."""

    @classmethod
    def of(cls, config: Mapping[str, int]) -> "Bounds":
        """Make the bounds from a listener's configuration. `max_sessions` there is already its share."""
        keys = (
            "max_sessions_address",
            "ipv6_prefix",
            "max_handshakes",
            "max_logins",
            "max_logins_user",
            "connects_per_minute",
        )
        return (
            cls(0, *(config[key] for key in keys))
            .share(config["listeners"])
            ._replace(sessions=config["max_sessions"])
        )

    def share(self, listeners: int) -> "Bounds":
        """Return the share of each of several listener processes, rounded up, so that no share is zero.

        The system gives a connection to any listener that is awake, so an address may meet the bound of one
        listener before it meets the total.
        """

        def part(bound: int) -> int:
            return -(-bound // listeners)

        return Bounds(
            *(self.prefix_v6 if name == "prefix_v6" else part(getattr(self, name)) for name in self._fields)
        )


def group(host: str, prefix_v6: int) -> str:
    """Return what `host` is counted as: itself, or its IPv6 network of `prefix_v6` bits.

    IPv4 in IPv6 is IPv4. `host` comes from the system or a PROXY header, so it is an address, perhaps with a
    zone after `%`.
    """
    bare, percent, zone = host.partition("%")
    return prefix_of(bare, prefix_v6) + percent + zone


class Limits:
    """Count what one listener has under way. `now` arguments are monotonic seconds."""

    __slots__ = (
        "_addresses",
        "_begun",
        "_buckets",
        "_early",
        "_queue",
        "_shaking",
        "_shaking_since",
        "_since",
        "_unshaken",
        "_users",
        "bounds",
        "served",
        "sessions",
    )

    def __init__(self, bounds: Bounds) -> None:
        self.bounds = bounds
        self.sessions = 0
        self._early: Places[int] = Places()  # sessions not logged in, for which the server does nothing now
        self._since: dict[int, float] = {}  # since when, in that order
        self.served: set[int] = set()  # sessions not logged in that wait for the server
        self._shaking: Places[int] = Places()
        self._shaking_since: dict[int, tuple[float, str]] = {}  # since when and by whom, in that order
        self._unshaken: Fair[int, str] = Fair()  # handshakes that wait for their turn, by address
        self._addresses: dict[str, int] = {}
        # tokens left, and when that was; the least recently used first
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._begun: dict[int, _Who] = {}  # logins under way, by session
        self._queue: Fair[int, _Who] = Fair()  # logins that wait, by address and user
        self._users: dict[_Who, int] = {}  # logins of each, under way or waiting

    # -- connections
    def come(self, host: str, now: float) -> str:
        """Count a connection. Returns "", or why it is refused.

        A refused connection takes no token of its address.
        """
        bounds = self.bounds
        if bounds.sessions and self.sessions >= bounds.sessions:
            return TOO_MANY
        address = group(host, bounds.prefix_v6)
        there = self._addresses.get(address, 0)
        if bounds.sessions_address and there >= bounds.sessions_address:
            return TOO_MANY_ADDRESS
        if bounds.per_minute and not self._token(address, now):
            return TOO_FAST
        self.sessions += 1
        self._addresses[address] = there + 1
        return ""

    def gone(self, host: str) -> None:
        """Count out a connection that was accepted."""
        address = group(host, self.bounds.prefix_v6)
        there = self._addresses[address] - 1  # KeyError: it was never counted, a fault of the shell
        self.sessions -= 1
        if there:
            self._addresses[address] = there
        else:
            del self._addresses[address]

    def _token(self, address: str, now: float) -> bool:
        most = float(self.bounds.per_minute)
        buckets = self._buckets
        tokens, then = buckets.get(address, (most, now))
        tokens = min(most, tokens + (now - then) * most / 60.0)
        if tokens < 1.0:
            return False
        buckets[address] = (tokens - 1.0, now)
        buckets.move_to_end(address)
        # Two are checked for each one added. A bucket untouched for a minute is full again, and need not be
        # kept.
        for _ in range(2):
            oldest = next(iter(buckets))
            if len(buckets) <= _MOST_BUCKETS and buckets[oldest][1] > now - 60.0:
                break
            del buckets[oldest]
        return True

    # -- sessions that have not logged in yet
    def waits(self, session: int, host: str, now: float) -> None:
        """Count an accepted connection as session `session`, not logged in: it may have to make room."""
        self.served.discard(session)
        self._early.add(group(host, self.bounds.prefix_v6), session)
        self._since[session] = now

    def serve(self, session: int) -> None:
        """Note that a session waits for the server: it makes no room until `waits` is called again."""
        self._early.remove(session)
        self._since.pop(session, None)
        self.served.add(session)

    def entered(self, session: int) -> None:
        """Count a session as logged in, or gone."""
        self._early.remove(session)
        self._since.pop(session, None)
        self.served.discard(session)

    def spare(self, now: float) -> int | None:
        """Choose a session without login to drop for the next client when all are taken; None if none may go.

        It is the oldest of the address that has most of them, or of one that has at least half as many.
        """
        if len(self._early) * _PART >= self.bounds.sessions:
            return self._early.spare()
        oldest = next(iter(self._since), None)
        return oldest if oldest is not None and self._since[oldest] <= now - _SPARE else None

    def spare_of(self, host: str, now: float) -> int | None:
        """Choose a session of one address that has all it may have, as `spare` does."""
        address = group(host, self.bounds.prefix_v6)
        oldest = self._early.oldest(address)
        many = self._early.many(address) * _PART >= self.bounds.sessions_address
        return oldest if oldest is not None and (many or self._since[oldest] <= now - _SPARE) else None

    # -- TLS
    def shake(self, session: int, host: str, now: float = 0.0) -> str:
        """Count a handshake once, when its first octet has come. Returns "", or why it may not begin.

        Not to be called earlier: a silent client costs no more than a connection, and is bounded as one.
        """
        if session in self._shaking:
            return ""
        if self.bounds.handshakes and len(self._shaking) >= self.bounds.handshakes:
            return TOO_MANY_HANDSHAKES
        self._unshaken.remove(session)
        self._begin_handshake(session, group(host, self.bounds.prefix_v6), now)
        return ""

    def _begin_handshake(self, session: int, address: str, now: float) -> None:
        self._shaking.add(address, session)
        self._shaking_since[session] = now, address

    def room_to_shake(self) -> bool:
        """Return whether less than half of the handshakes allowed are under way.

        The other half is not for clients that are to be refused.
        """
        return not self.bounds.handshakes or len(self._shaking) * 2 < self.bounds.handshakes

    def shaken(self, session: int) -> None:
        """Count out a handshake, whatever its result; does nothing if there was none."""
        self._shaking.remove(session)
        self._shaking_since.pop(session, None)
        self._unshaken.remove(session)

    def spare_handshake(self, host: str = "") -> int | None:
        """Choose a handshake to drop for one of `host` when all are taken.

        None if `host` has at least half as many as any other address: its handshakes wait for their turn.
        """
        many = self._shaking.many(group(host, self.bounds.prefix_v6))
        return self._shaking.spare() if 2 * many < self._shaking.most else None

    def wait_to_shake(self, session: int, host: str) -> None:
        """Queue a handshake that may not begin yet."""
        if session not in self._unshaken:
            address = group(host, self.bounds.prefix_v6)
            self._unshaken.put(address, session, address)

    def waiting_handshakes(self) -> int:
        """Return the number of handshakes that wait for their turn."""
        return len(self._unshaken)

    def next_handshake(self, now: float) -> int | None:
        """Begin the handshake whose turn it is, if there is room for it; return its session."""
        if not self._unshaken or len(self._shaking) >= self.bounds.handshakes:
            return None
        session, address = self._unshaken.take()
        self._begin_handshake(session, address, now)
        return session

    def slow_handshakes(self, now: float) -> list[tuple[int, str]]:
        """List as many handshakes as wait that have had their time, the oldest first, and their addresses."""
        late = (
            (session, address)
            for session, (since, address) in self._shaking_since.items()
            if since <= now - _SPARE
        )
        return list(islice(late, len(self._unshaken)))

    # -- logins
    def login(self, session: int, user: str, host: str) -> str | None:
        """Count a login. Returns "" if auth may be asked now, None if it must wait, or why it is refused.

        A login that waits is returned by a later `logged_in`. A session has one login at a time.
        """
        bounds = self.bounds
        who = (fold(user), group(host, bounds.prefix_v6))
        if bounds.logins_user and self._users.get(who, 0) >= bounds.logins_user:
            return TOO_MANY_LOGINS_USER
        waits = bool(bounds.logins) and len(self._begun) >= bounds.logins
        if waits:
            self._queue.put(who[1], session, who, who[0])
        else:
            self._begun[session] = who
        self._users[who] = self._users.get(who, 0) + 1
        return None if waits else ""

    def logged_in(self, session: int) -> int | None:
        """Count out a login, whatever its result. Returns the session whose login may begin now, or None.

        Also for a login that still waits; does nothing if there was none.
        """
        who = self._begun.pop(session, None)
        if who is None:
            waited = self._queue.remove(session)
            if waited is not None:
                self._forget(waited)
            return None
        self._forget(who)
        if not self._queue:
            return None
        following, its = self._queue.take()
        self._begun[following] = its
        return following

    def knows(self, session: int) -> bool:
        """Return whether a login of that session is under way or waits."""
        return session in self._begun or session in self._queue

    def logins(self) -> list[list[int | str]]:
        """Return logins under way, then those that wait: session, user, address, as `login` got them."""
        return [
            [session, user, host.partition("/")[0]]
            for session, (user, host) in [*self._begun.items(), *self._queue.in_turn()]
        ]

    @property
    def turn(self) -> int:
        """Return the queue's turn: together with `logins` it gives the order of those that wait."""
        return self._queue.turn

    @turn.setter
    def turn(self, turn: int) -> None:
        self._queue.turn = turn

    def _forget(self, who: _Who) -> None:
        there = self._users[who] - 1
        if there:
            self._users[who] = there
        else:
            del self._users[who]
