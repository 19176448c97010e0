"""Ask suspected actors whether they are alive, and report those that do not answer as hung.

A peer that waits for an actor longer than the topology's deadline gives up, and tells the kernel. That alone
kills nobody: an actor that answers CountersRequest is alive. Killing a hung one loses nothing; its users get
a new one.

Only time in which the kernel itself ran counts. In a paused virtual machine nothing ran, and no actor hangs.
"""

from collections.abc import Callable

from popkernel.kernel.processes import Process
from popkernel.kernel.runtime.deadlines import LATE
from popkernel.kernel.runtime.loop import Loop
from popkernel.proto import messages as m
from popkernel.proto.topology import edge

__all__ = ["START_SECONDS", "HungActors"]

START_SECONDS = 20  # added for an actor that has not yet sent Hello
_PARTS = 2  # parts of the time; one in which the kernel did not run begins anew


class HungActors:
    """Wait for the answers of suspected actors.

    `hangs(process, seconds)` is called for an actor that has not answered within `seconds`.
    """

    def __init__(self, loop: Loop, hangs: Callable[[Process, int], None]) -> None:
        self._loop = loop
        self._hangs = hangs
        self._asked: set[Process] = set()

    def suspect(self, process: Process, seconds: int = 0) -> None:
        """Ask an actor for its counters; if none come within `seconds` (0: the edge's deadline), it hangs.

        An actor that is being asked is not asked again. One that still waits for its fork is not asked:
        liveness.py watches it after that.
        """
        if process in self._asked or not process.parent:
            return
        self._asked.add(process)
        seconds = seconds or edge("kernel", process.kind).deadline + START_SECONDS * (process.hello is None)
        before = process.counters
        process.ask()
        self._wait(process, before, seconds, _PARTS)

    def _wait(self, process: Process, before: m.Counters, seconds: int, parts: int) -> None:
        timer = self._loop.later(
            seconds / _PARTS, lambda: self._judge(process, before, seconds, parts, timer.due)
        )

    def _judge(self, process: Process, before: m.Counters, seconds: int, parts: int, due: float) -> None:
        parts -= self._loop.now - due <= LATE
        if process.counters is not before:  # each answer is a new object
            self._asked.discard(process)
        elif parts:
            self._wait(process, before, seconds, parts)
        else:
            self._asked.discard(process)
            self._hangs(process, seconds)
