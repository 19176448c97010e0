"""Close descriptors that a caller left open, and keep the first three from files and the log."""

import contextlib
import os
import resource
from collections.abc import Iterable

__all__ = ["close_all_but", "fill", "say_nothing"]

_MOST = 65536  # numbers tried if the system does not list the open ones


def _open_ones() -> list[int]:
    try:
        return [int(name) for name in os.listdir("/proc/self/fd")]
    except OSError:
        return list(range(3, min(resource.getrlimit(resource.RLIMIT_NOFILE)[1] % (1 << 31) or _MOST, _MOST)))


def close_all_but(kept: Iterable[int]) -> None:
    """Close all descriptors from 3 up except `kept`."""
    those = {0, 1, 2, *kept}
    for fd in _open_ones():
        if fd not in those:
            with contextlib.suppress(OSError):  # the listed directory's own is closed already
                os.close(fd)


def fill() -> None:
    """Open /dev/null for each of the first three that is closed, so that no file gets the log's number."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            # open(2) takes the lowest free number: this one
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)


def say_nothing(*numbers: int) -> None:
    """Replace some of the first three descriptors by /dev/null: a writer could forge or truncate the log."""
    null = os.open(os.devnull, os.O_RDWR)
    for number in numbers:
        os.dup2(null, number)
    os.close(null)
