"""Name the promises, in a fixed order: a filter reports a broken one by its place here.

Separate from promises.py, because every actor loads this module and only the process that compiles filters
needs the other. All are names of OpenBSD's pledge(2) too.
"""

from __future__ import annotations

# The place, counted from 1, is the data (16 bits) of SECCOMP_RET_TRAP. 0: no promise allows the call.
PROMISES = (
    "stdio",
    "rpath",
    "wpath",
    "cpath",
    "fattr",
    "flock",
    "unix",
    "inet",
    "sendfd",
    "recvfd",
    "id",
    "proc",
    "exec",
    "prot_exec",
    "settime",
    "chown",
    "getpw",
    "ps",
    "error",
)

NONE = "none"


def split(promises: str) -> tuple[str, ...]:
    """Return the promises of one string, separated by blanks as in pledge(2).

    Raises:
        ValueError: a name that is no promise; the text names it, and all promises.
    """
    names = tuple(promises.split())
    for name in names:
        if name not in PROMISES:
            raise ValueError(f"unknown promise {name!r}: there are {' '.join(PROMISES)}")
    return names


def at(place: int) -> str:
    """Return the promise at `place` (counted from 1), or "none" for 0 and places beyond the last."""
    return PROMISES[place - 1] if 0 < place <= len(PROMISES) else NONE
