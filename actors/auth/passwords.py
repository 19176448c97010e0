"""Whether a name and a password belong together. Pure; bcrypt takes long, so the caller chooses the thread for `fits`.

An unknown name costs the same bcrypt check as a known one, against a hash of the cost most users have, so that the time of
an answer tells nobody which names exist.
"""

from collections import Counter
from collections.abc import Collection, Mapping

import bcrypt
from popkernel.proto.access.user_names import Spellings

__all__ = ["DENIED", "Table", "decoys", "fits", "usable", "warm"]

DENIED = ("AUTH", "wrong name or password")  # one answer for every reason (RFC 3206 section 4, and not a word more)
MOST_OCTETS = 72  # bcrypt looks at no more: what is longer must not be taken for what it begins with


class Table:
    """The authorization table, and a hash to check against for those who are not in it."""

    __slots__ = ("_decoy", "_hashes", "_spellings")

    def __init__(
        self, hashes: Mapping[str, bytes], decoys: Mapping[int, bytes], *, fold: bool = True, names: Collection[str] | None = None,
    ) -> None:
        """`hashes` by name; `decoys`: by cost, a hash that no password fits.

        `fold`: whether alice may call herself Alice; `names`: all of the table, where some have no hash.
        """
        self._hashes = hashes
        self._spellings = Spellings(hashes if names is None else names, fold=fold)
        costs = Counter(int(h[4:6]) for h in list(hashes.values())[:1000])
        cost = costs.most_common(1)[0][0] if costs else 10
        self._decoy = decoys[cost]

    def name_of(self, typed: str) -> str:
        """The name as the table has it; of nobody's name the one spelling that stands for all of them, where they do not matter."""
        return self._spellings.find(typed, self._hashes) or self._spellings.none(typed)

    def hash_of(self, user: str) -> tuple[bytes, bool]:
        """The hash to check against, and whether the user exists at all."""
        found = self._hashes.get(user)
        return (self._decoy, False) if found is None else (found, True)

    def __len__(self) -> int:
        return len(self._hashes)


def usable(secret: bytes) -> bool:
    """Whether bcrypt can judge it: not empty, no NUL, at most 72 octets. What it can't is a wrong password."""
    return 0 < len(secret) <= MOST_OCTETS and b"\0" not in secret


def fits(secret: bytes, expected: bytes) -> bool:
    """Whether a usable password fits a hash of the table. A salt that no bcrypt writes fits none, and takes as long."""
    try:
        return bcrypt.checkpw(secret, expected)
    except ValueError:  # bits are set in the salt's last character that stand for nothing
        bcrypt.checkpw(secret, _decoy(int(expected[4:6])))
        return False


def warm() -> None:
    """Check one password, so that what bcrypt loads and allocates once is there before the lock."""
    bcrypt.checkpw(b"warm", _decoy(4))


def decoys() -> dict[int, bytes]:
    """A well-formed hash for each cost. Its digest is arbitrary: that no password is known to fit it is all it must be."""
    return {cost: _decoy(cost) for cost in range(4, 32)}


def _decoy(cost: int) -> bytes:
    tail = b"abcdefghijklmnopqrstuuABCDEFGHIJKLMNOPQRSTUVWXYZ01234"
    return b"$2b$%02d$" % cost + tail
