"""`popkernel status`: show the running server's actors, sessions and leases.

Control characters in the answer are removed: user names come from the network.
"""

import argparse
import json
import os
import shutil
import sys
from collections.abc import Mapping
from typing import Any

from popkernel.cli.common.parser import CommandParser
from popkernel.cli.common.question import with_server
from popkernel.cli.common.run_directory import add_which_server
from popkernel.cli.common.tables import aligned, duration
from popkernel.kernel.client import Client, ClientError, plain
from popkernel.kernel.resources.memory_limits import in_units, rounded

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
    """Define the flags and the help."""
    parser.describe(
        "Show the running server: its actors with their ids, promises and memory, sessions and leases.",
        """
        popkernel status
        popkernel status --json | jq '.actors[] | {name, pid, promises, unveiled}'
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
    except (TypeError, ValueError, OverflowError, RecursionError):  # the answer can hold anything
        what = (
            f"what answers on {server.run_dir} is no popkernel, or one of another version;"
            " stop it by the means of its version"
        )
        raise ClientError(what, os.EX_SOFTWARE) from None
    print(text)


def _text(answer: dict[str, Any], *, as_json: bool) -> str:
    for actor in answer.get("actors") or ():
        if isinstance(actor, dict) and isinstance(actor.get("pid"), int):
            # The server's kernel is locked in and sees no /proc; this command may see it.
            actor.update({**memory(actor["pid"]), **actor})
    if as_json:
        return json.dumps(
            {name: value for name, value in answer.items() if name != "ok"}, default=_json, indent=2
        )
    width = shutil.get_terminal_size((120, 24)).columns if sys.stdout.isatty() else 10_000
    return "\n".join(summary(answer, width))


def memory(pid: int) -> dict[str, int | None]:
    """Read a process's resident and private memory in KiB from smaps_rollup, proc(5); None if forbidden."""
    kib: dict[str, int] = {}
    try:
        with open(f"/proc/{pid}/smaps_rollup") as file:
            for line in file:
                name, _, rest = line.partition(":")
                if rest.endswith("kB\n"):
                    kib[name] = int(rest.split()[0])
    except OSError:
        return {"resident_kib": None, "private_kib": None}
    return {
        "resident_kib": kib.get("Rss"),
        "private_kib": kib.get("Private_Clean", 0) + kib.get("Private_Dirty", 0),
    }


def _json(value: Any) -> str:
    """Turn octets, for which JSON has no form, into text with escapes."""
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else repr(value)


def summary(answer: Mapping[str, Any], width: int) -> list[str]:
    """Format a status answer as lines of at most `width` characters."""
    version, pid, uptime = (answer.get(name, "?") for name in ("version", "pid", "uptime"))
    given = answer.get("addresses") or "no address"
    addresses = ", ".join(plain(address) for address in ([given] if isinstance(given, str) else given))
    lines = [f"popkernel {plain(version)}, pid {plain(pid)}, up {duration(uptime)}, on {addresses}", ""]
    if answer.get("draining"):
        lines[1:1] = ["draining: no new sessions are taken (popkernel drain --undo takes them again)"]
    actors = [actor for actor in answer.get("actors") or () if isinstance(actor, dict)]
    lines += aligned(actors, _ACTOR_COLUMNS, width)
    for name in ("sessions", "leases"):
        rows = [row for row in answer.get(name) or () if isinstance(row, dict)]
        columns = {str(key): str(key).upper() for row in rows for key in row}
        many = len(answer.get(name) or ())
        lines += [
            "",
            f"{many} {name.removesuffix('s') if many == 1 else name}",
            *(aligned(rows, columns, width) if rows else []),
        ]
    warm = answer.get("warm")
    if isinstance(warm, dict):
        idle, holds, memory = (warm.get(name) for name in ("actors", "holds", "memory"))
        if isinstance(idle, int) and isinstance(holds, int) and isinstance(memory, int):
            lines += ["", f"warm actors: {idle:,} of about {rounded(holds):,} ({in_units(memory)})"]
    logins = answer.get("logins")
    if isinstance(logins, dict):
        lines += ["", _logins(logins)]
    weaknesses = answer.get("weaknesses") or ()
    lines += (
        ["", *(f"the sandbox is weaker on this system: {plain(text)}" for text in weaknesses)]
        if weaknesses
        else []
    )
    return [line[:width].rstrip() for line in lines]


def _logins(logins: Mapping[str, Any]) -> str:
    """Format the figures about logins: those that wait, checks, the cache, and who was refused."""
    parts = [f"{plain(logins.get('waiting', '?'))} wait"]
    if logins.get("waiting"):
        parts[0] += f", the oldest for {plain(logins.get('oldest', '?'))} s"
    if isinstance(checks := logins.get("checks"), int | float):
        parts.append(f"{checks:.1f} passwords checked a second")
    if isinstance(hits := logins.get("cache_hits"), int | float):
        parts.append(f"{100 * hits:.0f} % needed no check")
    if logins.get("penalised"):
        parts.append(f"addresses under penalty: {plain(logins['penalised'])}")
    if isinstance(refused := logins.get("refused"), dict) and refused:
        each = ", ".join(f"{plain(many)} by {plain(key)}" for key, many in refused.items())
        parts.append(f"refused: {each}")
    return "logins: " + "; ".join(parts)
