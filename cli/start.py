"""`popkernel start`: in the foreground, or detached."""

import os
import sys
from collections.abc import Callable

import popkernel
from popkernel.kernel import init
from popkernel.kernel.config import Config


def run(config: Config, again: Callable[[], Config] | None = None) -> int:
    """Serve until stopped; the exit code. `again` reads the configuration anew at a reload."""
    if config.daemon:
        return _detached(config, again)
    return init.run(config, again or (lambda: config), popkernel.__version__)


def _detached(config: Config, again: Callable[[], Config] | None) -> int:
    """Fork; the parent waits for the service to be ready, or to fail, and ends with its exit code."""
    reading, writing = os.pipe()
    if os.fork():
        os.close(writing)
        said = b""
        while part := os.read(reading, 4096):
            sys.stderr.write(part.decode(errors="replace"))
            said += part
        return 0 if b": ready: " in said else _code(said)
    os.close(reading)
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    os.dup2(writing, 2)  # until ready: what is said is said on the terminal, through the parent
    os.close(writing)
    os.chdir("/")
    status = init.run(config, again or (lambda: config), popkernel.__version__)
    os._exit(status)


def _code(said: bytes) -> int:
    """The exit code of a start that failed; what it said went to the terminal already."""
    return 78 if said else 70
