"""Children forked from a warm image: by whom, how they let go of their parent, how they are ended and told of. Spawner and gate have one.

A child dies with its parent (PR_SET_PDEATHSIG): nothing lives here whose parent nobody can ask to end it.
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

__all__ = ["Brood"]

_PR_SET_PDEATHSIG = 1  # prctl(2)


class Brood:
    """The children of this process, by name. `ended(name, pid, status)` is called for each, `reaped()` after a round of them."""

    def __init__(self, loop: Loop, ended: Callable[[str, int, int], None], reaped: Callable[[], None]) -> None:
        self._loop = loop
        self._ended = ended
        self._reaped = reaped
        self._names: dict[int, str] = {}
        self._pids: dict[str, tuple[int, int]] = {}
        self._woken = self._wake = -1

    def begin(self) -> None:
        """Wait for children's ends from now on; what is in memory is what they share."""
        self._woken, self._wake = os.pipe()
        os.set_blocking(self._woken, False)
        os.set_blocking(self._wake, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)
        self._loop.add(self._woken, self._reap, READ)
        gc.collect()
        gc.freeze()
        gc.disable()  # nothing here makes cycles, and a collection in a child would copy what is shared

    def __len__(self) -> int:
        return len(self._names)

    def fork(self, name: str, uid: int = -1) -> int:
        """A child of that name: its process number, or 0 in the child. `uid`: whose it will be. OSError where the system has no room."""
        pid = os.fork()
        if pid:
            self._names[pid] = name
            self._pids[name] = pid, uid
            return pid
        signal.set_wakeup_fd(-1)  # SIGCHLD's handler stays: it does nothing, and a child has no child
        for fd in (self._woken, self._wake):
            try:  # noqa: SIM105  three functions fewer in each child: their pages would be its own (docs/performance.md)
                os.close(fd)
            except OSError:  # else the child would take it for a fork that failed, and go on as its parent
                pass
        return 0

    def die_with_parent(self) -> None:
        """In a child: SIGKILL when its parent goes; to be asked for anew after a change of ids, which forgets it (prctl(2))."""
        if sys.platform == "linux":
            library().prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)

    def kill(self, name: str) -> None:
        """It is our child and not yet reaped, so its number is nobody else's."""
        if name in self._pids:
            end(*self._pids[name])

    def _reap(self, events: int) -> None:
        del events
        with contextlib.suppress(OSError):  # whatever it says: the children are looked at
            os.read(self._woken, 4096)
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
