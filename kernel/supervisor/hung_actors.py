"""Actors that may hang: asked whether they are alive, and ended where they say nothing.

Whoever waits for an actor in vain gives up by the table's deadline, and the kernel hears of it. That word ends nobody: an actor that
answers Report lives, whatever is said of it. What is ended loses nothing; who needs it gets a new one.

Time counts in which the kernel itself ran: where all stood still, a virtual machine that was paused, nobody is to blame.
"""

from collections.abc import Callable

from popkernel.kernel.processes import Process
from popkernel.kernel.runtime.deadlines import LATE
from popkernel.kernel.runtime.loop import Loop
from popkernel.proto import messages as m
from popkernel.proto.topology import edge

__all__ = ["START_SECONDS", "HungActors"]

START_SECONDS = 20  # more, for one that has not yet said hello
_PARTS = 2  # of the time, each to begin anew where the kernel did not run


class HungActors:
    """The actors under suspicion. `hangs(process, seconds)` is called for one that has said nothing for so long."""

    def __init__(self, loop: Loop, hangs: Callable[[Process, int], None]) -> None:
        self._loop = loop
        self._hangs = hangs
        self._asked: set[Process] = set()

    def suspect(self, process: Process, seconds: int = 0) -> None:
        """Ask it for its counters; where none come within those seconds, 0: the edge's deadline, it hangs. Asking twice is asking once.

        One that is not to be forked yet is not asked: it is watched once it is (liveness.py).
        """
        if process in self._asked or not process.parent:
            return
        self._asked.add(process)
        seconds = seconds or edge("kernel", process.kind).deadline + START_SECONDS * (process.hello is None)
        before = process.counters
        process.ask()
        self._wait(process, before, seconds, _PARTS)

    def _wait(self, process: Process, before: m.Counters, seconds: int, parts: int) -> None:
        timer = self._loop.later(seconds / _PARTS, lambda: self._judge(process, before, seconds, parts, timer.due))

    def _judge(self, process: Process, before: m.Counters, seconds: int, parts: int, due: float) -> None:
        parts -= self._loop.now - due <= LATE
        if process.counters is not before:  # every answer is an object of its own
            self._asked.discard(process)
        elif parts:
            self._wait(process, before, seconds, parts)
        else:
            self._asked.discard(process)
            self._hangs(process, seconds)
