"""Define the exit codes of all commands, sysexits(3), and the faults that each stands for.

The help texts print these sentences. The manual page and the systemd unit are tested against them.
"""

import errno
from typing import NamedTuple

__all__ = ["EXITS", "WANT", "Exit"]

WANT = frozenset(
    {
        errno.EAGAIN,
        errno.ENOMEM,
        errno.EMFILE,
        errno.ENFILE,
        errno.ENOBUFS,
        errno.ENOLCK,
        errno.ENOSPC,
        errno.EIO,
        errno.ETXTBSY,
    }
)
"""Errnos of shortages that may soon be over; a failure with one of them ends with "tempfail"."""


class Exit(NamedTuple):
    """Hold a code, and the faults that end with it."""

    code: int
    said: str
    human: bool = False
    """Whether the fault lasts until somebody mends it, so that a service manager need not try again."""


EXITS = {
    "usage": Exit(64, "wrong usage", human=True),
    "data": Exit(65, "a table, a mailbox or an input cannot be used as it is", human=True),
    "noinput": Exit(66, "a table or an input is missing or cannot be read", human=True),
    "nouser": Exit(67, "no such user"),
    "unavailable": Exit(
        69, "no server runs there, or one does already; a port is taken, or an address is not this machine's"
    ),
    "software": Exit(70, "an error of popkernel's own; an actor died again and again"),
    "oserr": Exit(71, "the system cannot lock the actors in", human=True),
    "cantcreat": Exit(73, "the run directory, or another file or directory, cannot be made", human=True),
    "ioerr": Exit(74, "reading or writing failed"),
    "tempfail": Exit(75, "try again later"),
    "noperm": Exit(
        77, "not permitted: a port below 1024, another user's run directory or server", human=True
    ),
    "config": Exit(
        78,
        "the configuration, the certificate or the key has errors, or a system user is missing",
        human=True,
    ),
}
