"""Parked sessions: their channels wait in the kernel while their maildir actors' processes are gone (passivation).

The listener knows nothing of it: it holds its end of the channel as ever. What the client's next command puts into the channel stays there
unread; that it is there wakes the session, and the channel is handed to the user's maildir actor, a new one if need be.
"""

import contextlib
import socket
from collections.abc import Callable, Iterator

from popkernel.kernel.decisions import leases
from popkernel.kernel.runtime.channel import adopt, discard
from popkernel.kernel.runtime.loop import Loop
from popkernel.proto import messages as m

__all__ = ["Parking"]


@contextlib.contextmanager
def borrowed(fd: int) -> Iterator[socket.socket]:
    """A descriptor as a socket, without a copy of it, for which there may be no room."""
    sock = adopt(fd)
    try:
        yield sock
    finally:
        sock.detach()


class Parking:
    """The descriptors, and what follows when one stirs. What is decided is decided by kernel/decisions/leases.py."""

    def __init__(self, loop: Loop, decide: leases.Core, do: Callable[[list[leases.Effect]], None], free: Callable[[], bool]) -> None:
        """`free`: whether an actor for a session could be forked at once."""
        self._loop = loop
        self._core = decide
        self._do = do
        self._free = free
        self._stirred: dict[str, None] = {}  # users whose session has spoken and waits for its turn: of no process yet
        self._fds: dict[str, int] = {}  # user -> this end of the session's channel

    def __len__(self) -> int:
        return len(self._fds)

    def too_soon(self, name: str, message: m.Parked) -> bool:
        """Whether that session can't have been silent for so long: with a command unread it would be woken at once, again and again."""
        maildir = self._core.maildirs.get(name.removeprefix("maildir."))
        if maildir is None or maildir.key is None or maildir.key.session != message.session:
            return False
        return self._loop.now < maildir.parks

    def park(self, name: str, message: m.Parked | m.Moved, fd: int) -> None:
        """A maildir actor hands a session over, for later or for the next one; `fd` is ours now."""
        user = name.removeprefix("maildir.")
        known = user in self._core.asleep
        effects = self._core.parked(name, message, self._loop.now)
        if known or user not in self._core.asleep:  # not a session of that actor's: nothing was put to sleep
            discard([fd])
        else:
            self._fds[user] = fd
            if not self._watch(user, fd):
                effects = [*effects, *self._core.sleeper_gone(user)]
        self._do(effects)

    def _watch(self, user: str, fd: int) -> bool:
        """Whether it can be waited for: what an actor hands over need not be a socket."""
        try:
            with borrowed(fd) as sock:
                sock.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE)  # not fstat(2): of a file, its file system would have to answer
            self._loop.add(fd, lambda _events: self._stirs(user))
        except OSError:
            return False
        return True

    def _stirs(self, user: str) -> None:
        """Something came: a command, or the end of the session."""
        fd = self._fds[user]
        self._loop.remove(fd)
        with borrowed(fd) as sock:
            try:
                over = not sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)  # who gave it may have kept a copy
            except OSError:
                over = True
        if over:
            self._do(self._core.sleeper_gone(user))
        elif user not in self._core.maildirs and not self._free():
            self._stirred[user] = None
        else:
            self._do(self._core.woken(user, self._loop.now))

    def wake_next(self) -> bool:
        """Wake the session that has waited longest for its turn; whether there was one."""
        user = next(iter(self._stirred), None)
        if user is None:
            return False
        del self._stirred[user]
        self._do(self._core.woken(user, self._loop.now))
        return True

    def take(self, user: str) -> int:
        """The descriptor, the caller's from now on."""
        fd = self._fds.pop(user)
        self._stirred.pop(user, None)
        self._loop.remove(fd)
        return fd

    def forget(self, user: str) -> None:
        """The session is over."""
        discard([self.take(user)])


