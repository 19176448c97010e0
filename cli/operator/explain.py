"""`popkernel explain`: tell what happened lately to a user or an address, and how they stand now."""

import argparse
import json
from typing import Any

from popkernel.cli.common import explanation
from popkernel.cli.common.parser import CommandParser
from popkernel.cli.common.question import with_server
from popkernel.cli.common.run_directory import add_which_server
from popkernel.kernel.client import Client

_MOST = 1000


def define(parser: CommandParser) -> None:
    """Define the flags and the help."""
    parser.describe(
        "Tell what happened lately to a user, a mail address or a client's address: sessions, failed logins\n"
        "and deliveries, the newest last; what the tables say of the user, who has the mailbox open,\n"
        "whether logins are delayed; and what is striking. The server keeps this in memory (key history).",
        """
        popkernel explain alice
        popkernel explain alice@example.org --last 5
        popkernel explain 192.0.2.7
        popkernel explain alice --json | jq '.sessions[] | {time, why, marked, removed}'
        """,
        "usage unavailable software ioerr tempfail noperm config",
    )
    parser.add_argument(
        "who", metavar="USER|ADDRESS", help="a user, a mail address, or a client's numeric address"
    )
    parser.add_argument(
        "--last",
        metavar="N",
        type=_count,
        default=30,
        help=f"so many of each kind at most, up to {_MOST} (default 30)",
    )
    parser.add_argument("--json", action="store_true", help="as one JSON object, times in seconds since 1970")
    add_which_server(parser)


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= _MOST:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 to {_MOST}")
    return int(text)


def run(options: argparse.Namespace) -> int:
    """Run `popkernel explain`."""
    return with_server(options, lambda server: _explain(server, options))


def _explain(server: Client, options: argparse.Namespace) -> None:
    answer = server.ask("explain", who=options.who, most=options.last)
    if options.json:
        print(
            json.dumps({key: value for key, value in answer.items() if key != "ok"}, default=_text, indent=2)
        )
        return
    events = [line for lines in explanation.events(answer) for line in lines]
    summary = ["in short", *(f"  {line}" for line in explanation.summary(answer))]
    parts = (list(explanation.account(answer)), events, summary)
    print("\n\n".join("\n".join(part) for part in parts if part))


def _text(value: Any) -> str:
    """Turn octets, for which JSON has no form, into text with escapes."""
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else repr(value)
