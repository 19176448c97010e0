"""A process just forked, which is to do one thing and to leave: nothing of what its parent was about runs on in it."""

import contextlib
import os
import sys
from collections.abc import Callable
from typing import NoReturn

__all__ = ["do_and_leave"]


def do_and_leave(work: Callable[[], int], failed: int) -> NoReturn:
    """End this process with what `work` gives; where it raises, with the traceback on standard error and the code `failed`."""
    status = failed
    try:
        status = work()
    except BaseException:
        sys.excepthook(*sys.exc_info())
        raise
    finally:
        with contextlib.suppress(OSError, ValueError):  # nobody reads standard error any more, or it is closed
            sys.stderr.flush()
        os._exit(status)
