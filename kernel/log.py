"""The log, which the kernel alone writes: syslog(3) with facility mail, or lines on standard error."""

import os
import sys
import syslog
import time

__all__ = ["DEBUG", "ERROR", "INFO", "NOTICE", "WARNING", "Log", "printable"]

ERROR, WARNING, NOTICE, INFO, DEBUG = 3, 4, 5, 6, 7
_NAMES = {3: "error: ", 4: "warning: "}


def printable(text: str) -> str:
    """`text` with everything escaped that could make two lines of one, or move a terminal's cursor.

    By repr(), which is at hand: the codec unicode_escape would be a file to import, after the lock.
    """
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


class Log:
    """Where lines go. `verbose`: 0 shows up to notices, each step one syslog level more."""

    def __init__(self, where: str, verbose: int) -> None:
        """`where`: "syslog", "stderr", or "auto": standard error if that is a terminal."""
        if where == "auto":
            where = "stderr" if os.isatty(2) else "syslog"
        self.most = NOTICE + verbose
        self._syslog = where == "syslog"
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
                stamp = time.strftime("%Y-%m-%dT%H:%M:%S")
                try:
                    os.write(2, f"{stamp} popkernel: {_NAMES.get(level, '')}{printable(line)}\n".encode(errors="replace"))
                except OSError:
                    return  # nobody reads it any more; the mail goes on


def complain(text: str) -> None:
    """Before there is a log: to standard error."""
    sys.stderr.write(f"popkernel: {text}\n")
