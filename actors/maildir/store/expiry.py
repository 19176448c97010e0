"""Decide whether the clock can be trusted before mail is removed by age.

A clock that is once far in the future would remove all mail for good. So mail is removed only if the clock
showed a similar time before: at an earlier QUIT in this mailbox, between 20 hours and 14 days ago. That time
is kept as the modification time of the file `popexpire`. So a clock that is wrong for less than 20 hours
removes no mail; a jump of less than 14 days is believed.
"""

from __future__ import annotations

import os

__all__ = ["EARLIEST", "LATEST", "NAME", "believed"]

NAME = b"popexpire"
# seconds: less than a day, for clients that come once a day, not always at the same minute
EARLIEST = 20 * 3600.0
LATEST = 14 * 86400.0
_MARK = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def believed(root: int, now: float) -> bool:
    """Return whether mail may be removed by that time, and note the time for the next QUIT.

    `root`: the maildir's descriptor.
    """
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
