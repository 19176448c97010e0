"""Recognize failed logins that repeat an earlier one.

Pure, but for the random key of its digests; the clock is given.
"""

import hmac
from secrets import token_bytes

from popkernel.proto import messages as m
from popkernel.proto.pop3.sasl import TOKENS

__all__ = ["REPEATS_SECONDS", "Repeats", "WrongPasswords"]

_SECONDS = 30.0  # a client tries a mistyped password with each mechanism that it knows, one after the other
_MOST = 10_000  # failures that are remembered; the oldest is dropped first
REPEATS_SECONDS = 60.0  # the repeats of an address are counted over this time
_FEW = 20  # repeats that are not logged: several clients of one household, each with three mechanisms
_MOST_CLIENTS = 1000  # addresses for which repeats are counted
_PAUSE = 5.0  # seconds between two lines of the log, over all addresses


class WrongPasswords:
    """Remember passwords that were found wrong lately, with user and address, as keyed digests.

    A client that knows three mechanisms tries one mistyped password three times. It is counted, and costs
    hashing, once. The digests cover the user's line, so that a secret is checked anew once the line is
    another: the user was added or unlocked, or has a new password.
    """

    __slots__ = ("_digests", "_issuer", "_key")

    def __init__(self, key: bytes = b"") -> None:
        """`key`: of the digests, 32 octets; a random one by default."""
        self._key = key or token_bytes(32)
        # in a token's digest, so that a successor, whose issuer may have other keys, recognizes none
        self._issuer = token_bytes(16)
        self._digests: dict[bytes, float] = {}  # the time each is kept until; the oldest first

    def _digest(self, login: m.LoginRequest, client: str, line: bytes) -> bytes:
        # what is wrong as a token may be right as a password
        kind = b"token" + self._issuer if login.mechanism in TOKENS else b"password"
        # the secret, which alone may have a NUL, comes last
        parts = (kind, login.user.encode(), client.encode(), line, login.secret)
        return hmac.digest(self._key, b"\0".join(parts), "sha256")

    def holds(self, login: m.LoginRequest, client: str, line: bytes, now: float) -> bool:
        """Return whether this secret was found wrong from there, with this line, within the last half minute.

        `line`: the user's hash; empty if the table has none.
        """
        return bool(self._digests) and self._digests.get(self._digest(login, client, line), now) > now

    def put(self, login: m.LoginRequest, client: str, line: bytes, now: float) -> bool:
        """Remember a secret that was found wrong. Returns whether it was known.

        The time runs from the first failure on.
        """
        if self.holds(login, client, line, now):
            return True
        self._keep(self._digest(login, client, line), now + _SECONDS, now)
        return False

    def _keep(self, digest: bytes, until: float, now: float) -> None:
        self._digests.pop(digest, None)
        self._digests[digest] = until
        for _ in range(2):  # two checked for each one added
            oldest = next(iter(self._digests))
            if self._digests[oldest] > now and len(self._digests) <= _MOST:
                break
            del self._digests[oldest]

    # -- handing over
    def rows(self, now: float) -> list[tuple[bytes, int]]:
        """Return the digests, and for how many milliseconds each is remembered, the oldest first."""
        return [(digest, round(1000 * (end - now))) for digest, end in self._digests.items() if end > now]

    def newest(self) -> tuple[bytes, int] | None:
        """Return the entry that was added last, as `rows` does; None if there is none."""
        return (next(reversed(self._digests)), round(1000 * _SECONDS)) if self._digests else None

    def restore(self, digest: bytes, milliseconds: int, now: float) -> None:
        """Take an entry as `rows` returned it."""
        self._keep(digest, now + min(milliseconds / 1000, _SECONDS), now)


class Repeats:
    """Count how often each address repeats a failed login.

    An address with many repeats gets one line of the log a minute.
    """

    __slots__ = ("_clients", "_quiet")

    def __init__(self) -> None:
        # by address: the end of the count, the number, and 1 if it was logged; the oldest first
        self._clients: dict[str, list[float]] = {}
        self._quiet = 0.0  # nothing is logged before this time

    def count(self, client: str, now: float) -> int:
        """Count one repeat. Returns the number of repeats if it is to be logged, else 0."""
        entry = self._clients.get(client)
        if entry is None or entry[0] <= now:
            self._clients.pop(client, None)
            if len(self._clients) >= _MOST_CLIENTS:
                del self._clients[next(iter(self._clients))]
            entry = self._clients[client] = [now + REPEATS_SECONDS, 0, 0]
        entry[1] += 1
        if entry[1] <= _FEW or entry[2] or now < self._quiet:
            return 0
        entry[2] = 1
        self._quiet = now + _PAUSE
        return int(entry[1])
