"""Make a completion script for fish(1) from the parsers of the commands."""

import argparse
from collections.abc import Iterator

from popkernel.cli.common.parser import DIRECTORY, FILE

__all__ = ["fish_script"]


def fish_script(parser: argparse.ArgumentParser) -> str:
    """Return the script: the commands, and each one's flags, choices, and files or directories."""
    name = parser.prog
    commands = _commands(parser)
    lines = [
        f"# Completion of {name} for fish(1), made by `{name} completion fish`.",
        f"complete -c {name} -f",
        *(_line(name, "__fish_use_subcommand", action) for action in _flags(parser)),
    ]
    for command, (help_text, own) in commands.items():
        lines.append(
            f"complete -c {name} -n __fish_use_subcommand -a {_quoted(command)} -d {_quoted(help_text)}"
        )
        condition = f"'__fish_seen_subcommand_from {command}'"
        lines.extend(_line(name, condition, action) for action in _flags(own))
        lines.extend(_arguments(name, condition, own))
    return "\n".join(lines) + "\n"


def _commands(parser: argparse.ArgumentParser) -> dict[str, tuple[str, argparse.ArgumentParser]]:
    """Return each command's line in the help, and its parser."""
    for action in parser._actions:  # noqa: SLF001  # argparse has no other way to list them
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
            helps = {choice.dest: choice.help or "" for choice in action._choices_actions}  # noqa: SLF001
            return {name: (helps.get(name, ""), own) for name, own in action.choices.items()}
    return {}


def _flags(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    return (action for action in parser._actions if action.option_strings)  # noqa: SLF001


def _arguments(name: str, condition: str, parser: argparse.ArgumentParser) -> Iterator[str]:
    """Yield a line for each argument without a flag that has choices, or is a file."""
    for action in parser._actions:  # noqa: SLF001
        if not action.option_strings and (values := _values(action)):
            yield f"complete -c {name} -n {condition} {values}"


def _line(name: str, condition: str, action: argparse.Action) -> str:
    """Return the line of a flag, in all its forms."""
    flags = action.option_strings
    forms = (f"-l {flag[2:]}" if flag.startswith("--") else f"-s {flag[1:]}" for flag in flags)
    parts = [f"complete -c {name} -n {condition}", *forms]
    if action.nargs != 0:
        parts.append(f"-x {values}".rstrip() if (values := _values(action)) != "-F" else "-r -F")
    if action.help and action.help != argparse.SUPPRESS:
        parts.append(f"-d {_quoted(action.help % vars(action) if '%(' in action.help else action.help)}")
    return " ".join(parts)


def _values(action: argparse.Action) -> str:
    """Return the part that says what completes a value; "" if nothing does."""
    if action.choices is not None:
        return f"-a {_quoted(' '.join(map(str, action.choices)))}"
    kind = getattr(action, "complete", None)  # as shtab reads it
    if kind == DIRECTORY:
        return "-a '(__fish_complete_directories)'"
    return "-F" if kind == FILE else ""


def _quoted(text: str) -> str:
    """Quote for fish, which knows two escapes between single quotes."""
    return "'" + " ".join(text.split()).replace("\\", "\\\\").replace("'", "\\'") + "'"
