"""Determine which server a command is for: --run-dir, the run_dir of the configuration, or the default."""

import argparse
import os

from popkernel.cli.common.parser import add_config_file, add_key
from popkernel.kernel.config.keys import default_run_dir, system_run_dir
from popkernel.kernel.config.loading import COMMAND_LINE, ConfigError, run_dir_in
from popkernel.proto.files.tables import Finding

__all__ = ["add_which_server", "delivery_run_dir_of", "run_dir_of"]


def add_which_server(parser: argparse.ArgumentParser) -> None:
    """Add the flags for run_dir_of()."""
    add_config_file(parser, "the server's configuration, for its run_dir; --run-dir wins over it")
    add_key(parser, "run_dir")


def run_dir_of(options: argparse.Namespace) -> str:
    """Return the run directory's absolute path.

    Raises:
        ConfigError: the configuration cannot be read, or its run_dir is wrong.

    """
    # Most likely an unset variable: taking the default would address another server.
    if options.run_dir == "":
        raise ConfigError(
            [Finding(f"{COMMAND_LINE}: --run-dir", 0, "no name", "give one, or leave the flag out")]
        )
    if options.run_dir:
        return os.path.abspath(str(options.run_dir))
    return run_dir_in(options.toml_path) if options.toml_path else default_run_dir()


def delivery_run_dir_of(options: argparse.Namespace) -> str:
    """Return the run directory of the server that is to get mail.

    Mail servers run `popkernel deliver` as the recipient. So an ordinary user who names no run directory, and
    has none of her own, means the system's server. One of another user in /tmp gets no mail.

    Raises:
        ConfigError: as run_dir_of().

    """
    run_dir = run_dir_of(options)
    if options.run_dir or run_dir != default_run_dir() or _is_own(run_dir):
        return run_dir
    return system_run_dir()


def _is_own(path: str) -> bool:
    try:
        return os.lstat(path).st_uid == os.geteuid()
    except OSError:
        return False
