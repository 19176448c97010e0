"""Read what a start or a reload begins with, in a process of its own: configuration, ids, user table.

A disk that hangs then holds up nobody but that child, which has a deadline. Init gets the configuration by a pipe, and the user table in
memory, of which it hands the kernel a descriptor; it looks at no octet of the table itself.
"""

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import msgpack
from popkernel.kernel.config.addresses import Address
from popkernel.kernel.config.keys import Config, ConfigError, keys
from popkernel.kernel.config.user_table import NoTableError, read_table
from popkernel.kernel.init.file_watching import State, states
from popkernel.kernel.init.ids import actor_ids, mta_ids
from popkernel.kernel.runtime.child_process import end, fork_and_tell, told
from popkernel.kernel.runtime.deadlines import Deadline
from popkernel.kernel.runtime.exit_codes import EXITS
from popkernel.kernel.runtime.loop import Loop

__all__ = ["Read", "Reading", "watched"]

SECONDS = 20  # that reading may take
_MOST_SAID = 16 << 20  # octets of what the child says: a configuration of 1 MiB, and what stands around each of its texts
_CONFIG, _IOERR, _TEMPFAIL = (EXITS[name].code for name in ("config", "ioerr", "tempfail"))


class Read(NamedTuple):
    """What came of it. With an `error` only that, its exit code (sysexits(3)) and `states` mean anything."""

    error: str = ""
    code: int = 0
    states: Mapping[str, State] = {}
    """The watched files as they were before they were read, as far as that was seen."""
    config: Config | None = None
    """With what a reload puts in force taken from the file, and the rest as it was."""
    later: Sequence[str] = ()
    """Changed keys that count from the next start on."""
    ids: Mapping[str, tuple[int, int]] = {}
    table: int = -1
    """A descriptor of the user table's octets, whoever gets this is to close."""


def watched(config: Config) -> list[str]:
    """The files that a reload reads, but for the configuration itself: its keys are the operator's to put in force."""
    single = [getattr(config, key.name) for key in keys() if key.metadata["kind"] == "file"]
    return [path for path in (*single, *(path for pair in config.certs for path in pair)) if path]


class Reading:
    """One child that reads. `over` is called once, unless `end` comes before."""

    def __init__(self, loop: Loop, config: Config, again: Callable[[], Config], over: Callable[[Read], None]) -> None:
        """`config`: the one in force; `again` reads the file anew. OSError: there is no room for a process, nothing is left over."""
        self._loop = loop
        self._over = over
        self._said = b""
        self._table = memory_file(config.run_dir)
        try:
            self.pid, self._pipe = fork_and_tell(lambda pipe: _read(pipe, self._table, config, again), [self._table])
        except OSError:
            os.close(self._table)
            raise
        self._late = Deadline(loop, SECONDS, lambda: self._finish(late=True))
        loop.add(self._pipe, self._ready)

    def _ready(self, events: int) -> None:
        del events
        part = told(self._pipe)
        self._said += part or b""
        if part == b"" or len(self._said) > _MOST_SAID:
            self._finish()

    def _finish(self, *, late: bool = False) -> None:
        table, self._table = self._table, -1
        read = _understood(self._said, table, late=late)
        if read.error:
            os.close(table)
        self.end()
        self._over(read)

    def reaped(self, pid: int) -> None:
        """That process has ended, its number is nobody's any more. What it said is in the pipe still."""
        if pid == self.pid:
            self.pid = 0

    def end(self) -> None:
        """Read no further. Nothing is said, and nobody is waited for: it may hang on a disk that is gone."""
        self._late.cancel()
        if self._pipe >= 0:
            self._loop.remove(self._pipe)
            os.close(self._pipe)
            self._pipe = -1
        if self._table >= 0:
            os.close(self._table)
            self._table = -1
        if self.pid:
            end(self.pid)
            self.pid = 0


def memory_file(run_dir: str) -> int:
    """A file without a name: in memory, or where the system has none of these in the run directory. OSError where there is no room."""
    if hasattr(os, "memfd_create"):
        with contextlib.suppress(OSError):
            return os.memfd_create("popkernel")
    path = f"{run_dir}/table.{os.getpid()}"
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    os.unlink(path)
    return fd


# -- in the child
def _read(pipe: int, table: int, config: Config, again: Callable[[], Config]) -> None:
    """Say what is about to be read, and at the end what was read or what was wrong."""
    said: dict[str, Any] = {"states": {}}
    try:
        _say(pipe, "the configuration, or a file that it names,")
        said["states"] = states(watched(config))
        asked = again()
        new, later = _merged(config, asked)
        said["states"] |= states(watched(new))
        _say(pipe, "the list of the system's users")
        ids = actor_ids(new)
        mta_ids(asked)  # for the next start, which would be refused
        said |= {"ids": ids, "later": later, "config": {key.name: getattr(new, key.name) for key in keys()}}
        _say(pipe, new.user_table)
        left = memoryview(read_table(new.user_table))
        while left:
            left = left[os.write(table, left) :]
    except ConfigError as error:
        said |= {"error": str(error), "code": _CONFIG}
    except NoTableError as error:
        said |= {"error": str(error), "code": error.code}
    except (OSError, MemoryError) as error:
        why = error.strerror if isinstance(error, OSError) else "no memory"
        said |= {"error": f"the user table could not be kept in memory: {why}", "code": _TEMPFAIL}
    _say(pipe, said)


def _merged(config: Config, new: Config) -> tuple[Config, list[str]]:
    """What a reload would put in force, and the changed keys that wait for the next start."""
    waiting = [key.name for key in keys() if not key.metadata["reload"]]
    later = [name for name in waiting if getattr(new, name) != getattr(config, name)]
    return replace(new, **{name: getattr(config, name) for name in later}), later


def _say(pipe: int, what: Any) -> None:
    data = memoryview(msgpack.packb(what, unicode_errors="surrogateescape"))
    while data:
        data = data[os.write(pipe, data) :]


# -- in init
def _understood(said: bytes, table: int, *, late: bool) -> Read:
    """What the child said; where it did not come to its end, what it was at."""
    at, found = "the configuration", None
    unpacker = msgpack.Unpacker(unicode_errors="surrogateescape", max_buffer_size=2 * _MOST_SAID)
    unpacker.feed(said)
    for item in unpacker:
        if isinstance(item, dict):
            found = item
        else:
            at = item
    if found is None:
        return Read(f"{at} could not be read within {SECONDS} s" if late else f"{at} could not be read: its reader ended", _IOERR)
    seen = {path: tuple(state) if state else None for path, state in found["states"].items()}
    if "error" in found:
        return Read(found["error"], found["code"], seen)
    ids = {name: (uid, gid) for name, (uid, gid) in found["ids"].items()}
    return Read("", 0, seen, _config_of(found["config"]), found["later"], ids, table)


def _config_of(values: dict[str, Any]) -> Config:
    """A configuration that went through a pipe: lists are tuples again."""
    for key in keys():
        value = values[key.name]
        if key.metadata["kind"] == "addresses":
            values[key.name] = tuple(Address(*pair) for pair in value)
        elif isinstance(value, list):
            values[key.name] = tuple(tuple(item) if isinstance(item, list) else item for item in value)
    return Config(**values)
