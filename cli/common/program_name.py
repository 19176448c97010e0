"""How this program was called, so that the commands it suggests work as they are typed."""

import os
import shlex
import shutil
import sys

__all__ = ["as_typed"]


def as_typed() -> str:
    """The program's name where the shell finds this very program by it, else its path, else ``python -m popkernel``."""
    called = sys.argv[0]
    name = os.path.basename(called)
    if name == "__main__.py" or not os.access(called, os.X_OK) or not os.path.isfile(called):
        return f"{shlex.quote(sys.executable)} -m popkernel"
    found = shutil.which(name)
    if found is not None and os.path.samefile(found, called):
        return shlex.quote(name)
    return shlex.quote(os.path.abspath(called))
