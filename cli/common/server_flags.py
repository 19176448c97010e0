"""Define the flags that `start` and `check` share, and the help on the keys of the TOML file."""

import argparse
import textwrap
from typing import Any

from popkernel.cli.common.parser import add_config_file, add_key
from popkernel.kernel.config.keys import Config, default_of, flagged_keys, keys
from popkernel.kernel.config.loading import load

__all__ = ["add_server_flags", "config_from", "toml_help"]


def add_server_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of configuration keys, those of one letter first, and -f."""
    flagged = flagged_keys()
    for key in flagged:
        if key.metadata["flag"].name:
            add_key(parser, key.name)
    add_config_file(parser, "configuration; flags win over it")
    for key in flagged:
        if not key.metadata["flag"].name:
            add_key(parser, key.name)


def config_from(options: argparse.Namespace) -> Config:
    """Build the configuration from the flags of add_server_flags().

    Raises:
        ConfigError: as kernel.config.load() does.

    """
    given = vars(options)
    return load({key.name: given.get(key.name) for key in keys()}, options.toml_path)


def toml_help() -> str:
    """Describe every key of the file of `-f`."""
    lines = ["keys of the TOML file (flags win; a key is optional if its flag is given):"]
    for key in keys():
        rules = key.metadata
        default = "the machine's" if key.name == "hostname" else _toml_value(default_of(key), rules["kind"])
        bounds = f", {rules['low']} to {rules['high']}" if rules["kind"] == "int" else ""
        bounds = ", " + " or ".join(f'"{c}"' for c in rules["choices"]) if rules["choices"] else bounds
        text = f"{rules['doc']} ({'default ' + default if default else 'no default'}{bounds})"
        lines.append(textwrap.fill(text, 100, initial_indent=f"  {key.name:20} ", subsequent_indent=" " * 23))
    return "\n".join(lines) + "\n"


def _toml_value(value: Any, kind: str) -> str:
    if kind == "bool":
        return "true" if value else "false"
    if kind == "addresses":
        return ""
    return str(value) if kind == "int" else value and f'"{value}"'
