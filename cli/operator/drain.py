"""`popkernel drain`: take no new sessions, or take them again."""

import argparse
import os
import sys
import time
from typing import Any

from popkernel.cli.common.parser import CommandParser
from popkernel.cli.common.question import with_server
from popkernel.cli.common.run_directory import add_which_server
from popkernel.kernel.client import Client, ClientError

_LOOK_SECONDS = 0.5  # between two questions how many sessions are left


def define(parser: CommandParser) -> None:
    """Define the flags and the help."""
    parser.describe(
        "Take no new sessions: new connections and logins hear [SYS/TEMP], mail servers 421 4.3.2. Open\n"
        "sessions go on to their end. It lasts over reloads, until --undo or the end of the server; status,\n"
        "who and health say so. The log says who did it.",
        """
        popkernel drain --wait && popkernel stop
        popkernel drain --undo
        """,
        "usage unavailable software ioerr tempfail noperm config",
    )
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--undo", action="store_true", help="take new sessions again")
    how.add_argument(
        "--wait",
        action="store_true",
        help="wait until the last session has ended; an interrupt ends only the wait",
    )
    add_which_server(parser)


def run(options: argparse.Namespace) -> int:
    """Run `popkernel drain`."""
    return with_server(options, lambda server: _drain(server, undo=options.undo, wait=options.wait))


def _drain(server: Client, *, undo: bool, wait: bool) -> None:
    if undo:
        answer = server.ask("drain", on=False)
        print(f"new sessions are taken{' again' if answer.get('changed') else ', as before'}")
        return
    try:
        answer = server.ask("drain", on=True)
        before = "" if answer.get("changed") else ", as before"
        left = answer.get("sessions")
        known = left if isinstance(left, int) else "?"
        print(f"no new sessions are taken{before}; open: {known}", flush=True)
        if wait:
            _wait(server, left)
    except KeyboardInterrupt:
        print("no new sessions are taken until: popkernel drain --undo", file=sys.stderr)
        raise


def _wait(server: Client, left: Any) -> None:
    while left:
        time.sleep(_LOOK_SECONDS)
        answer = server.ask("drain", on=None)  # only a question: it must not end another's --undo
        if not answer.get("draining"):
            raise ClientError("new sessions are taken again, by another drain --undo", os.EX_TEMPFAIL)
        left = answer.get("sessions")
    print("no session is open")
