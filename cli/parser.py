"""How a command's parser and its help are made: one shape for all of them, on argparse.

Shell completion is made from the same parsers, so ``complete`` on a flag says what kind of value it takes.
"""

import argparse
import os
import sys
import textwrap
from typing import Any, NoReturn

from popkernel.kernel.config.keys import default_run_dir
from popkernel.kernel.runtime.exit_codes import EXITS

__all__ = ["DIRECTORY", "FILE", "CommandParser", "Parser", "Version", "add_config_file", "add_run_dir", "command", "complete"]

FILE = {"bash": "_shtab_compgen_files", "zsh": "_files", "tcsh": "f"}
DIRECTORY = {"bash": "_shtab_compgen_dirs", "zsh": "_files -/", "tcsh": "d"}


class Parser(argparse.ArgumentParser):
    """argparse's parser with sysexits' code for wrong usage, and no guessing of shortened flags."""

    def __init__(self, **options: Any) -> None:
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        options.setdefault("allow_abbrev", False)
        super().__init__(**options)

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and where the help is, in two lines."""
        self.exit(os.EX_USAGE, f"{self.prog}: {message}\nTry `{self.prog} --help`.\n")


class CommandParser(Parser):
    """The parser of a command: what it does not know it says itself, with its own help; argparse leaves that to the whole program's."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        known, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return known, unknown


class Version(argparse.Action):
    """``--version``; reads the package's metadata only when asked."""

    def __call__(self, *_parser_and_rest: Any) -> NoReturn:
        from importlib.metadata import version

        print(f"popkernel {version('popkernel')}")
        sys.exit(os.EX_OK)


def command(
    commands: Any,
    name: str,
    run: str,
    short: str,
    description: str,
    examples: str,
    exits: str = "",
    *,
    done: str = "done",
    codes: tuple[tuple[int, str], ...] = (),
    files: str = "",
    kind: type[Parser] = CommandParser,
) -> argparse.ArgumentParser:
    """Add a command, without its flags.

    Args:
        commands: what add_subparsers() gave.
        name: as it is typed.
        run: "module:function" that does it.
        short: its line in the program's help.
        description: the first part of its own help, in lines as they are to stand.
        examples: one a line; indentation common to all is taken off. `files` likewise.
        exits: names of exit codes (kernel/runtime/exit_codes.py), in any order.
        done: what 0 means.
        codes: exit codes that mean something else here than elsewhere.
        files: where it reads and writes, one a line.
        kind: the parser's class.

    """
    rows = [(0, done), *codes, *((row.code, row.said) for row in sorted(EXITS[exit_] for exit_ in exits.split()))]
    parts = [_part("examples", examples), "exit codes:\n" + "\n".join(_row(*row) for row in rows)]
    if files:
        parts.append(_part("files", files))
    commands._parser_class = kind  # noqa: SLF001 - add_parser() has no argument for it
    parser: argparse.ArgumentParser = commands.add_parser(name, help=short, description=description, epilog="\n\n".join(parts))
    parser.set_defaults(run=run)
    return parser


def _part(title: str, lines: str) -> str:
    return f"{title}:\n" + textwrap.indent(textwrap.dedent(lines).strip(), "  ")


def _row(code: int, said: str) -> str:
    return textwrap.fill(f"{code:<2}  {said}", 100, initial_indent="  ", subsequent_indent=" " * 6)


def complete(action: argparse.Action, how: dict[str, str]) -> None:
    """Tell shtab how to complete an option's value; it reads this attribute."""
    action.complete = how  # type: ignore[attr-defined]


def add_run_dir(parser: argparse.ArgumentParser) -> None:
    """Add ``--run-dir``."""
    what = f"directory of the server's sockets (default {default_run_dir()})"
    complete(parser.add_argument("--run-dir", metavar="DIR", help=what), DIRECTORY)


def add_config_file(parser: argparse.ArgumentParser, what: str) -> None:
    """Add ``-f``. Made absolute at once: a reload reads it again, and a detached server has gone to "/"."""
    complete(parser.add_argument("-f", dest="toml_path", type=os.path.abspath, metavar="CONFIG.toml", help=what), FILE)
