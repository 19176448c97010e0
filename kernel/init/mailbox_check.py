"""Init's look at the mailboxes of a table, and at who could change what it serves by, in a process of its own.

Nothing waits for a slow disk, or for 10,000 users.
"""

import contextlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain

from popkernel.kernel.init import permissions
from popkernel.kernel.init.mailbox_faults import warnings
from popkernel.kernel.runtime.child_process import end, fork_and_tell, told
from popkernel.kernel.runtime.log import printable
from popkernel.kernel.runtime.loop import Loop

__all__ = ["Look"]

_MOST_SAID = 1 << 16  # octets, of some eleven lines
_NICER = 10  # a tenth of a processor that others want as well; 10,000 mailboxes are a fifth of a second
_MOST_LINE = 1900  # characters; it travels in a message


class Look:
    """A process that looks, and the pipe on which it says what it finds."""

    def __init__(
        self, loop: Loop, table: str, subdir: str, over: Callable[[list[str]], None], decisive: Sequence[str] = (), *, fold: bool = False,
        actors: Mapping[int, str] | None = None,
    ) -> None:
        """`over` is called once, unless `end` comes before: a line for whoever could change the `decisive` files, and a broken mailbox.

        OSError: there is no room for a process.
        """
        self._loop = loop
        self._over = over
        self._said = b""
        mailboxes = warnings(table, subdir, fold=fold, actors=actors)  # runs when it is asked, in the child
        self.pid, self._pipe = fork_and_tell(lambda pipe: _look(pipe, mailboxes, decisive))
        loop.add(self._pipe, self._ready)

    def _ready(self, events: int) -> None:
        del events
        self._read()

    def _read(self) -> bool:
        """Whether there may be more."""
        part = told(self._pipe)
        self._said += (part or b"")[: _MOST_SAID - len(self._said)]
        if part == b"":
            self._close()
        return bool(part)

    def _close(self) -> None:
        self._loop.remove(self._pipe)
        os.close(self._pipe)
        self._pipe = -1

    def reaped(self, pid: int) -> None:
        """That process has ended, and its number is nobody's any more: what it said is all there is."""
        if pid != self.pid:
            return
        self.pid = 0
        while self._pipe >= 0 and self._read():
            pass
        self._over(self._said.decode(errors="replace").splitlines())

    def end(self) -> None:
        """Look no further. Nothing is said, and nobody is waited for: it may hang on a disk that is gone."""
        if self._pipe >= 0:
            self._close()
        if self.pid:
            end(self.pid)
            self.pid = 0


def _look(pipe: int, mailboxes: Iterable[str], decisive: Sequence[str]) -> None:
    """In the child. Who has a session goes first."""
    os.nice(_NICER)
    with contextlib.suppress(ValueError):  # a table gone bad is the kernel's to tell of
        for line in chain(permissions.warnings(decisive), mailboxes):
            os.write(pipe, printable(line)[:_MOST_LINE].encode() + b"\n")
