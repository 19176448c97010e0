"""`popkernel status`: show the running server's actors, sessions and leases.

What the server says is shown with control characters taken out: user names came from the network once.
"""

import argparse
import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from popkernel.cli.common.parser import CommandParser
from popkernel.cli.common.question import with_server
from popkernel.cli.common.run_directory import add_which_server
from popkernel.kernel.client import Client, ClientError, plain

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


def define(parser: CommandParser) -> None:
    """Its flags and its help."""
    parser.describe(
        "Show the running server: its actors with their ids, promises and memory, sessions and leases.",
        """
        popkernel status
        popkernel status -f /etc/popkernel.toml --json | jq '.actors[] | {name, pid, promises, unveiled}'
        """,
        "usage unavailable software ioerr tempfail noperm config",
    )
    add_which_server(parser)
    parser.add_argument("--json", action="store_true", help="everything, as one JSON object")


def run(options: argparse.Namespace) -> int:
    """Run `popkernel status`."""
    return with_server(options, lambda server: _status(server, as_json=options.json))


def _status(server: Client, *, as_json: bool) -> None:
    answer = server.ask("status")
    try:
        text = _text(answer, as_json=as_json)
    except (TypeError, ValueError, OverflowError, RecursionError):  # it can hold anything
        what = f"what answers on {server.run_dir} is no popkernel, or one of another version; stop it by the means of its version"
        raise ClientError(what, os.EX_SOFTWARE) from None
    print(text)


def _text(answer: dict[str, Any], *, as_json: bool) -> str:
    for actor in answer.get("actors") or ():
        if isinstance(actor, dict) and isinstance(actor.get("pid"), int):
            # The server's kernel is locked in and sees no /proc; whoever asks may see it.
            actor.update({**memory(actor["pid"]), **actor})
    if as_json:
        return json.dumps({name: value for name, value in answer.items() if name != "ok"}, default=_json, indent=2)
    width = shutil.get_terminal_size((120, 24)).columns if sys.stdout.isatty() else 10_000
    return "\n".join(summary(answer, width))


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
    """Lay out a status answer as lines of at most `width` characters."""
    version, pid, uptime = (answer.get(name, "?") for name in ("version", "pid", "uptime"))
    given = answer.get("addresses") or "no address"
    addresses = ", ".join(plain(address) for address in ([given] if isinstance(given, str) else given))
    lines = [f"popkernel {plain(version)}, pid {plain(pid)}, up {_duration(uptime)}, on {addresses}", ""]
    actors = [actor for actor in answer.get("actors") or () if isinstance(actor, dict)]
    lines += _table(actors, _ACTOR_COLUMNS, width)
    for name in ("sessions", "leases"):
        rows = [row for row in answer.get(name) or () if isinstance(row, dict)]
        columns = {str(key): str(key).upper() for row in rows for key in row}
        many = len(answer.get(name) or ())
        lines += ["", f"{many} {name.removesuffix('s') if many == 1 else name}", *(_table(rows, columns, width) if rows else [])]
    weaknesses = answer.get("weaknesses") or ()
    lines += ["", *(f"the cage is weaker on this system: {plain(text)}" for text in weaknesses)] if weaknesses else []
    return [line[:width].rstrip() for line in lines]


def _table(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str], width: int) -> list[str]:
    """Align rows under headings: numbers to the right, the last column cut off with a mark where it does not fit."""
    shown = {key: title for key, title in columns.items() if any(key in row for row in rows)}
    cells = [list(shown.values())] + [["-" if row.get(key) is None else plain(row[key]) for key in shown] for row in rows]
    right = [all(isinstance(row.get(key) or 0, int | float) for row in rows) for key in shown]
    wide = [max(len(line[column]) for line in cells) for column in range(len(shown))]
    lines = []
    for line in cells:
        padded = [cell.rjust(wide[column]) if right[column] else cell.ljust(wide[column]) for column, cell in enumerate(line)]
        text = "  ".join(padded).rstrip()
        lines.append(text if len(text) <= width else text[: width - 1] + "…")
    return lines


def _duration(seconds: Any) -> str:
    if not isinstance(seconds, int | float):
        return plain(seconds)
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    clock = f"{hours}:{minutes:02}:{rest:02}"
    return f"{days} d {clock}" if days else clock
