"""Admit connections and handshakes within the bounds of limits.py, log and report bounds that were met."""

import socket
from collections.abc import Callable

from popkernel.actors.listener.limits import (
    KEYS,
    TOO_MANY,
    TOO_MANY_ADDRESS,
    TOO_MANY_HANDSHAKES,
    Bounds,
    Limits,
    group,
)
from popkernel.kernel.runtime.actor import MORE_DESCRIPTORS, Actor
from popkernel.proto import messages as m
from popkernel.proto.access.fairness import Fair
from popkernel.proto.log_levels import DEBUG, WARNING

__all__ = ["COMPLAINTS", "MOST_WAITING", "NO_NEW_SESSIONS", "WAITS", "Admission", "WaitingRoom"]

NO_NEW_SESSIONS = "no new sessions now, try again later"

COMPLAINTS = 60.0  # seconds between two lines of the log about refused connections
_REPORTS = 1.0  # seconds between two reports of refused clients to the kernel
_LOOKS = 0.5  # seconds between two looks for handshakes that have had their time, while others wait
_WAIT_SECONDS = 60.0  # that a connection waits for a place; mail programs give up then
_SWEEPS = 1.0  # seconds between two looks for connections that have waited in vain
MOST_WAITING = 1024
"""Connections that may wait for a place in one listener."""

WAITS = "waits for a place"
"""The answer of `come` for a connection that is neither admitted nor refused yet."""

_Held = tuple[socket.socket, str, int, bool, float]  # a connection as `admit` takes it, and when it came


class Admission:
    """Apply the limits of one process that has clients.

    `drop` ends a session that must make room; its second argument is the reason for the log. The owner sets
    the calls below.
    """

    __slots__ = (
        "_actor",
        "_drop",
        "_looking",
        "_met",
        "_refused",
        "_short",
        "begin",
        "closed",
        "limits",
        "may_wait",
        "most",
        "place_freed",
        "stalled",
    )

    def __init__(self, actor: Actor, drop: Callable[[int, str], None]) -> None:
        config = actor.boot.config
        self.most = int(config["max_sessions"])
        self.limits = Limits(Bounds.of(config))
        self._actor = actor
        self._drop = drop
        self.closed = ""  # why all new clients are refused; "": they are not
        self._short = 0  # the limit of descriptors, if it allows fewer sessions than max_sessions
        # bounds that were met, by key: the time of the last line in the log, and how many were not logged
        # since
        self._met: dict[str, tuple[float, int]] = {}
        self._refused: dict[str, int] = {}  # clients refused since the last report, by key
        self._looking = False
        # begin the handshake of a session that waited for its turn
        self.begin: Callable[[int], None] = lambda _: None
        # whether a session's handshake waits for its client, which has sent nothing that is not read
        self.stalled: Callable[[int], bool] = lambda _: False
        # whether a connection of an address may wait for a place
        self.may_wait: Callable[[str], bool] = lambda _: False
        self.place_freed: Callable[[], None] = lambda: None

    def fit(self, limit: int, room: int) -> None:
        """Lower the number of sessions to `room`, which a limit of descriptors allows.

        At least 1 is left, for 0 means no bound.
        """
        room = max(1, room)
        # the kernel has warned if that is less than configured (kernel/supervisor/descriptor_room.py)
        if room < self.most:
            self._actor.log(DEBUG, "limit.lowered", descriptors=limit, limit=room, wanted=self.most)
            self.most, self._short = room, limit
            self.limits.bounds = self.limits.bounds._replace(sessions=room)

    def report(self, why: str, host: str, what: str = "refused") -> None:
        """Log the key of a bound that was met: one line a minute for each key. Report it to the kernel."""
        key, now = KEYS[why], self._actor.loop.now
        self.count(key)
        last, many = self._met.get(key, (now - COMPLAINTS, 0))
        if now - last < COMPLAINTS:
            self._met[key] = last, many + 1
            return
        self._met[key] = now, 0
        bound = getattr(
            self.limits.bounds, {"connects_per_minute": "per_minute"}.get(key, key.removeprefix("max_"))
        )
        met: dict[str, str | int] = {"address": host, "what": what, "limit": bound}
        if many:
            met["more"] = many
        if why == TOO_MANY and self._short:
            self._actor.log(
                WARNING, "limit.descriptors_met", **met, descriptors=self._short, mend=MORE_DESCRIPTORS
            )
            return
        self._actor.log(WARNING, "limit.met", **met, key=key)

    def count(self, key: str) -> None:
        """Count a client that this bound refused, for the kernel."""
        if not self._refused:
            self._actor.loop.later(_REPORTS, self.tell)
        self._refused[key] = self._refused.get(key, 0) + 1

    def tell(self) -> None:
        """Tell the kernel how many clients were refused since it was told last."""
        refused, self._refused = self._refused, {}
        for key, clients in refused.items():
            self._actor.send(m.PlacesRefused(key, clients))

    def drain(self, *, on: bool) -> None:
        """Refuse all new clients from now on, or take them again."""
        self.closed = NO_NEW_SESSIONS if on else ""

    def come(self, host: str) -> str:
        """Count a connection, if necessary in place of another.

        Returns why it is refused, "", or WAITS.
        """
        why = self.limits.come(host, self._actor.loop.now)
        if why and self.make_room(why, host):
            why = self.limits.come(host, self._actor.loop.now)
        if why == TOO_MANY and self.may_wait(host):
            return WAITS
        if why:
            self.report(why, host)
        return why

    def make_room(self, why: str, host: str) -> bool:
        """Drop a session without login. Returns whether there was one."""
        limits, now = self.limits, self._actor.loop.now
        session = (
            limits.spare(now)
            if why == TOO_MANY
            else limits.spare_of(host, now)
            if why == TOO_MANY_ADDRESS
            else None
        )
        if session is None:
            return False
        self.report(why, host, "another made room")
        self._drop(session, "made room for another")
        return True

    def gone(self, host: str) -> None:
        """Count out a connection that was accepted."""
        self.limits.gone(host)
        self.place_freed()

    # -- handshakes
    def shake(self, session: int, host: str) -> bool:
        """Count a handshake. If there is no room, drop one of an address that has far more of them.

        Returns whether it may go on. Else it waits for its turn, and `begin` is called then.
        """
        limits = self.limits
        if not limits.shake(session, host, self._actor.loop.now):
            return True
        slow = limits.spare_handshake(host)
        if slow is None:
            limits.wait_to_shake(session, host)
            if not self._looking:
                self._looking = True
                self._look()
            return False
        limits.shaken(slow)  # its place goes to this one, not to the next in turn
        limits.shake(session, host, self._actor.loop.now)
        self._make_way(slow, host)
        return True

    def shaken(self, session: int) -> None:
        """Count out a handshake, and begin those that wait."""
        self.limits.shaken(session)
        self.next_handshake()

    def next_handshake(self) -> None:
        """Begin handshakes that wait, in turn, as many as there is room for."""
        while (following := self.limits.next_handshake(self._actor.loop.now)) is not None:
            self.begin(following)

    def _look(self) -> None:
        """Drop handshakes that have had their time, while others wait."""
        limits = self.limits
        for slow, address in limits.slow_handshakes(self._actor.loop.now):
            if self.stalled(slow):
                self._make_way(slow, address)
        self.next_handshake()
        self._looking = limits.waiting_handshakes() > 0
        if self._looking:
            self._actor.loop.later(_LOOKS, self._look)

    def _make_way(self, session: int, host: str) -> None:
        self.report(TOO_MANY_HANDSHAKES, host, "another made room")
        self._drop(session, "made room for another handshake")


class WaitingRoom:
    """Connections for which there is no place yet, while others wait for the server.

    Behind one address there may be more users than `max_sessions`, and after a start each of them waits for
    its password check. Instead of being refused, a connection waits here before its first octet is read: it
    costs a descriptor, and its time to log in has not begun. Places go to addresses in turn. `most`: how many
    connections may wait.
    """

    __slots__ = ("_actor", "_admission", "_admit", "_looking", "_queue", "_serial", "most")

    def __init__(
        self, actor: Actor, admission: Admission, admit: Callable[[socket.socket, str, int, bool, str], None]
    ) -> None:
        """`admit`: as `Connections.admit`."""
        self._actor = actor
        self._admission = admission
        self._admit = admit
        self.most = 0
        self._queue: Fair[int, _Held] = Fair()
        self._serial = 0
        self._looking = False
        admission.may_wait, admission.place_freed = self.may_wait, self.go_on

    def __len__(self) -> int:
        return len(self._queue)

    def may_wait(self, host: str) -> bool:
        """Return whether one more connection may wait, if necessary in place of an address's that has more.

        None may if all places are taken by users who have logged in: those may stay for long.
        """
        if not self.most or not self._admission.limits.served:
            return False
        if len(self._queue) < self.most:
            return True
        spare = self._queue.spare(self._address(host))
        held = None if spare is None else self._queue.remove(spare)
        if held is not None:
            self._refuse(held)
        return held is not None

    def wait(self, sock: socket.socket, host: str, port: int, tls: bool) -> None:
        """Take a connection in, after `may_wait`."""
        self._serial += 1
        self._queue.put(self._address(host), self._serial, (sock, host, port, tls, self._actor.loop.now))
        if not self._looking:
            self._looking = True
            self._actor.loop.later(_SWEEPS, self._look)

    def go_on(self) -> None:
        """Admit connections in turn, as far as there are places."""
        limits = self._admission.limits
        while self._queue and limits.sessions < limits.bounds.sessions:
            _, (sock, host, port, tls, _) = self._queue.take()
            why = self._admission.closed or limits.come(host, self._actor.loop.now)
            if why and not self._admission.closed:
                self._admission.report(why, host)
            self._admit(sock, host, port, tls, why)

    def close(self) -> None:
        """Close all connections that wait: the listener accepts no more."""
        while self._queue:
            self._queue.take()[1][0].close()

    def _look(self) -> None:
        """Refuse those that have waited in vain."""
        self.go_on()
        while (oldest := self._queue.oldest()) is not None:
            number, held = oldest
            if self._admission.limits.served and held[4] > self._actor.loop.now - _WAIT_SECONDS:
                break
            self._queue.remove(number)
            self._refuse(held)
        self._looking = bool(self._queue)
        if self._looking:
            self._actor.loop.later(_SWEEPS, self._look)

    def _refuse(self, held: _Held) -> None:
        sock, host, port, tls, _ = held
        self._admission.report(TOO_MANY, host)
        self._admit(sock, host, port, tls, TOO_MANY)

    def _address(self, host: str) -> str:
        return group(host, self._admission.limits.bounds.prefix_v6)
