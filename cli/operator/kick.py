"""`popkernel kick`: end a session, or all sessions of a user."""

import argparse
import sys

from popkernel.cli.common.parser import CommandParser
from popkernel.cli.common.question import with_server
from popkernel.cli.common.run_directory import add_which_server
from popkernel.kernel.client import Client, ClientError, plain

_NONE = 1  # exit code if there was no such session


def define(parser: CommandParser) -> None:
    """Define the flags and the help."""
    parser.describe(
        "End a session, or all sessions and logins under way of a user. The mailbox is free at once.\n"
        "Messages that the session had marked are not removed. A client that waits for an answer is told\n"
        "so, with [SYS/TEMP]; it may log in again. The log says who ended it.",
        """
        popkernel kick 1.17
        popkernel kick alice
        """,
        "usage unavailable software ioerr tempfail noperm config",
        codes=((_NONE, "no such session"),),
    )
    parser.add_argument(
        "who", metavar="SESSION|USER", help="a session as who, status and the log name it; or a user"
    )
    add_which_server(parser)


def run(options: argparse.Namespace) -> int:
    """Run `popkernel kick`."""
    ended: list[str] = []

    def kick(server: Client) -> None:
        if not options.who:  # most likely an unset variable
            raise ClientError("kick whom? Name a session or a user", 64)
        given = server.ask("kick", who=options.who).get("ended")
        for row in given if isinstance(given, list) else []:
            said = row if isinstance(row, dict) else {}
            session, user, address = (plain(said.get(key) or "?") for key in ("session", "user", "address"))
            ended.append(f"ended session {session} of {user} from {address}")

    code = with_server(options, kick)
    if code:
        return code
    if not ended:
        what = f"no session {plain(options.who)}, and none of a user of that name"
        print(f"popkernel: {what}; `popkernel who` lists them", file=sys.stderr)
        return _NONE
    print("\n".join(ended))
    return 0
