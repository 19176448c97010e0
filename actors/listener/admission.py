"""Decide whether a client is let in, or may shake hands, by the bounds of limits.py; drop others to make room, and log what was met."""

from collections.abc import Callable

from popkernel.actors.listener.limits import KEYS, TOO_MANY, TOO_MANY_ADDRESS, Bounds, Limits
from popkernel.kernel.runtime.actor import MORE_DESCRIPTORS, Actor

__all__ = ["COMPLAINTS", "Admission"]

COMPLAINTS = 60.0  # seconds between two lines of the log about connections that are not taken


class Admission:
    """The limits of one process that has clients. `drop` ends a session that has to make room, with the reason for the log."""

    __slots__ = ("_actor", "_drop", "_met", "_short", "limits", "most")

    def __init__(self, actor: Actor, drop: Callable[[int, str], None]) -> None:
        config = actor.boot.config
        self.most = int(config["max_sessions"])
        self.limits = Limits(Bounds.of(config))
        self._actor = actor
        self._drop = drop
        self._short = 0  # the limit of descriptors, where it allows fewer sessions than max_sessions
        self._met: dict[str, tuple[float, int]] = {}  # bounds that were met: when the log had a line of it, how many times since

    def fit(self, limit: int, room: int) -> None:
        """Take no more sessions than a limit of descriptors leaves room for, and at least one: 0 would be no bound."""
        room = max(1, room)
        if room < self.most:  # the kernel has warned where that is less than somebody asked for (kernel/supervisor/descriptor_room.py)
            name, most = self._actor.boot.name, self.most
            self._actor.log(7, f"{name}: the hard limit of {limit} descriptors leaves room for {room} sessions, not {most}")
            self.most, self._short = room, limit
            self.limits.bounds = self.limits.bounds._replace(sessions=room)

    def report(self, why: str, host: str, what: str = "refused") -> None:
        """Log which key it is that somebody meets: one line a minute of each."""
        key, now = KEYS[why], self._actor.loop.now
        last, many = self._met.get(key, (now - COMPLAINTS, 0))
        if now - last < COMPLAINTS:
            self._met[key] = last, many + 1
            return
        self._met[key] = now, 0
        bound = getattr(self.limits.bounds, {"connects_per_minute": "per_minute"}.get(key, key.removeprefix("max_")))
        before = f"; {many} times more since the last such line" if many else ""
        if why == TOO_MANY and self._short:
            met = f"the limit of {self._short} descriptors (RLIMIT_NOFILE) is met ({bound} sessions in this process; {MORE_DESCRIPTORS})"
            self._actor.log(4, f"{host}: {what}: {met}{before}")
            return
        self._actor.log(4, f"{host}: {what}: {key} is met ({bound} in this process){before}")

    def come(self, host: str) -> str:
        """Count a connection, where need be in the place of another. Returns why it is refused, or nothing."""
        why = self.limits.come(host, self._actor.loop.now)
        if why and self.make_room(why, host):
            why = self.limits.come(host, self._actor.loop.now)
        if why:
            self.report(why, host)
        return why

    def make_room(self, why: str, host: str) -> bool:
        """Drop one that has not logged in; whether there was one."""
        limits, now = self.limits, self._actor.loop.now
        session = limits.spare(now) if why == TOO_MANY else limits.spare_of(host, now) if why == TOO_MANY_ADDRESS else None
        if session is None:
            return False
        self.report(why, host, "another made room")
        self._drop(session, "made room for another")
        return True

    def shake(self, session: int, host: str) -> bool:
        """Count a handshake; where there is no room, one of the address that has most of them makes some. Whether there is room."""
        why = self.limits.shake(session, host)
        slow = self.limits.spare_handshake() if why else None
        if slow is not None:
            self.report(why, host, "another made room")
            self._drop(slow, "made room for another handshake")
            why = self.limits.shake(session, host)
        return not why
