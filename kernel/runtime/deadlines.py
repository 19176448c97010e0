"""Deadlines for which only the time counts in which this process ran, and init's patience with a kernel that owes it something.

A kernel that hangs would hold up a reload, or the end, for ever. But where all stood still, a virtual machine that was paused, nobody is
to blame.
"""

from collections.abc import Callable

from popkernel.kernel.runtime.loop import Loop, Timer
from popkernel.proto.topology import edge

__all__ = ["LATE", "Deadline", "Patience"]

LATE = 1.0  # seconds a timer may be late; after more this process itself did not run
_SECONDS = edge("init", "kernel").deadline  # that it may say nothing
_PARTS = 4  # of a deadline, each to begin anew where this process did not run


class Deadline:
    """A call after so many seconds, in which this process ran; `cancel` makes it none."""

    def __init__(self, loop: Loop, seconds: float, call: Callable[[], None]) -> None:
        self._loop = loop
        self._part = seconds / _PARTS
        self._left = _PARTS
        self._call = call
        self._wait()

    def _wait(self) -> None:
        self._timer: Timer = self._loop.later(self._part, self._over)

    def _over(self) -> None:
        self._left -= self._loop.now - self._timer.due <= LATE
        if self._left:
            self._wait()
        else:
            self._call()

    def cancel(self) -> None:
        """Nothing is waited for any more."""
        self._timer.cancel()


class Patience:
    """Asks the kernel now and then whether it is alive, as long as it owes something."""

    def __init__(self, loop: Loop, ask: Callable[[], None], owes: Callable[[], bool], hangs: Callable[[str], None]) -> None:
        """`hangs`: called with what is wrong, where no answer comes in time."""
        self._loop = loop
        self._ask = ask
        self._owes = owes
        self._hangs = hangs
        self._late: Deadline | None = None

    def begin(self) -> None:
        """It owes something, perhaps."""
        if self._late is None and self._owes():
            self._ask()
            self._late = Deadline(self._loop, _SECONDS, lambda: self._hangs(f"is not alive: it has not answered for {_SECONDS} s"))

    def answered(self) -> None:
        """It lives."""
        if self._late is not None:
            self._late.cancel()
            self._late = None
            self._loop.later(_SECONDS, self.begin)
