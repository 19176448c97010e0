"""Bound what reading a recording, made by anybody, can cost: memory, processor time, waiting for a pipe."""

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

__all__ = ["TooExpensiveError", "bounded", "read_file"]

MEMORY = 2 << 30  # octets of address space, beyond the present size
SECONDS = 60  # of processor time for a recording, and
SECONDS_MIB = 2  # more for each MiB of it
WALL = 4  # times the processor time on the clock, since waiting for a disk uses no processor
PATIENCE = 60  # seconds to read a pipe
WRITER = 2  # seconds until a pipe must have a writer
_AGAIN = 10.0  # seconds until the exception is raised again, if code has swallowed it
_ADDRESS_SPACE: int = getattr(resource, "RLIMIT_AS", resource.RLIMIT_DATA)
_PIECE = 1 << 20  # octets


class TooExpensiveError(BaseException):
    """The time is used up. No Exception, so that code that handles errors does not go on."""


def read_file(path: str) -> bytes:
    """Read a recording's octets.

    Raises RecordingError if there are too many, or a pipe does not end; OSError as it comes.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    with open(fd, "rb", buffering=0) as file:
        found = os.fstat(fd)
        if stat.S_ISDIR(found.st_mode):
            raise IsADirectoryError
        if stat.S_ISREG(found.st_mode):
            _check_size(found.st_size)
            return file.read(MOST_OCTETS + 1)
        return _read_pipe(fd)


def _check_size(octets: int) -> None:
    if octets > MOST_OCTETS:
        raise RecordingError(f"more than {MOST_OCTETS >> 20} MiB: too much for a recording")


def _read_pipe(fd: int) -> bytes:
    """Read a pipe, which may have no writer, or one that never ends."""
    until, octets = time.monotonic() + PATIENCE, 0
    parts: list[bytes] = []
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    if not poll.poll(min(PATIENCE, WRITER) * 1000):
        with contextlib.suppress(BlockingIOError):  # there is a writer, which may be slow
            if not os.read(fd, 1):
                raise RecordingError(
                    f"a FIFO that nobody has opened to write within {WRITER} s; begin with the writer"
                )
    while poll.poll(max(0.0, until - time.monotonic()) * 1000):
        part = os.read(fd, _PIECE)
        if not part:
            return b"".join(parts)
        parts.append(part)
        octets += len(part)
        _check_size(octets)
    raise RecordingError(f"no file, and its end has not come within {PATIENCE} s")


@contextlib.contextmanager
def bounded(octets: int) -> Iterator[None]:
    """Bound memory (MemoryError) and time (TooExpensiveError) inside the `with`. `octets`: of the file."""
    before = resource.getrlimit(_ADDRESS_SPACE)
    most = _size() + MEMORY
    if before[0] == resource.RLIM_INFINITY or most < before[0]:
        resource.setrlimit(_ADDRESS_SPACE, (most, before[1]))
    seconds = SECONDS + SECONDS_MIB * (octets >> 20)
    handler = signal.signal(signal.SIGPROF, lambda *_: _too_expensive(f"{seconds} s of processor time"))
    waited = signal.signal(signal.SIGALRM, lambda *_: _too_expensive(f"{WALL * seconds} s"))
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


def _too_expensive(what: str) -> Any:
    raise TooExpensiveError(f"takes more than {what}")


def _size() -> int:
    """Return this process's address space in octets."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[0]) * resource.getpagesize()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
