"""Write to standard output and error even if they are closed, on a full disk, or a pipe without a reader.

Failing output must neither cause a traceback nor stop a command that does more than print.
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
    """Standard output cannot be written.

    No OSError, so that a command that handles a file's OSError does not catch it.
    """


class _Out(io.FileIO):
    """A descriptor that fails at most once, and discards everything after that."""

    def __init__(self, fd: int, *, raises: bool) -> None:
        super().__init__(fd, "wb", closefd=False)
        self.raises = raises
        self.failed = ""
        self.reader_gone = False  # of a pipe, as with `| head`: not reported

    def write(self, data: Any) -> int:
        octets = len(memoryview(data))
        if self.failed:
            return octets
        try:
            written = super().write(data)
        except OSError as error:
            self.failed = error.strerror or str(error)
            self.reader_gone = error.errno == errno.EPIPE
            if self.raises:
                raise OutputError from None
            return octets
        return octets if written is None else written  # None: non-blocking, and there is no room


_outputs: list[_Out] = []


def take() -> None:
    """Set up both outputs; called at the start, so that no file opened later gets descriptor 1 or 2."""
    fill()
    _outputs[:] = [_Out(1, raises=True), _Out(2, raises=False)]
    old = sys.stdout
    encoding, errors = (old.encoding, old.errors) if old is not None else (None, None)
    sys.stdout = io.TextIOWrapper(
        io.BufferedWriter(_outputs[0]), encoding, errors, line_buffering=os.isatty(1)
    )
    encoding = sys.stderr.encoding if sys.stderr is not None else None
    sys.stderr = io.TextIOWrapper(
        io.BufferedWriter(_outputs[1]), encoding, "backslashreplace", line_buffering=True
    )


def keep_going() -> None:
    """Let the command go on without its output: its work is another."""
    if _outputs:
        _outputs[0].raises = False


def settle(code: int) -> int:
    """Flush at the end. Returns the exit code: 74 if the output was the work, and failed."""
    with contextlib.suppress(OutputError):
        sys.stdout.flush()
    if not _outputs or not _outputs[0].failed:
        return code
    if not _outputs[0].reader_gone:
        print(
            f"popkernel: standard output: {_outputs[0].failed}; send it where there is room", file=sys.stderr
        )
    return os.EX_IOERR if _outputs[0].raises else code
