"""Init's patience with a kernel that owes it something: one that hangs would hold up a reload, or the end, for ever."""

from collections.abc import Callable

from popkernel.kernel.loop import Loop, Timer
from popkernel.proto.topology import edge

__all__ = ["Patience"]

_SECONDS = edge("init", "kernel").deadline  # that it may say nothing


class Patience:
    """Asks the kernel now and then whether it is alive, as long as it owes something."""

    def __init__(self, loop: Loop, ask: Callable[[], None], owes: Callable[[], bool], hangs: Callable[[str], None]) -> None:
        """`hangs`: called with what is wrong, where no answer comes in time."""
        self._loop = loop
        self._ask = ask
        self._owes = owes
        self._hangs = hangs
        self._late: Timer | None = None

    def begin(self) -> None:
        """It owes something, perhaps."""
        if self._late is None and self._owes():
            self._ask()
            self._late = self._loop.later(_SECONDS, lambda: self._hangs(f"is not alive: it has not answered for {_SECONDS} s"))

    def answered(self) -> None:
        """It lives."""
        if self._late is not None:
            self._late.cancel()
            self._late = None
            self._loop.later(_SECONDS, self.begin)
