"""A process just forked, which is to do one thing and to leave: nothing of what its parent was about runs on in it."""

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


def fork_with_pipe(work: Callable[[int], int], failed: int, *, reads: bool) -> tuple[int, int]:
    """Fork a child at the other end of a pipe.

    Args:
        work: what the child does, as in `do_and_leave`; it is given its end.
        failed: its exit code where it raises.
        reads: whether this process keeps the end to read from, or the one to write to.

    Returns:
        Process number, and the end that was kept, not blocking.

    Raises:
        OSError: no room for a process or a descriptor; nothing is left over.

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
    """Fork a child that does what may wait for a disk, and says what comes of it on a pipe.

    Of this process's descriptors it has standard error, the pipe and `keep`, for the lock above all must not outlive init. It is killed
    when this process goes.

    Args:
        work: what the child does; it is given the pipe to write to.
        keep: descriptors that it needs.

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
    with contextlib.suppress(OSError):  # nobody reads any more, or the system has no more: who reads sees the end, and nothing said
        work(writing)
    return 0


def told(pipe: int) -> bytes | None:
    """What such a child has said meanwhile: b"" where it has ended, or its pipe can't be read; None for nothing now."""
    try:
        return os.read(pipe, 65536)
    except BlockingIOError:
        return None
    except OSError:
        return b""


def end(pid: int, uid: int = -1) -> None:
    """SIGKILL a child that is not reaped yet, so that the number is nobody else's.

    A root without CAP_KILL may end only processes of its own uid, so it takes the child's `uid` for that call.
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
