"""Fork children that do one thing and exit, without running any of their parent's code after that."""

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from popkernel.kernel.sandbox.libc import library

__all__ = ["do_and_leave", "end", "fork_and_tell", "fork_with_pipe", "told"]

_PR_SET_PDEATHSIG = 1  # prctl(2)


def do_and_leave(work: Callable[[], int], failed: int) -> NoReturn:
    """Run `work` and exit with the code that it returns.

    If it raises: write the traceback on standard error, and exit with the code `failed`.
    """
    status = failed
    try:
        status = work()
    except BaseException:
        sys.excepthook(*sys.exc_info())
        raise
    finally:
        # standard error may be closed, or a pipe without a reader
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.flush()
        os._exit(status)


def fork_with_pipe(work: Callable[[int], int], failed: int, *, reads: bool) -> tuple[int, int]:
    """Fork a child at the other end of a pipe.

    Args:
        work: what the child does, as in `do_and_leave`; its argument is the child's end of the pipe.
        failed: the child's exit code if `work` raises.
        reads: whether this process keeps the reading end, else it keeps the writing end.

    Returns:
        Process number, and the end that was kept, not blocking.

    Raises:
        OSError: no room for a process or a descriptor; nothing stays open.

    """
    reading, writing = os.pipe()
    kept, given = (reading, writing) if reads else (writing, reading)
    try:
        os.set_blocking(kept, False)
        pid = os.fork()
    except OSError:
        os.close(kept)
        os.close(given)
        raise
    if pid == 0:
        do_and_leave(lambda: work(given), failed)
    os.close(given)
    return pid, kept


def fork_and_tell(work: Callable[[int], None], keep: Sequence[int] = ()) -> tuple[int, int]:
    """Fork a child for work that may wait for a disk; it writes its results to a pipe.

    The child keeps only standard error, the pipe and `keep` of this process's descriptors: above all, init's
    lock must not outlive init. It is killed when this process ends (Linux).

    Args:
        work: what the child does; its argument is the pipe to write to.
        keep: descriptors that the child needs.

    Returns:
        Process number, and the pipe to read from, not blocking.

    Raises:
        OSError: as `fork_with_pipe`.
    """
    return fork_with_pipe(lambda writing: _alone(work, writing, keep), 1, reads=True)


def _alone(work: Callable[[int], None], writing: int, keep: Sequence[int]) -> int:
    signal.set_wakeup_fd(-1)
    if sys.platform == "linux":
        library().prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    kept = sorted({2, writing, *keep})
    for low, high in zip(kept, [*kept[1:], 65536], strict=True):
        os.closerange(low + 1, high)
    # the reader is gone, or the system is short of something: the reader sees the end of the pipe
    with contextlib.suppress(OSError):
        work(writing)
    return 0


def told(pipe: int) -> bytes | None:
    """Read what such a child has written: b"" if it ended or reading failed, None if nothing is there yet."""
    try:
        return os.read(pipe, 65536)
    except BlockingIOError:
        return None
    except OSError:
        return b""


def end(pid: int, uid: int = -1) -> None:
    """Send SIGKILL to a child that is not reaped yet, so that the number can be no other process's.

    Root without CAP_KILL may signal only processes of its own uid: for that call it takes the child's `uid`.
    """
    with contextlib.suppress(ProcessLookupError, PermissionError):
        try:
            os.kill(pid, signal.SIGKILL)
        except PermissionError:
            root = os.geteuid() == 0 < uid
            if root:
                os.seteuid(uid)
            try:
                os.kill(pid, signal.SIGKILL)
            finally:
                if root:
                    os.seteuid(0)
