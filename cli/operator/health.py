"""`popkernel health`: say whether the server can serve now, for those that run or balance it."""

import argparse
import json
import os
import sys

from popkernel.cli.common.parser import CommandParser
from popkernel.cli.common.run_directory import add_which_server, run_dir_of
from popkernel.kernel.client import Client, ClientError, plain

_SECONDS = 2.0  # the server answers within one


def define(parser: CommandParser) -> None:
    """Define the flags and the help."""
    parser.describe(
        "End with 0 if the server can serve now, else with another code, and say why: it starts, stops or\n"
        "drains, an actor is missing or does not answer, init does not answer, there is no room for more\n"
        "mailboxes, a certificate has expired, or logins wait long for the password check. It takes a\n"
        "second at most, and two if the server is hung.",
        """
        popkernel health
        HEALTHCHECK CMD popkernel health -q
        popkernel health --json | jq -r '.problems[].problem'
        """,
        "usage unavailable software ioerr tempfail noperm config",
        done="the server can serve",
    )
    parser.add_argument("-q", dest="quiet", action="store_true", help="print nothing, only end with the code")
    parser.add_argument("--json", action="store_true", help="as one JSON object")
    add_which_server(parser)


def run(options: argparse.Namespace) -> int:
    """Run `popkernel health`."""
    code, problems = _problems(run_dir_of(options))
    if options.quiet:
        return code
    if options.json:
        print(json.dumps({"healthy": not code, "problems": problems}, indent=2))
    elif not code:
        print("healthy")
    for problem in [] if options.json else problems:
        print(f"popkernel: {problem['text']}", file=sys.stderr)
    return code


def _problems(run_dir: str) -> tuple[int, list[dict[str, str]]]:
    """Return the exit code, and each problem's name and sentence."""
    try:
        answer = Client(run_dir).ask("health", _SECONDS)
    except ClientError as error:
        name = "down" if error.code == os.EX_UNAVAILABLE else "unanswered"
        return error.code, [{"problem": name, "text": str(error)}]
    given = answer.get("problems")
    found = [
        {key: plain(row.get(key) or "") for key in ("problem", "text")}
        for row in (given if isinstance(given, list) else [])
        if isinstance(row, dict)
    ]
    return (0 if answer.get("healthy") is True and not found else os.EX_TEMPFAIL), found
