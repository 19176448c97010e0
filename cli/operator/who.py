"""`popkernel who`: list sessions and logins under way."""

import argparse
import json
import shutil
import sys
from typing import Any

from popkernel.cli.common.parser import CommandParser
from popkernel.cli.common.question import with_server
from popkernel.cli.common.run_directory import add_which_server
from popkernel.cli.common.tables import aligned, duration
from popkernel.kernel.client import Client, plain

_COLUMNS = {
    "session": "SESSION",
    "user": "USER",
    "address": "ADDRESS",
    "listener": "LISTENER",
    "tls": "TLS",
    "mechanism": "MECHANISM",
    "age": "AGE",
    "state": "STATE",
    "waits": "WAITS FOR",
}


def define(parser: CommandParser) -> None:
    """Define the flags and the help."""
    parser.describe(
        "List sessions and logins under way: user, client, TLS, age, state, and what each waits for.\n"
        "States: logging in (until the password is checked, after any delay for failed logins), waiting\n"
        "(for the mailbox), opening (its actor starts), open (the mail may still be being listed), parked\n"
        "(silent for long: its actor may have ended), ending.",
        """
        popkernel who
        popkernel who alice
        popkernel who 192.0.2.0/24
        popkernel who --json | jq -r '.sessions[] | select(.state == "waiting") | .user'
        """,
        "usage unavailable software ioerr tempfail noperm config",
    )
    parser.add_argument(
        "who",
        metavar="USER|CIDR",
        nargs="?",
        default="",
        help="only this user's, or those of this address or network",
    )
    parser.add_argument("--json", action="store_true", help="as one JSON object")
    add_which_server(parser)


def run(options: argparse.Namespace) -> int:
    """Run `popkernel who`."""
    return with_server(options, lambda server: _who(server, options.who, as_json=options.json))


def _who(server: Client, who: str, *, as_json: bool) -> None:
    answer = server.ask("who", who=who)
    given = answer.get("sessions")
    rows = [row for row in given if isinstance(row, dict)] if isinstance(given, list) else []
    rows.sort(key=lambda row: -row["seconds"] if isinstance(row.get("seconds"), int | float) else 0)
    draining = bool(answer.get("draining"))
    if as_json:
        print(json.dumps({"draining": draining, "sessions": rows}, default=repr, indent=2))
        return
    width = shutil.get_terminal_size((120, 24)).columns if sys.stdout.isatty() else 10_000
    lines = aligned([_shown(row) for row in rows], _COLUMNS, width) if rows else []
    lines.append(f"{len(rows):,} {'session' if len(rows) == 1 else 'sessions'}")
    if draining:
        lines.append("draining: no new sessions are taken (popkernel drain --undo takes them again)")
    print("\n".join(lines))


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row with its times in words."""
    waits, since = plain(row.get("waits_for") or ""), row.get("waits_seconds")
    waits = waits or ("its client or its mailbox" if row.get("state") == "open" else "its client")
    if isinstance(since, int | float):
        waits += f", since {duration(since)}"
    cells = {key: row[key] if row.get(key) not in (None, "") else "-" for key in _COLUMNS if key in row}
    return {**cells, "age": duration(row.get("seconds")), "waits": waits}
