"""`popkernel topology`: print the topology table of this program."""

import argparse
import json

from popkernel.cli.common.parser import CommandParser
from popkernel.proto import topology_rendering


def define(parser: CommandParser) -> None:
    """Define the flags and the help."""
    parser.describe(
        "Print the table that the server is built from: every actor with its promises and files, every edge\n"
        "between two actors with its messages.",
        "popkernel topology\npopkernel topology --format dot | dot -Tsvg > actors.svg",
        "usage ioerr",
    )
    choices = ("text", "json", "mermaid", "dot")
    parser.add_argument(
        "--format", choices=choices, default="text", help="for people or programs (default text)"
    )


def run(options: argparse.Namespace) -> int:
    """Run `popkernel topology`."""
    if options.format == "json":
        print(json.dumps(topology_rendering.as_data(), indent=2))
    else:
        forms = {
            "text": topology_rendering.as_text,
            "mermaid": topology_rendering.as_mermaid,
            "dot": topology_rendering.as_dot,
        }
        print(forms[options.format](), end="")
    return 0
