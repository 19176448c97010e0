"""``popkernel completion``: a shell's completion script, made from the same parsers as the help texts."""

import argparse
import os

import shtab
from popkernel.cli.arguments import build_parser


def run(options: argparse.Namespace) -> int:
    """Print the script for ``options.shell``."""
    print(shtab.complete(build_parser(), shell=options.shell))
    return os.EX_OK
