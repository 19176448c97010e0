"""Which failures are the same one again. Pure, but for the key of its digests; the clock is given."""

import hmac
from secrets import token_bytes

from popkernel.proto import messages as m
from popkernel.proto.sasl import TOKENS

__all__ = ["Wrong"]

_SECONDS = 30.0  # a client tries a mistyped password by each way to log in that it knows, one after the other
_MOST = 10_000  # failures that are remembered; the oldest goes first


class Wrong:
    """Passwords that were found wrong a moment ago, with their user and address, as keyed digests: what comes again is no new guess.

    A client that knows three ways to log in tries one mistyped password three times; it is counted, and costs hashing, once.
    """

    __slots__ = ("_digests", "_key")

    def __init__(self) -> None:
        self._key = token_bytes(32)
        self._digests: dict[bytes, float] = {}  # until when; the oldest first

    def _digest(self, login: m.Login, client: str) -> bytes:
        kind = b"token" if login.mechanism in TOKENS else b"password"  # which is wrong as the one may be right as the other
        return hmac.digest(self._key, b"\0".join((kind, login.user.encode(), client.encode(), login.secret)), "sha256")

    def holds(self, login: m.Login, client: str, now: float) -> bool:
        """Whether it was found wrong there within the last half minute."""
        return bool(self._digests) and self._digests.get(self._digest(login, client), now) > now

    def put(self, login: m.Login, client: str, now: float) -> bool:
        """It was found wrong; whether that is known already. The time runs from the first on."""
        if self.holds(login, client, now):
            return True
        digest = self._digest(login, client)
        self._digests.pop(digest, None)
        self._digests[digest] = now + _SECONDS
        for _ in range(2):  # two looked at for each put in
            oldest = next(iter(self._digests))
            if self._digests[oldest] > now and len(self._digests) <= _MOST:
                break
            del self._digests[oldest]
        return False
