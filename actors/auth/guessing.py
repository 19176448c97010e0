"""Delay password guessing: penalties by address, by user and by both together. Pure: the clock is given.

Guessing shows by the number of *different* users that fail at one address, and of different addresses at
which one user fails. So there are three scores. Each fades by half in ten minutes:

- A *pair* (this user from this address): one point for each failure. A success sets it to zero.
- An *address*: one point for each user that begins to fail there, and a quarter for each of that user's next
  four failures. One telephone with an old password is worth two points, however often it asks. Each user that
  has logged in from there lately raises the address's allowance: the first fifty by one each, any more by a
  tenth. So an office behind one address, and ten thousand users behind a provider's or a webmail's, have room
  for their size while one in ten has an old password, also after a start, when nobody is known yet. An
  attacker who uses one account of his own gains one.
- A *user*: the same over addresses. It delays but never refuses; else anybody could lock anybody out.

An attempt under penalty waits *before* it is checked. If it fails, it is answered no sooner than the wait
that is then due. To delay the answer alone is not enough: an attacker hangs up and asks again. At one address
(and for one pair) attempts wait one behind the other. An attempt that would have to wait longer than the
maximum is refused unchecked, and costs no hashing. Its code is SYS/TEMP (RFC 3206), not AUTH: the password
was not checked, so no client should make its user type it again, and an attacker learns nothing.

Only failures count, not the number of logins under way: a thousand users behind one address may come at once.
So auth asks again when an attempt that waited for a processor gets its turn. Of a burst of guesses, only
those already being checked when the first ones failed are checked.

A user that has logged in from an address within the last day is *trusted* there. Its attempts are checked at
once, however many others fail from there or for it elsewhere, until it has ten failures of its own.
"""

from collections.abc import Sequence
from hashlib import blake2b
from itertools import islice
from typing import TypeVar

from popkernel.proto.access.networks import host_of, prefix_of

__all__ = ["Guard"]

_HALF = 600.0  # half-life of a score, in seconds
_FREE = 4.0  # score up to which there is no penalty
# the score of each further failure of the same user at the same address, and how many of them count
_REPEAT, _REPEATS = 0.25, 4
_TRUST = 86400.0  # seconds; most clients fetch mail at least daily
_TRUST_FAILURES = 10.0
# users that count in full; of any more, one in ten may begin the day with a wrong password
_FULL_CREDIT, _FURTHER_CREDIT = 50.0, 0.1
_CREDIT_HALF = 86400.0
_LOOKED_AT = 1000  # addresses under penalty, to count them
_MOST = 100_000  # entries of each kind; the least recently used is dropped first
# over the allowance, of a score that another process hands over: it has faded after forty minutes
_MOST_OVER = 60.0


class _Score:
    """A score that fades. `next`: when the next attempt under penalty may be checked."""

    __slots__ = ("at", "credit", "credit_at", "next", "value")

    def __init__(self, now: float) -> None:
        self.value = 0.0
        self.at = now
        self.next = 0.0
        self.credit = 0.0
        self.credit_at = now

    def fade(self, now: float) -> float:
        """Return the score as it is now."""
        if now > self.at:
            self.value *= 0.5 ** ((now - self.at) / _HALF)
            self.at = now
        return self.value

    def allowance(self, now: float) -> float:
        """Return the score up to which there is no penalty; it grows with users that log in."""
        if self.credit and now > self.credit_at:
            self.credit *= 0.5 ** ((now - self.credit_at) / _CREDIT_HALF)
            self.credit_at = now
        return _FREE + min(self.credit, _FULL_CREDIT) + _FURTHER_CREDIT * max(0.0, self.credit - _FULL_CREDIT)

    def earn(self, now: float) -> None:
        """Count a user who logs in here for the first time in a day."""
        self.allowance(now)
        self.credit += 1.0
        self.credit_at = now


class _Pair(_Score):
    """The score of one user at one address.

    `counted`: the points that its failures added to the address's and to the user's score.
    """

    __slots__ = ("counted", "trusted")

    def __init__(self, now: float) -> None:
        super().__init__(now)
        self.counted = 0.0
        self.trusted = 0.0  # trusted until this time


_Key = TypeVar("_Key")
_Kind = TypeVar("_Kind", bound=_Score)


class Guard:
    """Keep the scores and say how long each attempt waits.

    `most`: the longest wait in seconds; 0 turns all penalties off. `ipv6_bits`: the prefix length that counts
    as one client's address. `key`: of the digests of user names; an auth that takes over has the same.
    """

    __slots__ = ("_addresses", "_bits", "_key", "_pairs", "_penalised", "_users", "most")

    def __init__(self, most: int, ipv6_bits: int = 64, key: bytes = b"") -> None:
        self.most = float(most)
        self._bits = ipv6_bits
        self._key = key
        self._addresses: dict[str, _Score] = {}
        self._users: dict[bytes, _Score] = {}
        self._pairs: dict[tuple[str, bytes], _Pair] = {}
        self._penalised: dict[str, None] = {}  # addresses that came under penalty; the latest last

    def admit(self, user: str, address: str, now: float) -> float:
        """Return the seconds until this attempt may be checked; more than `most`: refuse it.

        `address`: host and port, as in LoginRequest.
        """
        if not self.most:
            return 0.0
        client, user_hash = self.keys(user, address)
        by_address, pair = self._addresses.get(client), self._pairs.get((client, user_hash))
        wait = 0.0
        if pair is None or pair.trusted <= now or pair.fade(now) >= _TRUST_FAILURES:
            wait = self._delay(self._users.get(user_hash), now)
            queues = [
                score for score in (by_address, pair) if score is not None and self._delay(score, now) > 0
            ]
            for score in queues:
                wait = max(wait, max(score.next - now, 0.0) + self._delay(score, now))
            if wait <= self.most:
                for score in queues:
                    score.next = now + wait
        return wait

    def wait(self, user: str, address: str, now: float) -> float:
        """Return the seconds that an attempt would wait now, as `admit`, and count nothing."""
        client, user_hash = self.keys(user, address)
        pair = self._pairs.get((client, user_hash))
        if not self.most or (pair is not None and pair.trusted > now and pair.fade(now) < _TRUST_FAILURES):
            return 0.0
        scores = (self._users.get(user_hash), self._addresses.get(client), pair)
        delays = [(score, self._delay(score, now)) for score in scores if score is not None]
        return max((max(score.next - now, 0.0) + delay for score, delay in delays if delay), default=0.0)

    def failed(self, user: str, address: str, now: float) -> float:
        """Count a wrong password or token.

        Returns how many seconds after its arrival the attempt may be answered.
        """
        if not self.most:
            return 0.0
        client, user_hash = self.keys(user, address)
        by_address, by_user = (
            self._touch(self._addresses, client, _Score, now),
            self._touch(self._users, user_hash, _Score, now),
        )
        pair = self._touch(self._pairs, (client, user_hash), _Pair, now)
        if pair.fade(now) < _REPEAT:
            pair.counted = 0.0  # long ago; its points have faded from every score
        added = 1.0 if not pair.counted else _REPEAT if pair.counted < 1.0 + _REPEAT * _REPEATS else 0.0
        pair.counted += added
        pair.value += 1.0
        for score in (by_address, by_user):
            score.fade(now)
            score.value += added
        if self._delay(by_address, now):
            self._note_penalty(client)
        return max(self._delay(score, now) for score in (by_address, by_user, pair))

    def succeeded(self, user: str, address: str, now: float) -> None:
        """Count a success: earlier failures of this user from here were typing errors."""
        if not self.most:
            return
        client, user_hash = self.keys(user, address)
        by_address, pair = (
            self._touch(self._addresses, client, _Score, now),
            self._touch(self._pairs, (client, user_hash), _Pair, now),
        )
        if pair.trusted <= now:
            by_address.earn(now)
        for score in (by_address, self._users.get(user_hash)):
            if score is not None:
                score.value = max(0.0, score.fade(now) - pair.counted)
        pair.value = pair.counted = pair.next = 0.0
        pair.trusted = now + _TRUST

    def penalised(self, now: float) -> int:
        """Return the number of addresses under penalty; of over a thousand, some may have served it."""
        for client in list(islice(self._penalised, _LOOKED_AT)):
            if not self._delay(self._addresses.get(client), now):
                del self._penalised[client]
        return len(self._penalised)

    def __len__(self) -> int:
        """Return the number of entries of all kinds."""
        return len(self._addresses) + len(self._users) + len(self._pairs)

    def keys(self, user: str, address: str) -> tuple[str, bytes]:
        """Return the keys of the tables: the client's address or prefix, and a digest of the user's name.

        Names are kept as digests: an attacker chooses them, hundreds of characters each, and could fill
        memory. Keyed, so that he cannot choose two names with the same digest.
        """
        digest = blake2b(user.encode(errors="surrogatepass"), digest_size=8, key=self._key).digest()
        return prefix_of(host_of(address), self._bits), digest

    # -- handing over
    def entries(self) -> list[tuple[str, bytes]]:
        """Return the keys of all scores: ("" or address, b"" or user), the least recently used first."""
        addresses = [(client, b"") for client in self._addresses]
        return [*addresses, *(("", user) for user in self._users), *self._pairs]

    def row(self, client: str, user: bytes, now: float) -> list[int] | None:
        """Return a score as five numbers, None if there is none.

        Value, credit and counted points in thousandths; milliseconds until the next attempt may be checked,
        and for which a pair is trusted.
        """
        score: _Score | None
        if client and user:
            score = self._pairs.get((client, user))
        else:
            score = self._addresses.get(client) if client else self._users.get(user)
        if score is None:
            return None
        value = score.fade(now)
        score.allowance(now)
        counted, trusted = (score.counted, score.trusted) if isinstance(score, _Pair) else (0.0, 0.0)
        thousandths = value, score.credit, counted, max(0.0, score.next - now), max(0.0, trusted - now)
        return [round(1000 * number) for number in thousandths]

    def restore(self, client: str, user: bytes, row: Sequence[int], now: float, users: int) -> None:
        """Take a score as `row` returned it, cut to what this process would have: the other may be hostile.

        `users`: how many there are. If each of them logs in at an address each day, its credit comes to twice
        as many. With penalties turned off, nothing is taken.
        """
        if not self.most:
            return
        value, credit, counted, following, trusted = (number / 1000 for number in row)
        score: _Score
        if client and user:
            pair = score = self._touch(self._pairs, (client, user), _Pair, now)
            pair.counted = min(counted, 1.0 + _REPEAT * (_REPEATS + 1))
            pair.trusted = now + min(trusted, _TRUST) if trusted else 0.0
        elif client:
            score = self._touch(self._addresses, client, _Score, now)
        else:
            score = self._touch(self._users, user, _Score, now)
        if client and not user:  # the others earn none
            score.credit, score.credit_at = min(credit, 2.0 * users), now
        score.value, score.at = min(value, score.allowance(now) + _MOST_OVER), now
        score.next = now + min(following, self.most) if following else 0.0
        if client and not user and self._delay(score, now):
            self._note_penalty(client)

    def _note_penalty(self, client: str) -> None:
        """Count an address under penalty."""
        self._penalised.pop(client, None)
        self._penalised[client] = None
        if len(self._penalised) > _MOST:
            del self._penalised[next(iter(self._penalised))]

    def _delay(self, score: _Score | None, now: float) -> float:
        """Return the delay in seconds: 1 for the first point over the allowance, doubled by each more."""
        if score is None:
            return 0.0
        over = score.fade(now) - score.allowance(now)
        return min(self.most, 0.5 * 2.0 ** min(over, 16.0)) if over > 0 else 0.0

    @staticmethod
    def _touch(table: dict[_Key, _Kind], key: _Key, kind: type[_Kind], now: float) -> _Kind:
        """Return the entry, made if there is none, and make it the most recently used."""
        score = table.pop(key, None)
        if score is None:
            score = kind(now)
            if len(table) >= _MOST:
                del table[next(iter(table))]
        table[key] = score
        return score
