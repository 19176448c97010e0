"""Make the parsers of commands and their help texts, in one form, with argparse.

Shell completion is made from the same parsers; `complete` tells it the kind of a flag's value.
"""

import argparse
import os
import sys
import textwrap
from collections.abc import Callable
from typing import Any, NoReturn

from popkernel.kernel.config.keys import default_of, flag_of, key_of
from popkernel.kernel.runtime.exit_codes import EXITS

__all__ = [
    "DIRECTORY",
    "FILE",
    "CommandParser",
    "Parser",
    "Version",
    "add_config_file",
    "add_key",
    "complete",
]

FILE = {"bash": "_shtab_compgen_files", "zsh": "_files", "tcsh": "f"}
DIRECTORY = {"bash": "_shtab_compgen_dirs", "zsh": "_files -/", "tcsh": "d"}
_METAVARS = {"file": "FILE", "directory": "DIR", "subdir": "DIR", "addresses": "ADDR[:PORT]", "int": "N"}
_COMPLETIONS = {"file": FILE, "directory": DIRECTORY}


class Parser(argparse.ArgumentParser):
    """argparse's parser with sysexits' code for wrong usage, and without abbreviated flags."""

    def __init__(self, **options: Any) -> None:
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        options.setdefault("allow_abbrev", False)
        super().__init__(**options)

    def error(self, message: str) -> NoReturn:
        """Print the error and how to get help, in two lines, and exit."""
        self.exit(os.EX_USAGE, f"{self.prog}: {message}\nTry `{self.prog} --help`.\n")


class CommandParser(Parser):
    """A command's parser. It reports unknown arguments itself; argparse leaves them to the main parser."""

    more: Callable[[], str] | None = None
    """Makes the last part of the help."""

    def describe(
        self,
        description: str,
        examples: str,
        exits: str = "",
        *,
        done: str = "done",
        codes: tuple[tuple[int, str], ...] = (),
        files: str = "",
        more: Callable[[], str] | None = None,
    ) -> None:
        """Set the parts of the help besides the flags.

        Args:
            description: the first part, with its line breaks.
            examples: one a line; common indentation is removed. `files` likewise.
            exits: names of exit codes (kernel/runtime/exit_codes.py), in any order.
            done: the meaning of 0.
            codes: exit codes with a meaning of their own in this command.
            files: files that it reads and writes, one a line.
            more: makes the last part, when the help is printed.

        """
        rows = [
            (0, done),
            *codes,
            *((row.code, row.said) for row in sorted(EXITS[exit_] for exit_ in exits.split())),
        ]
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
    """`--version`: reads the package's metadata on demand only."""

    def __call__(self, *_parser_and_rest: Any) -> NoReturn:
        from importlib.metadata import version

        print(f"popkernel {version('popkernel')}")
        sys.exit(os.EX_OK)


def _part(title: str, lines: str) -> str:
    return f"{title}:\n" + textwrap.indent(textwrap.dedent(lines).strip(), "  ")


def _row(code: int, text: str) -> str:
    return textwrap.fill(f"{code:<2}  {text}", 100, initial_indent="  ", subsequent_indent=" " * 6)


def complete(action: argparse.Action, how: dict[str, str]) -> None:
    """Tell shtab, which reads this attribute, how to complete an option's value."""
    action.complete = how  # type: ignore[attr-defined]


def add_key(parser: argparse.ArgumentParser, name: str, **other: Any) -> None:
    """Add the flag of a configuration key; `other` overrides arguments of add_argument()."""
    key = key_of(name)
    rules, flag = key.metadata, key.metadata["flag"]
    text = flag.help.format(doc=rules["doc"], default=default_of(key), low=rules["low"])
    options: dict[str, Any] = {"dest": name, "help": text}
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
    """Add `-f`, made absolute: a reload reads the file again, and a detached server works in "/"."""
    complete(
        parser.add_argument("-f", dest="toml_path", type=os.path.abspath, metavar="CONFIG.toml", help=what),
        FILE,
    )
