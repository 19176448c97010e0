"""Check the mailboxes of the user table, and permissions of configuration files, in a process of its own.

So init waits for no slow disk, and not for 10,000 users.
"""

import contextlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain

from popkernel.kernel.init import permissions
from popkernel.kernel.init.mailbox_faults import warnings
from popkernel.kernel.runtime.child_process import end, fork_and_tell, told
from popkernel.kernel.runtime.loop import Loop
from popkernel.proto.schema import printable

__all__ = ["MailboxCheck"]

_MOST_RECEIVED = 1 << 16  # octets; some eleven lines are shorter
_NICER = 10  # nice(2): a tenth of a busy processor; 10,000 mailboxes take a fifth of a second
_MOST_LINE = 1900  # characters; one message carries a line


class MailboxCheck:
    """Run a process that checks, and collect the lines that it writes to a pipe."""

    def __init__(
        self,
        loop: Loop,
        table: str,
        subdir: str,
        over: Callable[[list[str]], None],
        sensitive: Sequence[str] = (),
        *,
        fold: bool = False,
        actors: Mapping[int, str] | None = None,
    ) -> None:
        """Fork the process.

        Args:
            loop: of init.
            table: path of the user table.
            subdir: of each maildir, as configured.
            over: called once with the findings, a line each, unless `end` is called before.
            sensitive: files that only root and the caller should be able to change.
            fold: whether names of users are compared without case.
            actors: names of actors by the uids that they run as.

        Raises:
            OSError: the system has no room for a process.
        """
        self._loop = loop
        self._over = over
        self._received = b""
        mailboxes = warnings(table, subdir, fold=fold, actors=actors)  # a generator: it runs in the child
        self.pid, self._pipe = fork_and_tell(lambda pipe: _check(pipe, mailboxes, sensitive))
        loop.add(self._pipe, self._ready)

    def _ready(self, events: int) -> None:
        del events
        self._read()

    def _read(self) -> bool:
        """Read from the pipe; return whether there may be more."""
        part = told(self._pipe)
        self._received += (part or b"")[: _MOST_RECEIVED - len(self._received)]
        if part == b"":
            self._close()
        return bool(part)

    def _close(self) -> None:
        self._loop.remove(self._pipe)
        os.close(self._pipe)
        self._pipe = -1

    def reaped(self, pid: int) -> None:
        """If the process of that number is this one, it has ended: report what it wrote."""
        if pid != self.pid:
            return
        self.pid = 0
        while self._pipe >= 0 and self._read():
            pass
        self._over(self._received.decode(errors="replace").splitlines())

    def end(self) -> None:
        """Stop checking, without calling `over` and without waiting for the process: its disk may hang."""
        if self._pipe >= 0:
            self._close()
        if self.pid:
            end(self.pid)
            self.pid = 0


def _check(pipe: int, mailboxes: Iterable[str], sensitive: Sequence[str]) -> None:
    """In the child: check, at a lower priority than sessions."""
    os.nice(_NICER)
    with contextlib.suppress(ValueError):  # the kernel reports a faulty table
        for line in chain(permissions.warnings(sensitive), mailboxes):
            os.write(pipe, printable(line)[:_MOST_LINE].encode() + b"\n")
