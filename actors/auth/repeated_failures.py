"""Which failures are the same one again. Pure, but for the key of its digests; the clock is given."""

import hmac
from secrets import token_bytes

from popkernel.proto import messages as m
from popkernel.proto.pop3.sasl import TOKENS

__all__ = ["REPEATS_SECONDS", "Repeats", "Wrong"]

_SECONDS = 30.0  # a client tries a mistyped password by each way to log in that it knows, one after the other
_MOST = 10_000  # failures that are remembered; the oldest goes first
REPEATS_SECONDS = 60.0  # in which the repeats of an address are counted together
_FEW = 20  # of them are no news: several clients of one household, each by three ways
_MOST_CLIENTS = 1000  # addresses that are counted
_PAUSE = 5.0  # seconds between two lines of the log, whatever the address


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


class Repeats:
    """How often each address repeats what was just found wrong. One line of the log a minute for an address with many."""

    __slots__ = ("_clients", "_quiet")

    def __init__(self) -> None:
        self._clients: dict[str, list[float]] = {}  # until when it is counted, how many, 1 where it was told; the oldest first
        self._quiet = 0.0  # nothing is told before then

    def count(self, client: str, now: float) -> int:
        """One more of that client; how many there are where that is to be told, else 0."""
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
