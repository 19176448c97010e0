"""Find the name of this program by which the commands that it suggests work as typed."""

import os
import shlex
import shutil
import sys

__all__ = ["as_typed"]


def as_typed() -> str:
    """Return the name if the shell finds this program by it, else the path, else `python -m popkernel`."""
    called = sys.argv[0]
    name = os.path.basename(called)
    if name == "__main__.py" or not os.access(called, os.X_OK) or not os.path.isfile(called):
        return f"{shlex.quote(sys.executable)} -m popkernel"
    found = shutil.which(name)
    if found is not None and os.path.samefile(found, called):
        return shlex.quote(name)
    return shlex.quote(os.path.abspath(called))
