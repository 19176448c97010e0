"""List the commands, and build the program's parser.

The file of a command, cli/COMMAND.py or cli/operator/COMMAND.py, has its flags, its help and its run().
"""

from collections.abc import Container
from importlib import import_module
from types import ModuleType
from typing import NamedTuple

from popkernel.cli.common.parser import CommandParser, Parser, Version

__all__ = ["COMMANDS", "build_parser", "module_of"]


class Command(NamedTuple):
    """The facts about a command that are known without importing its file."""

    short: str
    """Its line in the program's help."""
    serves: bool = False
    """Whether it serves others or is run by mail servers: it closes descriptors that its caller left open."""
    acts: bool = False
    """Whether its work is more than its output, so that failing output does not matter."""
    folder: str = ""
    """Of its file, in cli/; empty: cli/ itself."""


_OPERATOR = "operator"

COMMANDS = {
    "start": Command("serve maildirs over POP3", serves=True, acts=True),
    "status": Command("show the running server's actors, sessions and leases"),
    "who": Command("list sessions: who, from where, since when, waiting for what", folder=_OPERATOR),
    "kick": Command("end a session, or a user's", acts=True, folder=_OPERATOR),
    "explain": Command(
        "tell what happened lately to a user or an address, and how they stand", folder=_OPERATOR
    ),
    "drain": Command("take no new sessions; open ones go on", acts=True, folder=_OPERATOR),
    "health": Command("say whether the server can serve now, by the exit code", folder=_OPERATOR),
    "stop": Command("end the running server", acts=True),
    "reload": Command("read tables, certificate and key again; open sessions go on", acts=True),
    "check": Command("find everything that would make a start fail, without starting"),
    "passwd": Command("set or remove a user's password", acts=True),
    "deliver": Command("put the message on standard input into a mailbox", serves=True, acts=True),
    "import-users": Command("make both tables of another server's list of accounts", acts=True),
    "import-uidl": Command("take over the unique ids that another server gave", acts=True),
    "topology": Command("print the actors, and the messages each may send to which other"),
    "trace": Command("show live what actors receive and send; record it"),
    "replay": Command("feed recordings to fresh actors, and compare what they send"),
    "demo": Command("serve a temporary site on loopback ports 1995 and 1110", serves=True),
    "completion": Command("print a shell's completion script"),
}
"""In the order of the program's help."""


def module_of(name: str) -> ModuleType:
    """Import a command's file, which has define(parser) and run(options)."""
    return import_module(".".join(("popkernel.cli", *COMMANDS[name].folder.split(), name.replace("-", "_"))))


def build_parser(whole: Container[str] = COMMANDS) -> Parser:
    """Build the program's parser; the parsed options carry `command`.

    Imports only the commands in `whole`, and defines their flags and help. The others have their name and
    their line in the program's help.
    """
    parser = Parser(
        prog="popkernel",
        description="A POP3 server of isolated actors, each with the permissions that its work needs.",
        epilog="`popkernel COMMAND --help` shows each command's flags, defaults, examples, files and exit\n"
        "codes. To see it work at once, as any user: popkernel demo",
    )
    parser.add_argument("--version", action=Version, nargs=0, help="print the version and leave")
    commands = parser.add_subparsers(
        title="commands", metavar="COMMAND", dest="command", required=True, parser_class=CommandParser
    )
    for name, command in COMMANDS.items():
        own = commands.add_parser(name, help=command.short)
        if name in whole:
            module_of(name).define(own)
    return parser
