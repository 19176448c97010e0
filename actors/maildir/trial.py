"""Measure the memory of a maildir actor: a child of the spawner forks one on trial.

The actor is a real one, locked in like any other, over a maildir of the run directory. It serves one session
of a mail program that polls. Then its private pages are read, which the spawner's sandbox does not allow: so
the spawner forks that child before its own lock, and the child locks itself in with the run directory and
/proc, and with the spawner's promises.
"""

import contextlib
import os
import socket
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from popkernel.actors.maildir.rehearsal import MAIL, remove
from popkernel.kernel.runtime.channel import Channel, Message, pair
from popkernel.kernel.runtime.child_process import end
from popkernel.kernel.runtime.loop import READ, Loop
from popkernel.kernel.sandbox.libc import SandboxError
from popkernel.proto import messages as m

__all__ = ["NAME", "Memory", "measure"]

NAME = "maildir.trial"
_SECONDS = 10.0  # for the session, which other processes may hold up


class Memory(NamedTuple):
    """What was measured; zeros if it could not be."""

    octets: int = 0  # private to the idle actor
    peak: int = 0  # KiB, as in SessionClosed


def measure(
    directory: str, lock: Callable[[], None], fork: Callable[[bytes, int, tuple[int, ...]], int], pipe: int
) -> Memory:
    """Return the memory of an idle actor. It takes some hundredths of a second.

    Args:
        directory: where its maildir is made, and removed again.
        lock: enters this process's sandbox, in which it can make no socket.
        fork: forks an actor of that maildir, with this descriptor for its channel; the child closes the
            others. Returns the child's process number, in this process alone.
        pipe: whoever reads from it wants the result; without a reader this ends early.
    """
    path = os.path.join(directory, f"rehearsal-trial-{os.getpid()}")
    try:
        ends = *pair(), *pair()
        lock()
        for part in ("", "cur", "new", "tmp"):
            os.mkdir(os.path.join(path, part), 0o700)
        with open(os.path.join(path, "new", "1.1.localhost"), "wb") as file:
            file.write(MAIL)
        return _Trial(path, ends, fork, pipe).run()
    except (OSError, SandboxError):
        return Memory()
    finally:
        with contextlib.suppress(OSError):
            remove(path)


class _Trial:
    """Stand for the kernel and a listener."""

    def __init__(
        self,
        path: str,
        ends: tuple[socket.socket, ...],
        fork: Callable[[bytes, int, tuple[int, ...]], int],
        pipe: int,
    ) -> None:
        self._loop = Loop()
        self._unwanted = False
        self._said: dict[type, Message] = {}
        mine, its, *self._listener = ends
        self._kernel = self._channel(mine, "kernel")
        with its:
            others = tuple(end.fileno() for end in (mine, *self._listener))
            self._pid = fork(os.fsencode(path), its.fileno(), others)
        self._loop.add(pipe, self._lost_reader, READ)  # nothing is read: an error is always reported

    def _channel(self, end: Any, me: str) -> Channel:
        return Channel(self._loop, end, me, NAME, self._take, lambda *_: None)

    def _take(self, channel: Channel, message: Message, fds: list[int]) -> None:
        del channel, fds
        self._said[type(message)] = message

    def _lost_reader(self, events: int) -> None:
        del events
        self._unwanted = True

    def run(self) -> Memory:
        """Serve a session and measure."""
        until = time.monotonic() + _SECONDS
        mine, its = self._listener
        listener = self._channel(mine, "listener")
        try:
            with its:
                self._kernel.send(m.SessionOpen(1, 0), [its.fileno()])
            if not self._hears(m.MaildropReady, until):
                return Memory()
            for asked, answer in (
                (m.Uidl(1, 1), m.MessageUidls),
                (m.Retrieve(1, 1, 0), m.MailContent),
                (m.Quit([]), m.QuitDone),
            ):
                listener.send(asked)
                if not self._hears(answer, until):
                    return Memory()
            if not self._hears(m.SessionClosed, until):
                return Memory()
            closed = self._said[m.SessionClosed]
            assert isinstance(closed, m.SessionClosed)
            return Memory(_private(self._pid), closed.peak)
        finally:
            listener.close()
            self._kernel.close()
            end(self._pid)
            os.waitpid(self._pid, 0)  # it may still write to its maildir, which is removed next

    def _hears(self, kind: type, until: float) -> bool:
        while kind not in self._said:
            if time.monotonic() > until or self._kernel.closed or self._unwanted:
                return False
            timer = self._loop.later(0.5, lambda: None)
            self._loop.turn()
            timer.cancel()
        return True


def _private(pid: int) -> int:
    """Return the octets of a process's private pages, 0 if unknown (proc(5), smaps_rollup)."""
    with open(f"/proc/{pid}/smaps_rollup") as file:
        return sum(int(line.split()[1]) for line in file if line.startswith("Private_")) * 1024
