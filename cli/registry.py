"""List the commands, and build the program's parser. A command's own file, cli/COMMAND.py, has its flags, its help and its run()."""

from collections.abc import Container
from importlib import import_module
from types import ModuleType
from typing import NamedTuple

from popkernel.cli.common.parser import CommandParser, Parser, Version

__all__ = ["COMMANDS", "build_parser", "module_of"]


class Command(NamedTuple):
    """A command, as far as it is known before its file is imported."""

    short: str
    """Its line in the program's help."""
    serves: bool = False
    """It serves others, or is run by a mail server: what its caller left open is not for it."""
    acts: bool = False
    """Its work is done, or not, whatever becomes of what it prints."""


COMMANDS = {
    "start": Command("serve maildirs over POP3", serves=True, acts=True),
    "status": Command("show the running server's actors, sessions and leases"),
    "stop": Command("end the running server", acts=True),
    "reload": Command("read tables, certificate and key anew; open sessions go on", acts=True),
    "check": Command("look for everything that would go wrong, without starting"),
    "passwd": Command("set or remove a user's password", acts=True),
    "deliver": Command("put the message on standard input into a mailbox", serves=True, acts=True),
    "import-uidl": Command("take over the unique ids that another server gave", acts=True),
    "topology": Command("print who the actors are and who may say what to whom"),
    "trace": Command("watch live what actors are told and what they say; record it"),
    "replay": Command("feed recordings to fresh actors, and compare what they say"),
    "demo": Command("serve a temporary site on loopback ports 1995 and 1110", serves=True),
    "completion": Command("print a shell's completion script"),
}
"""In the order of the program's help."""


def module_of(name: str) -> ModuleType:
    """A command's file: define(parser) and run(options)."""
    return import_module(f"popkernel.cli.{name.replace('-', '_')}")


def build_parser(whole: Container[str] = COMMANDS) -> Parser:
    """Build the program's parser; the parsed options carry `command`.

    Only the commands in `whole` are imported and have their flags and their help. Of the others there is the name and the line in
    the program's help.
    """
    parser = Parser(
        prog="popkernel",
        description="A POP3 server of isolated actors, each locked in to what its work needs.",
        epilog="`popkernel COMMAND --help` has each command's flags, defaults, examples, files and exit codes.\n"
        "To see it work at once, as any user: popkernel demo",
    )
    parser.add_argument("--version", action=Version, nargs=0, help="print the version and leave")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command", required=True, parser_class=CommandParser)
    for name, command in COMMANDS.items():
        own = commands.add_parser(name, help=command.short)
        if name in whole:
            module_of(name).define(own)
    return parser
