"""Check a user's password against the authorization table.

A check takes long, so the caller runs `fits` in a thread.

An unknown user costs the same check as a known one, against a hash that no password fits. So the time of an
answer does not tell which users exist.
"""

import hmac
from bisect import bisect
from collections import Counter
from collections.abc import Collection, ItemsView, Mapping
from itertools import accumulate

import bcrypt
from popkernel.actors.auth import schemes
from popkernel.proto.access.user_names import LoginNames
from popkernel.proto.files.password_schemes import cost_of, decoy_of

__all__ = ["DENIED", "Table", "fits", "usable", "warm"]

# one answer for every reason (RFC 3206 section 4)
DENIED = ("AUTH", "wrong name or password")
# bcrypt ignores all octets after these, so a longer password must not match by its beginning
_MOST_BCRYPT = 72
# longer than any that fits in PASS's line (RFC 2449 section 4)
_MOST_OCTETS = 255


class Table:
    """The authorization table, and decoy hashes to check unknown users against.

    If the table has hashes of several schemes or costs, unknown names have them in the same shares. A name
    keeps its own over a reload: otherwise a change would tell that it is unknown.
    """

    __slots__ = ("_decoys", "_hashes", "_key", "_names", "_shares")

    def __init__(
        self,
        hashes: Mapping[str, bytes],
        *,
        fold: bool = True,
        names: Collection[str] | None = None,
        domain: str = "",
    ) -> None:
        """`hashes`: by user. `fold`: whether case in a typed name does not matter.

        `names`: all users of the table, if some have no hash. `domain`: that a name may have or lack.
        """
        self._hashes = hashes
        self._names = LoginNames(hashes if names is None else names, fold=fold, domain=domain)
        costs = sorted(Counter(map(cost_of, hashes.values())).items()) or [(b"$2b$10$", 1)]
        self._decoys = [decoy_of(cost) for cost, _ in costs]
        self._shares = list(accumulate(many for _, many in costs))
        # who guesses names cannot know it, and it outlasts most changes of the table
        self._key = min(hashes.values(), default=b"")

    def name_of(self, typed: str) -> str:
        """Return the user's name as the table spells it.

        All spellings of an unknown name give the same name.
        """
        return self._names.find(typed) or self._names.unknown_form(typed)

    def claimed(self, name: str) -> str | None:
        """Return the user that a token's claim names; None if the table has none."""
        return self._names.claimed(name)

    def hash_of(self, user: str) -> tuple[bytes, bool]:
        """Return the hash to check against, and whether the user exists."""
        found = self._hashes.get(user)
        return (self._decoy_of(user), False) if found is None else (found, True)

    def _decoy_of(self, user: str) -> bytes:
        if len(self._decoys) == 1:
            return self._decoys[0]
        digest = hmac.digest(self._key, user.encode("utf-8", "surrogateescape"), "sha256")
        place = int.from_bytes(digest[:8]) * self._shares[-1] >> 64
        return self._decoys[bisect(self._shares, place)]

    def __len__(self) -> int:
        return len(self._hashes)

    def items(self) -> ItemsView[str, bytes]:
        """Return all users that have a hash, with it."""
        return self._hashes.items()


def usable(secret: bytes, expected: bytes) -> bool:
    """Return whether this password can be checked against this hash: not empty, no NUL, not too long.

    Any other counts as a wrong password.
    """
    most = _MOST_BCRYPT if expected.startswith(b"$2") else _MOST_OCTETS
    return 0 < len(secret) <= most and b"\0" not in secret


def fits(secret: bytes, expected: bytes) -> bool:
    """Return whether a usable password fits a hash of the table.

    A hash with a malformed salt fits no password, and takes as long to check.

    Raises:
        MemoryError: there was no memory for the check.
    """
    if not expected.startswith(b"$2"):
        return schemes.fits(secret, expected)
    try:
        return bcrypt.checkpw(secret, expected)
    except ValueError:  # the salt's last character has bits set that mean nothing
        bcrypt.checkpw(secret, decoy_of(cost_of(expected)))
        return False


def warm() -> None:
    """Check one password, so that bcrypt loads and allocates all it needs before the sandbox is locked."""
    bcrypt.checkpw(b"warm", decoy_of(b"$2b$04$"))
