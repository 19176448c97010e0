"""What a recording, which anybody may have sent, may cost whoever looks at it: memory, processor time, patience with a pipe."""

import contextlib
import os
import resource
import select
import signal
import stat
import time
from collections.abc import Iterator
from typing import Any

from popkernel.proto.trace.recording import MOST_OCTETS, RecordingError

__all__ = ["DearError", "bounded", "read_file"]

MEMORY = 2 << 30  # octets of address space, beside what there is already
SECONDS = 60  # of processor time for a recording, and
SECONDS_MIB = 2  # more for each MiB of it
WALL = 4  # times as long by the clock: waiting for a disk takes no processor
PATIENCE = 60  # seconds, for what comes through a pipe
WRITER = 2  # seconds until somebody must write into it
_AGAIN = 10.0  # seconds: the word that it was too much may have met one who does not pass it on
_ADDRESS_SPACE: int = getattr(resource, "RLIMIT_AS", resource.RLIMIT_DATA)
_PIECE = 1 << 20


class DearError(BaseException):
    """It takes too long. Not an Exception: code that mends what goes wrong in it must not go on."""


def read_file(path: str) -> bytes:
    """A recording's octets. RecordingError for more than one may have, and for a pipe that does not end; OSErrors as they come."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    with open(fd, "rb", buffering=0) as file:
        found = os.fstat(fd)
        if stat.S_ISDIR(found.st_mode):
            raise IsADirectoryError
        if stat.S_ISREG(found.st_mode):
            _not_more(found.st_size)
            return file.read(MOST_OCTETS + 1)
        return _through_pipe(fd)


def _not_more(octets: int) -> None:
    if octets > MOST_OCTETS:
        raise RecordingError(f"more than {MOST_OCTETS >> 20} MiB: too much for a recording")


def _through_pipe(fd: int) -> bytes:
    """It may have nobody who writes into it, or somebody who never ends."""
    until, octets = time.monotonic() + PATIENCE, 0
    parts: list[bytes] = []
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    if not poll.poll(min(PATIENCE, WRITER) * 1000):
        with contextlib.suppress(BlockingIOError):  # somebody has it open, and may write yet
            if not os.read(fd, 1):
                raise RecordingError(f"a FIFO that nobody has opened to write within {WRITER} s; begin with the one who writes")
    while poll.poll(max(0.0, until - time.monotonic()) * 1000):
        part = os.read(fd, _PIECE)
        if not part:
            return b"".join(parts)
        parts.append(part)
        octets += len(part)
        _not_more(octets)
    raise RecordingError(f"no file, and its end has not come within {PATIENCE} s")


@contextlib.contextmanager
def bounded(octets: int) -> Iterator[None]:
    """Within, memory has an end (MemoryError) and so has time (DearError). `octets`: the file's."""
    before = resource.getrlimit(_ADDRESS_SPACE)
    most = _size() + MEMORY
    if before[0] == resource.RLIM_INFINITY or most < before[0]:
        resource.setrlimit(_ADDRESS_SPACE, (most, before[1]))
    seconds = SECONDS + SECONDS_MIB * (octets >> 20)
    handler = signal.signal(signal.SIGPROF, lambda *_: _dear(f"{seconds} s of processor time"))
    waited = signal.signal(signal.SIGALRM, lambda *_: _dear(f"{WALL * seconds} s"))
    signal.setitimer(signal.ITIMER_PROF, seconds, _AGAIN)
    signal.setitimer(signal.ITIMER_REAL, WALL * seconds, _AGAIN)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGPROF, handler)
        signal.signal(signal.SIGALRM, waited)
        resource.setrlimit(_ADDRESS_SPACE, before)


def _dear(what: str) -> Any:
    raise DearError(f"takes more than {what}")


def _size() -> int:
    """Address space of this process, octets."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[0]) * resource.getpagesize()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
