"""The log, which the kernel alone writes: syslog(3) with facility mail, or lines on standard error; as text or as JSON.

Text for people and fail2ban, JSON for programs: one object a line, what came from outside in fields of its own. Either way nothing
anybody said can end a line or pass for another field.
"""

import contextlib
import json
import os
import select
import sys
import time
from collections.abc import Mapping
from typing import Any

from popkernel.kernel.runtime.system_log import PATH, SystemLog
from popkernel.proto.files.tables import Finding

__all__ = ["DEBUG", "ERROR", "INFO", "NOTICE", "WARNING", "Log", "as_json", "destination", "doubt", "event_text", "printable", "say"]

ERROR, WARNING, NOTICE, INFO, DEBUG = 3, 4, 5, 6, 7
LEVELS = ("emergency", "alert", "critical", "error", "warning", "notice", "info", "debug")
_WHOLE = 4096  # octets a pipe that poll(2) calls writable takes at once: PIPE_BUF
_NAMES = {3: "error: ", 4: "warning: "}


def printable(text: str) -> str:
    """`text` with everything escaped that could make two lines of one, or move a terminal's cursor.

    By repr(), which is at hand: the codec unicode_escape would be a file to import, after the lock.
    """
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def stamp() -> str:
    """The time as RFC 3339 has it, with milliseconds and the zone's offset."""
    now = time.time()
    local = time.localtime(now)
    zone = time.strftime("%z", local)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', local)}.{int(now * 1000) % 1000:03}{zone[:3]}:{zone[3:]}"


def event_text(event: str, fields: Mapping[str, Any]) -> str:
    """An event in one line of text, `event: name=value ...`; values that could be taken for more than one are in quotes."""
    return f"{event}: " + " ".join(f"{name}={_value(value)}" for name, value in fields.items())


def _value(value: Any) -> str:
    text = str(value)
    if text and text != "-" and text.isprintable() and not any(c in ' "=\\' for c in text):
        return text
    return '"' + printable(text.replace("\\", "\\\\").replace('"', '\\"')) + '"' if text else "-"


def as_json(level: int, text: str, actor: str, event: str = "", fields: Mapping[str, Any] | None = None) -> str:
    """A line as one JSON object in ASCII, at most 4,095 octets: what is too long for that is cut.

    What is ours stands before what somebody else said, for those who match lines by patterns (packaging/fail2ban).
    """
    row: dict[str, Any] = {"time": stamp(), "level": LEVELS[min(level, DEBUG)], "actor": actor}
    if event:
        row |= {"event": event, **(fields or {})}
    row["text"] = text
    line = json.dumps(row)
    while len(line) >= _WHOLE:
        longest = max((name for name, value in row.items() if isinstance(value, str)), key=lambda name: len(row[name]))
        row[longest] = row[longest][: len(row[longest]) // 2 - 3] + "..."
        line = json.dumps(row)
    return line


def destination(where: str) -> str:
    """What "auto" means here: standard error if that is a terminal, or where there is no syslog to tell."""
    if where == "auto":
        return "stderr" if os.isatty(2) or not os.path.exists(PATH) else "syslog"
    return where


def doubt(where: str, *, daemon: bool) -> Finding | None:
    """What is wrong with the key `log`, for start and `check`: a log that nobody will have."""
    if where == "stderr" or (where == "auto" and not daemon) or sys.platform != "linux" or os.path.exists(PATH):
        return None
    return Finding("log", 0, f"there is no syslog here ({PATH}), so the log will be lost", "run one, or give --log stderr 2>>FILE")


class Log:
    """Where lines go. `verbose`: 0 shows up to notices, each step one syslog level more."""

    def __init__(self, where: str, verbose: int, form: str = "text") -> None:
        """`where`: "syslog", "stderr", or "auto", see destination(). `form`: "text" or "json"."""
        self.most = NOTICE + verbose
        self.system = SystemLog() if destination(where) == "syslog" else None
        self._json = form == "json"
        self.seen = self.system is None  # what init says on standard error need not be said again
        self._lost = 0
        self._room = select.poll()
        self._room.register(2, select.POLLOUT)
        time.localtime()  # reads the time zone now, for later there may be no file to read

    def __call__(self, level: int, text: str, actor: str = "kernel") -> None:
        """One line; line ends within are kept apart as lines of their own (a list of findings). `actor`: whose words they are."""
        if level > self.most:
            return
        for line in text.split("\n"):
            said = printable(line)
            self._put(level, as_json(level, said, actor) if self._json else said if actor == "kernel" else f"{actor}: {said}")

    def event(self, level: int, event: str, fields: Mapping[str, Any]) -> None:
        """Something with fields of its own: the end of a session, a login that failed."""
        if level <= self.most:
            text = event_text(event, fields)
            self._put(level, as_json(level, text, "kernel", event, fields) if self._json else text)

    def _put(self, level: int, line: str) -> None:
        if self.system is not None:
            self._tell(self.system, level, line)
        else:
            self._write(line if self._json else f"{stamp()} popkernel: {_NAMES.get(level, '')}{line}")

    def _tell(self, system: SystemLog, level: int, line: str) -> None:
        """One line for the system's log; what it does not take is counted, as below."""
        if self._lost:
            text = f"{self._lost} lines of the log were lost: nobody read them"
            if not system.send(WARNING, as_json(WARNING, text, "kernel") if self._json else text):
                self._lost += 1
                return
            self._lost = 0
        if not system.send(min(level, DEBUG), line):
            self._lost = 1

    def _write(self, line: str) -> None:
        """One line on standard error, if that takes it: a reader who has stopped loses lines, which are counted, and stops nobody."""
        if not self._room.poll(0):
            self._lost += 1
            return
        lost, self._lost = self._lost, 0
        if lost:
            text = f"{lost} lines of the log were lost: nobody read them"
            _out(as_json(WARNING, text, "kernel") if self._json else f"{stamp()} popkernel: warning: {text}")
            if not self._room.poll(0):
                self._lost += 1
                return
        _out(line)


def _out(line: str) -> None:
    data = line.encode(errors="replace")
    if len(data) >= _WHOLE:
        data = data[: _WHOLE - 1].decode(errors="ignore").encode()  # no half of a letter
    with contextlib.suppress(OSError):  # nobody is there any more; the mail goes on
        os.write(2, data + b"\n")


def say(level: int, text: str, form: str = "text", *, timed: bool = False) -> None:
    """Init's own words, on standard error: what kept the service from starting, that it is ready, how it ended.

    `timed`: among lines of the log, which have the time.
    """
    for line in text.split("\n"):
        text = f"{stamp() + ' ' if timed else ''}popkernel: {'warning: ' if level == WARNING else ''}{printable(line)}"
        _out(as_json(level, printable(line), "init") if form == "json" else text)
