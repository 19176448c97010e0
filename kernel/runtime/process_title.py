"""Set the title that ps(1) shows for a process.

Linux shows the memory that held the process's arguments (proc_pid_cmdline(5)), so the title is written there.
OpenBSD has setproctitle(3). The package setproctitle is not used: it would load logging into every maildir
actor.
"""

import ctypes
import sys

from popkernel.kernel.sandbox.libc import library

__all__ = ["set_title"]

_PR_SET_NAME = 15  # prctl(2)


def _arguments() -> tuple[int, int]:
    """Return the address of the arguments and their octets; (0, 0) if the system does not tell."""
    try:
        with open("/proc/self/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return 0, 0
    # arg_start and arg_end, fields 48 and 49 of proc_pid_stat(5)
    start, end = int(fields[45]), int(fields[46])
    return (start, end - start) if 0 < start < end < start + 65536 else (0, 0)


_start, _size = _arguments() if sys.platform == "linux" else (0, 0)


def set_title(title: str) -> None:
    """Show `popkernel: TITLE`, cut to the length of the old arguments; in top(1), 15 octets of TITLE."""
    name = title.encode(errors="replace")
    text = b"popkernel: " + name
    if _size:
        ctypes.memmove(_start, text[: _size - 1].ljust(_size, b"\0"), _size)
        library().prctl(_PR_SET_NAME, ctypes.c_char_p(name[:15]), 0, 0, 0)
    elif sys.platform.startswith("openbsd"):
        library().setproctitle(b"%s", name)
