"""Keep what auth and the listeners say about load: for `popkernel status`, and for the event `load.high`.

The event is logged at once when a login has waited for longer than a second or a client was refused by a
bound, then each ten seconds, and once when it is over. Nothing runs while nobody waits: auth reports by
itself only while logins wait.
"""

from typing import Any, NamedTuple

from popkernel.kernel.processes import Process, Processes
from popkernel.kernel.runtime.log import Log
from popkernel.kernel.runtime.loop import Loop, Timer
from popkernel.proto import messages as m
from popkernel.proto.log_levels import NOTICE

__all__ = ["BOUNDS", "LoginLoads"]

BOUNDS = frozenset(
    (
        "connects_per_minute",
        "login_seconds",
        "max_handshakes",
        "max_logins_user",
        "max_sessions",
        "max_sessions_address",
        "penalty_seconds",
    )
)
"""The configuration keys that may refuse a client."""

_LONG = 1000  # ms: a login that waits longer is worth a line
_PAUSE = 10.0  # seconds between two lines
_SPAN = 5.0  # seconds over which rates are measured, at least
_GUESSES = "penalty_seconds"  # its refusals have lines of their own, and say nothing about load


class _Sample(NamedTuple):
    """A report of auth, and when it came."""

    at: float
    load: m.LoginLoad


class LoginLoads:
    """Handle LoginLoad and PlacesRefused."""

    def __init__(self, loop: Loop, processes: Processes, log: Log) -> None:
        self._loop = loop
        self._processes = processes
        self._log = log
        self._base: _Sample | None = None  # the report with which the latest is compared
        self._latest: _Sample | None = None
        self._refused: dict[str, int] = {}  # since the start, by bound
        self._fresh: dict[str, int] = {}  # since the last line
        self._began = 0.0  # time of the first of the lines; 0: none, or the last said that it is over
        self._longest = 0  # ms, since then
        self._said = loop.now - _PAUSE
        self._timer: Timer | None = None

    # -- messages
    def login_load(self, auth: Process, message: m.LoginLoad, fds: list[int]) -> None:
        """Take a report of auth."""
        del auth, fds
        now, before = self._loop.now, self._latest
        self._latest = _Sample(now, message)
        if before is not None and message.checks >= before.load.checks and message.hits >= before.load.hits:
            if self._base is None or before.at - self._base.at >= _SPAN:
                self._base = before
        else:
            self._base = None  # the first report, or another process's
        self._longest = max(self._longest, message.oldest)
        if message.oldest > _LONG:
            self._is_high()

    def places_refused(self, process: Process, message: m.PlacesRefused, fds: list[int]) -> None:
        """Count refused clients."""
        bound = message.bound
        if bound not in BOUNDS:
            self._processes.violates(process, "PlacesRefused.bound: no such bound", fds)
            return
        self._refused[bound] = self._refused.get(bound, 0) + message.clients
        if bound != _GUESSES:
            self._fresh[bound] = self._fresh.get(bound, 0) + message.clients
            self._is_high()

    # -- the log
    def _is_high(self) -> None:
        if self._timer is None:
            self._timer = self._loop.later(max(0.0, self._said + _PAUSE - self._loop.now), self._say)

    def _say(self) -> None:
        """Log the load, or that it is over."""
        now, waiting, oldest = self._loop.now, 0, 0
        if self._latest is not None:
            waiting, oldest = self._latest.load.waiting, self._latest.load.oldest
        self._timer = None
        if oldest <= _LONG and not self._fresh:
            if self._began:
                took, longest = round(now - self._began), round(self._longest / 1000, 1)
                self._log(NOTICE, "load.over", seconds=took, longest=longest)
            self._began, self._longest = 0.0, 0
            return
        self._began = self._began or now
        checks = self._rates()[0]
        fields: dict[str, Any] = {"waiting": waiting, "oldest": round(oldest / 1000, 1)}
        if checks is not None:
            fields["checks"] = round(checks, 1)
        if self._fresh:
            fields["refused"] = ", ".join(f"{many} by {bound}" for bound, many in sorted(self._fresh.items()))
        self._log(NOTICE, "load.high", **fields)
        self._fresh.clear()
        self._said = now
        self._timer = self._loop.later(_PAUSE, self._say)

    # -- the status
    def _rates(self) -> tuple[float | None, float | None]:
        """Return checks a second, and the share of logins that needed none; None: not known."""
        if self._base is None or self._latest is None:
            return None, None
        (then, old), (now, new) = self._base, self._latest
        hits, misses = new.hits - old.hits, new.misses - old.misses
        checks = (new.checks - old.checks) / (now - then) if now > then else None
        return checks, hits / (hits + misses) if hits + misses > 0 else None

    def status(self) -> dict[str, Any]:
        """Return the part `logins` of `popkernel status`."""
        load = m.LoginLoad(0, 0, 0, 0, 0, 0) if self._latest is None else self._latest.load
        checks, hits = self._rates()
        return {
            "waiting": load.waiting,
            "oldest": round(load.oldest / 1000, 1),
            "checks": None if checks is None else round(checks, 1),
            "cache_hits": None if hits is None else round(hits, 3),
            "penalised": load.penalised,
            "refused": dict(sorted(self._refused.items())),
        }
