"""The system's log, syslog(3), as the kernel writes to it: datagrams to a socket that init connects anew. It never waits.

OpenBSD's syslog(3) is a system call of its own, sendsyslog(2), and is used as it is.
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
_ASK_SECONDS = 2.0  # between two questions to init


def connect() -> socket.socket | None:
    """A socket that is connected to whoever takes the log; None where there is nobody."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sock.setblocking(False)
    with contextlib.suppress(OSError):
        sock.connect(PATH)
        return sock
    sock.close()
    return None


def connect_for(hand_over: Callable[[int], None]) -> None:
    """Connect for the kernel, which makes no socket, and which asks again where there is nobody or no room."""
    with contextlib.suppress(OSError):
        log = connect()
        if log is not None:
            with log:
                hand_over(log.fileno())


class SystemLog:
    """`again` has init connect anew: whoever took the log is gone, and another may be there, as after an upgrade of it."""

    def __init__(self) -> None:
        self.again: Callable[[], None] = lambda: None
        self._asked = -_ASK_SECONDS
        self._socket: socket.socket | None = None
        if sys.platform == "linux":
            with contextlib.suppress(OSError):
                self._socket = connect()
        else:
            syslog.openlog("popkernel", syslog.LOG_PID | syslog.LOG_NDELAY, syslog.LOG_MAIL)

    def take(self, fd: int) -> None:
        """The socket that init has connected."""
        if self._socket is not None:
            self._socket.close()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM, 0, fileno=fd)

    def send(self, level: int, line: str) -> bool:
        """One line; whether it was taken. `level` as in syslog(3)."""
        if sys.platform != "linux":
            syslog.syslog(level, line)
            return True
        data = f"<{_FACILITY | level}>{time.strftime('%b %e %H:%M:%S')} popkernel[{os.getpid()}]: {line}"
        try:
            if self._socket is not None:
                self._socket.send(data.encode(errors="replace"))
                return True
        except BlockingIOError:  # it is there, and does not read
            return False
        except OSError:
            pass
        now = time.monotonic()
        if now - self._asked >= _ASK_SECONDS:
            self._asked = now
            self.again()
        return False
