"""What a maildrop says when it cannot: a response code of RFC 3206 or 2449, words for the log, and words for the user.

The user can't mend a mailbox and is told no name, no path and no advice; the operator is told what and where, and the mend.
"""

from __future__ import annotations

import errno
import os

TEMP = "SYS/TEMP"  # trying again later may help
PERM = "SYS/PERM"  # somebody has to mend something first
IN_USE = "IN-USE"  # another program holds the maildrop

GONE = "the message is gone: another program removed it"
CHANGED = "the message has changed, log in again"
UNREADABLE = "the message can't be read"
_SAID = {IN_USE: "another program has this mailbox open, try again later", PERM: "the mailbox can't be opened"}
_AWAY = "the mailbox is not available now, try again later"

# Not among the temporary ones: EROFS could be either, but mail that waits is better than mail that bounces.
_PERMANENT = frozenset(
    (errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ENXIO, errno.EINVAL)
)


class StoreError(Exception):
    """A maildrop operation that failed.

    ``code`` is ``SYS/TEMP``, ``SYS/PERM`` or ``IN-USE``; ``text``, for the operator, names no path but ones relative to the maildir.
    ``said`` is for the user.
    """

    def __init__(self, code: str, text: str, number: int = 0, *, said: str = "") -> None:
        super().__init__(text)
        self.said = said or _SAID.get(code, _AWAY)
        self.code = code
        self.text = text
        self.number = number  # the system's errno behind it, 0 where there is none


class MovedError(StoreError):
    """The path of the maildir leads to another directory than the one that is held. This process can't see that one: it must end."""

    def __init__(self) -> None:
        super().__init__(TEMP, "another directory is in the place of this maildir now")


def from_os(error: OSError, where: str, said: str = "") -> StoreError:
    """Give an operating system error on ``where`` (a path relative to the maildir) its code and words."""
    code = PERM if error.errno in _PERMANENT else TEMP
    reason = os.strerror(error.errno) if error.errno else type(error).__name__
    return StoreError(code, f"{where}: {reason}", error.errno or 0, said=said)


def show(name: bytes) -> str:
    """A file name for people: what is not printable ASCII is escaped."""
    return ascii(name)[2:-1]
