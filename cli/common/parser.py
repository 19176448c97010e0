"""Make a command's parser and its help: one shape for all of them, on argparse.

Shell completion is made from the same parsers, so `complete` on a flag says what kind of value it takes.
"""

import argparse
import os
import sys
import textwrap
from collections.abc import Callable
from typing import Any, NoReturn

from popkernel.kernel.config.keys import default_of, flag_of, key_of
from popkernel.kernel.runtime.exit_codes import EXITS

__all__ = ["DIRECTORY", "FILE", "CommandParser", "Parser", "Version", "add_config_file", "add_key", "complete"]

FILE = {"bash": "_shtab_compgen_files", "zsh": "_files", "tcsh": "f"}
DIRECTORY = {"bash": "_shtab_compgen_dirs", "zsh": "_files -/", "tcsh": "d"}
_METAVARS = {"file": "FILE", "directory": "DIR", "subdir": "DIR", "addresses": "ADDR[:PORT]", "int": "N"}
_COMPLETIONS = {"file": FILE, "directory": DIRECTORY}


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

    more: Callable[[], str] | None = None
    """Makes what the help goes on with."""

    def describe(
        self, description: str, examples: str, exits: str = "", *, done: str = "done", codes: tuple[tuple[int, str], ...] = (),
        files: str = "", more: Callable[[], str] | None = None,
    ) -> None:
        """Say what the help has besides the flags.

        Args:
            description: the first part, in lines as they are to stand.
            examples: one a line; indentation common to all is taken off. `files` likewise.
            exits: names of exit codes (kernel/runtime/exit_codes.py), in any order.
            done: what 0 means.
            codes: exit codes that mean something else here than elsewhere.
            files: where it reads and writes, one a line.
            more: makes what follows all that, when the help is asked for.

        """
        rows = [(0, done), *codes, *((row.code, row.said) for row in sorted(EXITS[exit_] for exit_ in exits.split()))]
        parts = [_part("examples", examples), "exit codes:\n" + "\n".join(_row(*row) for row in rows)]
        if files:
            parts.append(_part("files", files))
        self.description, self.epilog, self.more = description, "\n\n".join(parts), more

    def format_help(self) -> str:
        return super().format_help() + (f"\n{self.more()}" if self.more else "")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        known, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return known, unknown


class Version(argparse.Action):
    """`--version`; reads the package's metadata only when asked."""

    def __call__(self, *_parser_and_rest: Any) -> NoReturn:
        from importlib.metadata import version

        print(f"popkernel {version('popkernel')}")
        sys.exit(os.EX_OK)


def _part(title: str, lines: str) -> str:
    return f"{title}:\n" + textwrap.indent(textwrap.dedent(lines).strip(), "  ")


def _row(code: int, said: str) -> str:
    return textwrap.fill(f"{code:<2}  {said}", 100, initial_indent="  ", subsequent_indent=" " * 6)


def complete(action: argparse.Action, how: dict[str, str]) -> None:
    """Tell shtab how to complete an option's value; it reads this attribute."""
    action.complete = how  # type: ignore[attr-defined]


def add_key(parser: argparse.ArgumentParser, name: str, **other: Any) -> None:
    """Add the flag of a configuration key; `other`: what add_argument() is to be given instead of what the key says."""
    key = key_of(name)
    rules, flag = key.metadata, key.metadata["flag"]
    said = flag.help.format(doc=rules["doc"], default=default_of(key), low=rules["low"])
    options: dict[str, Any] = {"dest": name, "help": said}
    if flag.counted:
        options["action"] = "count"
    elif rules["kind"] == "bool":
        options |= {"action": "store_true", "default": None}
    elif rules["kind"] == "choice":
        options["choices"] = rules["choices"]
    else:
        options["metavar"] = _METAVARS[rules["kind"]]
        if rules["kind"] == "int":
            options["type"] = int
        elif rules["kind"] == "addresses":
            options["action"] = "append"
    action = parser.add_argument(flag_of(key), **(options | other))
    if rules["kind"] in _COMPLETIONS:
        complete(action, _COMPLETIONS[rules["kind"]])


def add_config_file(parser: argparse.ArgumentParser, what: str) -> None:
    """Add `-f`. Made absolute at once: a reload reads it again, and a detached server has gone to "/"."""
    complete(parser.add_argument("-f", dest="toml_path", type=os.path.abspath, metavar="CONFIG.toml", help=what), FILE)
