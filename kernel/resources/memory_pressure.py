"""Notice that memory is short: by the system's measure of tasks that wait for memory (PSI).

A trigger in the file makes it ready for poll(2). Where triggers are refused, it is read every few seconds.
Where there is no such file, the counts of a control group's limits (memory.events) stand in for it. They also
count page cache that is replaced, so they are only the second choice. Where neither exists, nothing happens.

The files are opened before the sandbox is locked. One that vanishes or has odd contents is no longer watched.
"""

import os
import select
from collections.abc import Callable, Sequence

from popkernel.kernel.runtime.loop import Loop

__all__ = ["MemoryPressure"]

SYSTEM = "/proc/pressure/memory"
_SECONDS = 2  # the span that is judged; an unprivileged trigger needs a multiple of two
_SHARE = 0.1  # of that span, in which some task waited for memory
_TRIGGER = f"some {round(_SHARE * _SECONDS * 1e6)} {_SECONDS * 1_000_000}\0".encode()
_LOOK_SECONDS = 5.0  # between two readings of a file without a trigger
_URGENT = getattr(select, "EPOLLPRI", 2)
_OVER = getattr(select, "EPOLLERR", 8)


class MemoryPressure:
    """Call `short()` whenever memory is short, at most once in `_SECONDS`."""

    def __init__(
        self, loop: Loop, groups: Sequence[str], short: Callable[[], None], system: str = SYSTEM
    ) -> None:
        """Open the files and begin to watch.

        Args:
            loop: one with epoll(7); without that nothing is watched.
            groups: directories of this process's control groups, the innermost first.
            short: called when memory is short.
            system: the system's own file.
        """
        self._loop = loop
        self._short = short
        self._again = 0.0  # not called before this time
        self._fds: set[int] = set()
        inner = next((f"{g}/memory.pressure" for g in groups if os.path.exists(f"{g}/memory.pressure")), "")
        found = [self._watch(path) for path in (system, inner) if path]
        if not any(found):
            for group in groups:
                self._watch_counts(f"{group}/memory.events")

    def __len__(self) -> int:
        return len(self._fds)

    def _tell(self) -> None:
        if self._loop.now >= self._again:
            self._again = self._loop.now + _SECONDS
            self._short()

    def _opened(self, path: str, flags: int) -> int:
        try:
            fd = os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            return -1
        self._fds.add(fd)
        return fd

    def _drop(self, fd: int) -> None:
        self._loop.remove(fd)
        self._fds.discard(fd)
        os.close(fd)

    # -- PSI
    def _watch(self, path: str) -> bool:
        """Watch a file of PSI; return False if it is none."""
        fd = self._opened(path, os.O_RDWR)
        if fd >= 0:
            try:
                os.write(fd, _TRIGGER)
                self._loop.add(fd, lambda events: self._triggered(fd, events), _URGENT)
            except OSError:  # no right to it, or not a file of the kernel's
                self._drop(fd)
            else:
                return True
        fd = self._opened(path, os.O_RDONLY)
        if fd < 0 or _waited(_read(fd)) is None:
            if fd >= 0:
                self._drop(fd)
            return False
        self._look(fd, None)
        return True

    def _triggered(self, fd: int, events: int) -> None:
        if events & _OVER:  # the control group was removed
            self._drop(fd)
        elif events & _URGENT:
            self._tell()

    def _look(self, fd: int, before: int | None) -> None:
        """Read how long tasks waited in all, in µs; memory is short if that is much more than `before`."""
        waited = _waited(_read(fd))
        if waited is None:
            self._drop(fd)
            return
        if before is not None and waited - before >= _SHARE * _LOOK_SECONDS * 1e6:
            self._tell()
        self._loop.later(_LOOK_SECONDS, lambda: self._look(fd, waited))

    # -- a control group's counts
    def _watch_counts(self, path: str) -> None:
        fd = self._opened(path, os.O_RDONLY)
        counts = _counts(_read(fd)) if fd >= 0 else None
        try:
            if counts is not None:
                last = [counts]
                self._loop.add(fd, lambda _events: self._counted(fd, last), _URGENT)
                return
        except OSError:  # a file that cannot be polled
            pass
        if fd >= 0:
            self._drop(fd)

    def _counted(self, fd: int, last: list[int]) -> None:
        counts = _counts(_read(fd))
        if counts is None:
            self._drop(fd)
            return
        if counts > last[0]:
            self._tell()
        last[0] = counts


def _read(fd: int) -> bytes:
    try:
        return os.pread(fd, 4096, 0)
    except OSError:
        return b""


def _waited(data: bytes) -> int | None:
    """Return the microseconds of "some avg10=... total=N", None for other contents."""
    for line in data.splitlines():
        kind, _, rest = line.partition(b" ")
        total = rest.rpartition(b"total=")[2]
        if kind == b"some" and total.isdigit():
            return int(total)
    return None


def _counts(data: bytes) -> int | None:
    """Return how often the limits "high" and "max" were met, None for other contents."""
    found = [line.split() for line in data.splitlines()]
    numbers = [
        int(row[1]) for row in found if len(row) == 2 and row[0] in (b"high", b"max") and row[1].isdigit()
    ]
    return sum(numbers) if numbers else None
