"""Which descriptors a process has: none that its caller left open by mistake, and no log but the kernel's."""

import contextlib
import os
import resource
from collections.abc import Iterable

__all__ = ["close_all_but", "fill", "say_nothing"]

_MOST = 65536  # numbers that are tried where the system does not tell which are open


def _open_ones() -> list[int]:
    try:
        return [int(name) for name in os.listdir("/proc/self/fd")]
    except OSError:
        return list(range(3, min(resource.getrlimit(resource.RLIMIT_NOFILE)[1] % (1 << 31) or _MOST, _MOST)))


def close_all_but(kept: Iterable[int]) -> None:
    """Close every descriptor from 3 up but these."""
    those = {0, 1, 2, *kept}
    for fd in _open_ones():
        if fd not in those:
            with contextlib.suppress(OSError):  # that of the directory which was just listed
                os.close(fd)


def fill() -> None:
    """Where one of the first three is closed, /dev/null takes its place, so that no file becomes the log."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest number that is free: this one


def say_nothing(*numbers: int) -> None:
    """Put /dev/null in the place of these, of the first three: who may write to the log can forge it, and empty a file that it is."""
    null = os.open(os.devnull, os.O_RDWR)
    for number in numbers:
        os.dup2(null, number)
    os.close(null)
