"""Init's look at the mailboxes of a table, and at who could change what it serves by, in a process of its own.

Nothing waits for a slow disk, or for 10,000 users.
"""

import contextlib
import os
import signal
from collections.abc import Callable, Sequence
from itertools import chain

from popkernel.kernel import trust
from popkernel.kernel.child import do_and_leave
from popkernel.kernel.log import printable
from popkernel.kernel.loop import Loop
from popkernel.kernel.mailboxes import warnings

__all__ = ["Look"]

_MOST_SAID = 1 << 16  # octets, of some eleven lines
_MOST_LINE = 1900  # characters; it travels in a message


class Look:
    """A process that looks, and the pipe on which it says what it finds."""

    def __init__(
        self, loop: Loop, table: str, subdir: str, over: Callable[[list[str]], None], decisive: Sequence[str] = (), *, fold: bool = False,
    ) -> None:
        """`over` is called once, unless `end` comes before: a line for whoever could change the `decisive` files, and a broken mailbox."""
        self._loop = loop
        self._over = over
        self._said = b""
        self._pipe, its = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            do_and_leave(lambda: _look(its, table, subdir, decisive, fold=fold), 1)
        os.close(its)
        os.set_blocking(self._pipe, False)
        loop.add(self._pipe, self._read)

    def _read(self, events: int) -> None:
        del events
        part = os.read(self._pipe, 4096)
        self._said += part[: _MOST_SAID - len(self._said)]
        if not part:
            self._close()

    def _close(self) -> None:
        self._loop.remove(self._pipe)
        os.close(self._pipe)
        self._pipe = -1

    def reaped(self, pid: int) -> None:
        """That process has ended, and its number is nobody's any more: what it said is all there is."""
        if pid != self.pid:
            return
        self.pid = 0
        if self._pipe >= 0:
            with contextlib.suppress(BlockingIOError):
                while self._pipe >= 0:
                    self._read(0)
        self._over(self._said.decode(errors="replace").splitlines())

    def end(self) -> None:
        """Look no further. Nothing is said, and nobody is waited for: it may hang on a disk that is gone."""
        if self._pipe >= 0:
            self._close()
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)  # our child, not reaped yet
            self.pid = 0


def _look(pipe: int, table: str, subdir: str, decisive: Sequence[str], *, fold: bool = False) -> int:
    """In the child, which keeps of init's descriptors the pipe and standard error only: the lock above all must not outlive init."""
    signal.set_wakeup_fd(-1)
    os.closerange(3, pipe)
    os.closerange(pipe + 1, 65536)
    with contextlib.suppress(ValueError, BrokenPipeError):  # a table gone bad is the kernel's to tell of; init may have gone
        for line in chain(trust.warnings(decisive), warnings(table, subdir, fold=fold)):
            os.write(pipe, printable(line)[:_MOST_LINE].encode() + b"\n")
    return 0
