"""The log, which the kernel alone writes: syslog(3) with facility mail, or lines on standard error."""

import contextlib
import os
import select
import sys
import syslog
import time

__all__ = ["DEBUG", "ERROR", "INFO", "NOTICE", "WARNING", "Log", "printable"]

ERROR, WARNING, NOTICE, INFO, DEBUG = 3, 4, 5, 6, 7
_WHOLE = 4096  # octets a pipe that poll(2) calls writable takes at once: PIPE_BUF
_NAMES = {3: "error: ", 4: "warning: "}


def printable(text: str) -> str:
    """`text` with everything escaped that could make two lines of one, or move a terminal's cursor.

    By repr(), which is at hand: the codec unicode_escape would be a file to import, after the lock.
    """
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


class Log:
    """Where lines go. `verbose`: 0 shows up to notices, each step one syslog level more."""

    def __init__(self, where: str, verbose: int) -> None:
        """`where`: "syslog", "stderr", or "auto": standard error if that is a terminal, or where there is no syslog to tell."""
        if where == "auto":
            where = "stderr" if os.isatty(2) or not os.path.exists("/dev/log") else "syslog"
        self.most = NOTICE + verbose
        self._syslog = where == "syslog"
        self.seen = not self._syslog  # what init says on standard error need not be said again
        self._lost = 0
        self._room = select.poll()
        self._room.register(2, select.POLLOUT)
        time.localtime()  # reads the time zone now, for later there may be no file to read
        if self._syslog:
            syslog.openlog("popkernel", syslog.LOG_PID | syslog.LOG_NDELAY, syslog.LOG_MAIL)

    def __call__(self, level: int, text: str) -> None:
        """One line; line ends within are kept apart as lines of their own (a list of findings)."""
        if level > self.most:
            return
        for line in text.split("\n"):
            if self._syslog:
                syslog.syslog(min(level, DEBUG), printable(line))
            else:
                self._write(f"{_NAMES.get(level, '')}{printable(line)}")

    def _write(self, line: str) -> None:
        """One line on standard error, if that takes it: a reader who has stopped loses lines, which are counted, and stops nobody."""
        if not self._room.poll(0):
            self._lost += 1
            return
        lost, self._lost = self._lost, 0
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S popkernel: ")
        text = f"{stamp}warning: {lost} lines of the log were lost: nobody read them\n" if lost else ""
        with contextlib.suppress(OSError):  # nobody is there any more; the mail goes on
            os.write(2, f"{text}{stamp}{line}\n".encode(errors="replace")[:_WHOLE])


def complain(text: str) -> None:
    """Before there is a log: to standard error."""
    sys.stderr.write(f"popkernel: {text}\n")
