"""A thread that ends a client whose TLS keeps OpenSSL busy: key updates without end are taken within one call, which no timer ends.

It measures what the listener's own thread has computed since the call began, not the time: a busy machine is nobody's fault.
What it does is shutdown(2): the call then finds the end of the connection, and returns.
"""

import contextlib
import socket
import threading
import time

__all__ = ["Watchdog"]

_LOOK = 0.1  # seconds between two looks
_LOOK_IDLE = 0.5  # and where nothing is computed: a tenth of a millisecond each, else most of what an idle server costs
_STILL = 0.001  # seconds of processor between two looks: whoever computed less is idle
_MOST = 0.05  # seconds of processor for one call: reading all that a socket holds takes a tenth of that


class Watchdog:
    """Watches the thread it is made in.

    `call`: the call under way, as a tuple of its own with the socket in it, so that no two calls are the same; None between calls.
    """

    __slots__ = ("_before", "_clock", "_seen", "_since", "call", "stopped")

    def __init__(self) -> None:
        self.call: tuple[socket.socket] | None = None
        self.stopped = 0  # connections
        self._seen: tuple[socket.socket] | None = None
        self._since = 0.0  # processor time of the watched thread when a look first found that call
        self._before = 0.0  # and at the last look
        self._clock = time.pthread_getcpuclockid(threading.get_ident())

    def start(self) -> None:
        """Begin; to be called between Landlock and seccomp, as all threads must."""
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        pause = _LOOK
        while True:
            time.sleep(pause)
            pause = _LOOK if self.look() else min(2 * pause, _LOOK_IDLE)

    def look(self) -> bool:
        """End the connection of a call that has computed too much since a look first found it, however many looks ago.

        On a busy machine the thread may have little of the processor between two looks. True where it does anything, so that the next look
        should be soon.
        """
        call, before = self.call, self._before
        now = self._before = time.clock_gettime(self._clock)
        if call is not self._seen:
            self._seen, self._since = call, now
        elif call is not None and now - self._since > _MOST:
            self._since = now
            self.stopped += 1
            with contextlib.suppress(OSError):  # it has ended meanwhile
                socket.socket.shutdown(call[0], socket.SHUT_RDWR)
        return call is not None or now - before > _STILL
