"""`popkernel reload`: have the running server read its configuration anew."""

import argparse
import sys

from popkernel.cli.common.parser import CommandParser
from popkernel.cli.common.question import with_server
from popkernel.cli.common.run_directory import add_which_server
from popkernel.kernel.client import Client, ClientError, plain


def define(parser: CommandParser) -> None:
    """Its flags and its help."""
    parser.describe(
        "Read configuration, tables, certificate and key anew. Open sessions go on. If any of them has errors,\n"
        "nothing changes and the errors are printed. Changed keys that count only from the next start on are named, and\n"
        "up to ten mailboxes that cannot be served.",
        "popkernel check -f /etc/popkernel.toml && popkernel reload -f /etc/popkernel.toml",
        "usage data noinput unavailable software ioerr tempfail noperm config",
    )
    add_which_server(parser)


def run(options: argparse.Namespace) -> int:
    """Run `popkernel reload`."""
    return with_server(options, _reload)


def _reload(server: Client) -> None:
    try:
        answer = server.ask("reload")
    except ClientError as error:
        if error.refused:
            print("not reloaded: what is in force stays", flush=True)
        raise
    print("reloaded")
    later, warnings, mailboxes = (
        found if isinstance(found := answer.get(name), list) else [] for name in ("next_start", "warnings", "mailboxes")
    )
    for key in later:
        print(f"only from the next start on: {plain(key)}")
    for line in (*warnings, *mailboxes):
        print(f"warning: {plain(line)}", file=sys.stderr)
