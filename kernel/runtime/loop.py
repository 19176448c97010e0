"""Run a process's one event loop: descriptors that are ready, and timers. Nothing that it calls may block."""

import errno
import heapq
import os
import select
import selectors
import time
from collections.abc import Callable
from itertools import count
from typing import Any

__all__ = ["READ", "WRITE", "Loop", "SelectorPoller", "Timer"]

READ = 1  # POLLIN and EPOLLIN are the same number, as are POLLOUT and EPOLLOUT
WRITE = 4

_CROWD = 1024
_SHORT_SECONDS = 0.05  # between two polls of descriptors that the system has no room to watch
_SHORT_OF = (errno.ENOSPC, errno.ENOMEM)  # epoll_ctl(2): fs.epoll.max_user_watches, memory
_Callback = Callable[[int], None]


class Timer:
    """Hold a call that is due at a time."""

    __slots__ = ("call", "due", "session")

    def __init__(self, call: Callable[[], None], due: float, session: int = 0) -> None:
        self.call: Callable[[], None] | None = call
        self.due = due  # monotonic seconds
        self.session = session  # 0: of no session; a replay of one session has only that session's timers

    def cancel(self) -> None:
        """Cancel the call. The heap drops the timer when it is due, or when the heap has grown large."""
        self.call = None


class SelectorPoller:
    """Give a selector of the standard library the methods of `select.epoll`.

    A selector reports an error or a hang-up as the events that were asked for, and it refuses a descriptor
    without events: such a one is not watched until it has some.
    """

    __slots__ = ("_idle", "_selector")

    def __init__(self, selector: selectors.BaseSelector) -> None:
        self._selector = selector
        self._idle: set[int] = set()  # descriptors with no events

    def register(self, fd: int, events: int) -> None:
        """Watch a descriptor. An open one replaces a closed one of its number, as in epoll(7)."""
        if fd in self._idle or fd in self._selector.get_map():
            self.unregister(fd)
        wanted = _to_selector(events)
        if wanted:
            self._selector.register(fd, wanted)
        else:
            self._idle.add(fd)

    def modify(self, fd: int, events: int) -> None:
        """Wait for other events of a descriptor.

        Raises:
            FileNotFoundError: it is not watched.

        """
        wanted = _to_selector(events)
        if wanted and fd in self._selector.get_map():
            self._selector.modify(fd, wanted)
        else:
            self.unregister(fd)
            self.register(fd, events)

    def unregister(self, fd: int) -> None:
        """Stop watching a descriptor.

        Raises:
            FileNotFoundError: it is not watched.

        """
        if fd in self._idle:
            self._idle.remove(fd)
            return
        try:
            self._selector.unregister(fd)
        except KeyError:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT)) from None

    def poll(self, timeout: float | None) -> list[tuple[int, int]]:
        """Wait for that many seconds, or without end for None; return ready descriptors with their events."""
        ready: dict[int, int] = {}
        for key, events in self._selector.select(timeout):
            # kqueue(2) reports reading and writing one by one
            ready[key.fd] = ready.get(key.fd, 0) | _from_selector(events)
        return list(ready.items())

    def close(self) -> None:
        """Close the system's descriptor."""
        self._selector.close()


def _to_selector(events: int) -> int:
    """Convert events; epoll's modes are dropped."""
    return (selectors.EVENT_READ if events & READ else 0) | (selectors.EVENT_WRITE if events & WRITE else 0)


def _from_selector(events: int) -> int:
    return (READ if events & selectors.EVENT_READ else 0) | (WRITE if events & selectors.EVENT_WRITE else 0)


def _poller_of_many() -> Any:
    # epoll itself, if there is one: with a selector a turn takes 1.45 µs, not 1.04, and edges are lost
    return select.epoll() if hasattr(select, "epoll") else SelectorPoller(selectors.DefaultSelector())


class Loop:
    """Run callbacks for ready descriptors and due timers.

    It waits by poll(2); for `many` descriptors by epoll(7), or the best that a system without it has.
    """

    __slots__ = (
        "_added",
        "_calls",
        "_crowd",
        "_many",
        "_poller",
        "_running",
        "_sequence",
        "_soon",
        "_timers",
        "_unwatched",
        "ending",
        "now",
        "on_timer",
    )

    def __init__(self, *, many: bool = False) -> None:
        self._many = many
        self._poller: Any = _poller_of_many() if many else select.poll()
        self._calls: dict[int, _Callback] = {}
        self._unwatched: Any = None  # a poll(2) object for descriptors that the system had no room to watch
        # descriptors added in this turn: its events for these numbers are of descriptors closed before
        self._added: set[int] = set()
        self._timers: list[tuple[float, int, Timer]] = []
        self._soon: list[Callable[[], None]] = []
        self._sequence = count()
        self._running = False
        self._crowd = _CROWD  # number of timers at which the cancelled ones are removed
        # during a trace: called with a timer's session before its call
        self.on_timer: Callable[[int], None] | None = None
        self.ending = False  # during the calls at the end of a turn
        self.now = time.monotonic()  # seconds; read once a turn

    def add(self, fd: int, call: _Callback, events: int = READ) -> None:
        """Call `call(events)` whenever `fd` is ready (level-triggered).

        A descriptor that the system has no room to watch is polled every 50 ms.
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
        """Stop waiting for a descriptor. Call it before the descriptor is closed."""
        if self._calls.pop(fd, None) is not None:
            try:
                self._poller.unregister(fd)
            except FileNotFoundError:
                if self._unwatched is None:
                    raise
                self._unwatched.unregister(fd)

    def _look(self) -> None:
        """Look at those that the system had no room to watch."""
        self.later(_SHORT_SECONDS, self._look)
        self._tell(self._unwatched.poll(0))

    def later(self, seconds: float, call: Callable[[], None], session: int = 0) -> Timer:
        """Call once, after that many seconds. `session`: the session that the timer is of, 0 for none."""
        timer = Timer(call, time.monotonic() + seconds, session)
        if len(self._timers) >= self._crowd:
            self._forget_cancelled()
        heapq.heappush(self._timers, (timer.due, next(self._sequence), timer))
        return timer

    def _forget_cancelled(self) -> None:
        """Remove cancelled timers.

        Most sessions' timers are cancelled long before they are due, and would fill the heap.
        """
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
        """Wait once; call the callbacks of ready descriptors, due timers, and `soon` calls."""
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
            # an earlier callback may have closed the descriptor, and opened another of the same number
            call = calls.get(fd)
            if call is not None and fd not in added:
                call(events)

    def _poll(self) -> list[tuple[int, int]]:
        timeout: float | None = None
        if self._soon:
            timeout = 0.0
        else:
            timers = self._timers
            while timers and timers[0][2].call is None:
                heapq.heappop(timers)  # cancelled: do not wake up for it
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
