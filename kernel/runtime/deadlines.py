"""Keep deadlines in the time for which this process ran, and init's check that the kernel is alive.

A hung kernel would delay a reload or a stop for ever. But in a paused virtual machine nothing runs, and that
time must not count against anybody.
"""

from collections.abc import Callable

from popkernel.kernel.runtime.loop import Loop, Timer
from popkernel.proto.topology import edge

__all__ = ["LATE", "Deadline", "Patience"]

LATE = 1.0  # seconds that a timer may be late; if it is later, this process did not run
_SECONDS = edge("init", "kernel").deadline  # for the kernel's answer
_PARTS = 4  # parts of a deadline; one in which this process did not run begins anew


class Deadline:
    """Make a call after `seconds` for which this process ran."""

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
        """Cancel the call."""
        self._timer.cancel()


class Patience:
    """Ask the kernel periodically whether it is alive, while it owes init an answer."""

    def __init__(
        self, loop: Loop, ask: Callable[[], None], owes: Callable[[], bool], hangs: Callable[[str], None]
    ) -> None:
        """`ask`: asks the kernel. `owes`: returns if an answer is due. `hangs`: called with an error text."""
        self._loop = loop
        self._ask = ask
        self._owes = owes
        self._hangs = hangs
        self._late: Deadline | None = None

    def begin(self) -> None:
        """Ask, if the kernel owes something and was not asked yet."""
        if self._late is None and self._owes():
            self._ask()
            self._late = Deadline(
                self._loop,
                _SECONDS,
                lambda: self._hangs(f"is not alive: it has not answered for {_SECONDS} s"),
            )

    def answered(self) -> None:
        """Take the kernel's answer: it is alive. Ask again later."""
        if self._late is not None:
            self._late.cancel()
            self._late = None
            self._loop.later(_SECONDS, self.begin)
