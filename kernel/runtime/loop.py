"""One event loop a process: descriptors that are ready, and timers. Everything runs in it; nothing in it may block."""

import errno
import heapq
import select
import time
from collections.abc import Callable
from itertools import count
from typing import Any

__all__ = ["READ", "WRITE", "Loop", "Timer"]

READ = 1  # POLLIN and EPOLLIN are the same number, as are their OUTs
WRITE = 4

_CROWD = 1024
_SHORT_SECONDS = 0.05  # between two looks at what the system has no room to watch
_SHORT_OF = (errno.ENOSPC, errno.ENOMEM)  # epoll_ctl(2): fs.epoll.max_user_watches, memory
_Callback = Callable[[int], None]


class Timer:
    """A call at a time; `cancel` makes it none."""

    __slots__ = ("call", "due", "session")

    def __init__(self, call: Callable[[], None], due: float, session: int = 0) -> None:
        self.call: Callable[[], None] | None = call
        self.due = due  # monotonic seconds
        self.session = session  # whose it is, 0 for nobody's: a replay of one session has no others' timers

    def cancel(self) -> None:
        """Never to be called; costs nothing, the heap forgets it when its time comes or it has become large."""
        self.call = None


class Loop:
    """poll(2) for those with a handful of descriptors, epoll(7) where there is one and `many` are to come."""

    __slots__ = (
        "_added", "_calls", "_crowd", "_many", "_poller", "_running", "_sequence", "_soon", "_timers", "_unwatched", "ending", "now",
        "on_timer",
    )

    def __init__(self, *, many: bool = False) -> None:
        self._many = many and hasattr(select, "epoll")
        self._poller: Any = select.epoll() if self._many else select.poll()
        self._calls: dict[int, _Callback] = {}
        self._unwatched: Any = None  # a poll(2) object of those that epoll had no room for, once there were any
        self._added: set[int] = set()  # in this turn: what was polled of that number was another descriptor's
        self._timers: list[tuple[float, int, Timer]] = []
        self._soon: list[Callable[[], None]] = []
        self._sequence = count()
        self._running = False
        self._crowd = _CROWD  # timers at which those that were cancelled are looked for
        self.on_timer: Callable[[int], None] | None = None  # told whose before a timer's call, while somebody watches
        self.ending = False  # at the end of a turn, doing what was put off until then
        self.now = time.monotonic()  # seconds; read once a turn, good enough for every deadline here

    def add(self, fd: int, call: _Callback, events: int = READ) -> None:
        """Call `call(events)` whenever `fd` is ready (level-triggered).

        One that the system has no room to watch is looked at now and then.
        """
        try:
            self._poller.register(fd, events)
        except OSError as error:
            if error.errno not in _SHORT_OF:
                raise
            if self._unwatched is None:
                self._unwatched = select.poll()
                self.later(_SHORT_SECONDS, self._look)
            self._unwatched.register(fd, events)
        self._calls[fd] = call
        self._added.add(fd)

    def change(self, fd: int, events: int) -> None:
        """Wait for other events of a descriptor."""
        try:
            self._poller.modify(fd, events)
        except FileNotFoundError:
            if self._unwatched is None:
                raise
            self._unwatched.modify(fd, events)

    def remove(self, fd: int) -> None:
        """Wait for it no longer. To be called before it is closed."""
        if self._calls.pop(fd, None) is not None:
            try:
                self._poller.unregister(fd)
            except FileNotFoundError:
                if self._unwatched is None:
                    raise
                self._unwatched.unregister(fd)

    def _look(self) -> None:
        """At those that epoll had no room for."""
        self.later(_SHORT_SECONDS, self._look)
        self._tell(self._unwatched.poll(0))

    def later(self, seconds: float, call: Callable[[], None], session: int = 0) -> Timer:
        """Call once, that many seconds from now. `session`: whose timer it is, where it is one's alone."""
        timer = Timer(call, time.monotonic() + seconds, session)
        if len(self._timers) >= self._crowd:
            self._forget_cancelled()
        heapq.heappush(self._timers, (timer.due, next(self._sequence), timer))
        return timer

    def _forget_cancelled(self) -> None:
        """A session's timer is cancelled long before it is due: at hundreds of sessions a second the heap would hold little else."""
        self._timers = [entry for entry in self._timers if entry[2].call is not None]
        heapq.heapify(self._timers)
        self._crowd = max(_CROWD, 2 * len(self._timers))

    def soon(self, call: Callable[[], None]) -> None:
        """Call once, before the loop waits again."""
        self._soon.append(call)

    def stop(self) -> None:
        """Leave `run` after this turn."""
        self._running = False

    def run(self) -> None:
        """Serve until `stop`."""
        self._running = True
        while self._running:
            self.turn()

    def turn(self) -> None:
        """Wait once, and call whom it concerns."""
        self._tell(self._poll())
        while self._timers and self._timers[0][0] <= self.now:
            timer = heapq.heappop(self._timers)[2]
            if timer.call is not None:
                if self.on_timer is not None:
                    self.on_timer(timer.session)
                timer.call()
        if self._soon:
            self.ending = True
            while self._soon:
                todo, self._soon = self._soon, []
                for call_soon in todo:
                    call_soon()
            self.ending = False

    def _tell(self, ready: list[tuple[int, int]]) -> None:
        calls, added = self._calls, self._added
        added.clear()
        for fd, events in ready:
            call = calls.get(fd)  # one of an earlier event may have removed it, and closed it, and got another of its number
            if call is not None and fd not in added:
                call(events)

    def _poll(self) -> list[tuple[int, int]]:
        timeout: float | None = None
        if self._soon:
            timeout = 0.0
        else:
            timers = self._timers
            while timers and timers[0][2].call is None:
                heapq.heappop(timers)  # cancelled: not worth waking up for
            if timers:
                timeout = max(0.0, timers[0][0] - time.monotonic())
        try:
            ready: list[tuple[int, int]]
            if self._many:
                ready = self._poller.poll(timeout)
            else:
                ready = self._poller.poll(None if timeout is None else timeout * 1000 + 0.5)
        except OSError as error:
            if error.errno not in _SHORT_OF:
                raise
            time.sleep(_SHORT_SECONDS)
            ready = []
        finally:
            self.now = time.monotonic()
        return ready
