"""Hold the channels of parked sessions while their maildir actors' processes are gone (passivation).

The listener does not notice: it keeps its end of the channel. When its next message makes the channel
readable, the kernel hands the channel, with the message unread, to the user's maildir actor, and starts one
if there is none.
"""

import contextlib
import socket
from collections.abc import Callable, Iterator

from popkernel.kernel.decisions import leases
from popkernel.kernel.decisions.actions import Action
from popkernel.kernel.runtime.channel import adopt, discard
from popkernel.kernel.runtime.loop import Loop
from popkernel.proto import messages as m

__all__ = ["Parking"]


@contextlib.contextmanager
def borrowed(fd: int) -> Iterator[socket.socket]:
    """Lend a descriptor as a socket. No copy is made: there may be no room for one."""
    sock = adopt(fd)
    try:
        yield sock
    finally:
        sock.detach()


class Parking:
    """Keep the descriptors, and wake a session when its descriptor is readable.

    kernel/decisions/leases.py makes the decisions. `len()`: descriptors held.
    """

    def __init__(
        self,
        loop: Loop,
        decide: leases.Core,
        do: Callable[[list[Action]], None],
        free: Callable[[], bool],
    ) -> None:
        """`free`: returns whether an actor could be forked at once."""
        self._loop = loop
        self._core = decide
        self._do = do
        self._free = free
        # users whose parked session is readable, and waits until an actor can be forked; in that order
        self._readable: dict[str, None] = {}
        self._fds: dict[str, int] = {}  # user -> this end of the session's channel
        self._since: dict[str, float] = {}  # user -> when its session was parked

    def __len__(self) -> int:
        return len(self._fds)

    def since(self, user: str) -> float | None:
        """Return when a user's session was parked, of the loop's time; None if it is not."""
        return self._since.get(user)

    def too_soon(self, name: str, message: m.SessionParked) -> bool:
        """Return whether that session can't have been silent long enough.

        An actor that parks a session with a command unread would have it woken and parked again without end.
        """
        maildir = self._core.maildirs.get(name.removeprefix("maildir."))
        if maildir is None or maildir.key is None or maildir.key.session != message.session:
            return False
        return self._loop.now < maildir.parks

    def park(self, name: str, message: m.SessionParked | m.SessionMoved, fd: int) -> None:
        """Take a session from its maildir actor. `fd`: its channel, which this object owns from now on."""
        user = name.removeprefix("maildir.")
        known = user in self._core.asleep
        actions = self._core.parked(name, message, self._loop.now)
        if known or user not in self._core.asleep:  # not a session of that actor: nothing was parked
            discard([fd])
        else:
            self._fds[user] = fd
            self._since[user] = self._loop.now
            if not self._watch(user, fd):
                actions = [*actions, *self._core.sleeper_gone(user)]
        self._do(actions)

    def _watch(self, user: str, fd: int) -> bool:
        """Wait for the descriptor; return False if that is impossible: an actor may hand over no socket."""
        try:
            with borrowed(fd) as sock:
                # not fstat(2): for a file it could wait for the file system
                sock.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE)
            self._loop.add(fd, lambda _events: self._on_readable(user))
        except OSError:
            return False
        return True

    def _on_readable(self, user: str) -> None:
        """Wake the session if a command came, or forget it if its channel ended."""
        fd = self._fds[user]
        self._loop.remove(fd)
        with borrowed(fd) as sock:
            try:
                # MSG_DONTWAIT: the actor may have kept a copy, and made it blocking or read it empty
                over = not sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
            except OSError:
                over = True
        if over:
            self._do(self._core.sleeper_gone(user))
        elif user not in self._core.maildirs and not self._free():
            self._readable[user] = None
        else:
            self._do(self._core.woken(user, self._loop.now))

    def wake_next(self) -> bool:
        """Wake the session that has waited longest for its turn; return whether there was one."""
        user = next(iter(self._readable), None)
        if user is None:
            return False
        del self._readable[user]
        self._do(self._core.woken(user, self._loop.now))
        return True

    def take(self, user: str) -> int:
        """Return a session's descriptor, which the caller owns from now on."""
        fd = self._fds.pop(user)
        self._since.pop(user, None)
        self._readable.pop(user, None)
        self._loop.remove(fd)
        return fd

    def forget(self, user: str) -> None:
        """Close the channel of a session that is over."""
        discard([self.take(user)])
