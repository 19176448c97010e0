"""Define the store's errors: a response code (RFC 3206, RFC 2449), a text for the log, a text for the user.

The user can't mend a mailbox and gets no name, path or advice. The operator gets what failed, where, and how
to mend it.
"""

from __future__ import annotations

import errno
import os

TEMP = "SYS/TEMP"  # a later try may succeed
PERM = "SYS/PERM"  # the operator must mend something first
IN_USE = "IN-USE"  # another program holds the maildrop

GONE = "the message is gone: another program removed it"
CHANGED = "the message has changed, log in again"
UNREADABLE = "the message can't be read"
_SAID = {
    IN_USE: "another program has this mailbox open, try again later",
    PERM: "the mailbox can't be opened",
}
_AWAY = "the mailbox is not available now, try again later"

# EROFS is not among them: it could be either, but mail that waits is better than mail that bounces.
_PERMANENT = frozenset(
    (
        errno.EACCES,
        errno.EPERM,
        errno.ELOOP,
        errno.ENOTDIR,
        errno.EISDIR,
        errno.ENAMETOOLONG,
        errno.ENXIO,
        errno.EINVAL,
    )
)


class StoreError(Exception):
    """A maildrop operation that failed.

    `code` is `SYS/TEMP`, `SYS/PERM` or `IN-USE`; `text`, for the operator, names no path but ones
    relative to the maildir. `said` is for the user.
    """

    def __init__(self, code: str, text: str, number: int = 0, *, said: str = "") -> None:
        super().__init__(text)
        self.said = said or _SAID.get(code, _AWAY)
        self.code = code
        self.text = text
        self.number = number  # the errno that caused it, 0 if none


class MovedError(StoreError):
    """Raised if the maildir's path leads to another directory than the one that is open.

    This process can't open that one, so it must end.
    """

    def __init__(self) -> None:
        super().__init__(TEMP, "another directory is in the place of this maildir now")


def from_os(error: OSError, where: str, said: str = "") -> StoreError:
    """Turn an OSError on `where` (a path relative to the maildir) into a StoreError."""
    code = PERM if error.errno in _PERMANENT else TEMP
    reason = os.strerror(error.errno) if error.errno else type(error).__name__
    return StoreError(code, f"{where}: {reason}", error.errno or 0, said=said)


def show(name: bytes) -> str:
    """Return a file name for people: octets that are not printable ASCII are escaped."""
    return ascii(name)[2:-1]
