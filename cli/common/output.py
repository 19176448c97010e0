"""Standard output and error as a command may find them: closed, a full disk, a pipe whose reader has gone.

What cannot be written is no reason for a traceback, and no reason to leave half done what a command does besides.
"""

import contextlib
import errno
import io
import os
import sys
from typing import Any

from popkernel.kernel.runtime.descriptors import fill

__all__ = ["OutputError", "keep_going", "settle", "take"]


class OutputError(Exception):
    """Standard output takes no more. No OSError: a command that expects one of a file must not take this for it."""


class _Out(io.FileIO):
    """A descriptor that fails at most once, and takes and loses everything after that."""

    def __init__(self, fd: int, *, raises: bool) -> None:
        super().__init__(fd, "wb", closefd=False)
        self.raises = raises
        self.failed = ""
        self.left = False  # it was a pipe, and its reader has gone: `| head` is no fault to speak of

    def write(self, data: Any) -> int:
        octets = len(memoryview(data))
        if self.failed:
            return octets
        try:
            written = super().write(data)
        except OSError as error:
            self.failed = error.strerror or str(error)
            self.left = error.errno == errno.EPIPE
            if self.raises:
                raise OutputError from None
            return octets
        return octets if written is None else written  # None: it does not wait, and there is no room


_outputs: list[_Out] = []


def take() -> None:
    """At the start of the program: no file that it opens becomes standard output or error, which are there from here on."""
    fill()
    _outputs[:] = [_Out(1, raises=True), _Out(2, raises=False)]
    old = sys.stdout
    encoding, errors = (old.encoding, old.errors) if old is not None else (None, None)
    sys.stdout = io.TextIOWrapper(io.BufferedWriter(_outputs[0]), encoding, errors, line_buffering=os.isatty(1))
    encoding = sys.stderr.encoding if sys.stderr is not None else None
    sys.stderr = io.TextIOWrapper(io.BufferedWriter(_outputs[1]), encoding, "backslashreplace", line_buffering=True)


def keep_going() -> None:
    """The command's work is another than its output: it goes on without."""
    if _outputs:
        _outputs[0].raises = False


def settle(code: int) -> int:
    """At the end: write what is left; the exit code, which is 74 where the output was the work and did not arrive."""
    with contextlib.suppress(OutputError):
        sys.stdout.flush()
    if not _outputs or not _outputs[0].failed:
        return code
    if not _outputs[0].left:
        print(f"popkernel: standard output: {_outputs[0].failed}; send it where there is room", file=sys.stderr)
    return os.EX_IOERR if _outputs[0].raises else code
