"""`popkernel completion`: print a shell's completion script, made from the commands' parsers."""

import argparse
import os

import shtab
from popkernel.cli.common.fish_completion import fish_script
from popkernel.cli.common.parser import CommandParser
from popkernel.cli.registry import build_parser


def define(parser: CommandParser) -> None:
    """Define the flags and the help."""
    parser.describe(
        "Print a completion script for a shell, for its start-up file or its directory of such scripts.",
        """
        popkernel completion bash > /etc/bash_completion.d/popkernel
        popkernel completion zsh > /usr/local/share/zsh/site-functions/_popkernel
        popkernel completion fish > ~/.config/fish/completions/popkernel.fish
        popkernel completion tcsh >> ~/.tcshrc
        """,
        "usage ioerr",
    )
    parser.add_argument("shell", choices=("bash", "zsh", "fish", "tcsh"), help="the shell")


def run(options: argparse.Namespace) -> int:
    """Print the script for `options.shell`."""
    parser = build_parser()
    # shtab knows fish since 1.8; Debian 13 has an older one
    print(fish_script(parser) if options.shell == "fish" else shtab.complete(parser, shell=options.shell))
    return os.EX_OK
