"""Fork children from a warm image, reap them and kill them: for the spawner and the gate.

A child dies with its parent (PR_SET_PDEATHSIG), since only its parent can be asked to kill it.
"""

import contextlib
import gc
import os
import signal
import sys
from collections.abc import Callable

from popkernel.kernel.runtime.child_process import end
from popkernel.kernel.runtime.loop import READ, Loop
from popkernel.kernel.sandbox.libc import library
from popkernel.kernel.spawner import immortal_objects
from popkernel.proto.log_levels import DEBUG, WARNING

__all__ = ["Children"]

_PR_SET_PDEATHSIG = 1  # prctl(2)


class Children:
    """Keep the children of this process, by name.

    Calls `ended(name, pid, status)` for each child that ended, with the status of wait(2), and `reaped()`
    after each round of them.
    """

    def __init__(
        self, loop: Loop, ended: Callable[[str, int, int], None], reaped: Callable[[], None]
    ) -> None:
        self._loop = loop
        self._ended = ended
        self._reaped = reaped
        self._names: dict[int, str] = {}
        self._pids: dict[str, tuple[int, int]] = {}
        self._wakeup_read = self._wakeup_write = -1
        self._trial: immortal_objects.Trial | None = None  # while it runs
        # level and reason, if the image's objects stay mortal
        self._mortal: tuple[int, str] | None = DEBUG, "not tried"

    def prepare(self) -> None:
        """Try immortal objects in a child; before the rehearsal, which goes on meanwhile.

        3.14 specializes code for mortal constants, so there the image becomes immortal now, and what the
        rehearsal makes with `begin`.
        """
        python = immortal_objects.running()
        missing = immortal_objects.missing(python)
        if missing:
            self._mortal = DEBUG, missing  # only another Python would help: no news at each start
            return
        self._trial = immortal_objects.Trial()
        if python.version >= (3, 14):
            self.tried()
            gc.collect()
            self._make_immortal()

    def tried(self) -> None:
        """Take the trial's result; before the sandbox, and before `begin`."""
        if self._trial is not None:
            trial, self._trial = self._trial, None
            fault = trial.end()
            self._mortal = (WARNING, fault) if fault else None

    def begin(self) -> None:
        """Watch for ends of children from now on, and freeze the memory that they will share."""
        self._wakeup_read, self._wakeup_write = os.pipe()
        os.set_blocking(self._wakeup_read, False)
        os.set_blocking(self._wakeup_write, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wakeup_write, warn_on_full_buffer=False)
        self._loop.add(self._wakeup_read, self._reap, READ)
        gc.collect()
        self._make_immortal()
        gc.freeze()
        gc.disable()  # nothing here makes cycles, and a collection in a child would copy shared pages

    def _make_immortal(self) -> None:
        """Make the image's objects immortal where that is known to work: see immortal_objects.py."""
        if self._mortal is None:
            immortal_objects.make_immortal()

    def report(self, process: str, log: Callable[..., None]) -> None:
        """Log why the image's objects are mortal, if they are."""
        if self._mortal is not None:
            level, why = self._mortal
            log(level, "image.mortal", process=process, why=why)

    def __len__(self) -> int:
        return len(self._names)

    def fork(self, name: str, uid: int = -1) -> int:
        """Fork a child. Return its process number; 0 in the child.

        Args:
            name: the actor's name.
            uid: the user that it will run as.

        Raises:
            OSError: the system has no room for a process.
        """
        pid = os.fork()
        if pid:
            self._names[pid] = name
            self._pids[name] = pid, uid
            return pid
        signal.set_wakeup_fd(-1)  # SIGCHLD's handler stays: it does nothing, and a child has no child
        for fd in (self._wakeup_read, self._wakeup_write):
            # no context manager: its three functions would cost each child pages (docs/performance.md)
            try:  # noqa: SIM105
                os.close(fd)
            except OSError:  # the caller would take it for a failed fork, and the child go on as its parent
                pass
        return 0

    def add(self, name: str, pid: int) -> None:
        """Keep a child that was forked otherwise, by this process's user."""
        self._names[pid] = name
        self._pids[name] = pid, -1

    def die_with_parent(self) -> None:
        """In a child: have it killed when its parent ends.

        A change of ids clears this (prctl(2)), so it is called again after one.
        """
        if sys.platform == "linux":
            library().prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)

    def kill(self, name: str) -> None:
        """Kill the child of that name, if there is one. It is not reaped yet, so its number is no other's."""
        if name in self._pids:
            end(*self._pids[name])

    def _reap(self, events: int) -> None:
        del events
        with contextlib.suppress(OSError):  # its octets say nothing: waitpid tells which children ended
            os.read(self._wakeup_read, 4096)
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            name = self._names.pop(pid, "")
            if name:
                self._pids.pop(name, None)
                self._ended(name, pid, status & 0xFFFF)
        self._reaped()
