"""Read the inputs of a start or a reload in a process of its own: configuration, ids, user table, digests.

A disk that hangs stops only that child, which has a deadline. Init gets the configuration over a pipe and the
user table in memory. It hands the kernel a descriptor of the table, and reads none of its octets.
"""

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import msgpack
from popkernel.kernel.config.addresses import Address
from popkernel.kernel.config.keys import Config, keys
from popkernel.kernel.config.loading import ConfigError
from popkernel.kernel.config.user_table import NoTableError, read_table
from popkernel.kernel.init.contents import ends, fingerprint
from popkernel.kernel.init.file_watching import State, states
from popkernel.kernel.init.ids import actor_ids, mta_ids
from popkernel.kernel.runtime.child_process import end, fork_and_tell, told
from popkernel.kernel.runtime.deadlines import Deadline
from popkernel.kernel.runtime.exit_codes import EXITS
from popkernel.kernel.runtime.loop import Loop

__all__ = ["InputReader", "Inputs", "watched_files"]

SECONDS = 20  # for reading
# octets over the pipe: a configuration of 1 MiB, and msgpack's framing of its texts
_MOST_RECEIVED = 16 << 20
_CONFIG, _IOERR, _TEMPFAIL = (EXITS[name].code for name in ("config", "ioerr", "tempfail"))


class Inputs(NamedTuple):
    """The result of reading. With an `error`, only it, its `code` (sysexits(3)) and `states` are valid."""

    error: str = ""
    code: int = 0
    states: Mapping[str, State] = {}
    """The watched files just before they were read, as far as the child got."""
    config: Config | None = None
    """Keys that a reload puts in force are from the file; the others are as before."""
    later: Sequence[str] = ()
    """Changed keys that take effect at the next start."""
    ids: Mapping[str, tuple[int, int]] = {}
    """Uid and gid by actor."""
    table: int = -1
    """A descriptor of the user table's octets, which the receiver closes."""
    contents: Mapping[str, str] = {}
    """Digests of the files that auth and the listeners read (contents.py), by actor."""
    certificates: Sequence[tuple[str, int]] = ()
    """The file of each certificate, and its end in seconds since the epoch."""


def watched_files(config: Config) -> list[str]:
    """Return the files that a reload reads, without the configuration: the operator puts that in force."""
    single = [getattr(config, key.name) for key in keys() if key.metadata["kind"] == "file"]
    return [path for path in (*single, *(path for pair in config.certs for path in pair)) if path]


class InputReader:
    """Run one child that reads. `over` is called once with the result, unless `end` is called before."""

    def __init__(
        self, loop: Loop, config: Config, again: Callable[[], Config], over: Callable[[Inputs], None]
    ) -> None:
        """Fork the child.

        Args:
            loop: of init.
            config: the configuration in force.
            again: reads the configuration anew, in the child.
            over: takes the result.

        Raises:
            OSError: the system has no room for a process or a descriptor; none is left open.
        """
        self._loop = loop
        self._over = over
        self._received = b""
        self._table = memory_file(config.run_dir)
        try:
            self.pid, self._pipe = fork_and_tell(
                lambda pipe: _read(pipe, self._table, config, again), [self._table]
            )
        except OSError:
            os.close(self._table)
            raise
        self._late = Deadline(loop, SECONDS, lambda: self._finish(late=True))
        loop.add(self._pipe, self._ready)

    def _ready(self, events: int) -> None:
        del events
        part = told(self._pipe)
        self._received += part or b""
        if part == b"" or len(self._received) > _MOST_RECEIVED:
            self._finish()

    def _finish(self, *, late: bool = False) -> None:
        table, self._table = self._table, -1
        inputs = _decoded(self._received, table, late=late)
        if inputs.error:
            os.close(table)
        self.end()
        self._over(inputs)

    def reaped(self, pid: int) -> None:
        """Forget the process of that number: it has ended. What it wrote is still in the pipe."""
        if pid == self.pid:
            self.pid = 0

    def end(self) -> None:
        """Stop reading, without calling `over` and without waiting for the child: its disk may hang."""
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
    """Return the descriptor of a file without a name: in memory if the system can, else in the run directory.

    Raises:
        OSError: there is no room for it.
    """
    if hasattr(os, "memfd_create"):
        with contextlib.suppress(OSError):
            return os.memfd_create("popkernel")
    path = f"{run_dir}/table.{os.getpid()}"
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    os.unlink(path)
    return fd


# -- in the child
def _read(pipe: int, table: int, config: Config, again: Callable[[], Config]) -> None:
    """Read all inputs, and write the result to the pipe; before each, its name, for the text of a timeout."""
    result: dict[str, Any] = {"states": {}}
    try:
        _write(pipe, "the configuration, or a file that it names,")
        result["states"] = states(watched_files(config))
        read = again()
        new, later = _merged(config, read)
        result["states"] |= states(watched_files(new))
        _write(pipe, "the list of the system's users")
        ids = actor_ids(new)
        mta_ids(read)  # raises for a user that would make the next start fail
        result |= {"ids": ids, "later": later}
        result["config"] = {key.name: getattr(new, key.name) for key in keys()}
        result["contents"] = {
            actor: fingerprint(new, actor, lambda path: _write(pipe, path)) for actor in ("auth", "listener")
        }
        result["certificates"] = ends(new)
        _write(pipe, new.user_table)
        left = memoryview(read_table(new.user_table))
        while left:
            left = left[os.write(table, left) :]
    except ConfigError as error:
        result |= {"error": str(error), "code": _CONFIG}
    except NoTableError as error:
        result |= {"error": str(error), "code": error.code}
    except (OSError, MemoryError) as error:
        why = error.strerror if isinstance(error, OSError) else "no memory"
        result |= {"error": f"the user table could not be kept in memory: {why}", "code": _TEMPFAIL}
    _write(pipe, result)


def _merged(config: Config, new: Config) -> tuple[Config, list[str]]:
    """Return the configuration for a reload to put in force, and the changed keys that wait for a start."""
    waiting = [key.name for key in keys() if not key.metadata["reload"]]
    later = [name for name in waiting if getattr(new, name) != getattr(config, name)]
    return replace(new, **{name: getattr(config, name) for name in later}), later


def _write(pipe: int, value: Any) -> None:
    data = memoryview(msgpack.packb(value, unicode_errors="surrogateescape"))
    while data:
        data = data[os.write(pipe, data) :]


# -- in init
def _decoded(data: bytes, table: int, *, late: bool) -> Inputs:
    """Decode what the child wrote. Without a result, the error names what the child was reading."""
    at, result = "the configuration", None
    unpacker = msgpack.Unpacker(unicode_errors="surrogateescape", max_buffer_size=2 * _MOST_RECEIVED)
    unpacker.feed(data)
    for item in unpacker:
        if isinstance(item, dict):
            result = item
        else:
            at = item
    if result is None:
        return Inputs(
            f"{at} could not be read within {SECONDS} s"
            if late
            else f"{at} could not be read: its reader ended",
            _IOERR,
        )
    seen = {path: tuple(state) if state else None for path, state in result["states"].items()}
    if "error" in result:
        return Inputs(result["error"], result["code"], seen)
    ids = {name: (uid, gid) for name, (uid, gid) in result["ids"].items()}
    certificates = [(path, end) for path, end in result["certificates"]]
    config = _config_of(result["config"])
    return Inputs("", 0, seen, config, result["later"], ids, table, result["contents"], certificates)


def _config_of(values: dict[str, Any]) -> Config:
    """Return a configuration from values that msgpack decoded: lists become tuples and addresses again."""
    for key in keys():
        value = values[key.name]
        if key.metadata["kind"] == "addresses":
            values[key.name] = tuple(Address(*pair) for pair in value)
        elif isinstance(value, list):
            values[key.name] = tuple(tuple(item) if isinstance(item, list) else item for item in value)
    return Config(**values)
