"""Call the C library through ctypes; define SandboxError, the one error of this package."""

from __future__ import annotations

import ctypes
import os

_library = ctypes.CDLL(None, use_errno=True)


class SandboxError(Exception):
    """The sandbox cannot be set up. The text names what is missing, and the mend."""


def library() -> ctypes.CDLL:
    """Return the C library of this process."""
    return _library


def syscall(number: int, *arguments: int | bytes | None) -> tuple[int, int]:
    """Make system call `number`. Return its result, and errno if that is -1. Octets are passed by address."""
    wide = [ctypes.c_long(value) if isinstance(value, int) else value for value in arguments]
    answer = int(_library.syscall(ctypes.c_long(number), *wide))
    return answer, ctypes.get_errno() if answer == -1 else 0


def checked(answer: int, what: str, code: int | None = None) -> None:
    """Raise SandboxError, with `what` and the meaning of errno, if `answer` is negative."""
    if answer < 0:
        number = ctypes.get_errno() if code is None else code
        raise SandboxError(f"{what}: {os.strerror(number)} (errno {number})")
