"""Start a singleton: fork, exec of a fresh interpreter, and what it is told on a pipe that nobody waits for."""

import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

import msgpack
from popkernel.kernel.runtime.child_process import end, fork_with_pipe
from popkernel.kernel.runtime.exit_codes import EXITS, WANT
from popkernel.kernel.runtime.loop import WRITE, Loop

__all__ = ["Child", "no_room", "short_of", "start", "wait_for_children"]

_OSERR, _TEMPFAIL = EXITS["oserr"].code, EXITS["tempfail"].code
_ROOM = " " * 200  # an argument that nobody reads: room for kernel/runtime/process_title.py to write a name into


class Child(NamedTuple):
    """One that init has started."""

    name: str
    uid: int


def no_room(error: OSError) -> str:
    """What to tell of a process that could not be started."""
    return f"no room for a process: {error.strerror}"


def short_of(error: OSError) -> str:
    """What to tell of a service that could not be started."""
    return f"the service could not be started: {error}; see what the system is short of, and try again"


def start(loop: Loop, boot: Sequence[str], name: str, told: Mapping[str, Any], fds: Sequence[int]) -> int:
    """Start one; its process number. What can't be executed for want of something ends with 75, for another reason with 71.

    Args:
        loop: of this process; what the pipe does not take at once it takes later.
        boot: what the interpreter is to run.
        name: the actor's.
        told: what it is told. May hold the pass phrase, so it is in no file and no argument.
        fds: the channel, and the other descriptors that it is given.

    Raises:
        OSError: no room for a pipe or a process; nothing is left over.

    """
    pid, writing = fork_with_pipe(lambda reading: _become(boot, name, reading, fds), _OSERR, reads=False)
    _Feeding(loop, writing, msgpack.packb(told, unicode_errors="surrogateescape")).go_on(0)
    return pid


def wait_for_children(children: dict[int, Child], seconds: float) -> None:
    """They go when their channel to the kernel ends; who does not in that time is ended, and who hangs in the system is left."""
    deadlines = [time.monotonic() + seconds, time.monotonic() + 2 * seconds]
    while children and deadlines:
        pid, _ = os.waitpid(-1, os.WNOHANG)
        if pid:
            children.pop(pid, None)
        elif time.monotonic() > deadlines[0]:
            del deadlines[0]
            for number, child in children.items():
                end(number, child.uid)
        else:
            time.sleep(0.005)


class _Feeding:
    """Writes into a pipe what it takes: how large a pipe is depends on how many there are of this user (pipe(7))."""

    def __init__(self, loop: Loop, pipe: int, data: bytes) -> None:
        self._loop = loop
        self._pipe = pipe
        self._left = memoryview(data)
        self._waits = False

    def go_on(self, events: int) -> None:
        del events
        try:
            while self._left:
                self._left = self._left[os.write(self._pipe, self._left) :]
        except BlockingIOError:
            if not self._waits:
                self._waits = True
                self._loop.add(self._pipe, self.go_on, WRITE)
            return
        except OSError:  # who should have read it has ended; an end in the middle of it is one to its reader
            pass
        if self._waits:
            self._loop.remove(self._pipe)
        os.close(self._pipe)


def _become(boot: Sequence[str], name: str, blob: int, fds: Sequence[int]) -> int:
    """In the child: become it, or say why not by the exit code."""
    try:
        _exec(boot, name, blob, fds)
    except (OSError, MemoryError) as error:
        return _TEMPFAIL if isinstance(error, MemoryError) or error.errno in WANT else _OSERR


def _exec(boot: Sequence[str], name: str, blob: int, fds: Sequence[int]) -> NoReturn:
    """In the child: keep those descriptors, lose everything else, become a fresh interpreter."""
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # stays so over exec: those are init's
    for fd in (blob, *fds):
        os.set_inheritable(fd, True)
    arguments = [sys.executable, "-I", *boot, name, str(fds[0]), str(blob), _ROOM]
    os.execve(
        sys.executable,
        arguments,
        {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", **({"TZ": os.environ["TZ"]} if "TZ" in os.environ else {})},
    )
