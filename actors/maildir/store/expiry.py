"""Whether the clock is to be believed before mail goes for its age.

A clock that was in the future once would take all mail along, for good. So nothing goes by it unless it told a like time before: between
20 hours and 14 days ago, at an earlier QUIT in this mailbox. That time is kept, as the modification time of the file `popexpire`. A clock
that is wrong for less than 20 hours so takes no mail; one that jumps by less than 14 days is taken at its word.
"""

from __future__ import annotations

import os

__all__ = ["EARLIEST", "LATEST", "NAME", "believed"]

NAME = b"popexpire"
EARLIEST = 20 * 3600.0  # seconds: less than a day, for who comes once a day, and not always at the same minute
LATEST = 14 * 86400.0
_MARK = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def believed(root: int, now: float) -> bool:
    """Whether mail may go by that time; noted where the next QUIT is to compare with it. `root`: the maildir's descriptor."""
    try:
        ago = now - os.stat(NAME, dir_fd=root, follow_symlinks=False).st_mtime
    except FileNotFoundError:
        ago = -1.0
    except OSError:
        return False
    if 0 <= ago < EARLIEST:
        return False
    return _note(root, now) and EARLIEST <= ago <= LATEST


def _note(root: int, now: float) -> bool:
    try:
        fd = os.open(NAME, _MARK, 0o600, dir_fd=root)
        try:
            os.utime(fd, (now, now))
        finally:
            os.close(fd)
    except OSError:
        return False
    return True
