"""A second thread to measure mail with, for the one listing of very much that nobody has measured yet.

Nearly all of that time is the system's, in which the interpreter's lock is free. The thread is there before the cage closes (nobody
starts one later) and ends with that listing: who has little mail, or mail that the popcache knows, has none.
"""

from __future__ import annotations

from _thread import allocate_lock, start_new_thread  # threading would be 60 KB more in every actor
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Beside"]


class Beside:
    """One thread that does one piece of work, or none.

    The main thread calls `start`, then `begin` and `wait` at most once, and `dismiss` when there is nothing to do for it.
    """

    __slots__ = ("_begun", "_done", "_error", "_work", "there")

    def __init__(self) -> None:
        self.there = False
        self._work: Callable[[], None] | None = None
        self._error: BaseException | None = None
        self._begun = allocate_lock()
        self._done = allocate_lock()

    def start(self) -> None:
        """Start the thread, which waits; where the system gives none, `there` stays false."""
        self._begun.acquire()
        self._done.acquire()
        try:
            start_new_thread(self._run, ())
        except RuntimeError:  # a bound on processes or memory
            return
        self.there = True

    def _run(self) -> None:
        self._begun.acquire()
        try:
            if self._work is not None:
                self._work()
        except BaseException as error:  # noqa: BLE001 - the main thread's to raise: it would go on with sizes missing
            self._error = error
        finally:
            self._work = None
            self._done.release()

    def begin(self, work: Callable[[], None]) -> None:
        """Have the thread do that, beside what the caller does; `wait` must follow."""
        self._work = work
        self.dismiss()

    def wait(self) -> None:
        """Until it is done. Raises what the work raised."""
        self._done.acquire()
        error, self._error = self._error, None
        if error is not None:
            raise error

    def dismiss(self) -> None:
        """Let the thread end, after its work if it has any."""
        if self.there:
            self.there = False
            self._begun.release()
