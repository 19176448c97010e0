"""Limit what each actor may add to the log, so that none can fill the disk or hide the lines of others."""

from collections.abc import Callable, Mapping
from typing import Any

from popkernel.kernel.runtime.log import Log
from popkernel.kernel.runtime.loop import Loop, Timer
from popkernel.proto.log_levels import NOTICE, WARNING

__all__ = ["CHECKED", "FAULT_SECONDS", "MOST", "MOST_EVENTS", "WINDOW", "ActorLines"]

MOST = 500  # lines of one actor in a window
# Events of one listener in a window. An honest listener has no more wrong passwords than auth can check, and
# no more sessions than a core can serve. Logins that are refused without a check cost nothing, so one client
# may cause thousands: they have a share of their own, so that fail2ban still sees the others.
MOST_EVENTS = {
    "login.failed": 1000,
    "login.refused": 500,
    "session.over": 10_000,
    "tls.failed": 100,
    "client.failed": 100,
    "delivery.done": 2000,  # of one mailbox
    "delivery.refused": 1000,
}
CHECKED = frozenset(("locked", "password", "token", "unknown", "unusable"))  # reasons
MOST_ALONE = 100  # of a listener that serves one connection
WINDOW = 10.0  # seconds
FAULT_SECONDS = 60.0  # one client's fault has a line once in so many seconds
_MOST_FAULTS = 2000  # faults of clients that are remembered for that


class ActorLines:
    """Count each actor's lines by its name, so that a restart does not renew its share.

    `owner_of` returns the name that an actor's lines count for too: that of its gate for a listener of one
    connection, whose name is never used twice, and the actor's own name for all others.
    """

    def __init__(self, log: Log, loop: Loop, owner_of: Callable[[str], str]) -> None:
        self._log = log
        self._loop = loop
        self._owner_of = owner_of
        # lines in this window by name and event; "": other lines, "end": lines about its end
        self._said: dict[tuple[str, str], int] = {}
        # faults of clients logged lately, by event, host and reason: how often they came again, and the timer
        self._faults: dict[tuple[str, str, str], tuple[int, Timer]] = {}

    def __call__(self, share: str, level: int, event: str, /, **fields: Any) -> None:
        """Log an event of the kernel that an actor caused; it counts in that actor's share."""
        if self._may(share, level, "", MOST):
            self._log.event(level, event, fields)

    def said(self, name: str, level: int, event: str, fields: Mapping[str, Any]) -> bool:
        """Log an actor's own event. At the window's end one line tells how many were dropped.

        Returns whether it was logged, or would be at a lower level. Events with a share of their own count
        at any level: the history keeps them.
        """
        share = event if event in MOST_EVENTS else ""
        shown = level <= self._log.most
        if not (share or shown):
            return True
        may = self._has_room(name, share, MOST_EVENTS.get(share, MOST))
        if may and shown:
            self._log.event(level, event, fields, name)
        return may

    def end(self, share: str, level: int, event: str, /, **fields: Any) -> None:
        """Log an actor's end and the reason, in a share that the actor's own lines cannot use up."""
        if self._may(share, level, "end", MOST):
            self._log.event(level, event, fields)

    def event(
        self, name: str, level: int, event: str, fields: Mapping[str, Any], *, alone: bool = False
    ) -> None:
        """Log an event of a session. `alone`: the listener serves one connection."""
        share = event if event != "login.failed" or fields["reason"] in CHECKED else "login.refused"
        most = MOST_EVENTS[share]
        if self._may(name, level, share, most, min(most, MOST_ALONE) if alone else most):
            self._log.event(level, event, fields)

    def fault(self, name: str, event: str, address: str, reason: str, *, alone: bool = False) -> bool:
        """Log what keeps a client from logging in, once a minute: its program tries again and again.

        Returns whether it was logged, or would be at a lower level.
        """
        key = event, address.rpartition(":")[0], reason
        if key in self._faults:
            more, timer = self._faults[key]
            self._faults[key] = more + 1, timer
            return False
        if len(self._faults) >= _MOST_FAULTS:  # else the timers of a minute would fill the memory
            self._faults.pop(next(iter(self._faults)))[1].cancel()
        fields = {"address": address, "reason": reason}
        self._faults[key] = 0, self._loop.later(FAULT_SECONDS, lambda: self._fault_over(name, key, fields))
        self.event(name, NOTICE, event, fields, alone=alone)
        return True

    def _fault_over(self, name: str, key: tuple[str, str, str], fields: Mapping[str, Any]) -> None:
        more, _ = self._faults.pop(key)
        if more:
            self.event(name, NOTICE, key[0], {**fields, "more": more})

    def _may(self, name: str, level: int, event: str, most: int, own: int = 0) -> bool:
        """Count a line that is shown. Returns whether it is, and there is room for it: see `_has_room`."""
        return level <= self._log.most and self._has_room(name, event, most, own)

    def _has_room(self, name: str, event: str, most: int, own: int = 0) -> bool:
        """Count a line of `name`, and of its owner. Returns whether both have room for it.

        The owner may add `most` lines in a window, the actor itself `own` of them, or all if that is 0.
        """
        owner = self._owner_of(name)
        return self._counted(name, event, own or most, owner) and (
            owner == name or self._counted(owner, event, most, owner)
        )

    def _counted(self, name: str, event: str, most: int, owner: str) -> bool:
        said = self._said.get((name, event), 0)
        self._said[name, event] = said + 1
        if not said:
            self._loop.later(WINDOW, lambda: self._over(name, event, most, owner))
        return said < most

    def _over(self, name: str, event: str, most: int, owner: str) -> None:
        dropped = self._said.pop((name, event)) - most
        # each of a gate's listeners may have such a line, so these count as lines of the gate
        if dropped > 0 and (owner == name or self._counted(owner, "", MOST, owner)):
            # in words, as in the log's text form
            share = {"share": event.replace(".", " ")} if event in MOST_EVENTS else {}
            self._log(
                WARNING,
                "log.dropped",
                count=dropped,
                **share,
                process=name,
                most=most,
                seconds=round(WINDOW),
            )
