"""How many of what a listener takes at a time: connections, TLS handshakes, logins, by address, by user and in all. Pure: no clock, no I/O.

Every question costs the same however many are counted, and what is remembered is bounded: an address is known while it has a connection
or a debt of connections a minute, a user while a login of theirs is under way. What is refused is refused with the name of the bound.
"""

from collections import OrderedDict
from collections.abc import Mapping
from typing import NamedTuple

from popkernel.proto.access.fairness import Fair, Places
from popkernel.proto.access.networks import prefix_of
from popkernel.proto.access.user_names import fold

__all__ = ["KEYS", "Bounds", "Limits", "group"]

_MOST_BUCKETS = 65536  # addresses whose rate is remembered; beyond it the one that was longest quiet is forgotten
_WAITING = 20  # logins that may wait, for each that may be under way: 100 and 2,000 are a minute of bcrypt of cost 10 on two cores
# When every place is taken, a client that has not logged in makes room for the next at once where such clients have this part of the
# places: they may be a flood, and however fast it is, each has its place for as long as it takes to fill so many. Where nearly all have
# logged in, those few would drive each other out; there each has these seconds: five round trips of 0.4 s, which TLS and a login take.
_PART = 10
_SPARE = 2.0

_Who = tuple[str, str]  # a user, and where they come from

TOO_MANY = "too many connections, try again later"
TOO_MANY_ADDRESS = "too many connections from your address"
TOO_FAST = "too many connections a minute from your address, try again later"
TOO_MANY_HANDSHAKES = "too many TLS handshakes at once, try again"
TOO_MANY_LOGINS = "too many logins at once, try again"
TOO_MANY_LOGINS_USER = "too many logins of this user from your address at once, try again"
KEYS = {
    TOO_MANY: "max_sessions", TOO_MANY_ADDRESS: "max_sessions_address", TOO_FAST: "connects_per_minute",
    TOO_MANY_HANDSHAKES: "max_handshakes", TOO_MANY_LOGINS: "max_logins", TOO_MANY_LOGINS_USER: "max_logins_user",
}
"""Which bound each is, for the log."""


class Bounds(NamedTuple):
    """What one listener takes. Zero: no bound."""

    sessions: int = 10000
    sessions_address: int = 0
    prefix_v6: int = 64
    """Bits of an IPv6 address that tell one customer from another."""
    handshakes: int = 0
    logins: int = 0
    logins_user: int = 0
    """Of one user from one address: of the user alone, whoever guesses could lock them out."""
    per_minute: int = 0
    """Connections of one address; as many may come at once."""

    @classmethod
    def of(cls, config: Mapping[str, int]) -> "Bounds":
        """From what init tells a listener. `max_sessions` there is its share already."""
        keys = ("max_sessions_address", "ipv6_prefix", "max_handshakes", "max_logins", "max_logins_user", "connects_per_minute")
        return cls(0, *(config[key] for key in keys)).share(config["listeners"])._replace(sessions=config["max_sessions"])

    def share(self, listeners: int) -> "Bounds":
        """What each of several listener processes takes, rounded up, so that nobody's share is nothing.

        The system hands connections to whichever listener is awake: an address may meet the bound of one earlier than that of all.
        """

        def part(bound: int) -> int:
            return -(-bound // listeners)

        return Bounds(*(self.prefix_v6 if name == "prefix_v6" else part(getattr(self, name)) for name in self._fields))


def group(host: str, prefix_v6: int) -> str:
    """Whom an address is counted for: itself, or an IPv6 network of `prefix_v6` bits; IPv4 in IPv6 is IPv4.

    `host` is the system's or a PROXY header's word, so it is an address, maybe with a zone behind `%`.
    """
    bare, percent, zone = host.partition("%")
    return prefix_of(bare, prefix_v6) + percent + zone


class Limits:
    """What one listener has under way. `now` arguments are monotonic seconds, never going back."""

    __slots__ = ("_addresses", "_begun", "_buckets", "_early", "_queue", "_shaking", "_since", "_users", "bounds", "sessions")

    def __init__(self, bounds: Bounds) -> None:
        self.bounds = bounds
        self.sessions = 0
        self._early: Places[int] = Places()  # sessions that have not logged in
        self._since: dict[int, float] = {}  # since when they are there; in that order
        self._shaking: Places[int] = Places()
        self._addresses: dict[str, int] = {}
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # tokens left, when; the longest untouched first
        self._begun: dict[int, _Who] = {}  # logins under way, by session
        self._queue: Fair[int, _Who] = Fair()  # those that wait, by address
        self._users: dict[_Who, int] = {}  # how many of each, begun or waiting

    # -- connections
    def come(self, host: str, now: float) -> str:
        """A connection: "" and counted, or why it is not taken. A refused one costs its address no token."""
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
        """The end of one that was taken."""
        address = group(host, self.bounds.prefix_v6)
        there = self._addresses[address] - 1  # KeyError: it was never taken, the shell is wrong
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
        # Two looked at for each put in: those untouched for a minute are full again, and as good as unknown.
        for _ in range(2):
            oldest = next(iter(buckets))
            if len(buckets) <= _MOST_BUCKETS and buckets[oldest][1] > now - 60.0:
                break
            del buckets[oldest]
        return True

    # -- who has not logged in yet
    def waits(self, session: int, host: str, now: float) -> None:
        """A connection that was taken is this session, which may have to make room while it has not logged in."""
        self._early.add(group(host, self.bounds.prefix_v6), session)
        self._since[session] = now

    def entered(self, session: int) -> None:
        """It has logged in, or is gone."""
        self._early.remove(session)
        self._since.pop(session, None)

    def spare(self, now: float) -> int | None:
        """When all sessions are taken: one that has not logged in, to be dropped for the next that comes; None where there is none.

        It is the oldest of the address that has most of them, or of one that has half as many.
        """
        if len(self._early) * _PART >= self.bounds.sessions:
            return self._early.spare()
        oldest = next(iter(self._since), None)
        return oldest if oldest is not None and self._since[oldest] <= now - _SPARE else None

    def spare_of(self, host: str, now: float) -> int | None:
        """The same of one address, which has all the sessions that it may have."""
        address = group(host, self.bounds.prefix_v6)
        oldest = self._early.oldest(address)
        many = self._early.many(address) * _PART >= self.bounds.sessions_address
        return oldest if oldest is not None and (many or self._since[oldest] <= now - _SPARE) else None

    # -- TLS
    def shake(self, session: int, host: str) -> str:
        """A client has sent the first of its handshake, or more of it: "" and counted once, or why not.

        Not to be asked before: a client that says nothing costs what a connection costs, and is bound as one.
        """
        if session in self._shaking:
            return ""
        if self.bounds.handshakes and len(self._shaking) >= self.bounds.handshakes:
            return TOO_MANY_HANDSHAKES
        self._shaking.add(group(host, self.bounds.prefix_v6), session)
        return ""

    def room_to_shake(self) -> bool:
        """Whether there is room for half of what may be under way: more than that is not for those who are to be refused."""
        return not self.bounds.handshakes or len(self._shaking) * 2 < self.bounds.handshakes

    def shaken(self, session: int) -> None:
        """One is over, however it went; harmless where there was none."""
        self._shaking.remove(session)

    def spare_handshake(self) -> int | None:
        """As `spare`, when all handshakes are taken: at once, for a client that has begun needs the others' time only, not its user's."""
        return self._shaking.spare()

    # -- logins
    def login(self, session: int, user: str, host: str) -> str | None:
        """A client has said who it is: "" where auth may be asked now, None where it is to wait, or why it is refused.

        Who waits comes out of some later `logged_in`; a session has one login at a time.
        """
        bounds = self.bounds
        who = (fold(user), group(host, bounds.prefix_v6))
        if bounds.logins_user and self._users.get(who, 0) >= bounds.logins_user:
            return TOO_MANY_LOGINS_USER
        waits = bool(bounds.logins) and len(self._begun) >= bounds.logins
        if waits and len(self._queue) >= bounds.logins * _WAITING:
            return TOO_MANY_LOGINS
        if waits:
            self._queue.put(who[1], session, who)
        else:
            self._begun[session] = who
        self._users[who] = self._users.get(who, 0) + 1
        return None if waits else ""

    def spare_login(self, host: str) -> int | None:
        """When as many wait as may: one of the address that has most waiting, to be refused for one more of `host`; None where that has."""
        return self._queue.spare(group(host, self.bounds.prefix_v6))

    def logged_in(self, session: int) -> int | None:
        """A login is over, however it went, or its client has gone: the session whose turn it is now, or None.

        Also to be called for one that still waits, and harmless for one that never was.
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
        """Whether a login of that session is under way, or waits."""
        return session in self._begun or session in self._queue

    def logins(self) -> list[list[int | str]]:
        """Logins under way, then those that wait, in their order: session, user, address; as `login` was told."""
        return [[session, user, host.partition("/")[0]] for session, (user, host) in [*self._begun.items(), *self._queue.in_turn()]]

    @property
    def turn(self) -> int:
        """With `logins`, all there is to the order of those that wait."""
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
