"""End clients whose TLS keeps OpenSSL busy, from a thread.

OpenSSL processes endless key updates within one call, which no timer interrupts. The watchdog measures the
processor time of the listener's thread since the call began, not wall time: a slow call on a busy machine is
not the client's fault. It calls shutdown(2) on the socket; OpenSSL's call then sees the end of the connection
and returns.
"""

import contextlib
import socket
import threading
import time
from collections.abc import Sized

__all__ = ["Watchdog"]

_CHECK = 0.1  # seconds between two checks
_CHECK_IDLE = 0.5  # seconds while nothing is computed; a check takes 0.1 ms
_STILL = 0.001  # seconds of processor between two checks: less is idle
_MOST = 0.05  # seconds of processor for one call: to read all that a socket holds takes a tenth of that


class Watchdog:
    """Watch the thread it is made in, while that has `connections`.

    `call`: the call under way, as a new tuple with its socket, so that no two calls are the same object; None
    between calls.

    `asleep`: no connection has been there for a while, and no check will come before `wake` is called.
    """

    __slots__ = (
        "_before",
        "_clock",
        "_connections",
        "_seen",
        "_since",
        "_wakeup",
        "asleep",
        "call",
        "stopped",
    )

    def __init__(self, connections: Sized) -> None:
        self._connections = connections
        self._wakeup = threading.Event()
        self.asleep = False
        self.call: tuple[socket.socket] | None = None
        self.stopped = 0  # connections ended
        self._seen: tuple[socket.socket] | None = None
        self._since = 0.0  # processor time of the watched thread when a check first found that call
        self._before = 0.0  # and at the last check
        self._clock = time.pthread_getcpuclockid(threading.get_ident())

    def start(self) -> None:
        """Start the thread; to be called between Landlock and seccomp, as for all threads."""
        threading.Thread(target=self._watch, daemon=True).start()

    def wake(self) -> None:
        """Check again. To be called for a connection that comes while it is `asleep`."""
        self.asleep = False
        self._wakeup.set()

    def _watch(self) -> None:
        pause = _CHECK
        while True:
            time.sleep(pause)
            if self.check():
                pause = _CHECK
            elif pause < _CHECK_IDLE:
                pause = min(2 * pause, _CHECK_IDLE)
            elif not self._connections:
                self._sleep()

    def _sleep(self) -> None:
        self._wakeup.clear()
        self.asleep = True
        if not self._connections:  # one that came before `asleep` was set has called nothing
            self._wakeup.wait()
        self.asleep = False

    def check(self) -> bool:
        """End the connection of a call that has computed too long. Returns whether the thread is busy.

        If it is, the next check should come soon. The time counts from the first check that found the call:
        on a busy machine the thread may have run little between two checks.
        """
        call, before = self.call, self._before
        now = self._before = time.clock_gettime(self._clock)
        if call is not self._seen:
            self._seen, self._since = call, now
        elif call is not None and now - self._since > _MOST:
            self._since = now
            self.stopped += 1
            with contextlib.suppress(OSError):  # the connection may have ended
                socket.socket.shutdown(call[0], socket.SHUT_RDWR)
        return call is not None or now - before > _STILL
