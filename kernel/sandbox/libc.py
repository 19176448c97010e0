"""The C library by ctypes, and the one error of this package."""

from __future__ import annotations

import ctypes
import os

_library = ctypes.CDLL(None, use_errno=True)


class SandboxError(Exception):
    """The cage cannot be had as asked for. The text says what is missing, and the mend."""


def library() -> ctypes.CDLL:
    """The C library this process runs with."""
    return _library


def syscall(number: int, *arguments: int | bytes | None) -> tuple[int, int]:
    """Makes system call `number`: the answer, and errno if that is -1. Octets go by their address."""
    wide = [ctypes.c_long(value) if isinstance(value, int) else value for value in arguments]
    answer = int(_library.syscall(ctypes.c_long(number), *wide))
    return answer, ctypes.get_errno() if answer == -1 else 0


def checked(answer: int, what: str, code: int | None = None) -> None:
    """SandboxError with `what` and errno's meaning if `answer` is negative."""
    if answer < 0:
        number = ctypes.get_errno() if code is None else code
        raise SandboxError(f"{what}: {os.strerror(number)} (errno {number})")
