"""Write to the system's log, syslog(3), without ever waiting.

On Linux the lines are datagrams on a socket, and init connects a new one when the log's daemon was restarted.
OpenBSD's syslog(3) needs no socket: it uses a system call of its own, sendsyslog(2).
"""

import contextlib
import os
import socket
import sys
import syslog
import time
from collections.abc import Callable

__all__ = ["SystemLog", "connect", "connect_for"]

PATH = "/dev/log"
_FACILITY = 2 << 3  # mail
_ASK_SECONDS = 2.0  # between two requests to init


def connect() -> socket.socket | None:
    """Return a socket connected to the log's daemon, None if there is none."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sock.setblocking(False)
    with contextlib.suppress(OSError):
        sock.connect(PATH)
        return sock
    sock.close()
    return None


def connect_for(hand_over: Callable[[int], None]) -> None:
    """Connect for the kernel, which may make no socket. If that fails, the kernel asks again later."""
    with contextlib.suppress(OSError):
        log = connect()
        if log is not None:
            with log:
                hand_over(log.fileno())


class SystemLog:
    """Send lines to the system's log.

    `again` is called to have init connect anew, if the daemon is gone: another may run by now.
    """

    def __init__(self) -> None:
        self.again: Callable[[], None] = lambda: None
        self._asked = -_ASK_SECONDS
        self._socket: socket.socket | None = None
        if sys.platform == "linux":
            with contextlib.suppress(OSError):
                self._socket = connect()
        else:
            syslog.openlog("popkernel", syslog.LOG_PID | syslog.LOG_NDELAY, syslog.LOG_MAIL)

    def receive(self, fd: int) -> None:
        """Use a socket that init has connected."""
        if self._socket is not None:
            self._socket.close()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM, 0, fileno=fd)

    def send(self, level: int, line: str) -> bool:
        """Send one line; return whether the log took it. `level`: as in syslog(3)."""
        if sys.platform != "linux":
            syslog.syslog(level, line)
            return True
        data = f"<{_FACILITY | level}>{time.strftime('%b %e %H:%M:%S')} popkernel[{os.getpid()}]: {line}"
        try:
            if self._socket is not None:
                self._socket.send(data.encode(errors="replace"))
                return True
        except BlockingIOError:  # the daemon runs, but does not read
            return False
        except OSError:
            pass
        now = time.monotonic()
        if now - self._asked >= _ASK_SECONDS:
            self._asked = now
            self.again()
        return False
