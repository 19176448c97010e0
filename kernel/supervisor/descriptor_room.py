"""How many descriptors the kernel has left: counted where they are made and closed, so that no system call asks.

One stands for each actor (two while it waits for its fork), one for each session that sleeps, one for each tap and control connection.
What is kept in reserve is for channels that are just being made and handed over, for a reload, and for actors that must be started again.
"""

import resource
from collections.abc import Sized

from popkernel.kernel.config.keys import Config
from popkernel.kernel.decisions import gate_room
from popkernel.kernel.decisions.leases import Core
from popkernel.kernel.runtime.actor import MORE_DESCRIPTORS, hard_limit
from popkernel.kernel.runtime.channel import counts
from popkernel.kernel.runtime.log import ERROR, INFO, WARNING, Log
from popkernel.kernel.runtime.loop import Loop
from popkernel.proto.files.tables import Finding
from popkernel.proto.topology import actor as row_of

__all__ = ["Room", "problem", "too_few"]

_OWN = 16  # standard descriptors, the lock, channels to init, the log, epoll's, the control socket
_RESERVE = 64
_USERS = 16  # fewer at a time are no service
_COMPLAINTS = 60.0  # seconds between two lines of the log


def _needed(config: Config) -> int:
    """Descriptors that kernel and gates need for a few users; the kernel holds each singleton twice in a reload."""
    kernel = _OWN + _RESERVE + 2 * (config.listeners + 3) + _USERS
    return max(kernel, gate_room.least(_USERS, config.listeners)) if config.isolation == "connection" else kernel


def problem(config: Config) -> str:
    """Why a start would have no room to serve, "" where it has."""
    limit, needed = hard_limit(resource.RLIMIT_NOFILE), _needed(config)
    if limit >= needed:
        return ""
    many = f"{config.listeners} listeners" if config.listeners > 1 else "one listener"
    if config.isolation == "connection":
        many += ' and isolation = "connection"'
    what = f"the limit of {limit} descriptors (RLIMIT_NOFILE) leaves no room to serve: with {many} {needed} are the least"
    return f"{what}; {MORE_DESCRIPTORS}"


def too_few(config: Config) -> tuple[Finding, bool] | None:
    """What to say where fewer sessions can be had than max_sessions, and whether somebody asked for so many; for a start and `check`."""
    hard = hard_limit(resource.RLIMIT_NOFILE)
    limit = min(row_of("kernel").nofile, hard)
    if config.isolation == "connection":
        room = config.listeners * gate_room.sessions(limit, config.listeners)
    else:  # as Room.left() counts at a start, with the listeners, spawner, auth and mda; and as each listener does
        room = min(limit - _OWN - _RESERVE - config.listeners - 3, config.listeners * ((min(hard, row_of("listener").nofile) - 64) // 2))
    if room >= config.max_sessions:
        return None
    what = f"the limit of {hard} descriptors (RLIMIT_NOFILE) leaves room for {room} sessions, not max_sessions = {config.max_sessions}"
    return Finding("limits", 0, what, f"{MORE_DESCRIPTORS}, or lower max_sessions"), config.max_sessions != Config.max_sessions


class Room:
    """What is left, and what is done where that is little."""

    def __init__(self, loop: Loop, core: Core, log: Log, config: Config) -> None:
        self._loop = loop
        self._core = core
        self._log = log
        self._config = config
        self.holders: list[Sized] = []  # who holds a descriptor for each that its len() counts
        self.limit = min(row_of("kernel").nofile, hard_limit(resource.RLIMIT_NOFILE))
        self._little = min(512, max(_USERS, self.limit // 8))  # idle actors go where no more than that is left
        self._said = -_COMPLAINTS

    def left(self) -> int:
        """How many more may be kept for long; the reserve is there besides."""
        used = sum(map(len, self.holders)) + counts.held
        return self.limit - _OWN - _RESERVE - used

    def look(self) -> None:
        """Tell the leases (kernel/decisions) how much room there is, before something is decided that may need one more actor."""
        left = self.left()
        if left < self._little:
            self._core.short(left)
        elif self._core.room is not None:
            self._core.short(None)

    def full(self, user: str) -> None:
        """A user could not have an actor for want of room."""
        if self._loop.now - self._said >= _COMPLAINTS:
            self._said = self._loop.now
            self._log(
                ERROR, f"no room for {user} and others: {len(self._core.maildirs)} mailboxes are open, and the kernel may have {self.limit}"
                f" descriptors (RLIMIT_NOFILE); logins hear [SYS/TEMP], mail waits; {MORE_DESCRIPTORS}",
            )

    def ready(self) -> None:
        """Once, at the start: whether as many sessions as were asked for could be had."""
        found = too_few(self._config)
        if found is not None:
            finding, asked = found
            self._log(WARNING if asked else INFO, str(finding))
