"""Call an actor's timers by the recorded clock, in the turns of its loop in which they were called."""

import heapq
from collections.abc import Callable

from popkernel.kernel.runtime.loop import Loop, Timer

__all__ = ["ReplayLoop"]

_SLACK = 0.005  # seconds between a timer's call and its Timer frame, at most
_STALL = 1.0  # seconds that a timer may be late because its actor was busy


class _ReplayTimer(Timer):
    """A timer made somewhere between two frames: due at `early` at the earliest, at `due` at the latest."""

    __slots__ = ("early",)

    def __init__(self, call: Callable[[], None], early: float, due: float, session: int) -> None:
        super().__init__(call, due, session)
        self.early = early


class ReplayLoop(Loop):
    """Call timers by the recorded clock. No descriptor is ever ready."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        # The real loop's timers run from the clock, which advances during a turn: it stood between `since`,
        # at the frame being played, and `precise`, at the turn's next frame.
        self.precise = 0.0
        self.since = 0.0
        self.turns = False  # whether the recording has the ends of turns, and the sessions of timers
        self.fired: set[int] = set()  # sessions whose timers were called in this turn
        self._before = 0.0  # the clock in the turn before this one

    def add(self, fd: int, call: Callable[[int], None], events: int = 1) -> None:
        del events
        self._calls[fd] = call

    def change(self, fd: int, events: int) -> None:
        del fd, events

    def remove(self, fd: int) -> None:
        self._calls.pop(fd, None)

    def later(self, seconds: float, call: Callable[[], None], session: int = 0) -> Timer:
        timer = _ReplayTimer(
            call, max(self.now, self.since) + seconds, max(self.now, self.precise) + seconds, session
        )
        heapq.heappush(self._timers, (timer.due, next(self._sequence), timer))
        return timer

    def settle(self) -> None:
        """Make the calls that were put off until the end of the turn."""
        while self._soon:
            todo, self._soon = self._soon, []
            for call in todo:
                call()

    def advance(self, now: float, *, late: bool = False) -> None:
        """Advance the clock to `now`; call timers due until then at their time, or at `now` if `late`."""
        while self._timers and self._timers[0][0] <= now:
            self._call(now if late else self._timers[0][0])
        self.advance_clock(now)

    def _call(self, now: float) -> None:
        timer = heapq.heappop(self._timers)[2]
        self.now = self.precise = max(self.now, now)
        if timer.call is not None:
            timer.call()
        if not self.turns:
            self.settle()

    def fire(self, now: float, session: int) -> None:
        """Call the session's timer that was called now in the recording: the first due, or perhaps due."""
        self.advance_clock(now)
        if self._fire(now + _SLACK, session) or self._fire(now + _SLACK, session, early=True):
            self.fired.add(session)

    def _fire(self, until: float, session: int, *, early: bool = False) -> bool:
        its = [entry for entry in self._timers if entry[2].session == session and entry[2].call is not None]
        due = [
            entry for entry in its if (getattr(entry[2], "early", entry[0]) if early else entry[0]) <= until
        ]
        if not due:
            return False
        timer = min(due)[2]
        call, timer.call = timer.call, None
        assert call is not None
        call()
        return True

    def end(self) -> None:
        """End a turn: call all due timers of sessions that had one called, then deferred calls."""
        for session in self.fired:
            while self._fire(self.now, session):
                pass
        self.fired.clear()
        self.settle()
        self._before = self.now

    def fire_all(self, now: float) -> None:
        """As `fire`, if the recording does not have the timer's session."""
        while self._timers and self._timers[0][2].call is None:
            heapq.heappop(self._timers)
        if self._timers and now < self._timers[0][0] <= now + _SLACK:
            self._call(now)
        self.advance(now, late=True)

    def follow(self, now: float) -> None:
        """Advance the clock to `now`, up to which the recording has no timer called.

        A timer that only this program has is called too, a second late and a turn later at the earliest.
        """
        self.advance(min(now - _STALL, self._before) if self.turns else now - _STALL, late=True)
        self.advance_clock(now)

    def advance_clock(self, now: float) -> None:
        """Advance the clock, and call nothing."""
        self.now = max(self.now, now)
        self.precise = max(self.precise, self.now)
