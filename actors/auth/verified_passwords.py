"""Remember passwords that were found right, so that a client that polls costs no hashing.

Pure, but for the random key of its digests; the clock is given.
"""

import hmac
from secrets import token_bytes

__all__ = ["Verified"]


class Verified:
    """Cache passwords that were found right, as keyed digests. At a full cache the longest unused goes.

    A digest covers the hash: after a change of the table's line the password is checked again. `seconds`: how
    long an entry is kept after its last use; 0 turns the cache off.
    """

    __slots__ = ("_digests", "_key", "_seconds")

    _MOST = 100_000

    def __init__(self, seconds: int, key: bytes = b"") -> None:
        """`key`: of the digests, 32 octets; a random one by default."""
        self._key = key or token_bytes(32)
        self._seconds = seconds
        # by user: the digest, and until when it counts; the longest unused first
        self._digests: dict[str, tuple[bytes, float]] = {}

    def __len__(self) -> int:
        """Return the number of entries, expired ones included."""
        return len(self._digests)

    def _digest(self, user: str, secret: bytes, hashed: bytes) -> bytes:
        return hmac.digest(self._key, b"\0".join((user.encode(), hashed, secret)), "sha256")

    def holds(self, user: str, secret: bytes, hashed: bytes, now: float) -> bool:
        """Return whether this password was found right for this hash. If so, its time begins anew."""
        known = self._digests.get(user)
        if known is None or not self._seconds:
            return False
        if known[1] < now:
            del self._digests[user]
            return False
        if not hmac.compare_digest(known[0], self._digest(user, secret, hashed)):
            return False
        self._keep(user, known[0], now + self._seconds)
        return True

    def put(self, user: str, secret: bytes, hashed: bytes, now: float) -> None:
        """Remember a password that was found right."""
        if self._seconds:
            self._keep(user, self._digest(user, secret, hashed), now + self._seconds)

    def _keep(self, user: str, digest: bytes, until: float) -> None:
        self._digests.pop(user, None)
        if len(self._digests) >= self._MOST:
            del self._digests[next(iter(self._digests))]
        self._digests[user] = digest, until

    # -- handing over
    def users(self) -> list[str]:
        """Return the users that have an entry, the longest unused first."""
        return list(self._digests)

    def row(self, user: str, now: float) -> tuple[bytes, int] | None:
        """Return a user's digest, and for how many milliseconds it still counts; None if it does not."""
        known = self._digests.get(user)
        if known is None or known[1] <= now:
            return None
        return known[0], round(1000 * (known[1] - now))

    def restore(self, user: str, digest: bytes, milliseconds: int, now: float) -> None:
        """Take an entry as `row` returned it, for no longer than an entry of this cache is kept."""
        if self._seconds:
            self._keep(user, digest, now + min(milliseconds / 1000, self._seconds))
