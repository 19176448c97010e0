"""`popkernel completion`: a shell's completion script, made from the same parsers as the help texts."""

import argparse
import os

import shtab
from popkernel.cli.common.parser import CommandParser
from popkernel.cli.registry import build_parser


def define(parser: CommandParser) -> None:
    """Its flags and its help."""
    parser.describe(
        "Print a completion script for a shell, for its start-up file or its directory of such scripts.",
        """
        popkernel completion bash > /etc/bash_completion.d/popkernel
        popkernel completion zsh > /usr/local/share/zsh/site-functions/_popkernel
        popkernel completion tcsh >> ~/.tcshrc
        """,
        "usage ioerr",
    )
    parser.add_argument("shell", choices=("bash", "zsh", "tcsh"), help="the shell")


def run(options: argparse.Namespace) -> int:
    """Print the script for `options.shell`."""
    print(shtab.complete(build_parser(), shell=options.shell))
    return os.EX_OK
