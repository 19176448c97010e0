"""Write the log: syslog(3) with facility mail, or lines on standard error; as text or as JSON.

Only the kernel writes it, and init before and after the kernel. An event (proto/log_events.py) becomes a line
here and nowhere else: text for people and fail2ban, one JSON object a line for programs. In both, no text
from outside can end a line or look like another field.
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
from popkernel.proto.log_events import FINDINGS, text_of
from popkernel.proto.log_levels import WARNING, level_name
from popkernel.proto.schema import printable

__all__ = ["Log", "as_json", "destination", "doubt", "say", "to_journal"]

_WHOLE = 4096  # octets that a writable pipe takes at once: PIPE_BUF
_MOST_JSON = _WHOLE - 1 - len("<N>")
_LOST = "log.lost"
Fields = Mapping[str, Any]


def stamp() -> str:
    """Return the local time as in RFC 3339 section 5.6, with milliseconds and the zone's offset."""
    now = time.time()
    local = time.localtime(now)
    zone = time.strftime("%z", local)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', local)}.{int(now * 1000) % 1000:03}{zone[:3]}:{zone[3:]}"


def as_json(level: int, actor: str, event: str, fields: Fields) -> str:
    """Return an event as one JSON object in ASCII, of at most 4,092 octets: longer values are cut.

    The server's own fields come before those with text from outside, for filters that match by patterns
    (packaging/fail2ban).
    """
    row: dict[str, Any] = {
        "time": stamp(),
        "level": level_name(level),
        "actor": actor,
        "event": event,
        **fields,
    }
    line = json.dumps(row)
    while len(line) > _MOST_JSON:
        longest = max(
            (name for name, value in row.items() if isinstance(value, str)), key=lambda name: len(row[name])
        )
        row[longest] = row[longest][: len(row[longest]) // 2 - 3] + "..."
        line = json.dumps(row)
    return line


def _one_by_one(fields: Fields) -> list[Fields]:
    """Split a list of findings, one a line, so that each gets an object of its own and none is cut."""
    for name, value in fields.items():
        if name in FINDINGS and isinstance(value, str) and "\n" in value:
            return [{**fields, name: line} for line in value.split("\n")]
    return [fields]


def _rendered(form: str, level: int, actor: str, event: str, fields: Fields) -> list[str]:
    """Return the lines of an event: more than one only if a field is a list of findings."""
    if form == "json":
        return [as_json(level, actor, event, each) for each in _one_by_one(fields)]
    words = map(printable, text_of(event, fields).split("\n"))
    return [*words] if actor in ("kernel", "init") else [f"{actor}: {line}" for line in words]


def destination(where: str) -> str:
    """Resolve "auto": standard error if that is a terminal or if there is no syslog, else syslog."""
    if where == "auto":
        return "stderr" if os.isatty(2) or not os.path.exists(PATH) else "syslog"
    return where


def to_journal() -> bool:
    """Return whether standard error goes to the journal, which reads `<N>` as a level (sd-daemon(3))."""
    try:
        device, inode = map(int, os.environ.get("JOURNAL_STREAM", "").split(":"))
        there = os.fstat(2)
    except (ValueError, OSError):
        return False
    return (device, inode) == (there.st_dev, there.st_ino)


def doubt(where: str, *, daemon: bool) -> Finding | None:
    """Return a finding about the key `log` if the log would be lost; for start and `check`."""
    if (
        where == "stderr"
        or (where == "auto" and not daemon)
        or sys.platform != "linux"
        or os.path.exists(PATH)
    ):
        return None
    return Finding(
        "log",
        0,
        f"there is no syslog here ({PATH}), so the log will be lost",
        "run one, or give --log stderr 2>>FILE",
    )


class Log:
    """Write lines."""

    def __init__(self, where: str, most: int, form: str = "text") -> None:
        """`where`: "syslog", "stderr", or "auto", see destination(). `most`: the highest level shown.

        `form`: "text" or "json".
        """
        self.most = most
        self.system = SystemLog() if destination(where) == "syslog" else None
        self._form = form
        self._journal = to_journal()
        # init's messages go where the log is: do not repeat them
        self.seen = self.system is None or self._journal
        self._lost = 0
        self._room = select.poll()
        self._room.register(2, select.POLLOUT)
        time.localtime()  # reads the time zone now, for later there may be no file to read

    def __call__(self, level: int, event: str, /, **fields: Any) -> None:
        """Log an event of the kernel's own."""
        self.event(level, event, fields)

    def event(self, level: int, event: str, fields: Fields, actor: str = "kernel") -> None:
        """Log an event. `actor`: its author."""
        if level <= self.most:
            for line in _rendered(self._form, level, actor, event, fields):
                self._put(level, line)

    def _put(self, level: int, line: str) -> None:
        if self.system is not None:
            self._send(self.system, level, line)
        else:
            self._write(self._on_stderr(level, line))

    def _on_stderr(self, level: int, line: str) -> str:
        if self._journal:
            return f"<{level}>{line}"  # the journal takes this off again, also before an object
        return line if self._form == "json" else f"{stamp()} popkernel: {_prefix(level)}{line}"

    def _lost_line(self) -> str:
        """Return the line with the number of lost lines."""
        return _rendered(self._form, WARNING, "kernel", _LOST, {"count": self._lost})[0]

    def _send(self, system: SystemLog, level: int, line: str) -> None:
        """Send one line to the system's log; count the lines that it does not take."""
        if self._lost:
            if not system.send(WARNING, self._lost_line()):
                self._lost += 1
                return
            self._lost = 0
        if not system.send(level, line):
            self._lost = 1

    def _write(self, line: str) -> None:
        """Write a line on standard error, or count it as lost: a stopped reader must not block the kernel."""
        if not self._room.poll(0):
            self._lost += 1
            return
        if self._lost:
            lost = self._lost_line()
            self._lost = 0
            _out(self._on_stderr(WARNING, lost))
            if not self._room.poll(0):
                self._lost += 1
                return
        _out(line)


def _prefix(level: int) -> str:
    """Return the level as the beginning of a text line, if somebody has to act on it, else ""."""
    return f"{level_name(level)}: " if level <= WARNING else ""


def _out(line: str) -> None:
    data = line.encode(errors="replace")
    if len(data) >= _WHOLE:
        data = data[: _WHOLE - 1].decode(errors="ignore").encode()  # whole characters only
    with contextlib.suppress(OSError):  # a log without a reader must not stop the service
        os.write(2, data + b"\n")


def say(level: int, event: str, form: str = "text", /, *, timed: bool = False, **fields: Any) -> None:
    """Write an event of init on standard error: why a start failed, that the service is ready, how it ended.

    `timed`: prefix the time, as lines of the log have it.
    """
    time_prefix = f"{stamp()} " if timed else ""
    level_prefix = _prefix(level) if level == WARNING else ""
    prefix = f"{time_prefix}popkernel: {level_prefix}" if form == "text" else ""
    if to_journal():
        prefix = f"<{level}>"
    for line in _rendered(form, level, "init", event, fields):
        _out(f"{prefix}{line}")
