"""``popkernel status``, ``stop`` and ``reload``: one question to the running server's control socket, one answer.

A question is one frame of msgpack, {"command": ...}, from a DEALER socket; the answer is one frame, a map with "ok" and,
where that is false, "error". Everything the server says is shown with control characters taken out: user names came from
the network once.
"""

import argparse
import errno
import json
import os
import select
import shutil
import socket
import stat
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import Any

from popkernel.cli.run_directory import run_dir_of
from popkernel.kernel.config.keys import ConfigError, control_path
from popkernel.kernel.runtime.exit_codes import EXITS

ANSWER_SECONDS = 10.0
STOP_SECONDS = 30.0
# More than 10,000 sessions and as many actors take, and far less than would hurt this process.
_MAX_ANSWER = 64 * 1024 * 1024
_ACTOR_COLUMNS = {
    "name": "ACTOR",
    "pid": "PID",
    "uid": "UID",
    "gid": "GID",
    "state": "STATE",
    "restarts": "RESTARTS",
    "resident_kib": "RSS-KIB",
    "private_kib": "OWN-KIB",
    "messages_in": "IN",
    "messages_out": "OUT",
    "promises": "PROMISES",
}


class ControlError(Exception):
    """The server could not be asked, or said no (``refused``); ``code`` is the exit code."""

    def __init__(self, what: str, code: int, *, refused: bool = False) -> None:
        super().__init__(what)
        self.code = code
        self.refused = refused


def status(options: argparse.Namespace) -> int:
    """Run ``popkernel status``."""
    return _tell(options, _status)


def stop(options: argparse.Namespace) -> int:
    """Run ``popkernel stop``."""
    return _tell(options, _stop)


def reload(options: argparse.Namespace) -> int:
    """Run ``popkernel reload``."""
    return _tell(options, _reload)


def ask(run_dir: str, command: str, seconds: float = ANSWER_SECONDS) -> dict[str, Any]:
    """Ask the server of a run directory one thing.

    Args:
        run_dir: the directory its control socket lies in.
        command: "status", "stop" or "reload".
        seconds: how long to wait for the answer.

    Raises:
        ControlError: no server (69), no permission (77), no answer in time (75), no sensible answer (70), or the
            server's own refusal (with the code it gives, else 69).
        ConfigError: the run directory's path is too long.

    """
    path = control_path(run_dir)
    _probe(run_dir, path)
    import msgpack
    import zmq

    context = zmq.Context()
    # The probe's file may be replaced before this connects; then the answer does not come, and the time limit says so.
    client = context.socket(zmq.DEALER)
    try:
        client.setsockopt(zmq.LINGER, 0)
        client.setsockopt(zmq.MAXMSGSIZE, _MAX_ANSWER)
        client.connect(os.fsencode(f"ipc://{path}"))  # type: ignore[arg-type]  # it takes octets, and a path need not be UTF-8
        client.send(msgpack.packb({"command": command}))
        if not client.poll(int(seconds * 1000)):
            what = f"the server on {run_dir} gave no answer in {seconds:g} seconds; try again, or look at its log"
            raise ControlError(what, os.EX_TEMPFAIL)
        frames = client.recv_multipart()
    except zmq.ZMQError as error:
        raise ControlError(f"{path}: {error}", os.EX_IOERR) from None
    finally:
        client.close()
        context.term()
    return _accept(frames, run_dir)


def _probe(run_dir: str, path: str) -> None:
    """Find out by a plain connection whether anyone is there, since ZeroMQ would only wait."""
    nobody = ControlError(f"no popkernel runs on {run_dir}; start it, or give another --run-dir", os.EX_UNAVAILABLE)
    refused = ControlError(f"{path}: not permitted; ask as root, or as the user who started it", os.EX_NOPERM)
    try:
        owner = os.stat(run_dir).st_uid
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            raise ControlError(f"{path} is no socket; give the server's own --run-dir", os.EX_UNAVAILABLE)
        # Anyone can make a directory in /tmp and answer there.
        if os.geteuid() not in {0, owner} and owner != 0:
            raise ControlError(f"{run_dir} belongs to uid {owner}, not to you; give your own --run-dir", os.EX_NOPERM)
        with closing(socket.socket(socket.AF_UNIX)) as probe:
            probe.settimeout(ANSWER_SECONDS)
            probe.connect(path)
    except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError):
        raise nobody from None
    except PermissionError:
        raise refused from None
    except OSError as error:
        code = os.EX_TEMPFAIL if error.errno in {errno.EAGAIN, None} else os.EX_OSERR
        raise ControlError(f"{path}: {error}; try again", code) from None


def runs_at(run_dir: str) -> bool:
    """Whether a server serves on this run directory, be it one that may not be asked."""
    try:
        _probe(run_dir, control_path(run_dir))
    except ControlError as error:
        return error.code != os.EX_UNAVAILABLE
    except ConfigError:
        return False
    return True


def _accept(frames: Sequence[bytes], run_dir: str) -> dict[str, Any]:
    """Take the answer apart."""
    import msgpack

    try:
        answer = msgpack.unpackb(b"".join(frames), strict_map_key=True, unicode_errors="surrogateescape")
    except (ValueError, msgpack.exceptions.UnpackException):
        answer = None
    if not isinstance(answer, dict) or not isinstance(answer.get("ok"), bool):
        what = f"what answers on {run_dir} is no popkernel, or one of another version; stop it by the means of its version"
        raise ControlError(what, os.EX_SOFTWARE)
    if not answer["ok"]:
        said = "\n".join(_plain(line) for line in str(answer.get("error") or "the server gave no reason").split("\n"))
        code = answer.get("code")
        if not isinstance(code, int) or code not in {row.code for row in EXITS.values()}:
            code = EXITS["unavailable"].code
        raise ControlError(said, code, refused=True)
    return answer


def _tell(options: argparse.Namespace, command: Any) -> int:
    """Run a command and put its failure into words and an exit code."""
    try:
        command(run_dir_of(options), options)
    except ControlError as error:
        for line in str(error).split("\n"):
            print(f"popkernel: {line}", file=sys.stderr)
        return error.code
    return os.EX_OK


def _reload(run_dir: str, _options: argparse.Namespace) -> None:
    try:
        answer = ask(run_dir, "reload")
    except ControlError as error:
        if error.refused:
            print("not reloaded: what is in force stays", flush=True)
        raise
    print("reloaded")
    later, warnings, mailboxes = (
        found if isinstance(found := answer.get(name), list) else [] for name in ("next_start", "warnings", "mailboxes")
    )
    for key in later:
        print(f"only from the next start on: {_plain(key)}")
    for line in (*warnings, *mailboxes):
        print(f"warning: {_plain(line)}", file=sys.stderr)


def _stop(run_dir: str, _options: argparse.Namespace) -> None:
    deadline = time.monotonic() + STOP_SECONDS
    pid = ask(run_dir, "status").get("pid")
    if not isinstance(pid, int) or pid <= 1:
        raise ControlError(f"the server on {run_dir} does not say its pid; end it by hand", os.EX_SOFTWARE)
    watch = _watch(pid)
    try:
        ask(run_dir, "stop")
        late = ControlError(
            f"the server on {run_dir}, pid {pid}, is not gone after {STOP_SECONDS:g} seconds; look at its log",
            os.EX_TEMPFAIL,
        )
        _wait_for_end(pid, watch, deadline, late)
        while os.path.exists(control_path(run_dir)):
            if time.monotonic() > deadline:
                raise late
            time.sleep(0.02)
    finally:
        if watch is not None:
            os.close(watch)
    print("stopped")


def _watch(pid: int) -> int | None:
    """Open a pidfd: it names this very process even after its number is given to another. None where there are none."""
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):
        return None


def _wait_for_end(pid: int, watch: int | None, deadline: float, late: ControlError) -> None:
    if watch is not None:
        if not select.select([watch], [], [], max(0.0, deadline - time.monotonic()))[0]:
            raise late
        return
    while _alive(pid):
        if time.monotonic() > deadline:
            raise late
        time.sleep(0.05)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _status(run_dir: str, options: argparse.Namespace) -> None:
    answer = ask(run_dir, "status")
    for actor in answer.get("actors") or ():
        if isinstance(actor, dict) and isinstance(actor.get("pid"), int):
            # The server's kernel is locked in and sees no /proc; whoever asks may see it.
            actor.update({**memory(actor["pid"]), **actor})
    if options.json:
        print(json.dumps({name: value for name, value in answer.items() if name != "ok"}, default=_json, indent=2))
        return
    width = shutil.get_terminal_size((120, 24)).columns if sys.stdout.isatty() else 10_000
    print("\n".join(summary(answer, width)))


def memory(pid: int) -> dict[str, int | None]:
    """Read a process's resident and private memory in KiB from proc(5)'s smaps_rollup; None where it may not be seen."""
    kib: dict[str, int] = {}
    try:
        with open(f"/proc/{pid}/smaps_rollup") as file:
            for line in file:
                name, _, rest = line.partition(":")
                if rest.endswith("kB\n"):
                    kib[name] = int(rest.split()[0])
    except OSError:
        return {"resident_kib": None, "private_kib": None}
    return {"resident_kib": kib.get("Rss"), "private_kib": kib.get("Private_Clean", 0) + kib.get("Private_Dirty", 0)}


def _json(value: Any) -> str:
    """Show what JSON has no form for: octets, as text with escapes."""
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else repr(value)


def summary(answer: Mapping[str, Any], width: int) -> list[str]:
    """Lay out a status answer as lines of at most ``width`` characters."""
    version, pid, uptime = (answer.get(name, "?") for name in ("version", "pid", "uptime"))
    given = answer.get("addresses") or "no address"
    addresses = ", ".join(_plain(address) for address in ([given] if isinstance(given, str) else given))
    lines = [f"popkernel {_plain(version)}, pid {_plain(pid)}, up {_duration(uptime)}, on {addresses}", ""]
    actors = [actor for actor in answer.get("actors") or () if isinstance(actor, dict)]
    lines += _table(actors, _ACTOR_COLUMNS, width)
    for name in ("sessions", "leases"):
        rows = [row for row in answer.get(name) or () if isinstance(row, dict)]
        columns = {str(key): str(key).upper() for row in rows for key in row}
        many = len(answer.get(name) or ())
        lines += ["", f"{many} {name.removesuffix('s') if many == 1 else name}", *(_table(rows, columns, width) if rows else [])]
    weaknesses = answer.get("weaknesses") or ()
    lines += ["", *(f"the cage is weaker on this system: {_plain(text)}" for text in weaknesses)] if weaknesses else []
    return [line[:width].rstrip() for line in lines]


def _table(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str], width: int) -> list[str]:
    """Align rows under headings: numbers to the right, the last column cut off with a mark where it does not fit."""
    shown = {key: title for key, title in columns.items() if any(key in row for row in rows)}
    cells = [list(shown.values())] + [["-" if row.get(key) is None else _plain(row[key]) for key in shown] for row in rows]
    right = [all(isinstance(row.get(key) or 0, int | float) for row in rows) for key in shown]
    wide = [max(len(line[column]) for line in cells) for column in range(len(shown))]
    lines = []
    for line in cells:
        padded = [cell.rjust(wide[column]) if right[column] else cell.ljust(wide[column]) for column, cell in enumerate(line)]
        text = "  ".join(padded).rstrip()
        lines.append(text if len(text) <= width else text[: width - 1] + "…")
    return lines


def _plain(value: Any) -> str:
    """Show any value in one line without control characters, so that no name can drive the terminal."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "backslashreplace")
    if isinstance(value, list | tuple):
        value = " ".join(_plain(item) for item in value)
    return "".join(letter if letter.isprintable() else "?" for letter in str(value))


def _duration(seconds: Any) -> str:
    if not isinstance(seconds, int | float):
        return _plain(seconds)
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    clock = f"{hours}:{minutes:02}:{rest:02}"
    return f"{days} d {clock}" if days else clock
