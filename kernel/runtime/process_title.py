"""What ps(1) shows of a process. A few lines of ours, since the package for it loads logging into every maildir actor.

Linux shows the memory where the process's arguments lay (proc_pid_cmdline(5)); writing there is what everybody's setproctitle does. OpenBSD
has setproctitle(3).
"""

import ctypes
import sys

from popkernel.kernel.sandbox.libc import library

__all__ = ["set_title"]

_PR_SET_NAME = 15  # prctl(2)


def _arguments() -> tuple[int, int]:
    """Where the arguments begin, and how many octets there are; (0, 0) where the system does not say."""
    try:
        with open("/proc/self/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return 0, 0
    start, end = int(fields[45]), int(fields[46])  # arg_start and arg_end, fields 48 and 49 of proc_pid_stat(5)
    return (start, end - start) if 0 < start < end < start + 65536 else (0, 0)


_start, _size = _arguments() if sys.platform == "linux" else (0, 0)


def set_title(title: str) -> None:
    """Show `popkernel: TITLE`; in `top`, 15 octets of the title alone. Only what fits into the old arguments is shown."""
    name = title.encode(errors="replace")
    text = b"popkernel: " + name
    if _size:
        ctypes.memmove(_start, text[: _size - 1].ljust(_size, b"\0"), _size)
        library().prctl(_PR_SET_NAME, ctypes.c_char_p(name[:15]), 0, 0, 0)
    elif sys.platform.startswith("openbsd"):
        library().setproctitle(b"%s", name)
