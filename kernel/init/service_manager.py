"""Notify the service manager, if there is one, and keep its watchdog fed; sd_notify(3)."""

import contextlib
import os
import socket
from collections.abc import Callable

from popkernel.kernel.runtime.loop import Loop

__all__ = ["Watchdog", "notify"]

_PARTS = 3  # requests in the manager's time: one that is late, or lost on a full socket, has no effect


def notify(text: str) -> None:
    """Send a state such as "READY=1", without waiting. Errors are ignored."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path:
        return
    with (
        contextlib.suppress(OSError),
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock,
    ):
        sock.connect("\0" + path[1:] if path[0] == "@" else path)
        sock.sendall(text.encode())


def _watchdog_seconds() -> float:
    """Return how long the manager waits for a sign of life from this process, 0.0 if it waits for none.

    As sd_watchdog_enabled(3): the variables are meant for the process that the manager started.
    """
    usec, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", "")
    if not usec.isdecimal() or (pid and pid != str(os.getpid())):
        return 0.0
    return int(usec) / 1e6


class Watchdog:
    """Send the manager WATCHDOG=1 as long as the kernel answers; without a watchdog there is no timer."""

    def __init__(self, loop: Loop, ask: Callable[[], None]) -> None:
        """`ask`: asks the kernel for an answer."""
        self._loop = loop
        self._ask = ask
        self._seconds = _watchdog_seconds() / _PARTS
        self._asked = False

    def begin(self) -> None:
        """Ask the kernel periodically, once the service is ready."""
        if self._seconds:
            self._beat()

    def _beat(self) -> None:
        if not self._asked:
            self._asked = True
            self._ask()
        self._loop.later(self._seconds, self._beat)

    def answered(self) -> None:
        """Take the kernel's answer."""
        if self._asked:
            self._asked = False
            notify("WATCHDOG=1")
