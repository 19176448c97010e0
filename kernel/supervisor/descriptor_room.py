"""Count the descriptors that the kernel has left, without a system call, and check the limit at a start.

The kernel holds one for each actor (two while the actor waits for its fork), one for each parked session, and
one for each tap and control connection. A reserve is kept for channels that are being made and handed over,
for a reload, and for actors that must be started again.
"""

import resource
from collections.abc import Sized

from popkernel.kernel.config.keys import Config
from popkernel.kernel.decisions import gate_room
from popkernel.kernel.decisions.leases import Core
from popkernel.kernel.runtime.actor import MORE_DESCRIPTORS, hard_limit
from popkernel.kernel.runtime.channel import counts
from popkernel.kernel.runtime.log import Log
from popkernel.kernel.runtime.loop import Loop
from popkernel.proto.files.tables import Finding
from popkernel.proto.log_levels import DEBUG, ERROR, WARNING
from popkernel.proto.topology import actor as row_of

__all__ = ["Room", "problem", "too_few"]

_OWN = 16  # standard descriptors, the lock, channels to init, the log, epoll's, the control socket
_RESERVE = 64
_USERS = 16  # sessions at a time that there must be room for
_COMPLAINTS = 60.0  # seconds between two lines in the log


def _needed(config: Config) -> int:
    """Return the descriptors that kernel and gates need for `_USERS` users, while a reload goes on."""
    kernel = _OWN + _RESERVE + 2 * (config.listeners + 3) + _USERS
    return (
        max(kernel, gate_room.least(_USERS, config.listeners)) if config.isolation == "connection" else kernel
    )


def problem(config: Config) -> str:
    """Return why a start would have no room to serve, "" if it has room."""
    limit, needed = hard_limit(resource.RLIMIT_NOFILE), _needed(config)
    if limit >= needed:
        return ""
    many = f"{config.listeners} listeners" if config.listeners > 1 else "one listener"
    if config.isolation == "connection":
        many += ' and isolation = "connection"'
    what = (
        f"the limit of {limit} descriptors (RLIMIT_NOFILE) leaves no room to serve:"
        f" with {many} {needed} are the least"
    )
    return f"{what}; {MORE_DESCRIPTORS}"


def too_few(config: Config) -> tuple[Finding, bool] | None:
    """Return a finding if the limit allows fewer sessions than max_sessions; for a start and `check`.

    Its flag says whether somebody set max_sessions, or it is the default.
    """
    hard = hard_limit(resource.RLIMIT_NOFILE)
    limit = min(row_of("kernel").nofile, hard)
    if config.isolation == "connection":
        room = config.listeners * gate_room.sessions(limit, config.listeners)
    else:
        # as Room.left() counts at a start, with listeners, spawner, auth and mda; and as each listener counts
        room = min(
            limit - _OWN - _RESERVE - config.listeners - 3,
            config.listeners * ((min(hard, row_of("listener").nofile) - 64) // 2),
        )
    if room >= config.max_sessions:
        return None
    what = (
        f"the limit of {hard} descriptors (RLIMIT_NOFILE) leaves room for {room} sessions,"
        f" not max_sessions = {config.max_sessions}"
    )
    return Finding(
        "limits", 0, what, f"{MORE_DESCRIPTORS}, or lower max_sessions"
    ), config.max_sessions != Config.max_sessions


class Room:
    """Count what is left, and tell the leases when it is little."""

    def __init__(self, loop: Loop, core: Core, log: Log, config: Config) -> None:
        self._loop = loop
        self._core = core
        self._log = log
        self._config = config
        self.holders: list[Sized] = []  # objects that hold len() descriptors each
        self.limit = min(row_of("kernel").nofile, hard_limit(resource.RLIMIT_NOFILE))
        # idle actors are retired when fewer are left
        self._little = min(512, max(_USERS, self.limit // 8))
        self._said = -_COMPLAINTS

    def left(self) -> int:
        """Return how many more descriptors may be held for long, without the reserve."""
        used = sum(map(len, self.holders)) + counts.held
        return self.limit - _OWN - _RESERVE - used

    def update(self) -> None:
        """Tell kernel/decisions how much room there is, before a decision that may need another actor."""
        left = self.left()
        if left < self._little:
            self._core.short(left)
        elif self._core.room is not None:
            self._core.short(None)

    def full(self, user: str) -> None:
        """Log that a user could not get an actor for want of room, at most once in `_COMPLAINTS` seconds."""
        if self._loop.now - self._said >= _COMPLAINTS:
            self._said = self._loop.now
            self._log(
                ERROR,
                "mailboxes.full",
                user=user,
                open=len(self._core.maildirs),
                limit=self.limit,
                mend=MORE_DESCRIPTORS,
            )

    def ready(self) -> None:
        """Log at the start if the limit allows fewer sessions than max_sessions."""
        found = too_few(self._config)
        if found is not None:
            finding, asked = found
            self._log(WARNING if asked else DEBUG, "descriptors.few", problem=str(finding))
