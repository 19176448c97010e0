"""`popkernel stop`: stop the running server, and wait until it has ended."""

import argparse
import os
import select
import time

from popkernel.cli.common.parser import CommandParser
from popkernel.cli.common.question import with_server
from popkernel.cli.common.run_directory import add_which_server
from popkernel.kernel.client import Client, ClientError

STOP_SECONDS = 30.0


def define(parser: CommandParser) -> None:
    """Define the flags and the help."""
    parser.describe(
        "Stop the running server politely, and wait up to 30 seconds until it has ended.",
        "popkernel stop\npopkernel stop -f /etc/popkernel/two.toml",
        "usage unavailable software ioerr tempfail noperm config",
    )
    add_which_server(parser)


def run(options: argparse.Namespace) -> int:
    """Run `popkernel stop`."""
    return with_server(options, _stop)


def _stop(server: Client) -> None:
    deadline = time.monotonic() + STOP_SECONDS
    pid = server.ask("status").get("pid")
    if not isinstance(pid, int) or pid <= 1:
        raise ClientError(
            f"the server on {server.run_dir} does not say its pid; end it by hand", os.EX_SOFTWARE
        )
    watch = _open_pidfd(pid)
    try:
        server.ask("stop")
        what = f"the server on {server.run_dir}, pid {pid}, is not gone after {STOP_SECONDS:g} seconds"
        late = ClientError(f"{what}; look at its log", os.EX_TEMPFAIL)
        _wait_for_end(pid, watch, deadline, late)
        while os.path.exists(server.path):
            if time.monotonic() > deadline:
                raise late
            time.sleep(0.02)
    finally:
        if watch is not None:
            os.close(watch)
    print("stopped")


def _open_pidfd(pid: int) -> int | None:
    """Open a pidfd, which refers to this process even if its number is reused.

    None if the system has none.
    """
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError, OverflowError):
        return None


def _wait_for_end(pid: int, watch: int | None, deadline: float, late: ClientError) -> None:
    if watch is not None:
        if not select.select([watch], [], [], max(0.0, deadline - time.monotonic()))[0]:
            raise late
        return
    while _alive(pid):
        if time.monotonic() > deadline:
            raise late
        time.sleep(0.05)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
