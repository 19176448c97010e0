"""What actors may add to the log: so much each in a while, so that none of them can fill a disk or bury what others say."""

from collections.abc import Mapping
from typing import Any

from popkernel.kernel.runtime.log import WARNING, Log
from popkernel.kernel.runtime.loop import Loop

__all__ = ["MOST", "MOST_EVENTS", "WINDOW", "ActorLines"]

MOST = 500  # lines of one actor in a window
# Events of one listener. No honest one has more passwords found wrong than auth can check, nor more sessions than a core can serve. What is
# refused unseen costs nobody anything, so one client may have thousands: these must not crowd out what fail2ban counts.
MOST_EVENTS = {"login failed": 1000, "login refused": 500, "session over": 10_000}
MOST_ALONE = 100  # of a listener that serves one connection
WINDOW = 10.0  # seconds


class ActorLines:
    """Counted by name: who ends and is started anew has no more than before."""

    def __init__(self, log: Log, loop: Loop) -> None:
        self._log = log
        self._loop = loop
        self._said: dict[tuple[str, str], int] = {}  # by name and event, "" for lines, "end" for those about its end

    def __call__(self, name: str, level: int, text: str, words_of: str = "") -> None:
        """A line of an actor's, or one it caused in the words of another; the window's end tells how many were too many."""
        if self._may(name, level, "", MOST):
            self._log(level, text, words_of or name)

    def end(self, name: str, level: int, text: str) -> None:
        """The kernel's line about an actor's end, and why: of a share of its own, which nothing that it said before can have used up."""
        if self._may(name, level, "end", MOST):
            self._log(level, text)

    def event(self, name: str, level: int, event: str, fields: Mapping[str, Any], *, alone: bool = False) -> None:
        """An event that a listener tells of. `alone`: it has one connection."""
        share = "login refused" if event == "login failed" and fields["why"] != "AUTH" else event
        if self._may(name, level, share, min(MOST_EVENTS[share], MOST_ALONE) if alone else MOST_EVENTS[share]):
            self._log.event(level, event, fields)

    def _may(self, name: str, level: int, event: str, most: int) -> bool:
        if level > self._log.most:
            return False
        said = self._said.get((name, event), 0)
        self._said[name, event] = said + 1
        if not said:
            self._loop.later(WINDOW, lambda: self._over(name, event, most))
        return said < most

    def _over(self, name: str, event: str, most: int) -> None:
        dropped = self._said.pop((name, event)) - most
        if dropped > 0:
            what = f'lines "{event}"' if event in MOST_EVENTS else "lines"
            self._log(WARNING, f"{dropped} {what} of {name} dropped: more than {most} in {WINDOW:.0f} seconds")
