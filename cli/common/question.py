"""Run a command against the running server, and turn errors into lines and an exit code."""

import argparse
import os
import sys
from collections.abc import Callable

from popkernel.cli.common.run_directory import run_dir_of
from popkernel.kernel.client import Client, ClientError

__all__ = ["with_server"]


def with_server(options: argparse.Namespace, work: Callable[[Client], None]) -> int:
    """Call `work` with a client of the server that the flags name. Returns the exit code.

    Raises:
        ConfigError: the run directory cannot be determined, or its path is too long.

    """
    try:
        work(Client(run_dir_of(options)))
    except ClientError as error:
        for line in str(error).split("\n"):
            print(f"popkernel: {line}", file=sys.stderr)
        return error.code
    return os.EX_OK
