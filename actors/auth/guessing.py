"""Who guesses waits: penalties by address, by user, and by both together. Pure: the clock is given.

What tells guessing from mistyping is how many *different* users fail at an address, and from how many different addresses a user
fails. So three scores, each of which fades by half in ten minutes:

- a *pair* (this user from this address): one for each failure. A success sets it to nothing.
- an *address*: one for each user that begins to fail there, and a quarter for each of that user's next four failures: one telephone
  with an old password is worth two, however often it asks. Each user that has logged in from there lately adds one to what it is
  allowed, so that an office behind one address has room for its size; somebody guessing from his own one account gains one.
- a *user*: the same over addresses. It delays, but never refuses, or else anybody could lock anybody out.

An attempt in penalty waits *before* it is looked at, and one that fails is answered no sooner than the wait that is then due. Delaying
the answer alone would not do: who guesses hangs up and asks again. At one address (and for one pair) attempts wait one behind the
other. What would have to wait longer than the most is refused unseen, and costs no hashing. It is told SYS/TEMP (RFC 3206), not AUTH:
nobody looked whether the password is right, so no client should make its user type it anew, and a guesser learns nothing.

Only failures count. How many logins are under way says nothing: a thousand users behind one address may come at once. So auth asks
once more when an attempt that waited for a processor has its turn: of a burst of guesses those that were being looked at when the
first ones failed are all that were looked at.

A user that has logged in from an address within the last day is *trusted* there: looked at at once, whoever else guesses from there or
for it elsewhere, until ten failures of its own.
"""

from typing import TypeVar

from popkernel.proto.access.networks import host_of, prefix_of

__all__ = ["Guard"]

_HALF = 600.0  # seconds in which a score fades to half
_FREE = 4.0  # a score that costs nothing yet
_REPEAT, _REPEATS = 0.25, 4  # what the next failures of the same user at the same address add, and how many of them do
_TRUST = 86400.0  # seconds; mail is fetched at least daily by who fetches at all
_TRUST_FAILURES = 10.0
_MOST_CREDIT = 50.0  # users; one in ten of five hundred may begin the day with a wrong password
_CREDIT_HALF = 86400.0
_MOST = 100_000  # entries of each kind; the one longest untouched goes first


class _Score:
    """A number that fades; `next`: when the next attempt in penalty may be looked at."""

    __slots__ = ("at", "credit", "credit_at", "next", "value")

    def __init__(self, now: float) -> None:
        self.value = 0.0
        self.at = now
        self.next = 0.0
        self.credit = 0.0
        self.credit_at = now

    def fade(self, now: float) -> float:
        """The score as it is now."""
        if now > self.at:
            self.value *= 0.5 ** ((now - self.at) / _HALF)
            self.at = now
        return self.value

    def allowance(self, now: float) -> float:
        """What costs nothing here: more where users log in."""
        if self.credit and now > self.credit_at:
            self.credit *= 0.5 ** ((now - self.credit_at) / _CREDIT_HALF)
            self.credit_at = now
        return _FREE + self.credit

    def earn(self, now: float) -> None:
        """A user logs in here for the first time in a day."""
        self.allowance(now)
        self.credit = min(_MOST_CREDIT, self.credit + 1.0)
        self.credit_at = now


class _Pair(_Score):
    """One user at one address. `counted`: what its failures added to the address's and to the user's score."""

    __slots__ = ("counted", "trusted")

    def __init__(self, now: float) -> None:
        super().__init__(now)
        self.counted = 0.0
        self.trusted = 0.0  # until then


_Key = TypeVar("_Key")
_Kind = TypeVar("_Kind", bound=_Score)


class Guard:
    """`most`: the longest wait in seconds, 0 turns everything off. `ipv6_bits`: how much of an IPv6 address is one client's."""

    __slots__ = ("_addresses", "_bits", "_pairs", "_users", "most")

    def __init__(self, most: int, ipv6_bits: int = 64) -> None:
        self.most = float(most)
        self._bits = ipv6_bits
        self._addresses: dict[str, _Score] = {}
        self._users: dict[int, _Score] = {}
        self._pairs: dict[tuple[str, int], _Pair] = {}

    def admit(self, user: str, address: str, now: float) -> float:
        """Seconds until this attempt may be looked at; more than `most`: it is not. `address`: host and port, as Login has it."""
        if not self.most:
            return 0.0
        where, who = self._keys(user, address)
        spot, pair = self._addresses.get(where), self._pairs.get((where, who))
        wait = 0.0
        if pair is None or pair.trusted <= now or pair.fade(now) >= _TRUST_FAILURES:
            wait = self._delay(self._users.get(who), now)
            queues = [score for score in (spot, pair) if score is not None and self._delay(score, now) > 0]
            for score in queues:
                wait = max(wait, max(score.next - now, 0.0) + self._delay(score, now))
            if wait <= self.most:
                for score in queues:
                    score.next = now + wait
        return wait

    def failed(self, user: str, address: str, now: float) -> float:
        """A wrong password or token; how many seconds after it came the attempt may be answered."""
        if not self.most:
            return 0.0
        where, who = self._keys(user, address)
        spot, person = self._touch(self._addresses, where, _Score, now), self._touch(self._users, who, _Score, now)
        pair = self._touch(self._pairs, (where, who), _Pair, now)
        if pair.fade(now) < _REPEAT:
            pair.counted = 0.0  # long ago, and faded everywhere
        added = 1.0 if not pair.counted else _REPEAT if pair.counted < 1.0 + _REPEAT * _REPEATS else 0.0
        pair.counted += added
        pair.value += 1.0
        for score in (spot, person):
            score.fade(now)
            score.value += added
        return max(self._delay(score, now) for score in (spot, person, pair))

    def succeeded(self, user: str, address: str, now: float) -> None:
        """A right one: what this user failed here before was mistyped."""
        if not self.most:
            return
        where, who = self._keys(user, address)
        spot, pair = self._touch(self._addresses, where, _Score, now), self._touch(self._pairs, (where, who), _Pair, now)
        if pair.trusted <= now:
            spot.earn(now)
        for score in (spot, self._users.get(who)):
            if score is not None:
                score.value = max(0.0, score.fade(now) - pair.counted)
        pair.value = pair.counted = pair.next = 0.0
        pair.trusted = now + _TRUST

    def __len__(self) -> int:
        """Entries of all kinds."""
        return len(self._addresses) + len(self._users) + len(self._pairs)

    def _keys(self, user: str, address: str) -> tuple[str, int]:
        """Names are kept as hashes: 300 characters each, chosen by whoever asks, would be memory for him to fill."""
        return prefix_of(host_of(address), self._bits), hash(user)

    def _delay(self, score: _Score | None, now: float) -> float:
        """A second for the first point over the allowance, twice that for each more."""
        if score is None:
            return 0.0
        over = score.fade(now) - score.allowance(now)
        return min(self.most, 0.5 * 2.0 ** min(over, 16.0)) if over > 0 else 0.0

    @staticmethod
    def _touch(table: dict[_Key, _Kind], key: _Key, kind: type[_Kind], now: float) -> _Kind:
        """The entry, made where there is none, as the one that goes last."""
        score = table.pop(key, None)
        if score is None:
            score = kind(now)
            if len(table) >= _MOST:
                del table[next(iter(table))]
        table[key] = score
        return score
