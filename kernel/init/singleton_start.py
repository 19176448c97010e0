"""Start a singleton: fork, execute a fresh interpreter, and send its settings over a pipe."""

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

__all__ = ["Child", "fork_failure", "start", "start_failure", "wait_for_children"]

_OSERR, _TEMPFAIL = EXITS["oserr"].code, EXITS["tempfail"].code
# an argument without meaning: kernel/runtime/process_title.py writes the process's title over it
_ROOM = " " * 200


class Child(NamedTuple):
    """A process that init has started."""

    name: str
    uid: int


def fork_failure(error: OSError) -> str:
    """Return the error text for a process that could not be forked."""
    return f"no room for a process: {error.strerror}"


def start_failure(error: OSError) -> str:
    """Return the error text for a service that could not be started."""
    return f"the service could not be started: {error}; see what the system is short of, and try again"


def start(loop: Loop, boot: Sequence[str], name: str, blob: Mapping[str, Any], fds: Sequence[int]) -> int:
    """Start a singleton, and return its process number.

    If the interpreter can't be executed, the process ends with 75 for want of room, with 71 for another
    reason.

    Args:
        loop: of this process; it writes what the pipe does not take at once.
        boot: arguments of the interpreter.
        name: the actor's name.
        blob: ids and settings. It may hold the pass phrase, so it is in no file and no argument.
        fds: the channel, and the other descriptors that the singleton inherits.

    Raises:
        OSError: no room for a pipe or a process; no descriptor is left open.
    """
    pid, writing = fork_with_pipe(lambda reading: _become(boot, name, reading, fds), _OSERR, reads=False)
    _PipeWriter(loop, writing, msgpack.packb(blob, unicode_errors="surrogateescape")).write(0)
    return pid


def wait_for_children(children: dict[int, Child], seconds: float) -> None:
    """Wait for all children to end, as they do when their channel to the kernel ends.

    After `seconds` those left are killed. After twice that time those that hang in the system are left.
    """
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


class _PipeWriter:
    """Write to a pipe without blocking: its capacity depends on how many pipes the user has (pipe(7))."""

    def __init__(self, loop: Loop, pipe: int, data: bytes) -> None:
        self._loop = loop
        self._pipe = pipe
        self._left = memoryview(data)
        self._waits = False

    def write(self, events: int) -> None:
        del events
        try:
            while self._left:
                self._left = self._left[os.write(self._pipe, self._left) :]
        except BlockingIOError:
            if not self._waits:
                self._waits = True
                self._loop.add(self._pipe, self.write, WRITE)
            return
        except OSError:  # the singleton has ended
            pass
        if self._waits:
            self._loop.remove(self._pipe)
        os.close(self._pipe)


def _become(boot: Sequence[str], name: str, blob: int, fds: Sequence[int]) -> int:
    """In the child: become the singleton, or return the exit code that tells why not."""
    try:
        _exec(boot, name, blob, fds)
    except (OSError, MemoryError) as error:
        return _TEMPFAIL if isinstance(error, MemoryError) or error.errno in WANT else _OSERR


def _exec(boot: Sequence[str], name: str, blob: int, fds: Sequence[int]) -> NoReturn:
    """In the child: keep these descriptors, and execute a fresh interpreter, which closes all others."""
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(
            number, signal.SIG_IGN
        )  # these are for init; an ignored signal stays so after execve(2)
    for fd in (blob, *fds):
        os.set_inheritable(fd, True)
    arguments = [sys.executable, "-I", *boot, name, str(fds[0]), str(blob), _ROOM]
    os.execve(
        sys.executable,
        arguments,
        {
            "PATH": "/usr/bin:/bin",
            "LC_ALL": "C.UTF-8",
            **({"TZ": os.environ["TZ"]} if "TZ" in os.environ else {}),
        },
    )
