"""Decide about leases, sessions, maildir actors and restarts, sans I/O.

Each method takes a message or an event and returns a list of actions (actions.py), which kernel/supervisor
carries out. There is no clock, no descriptor and no process here, so a replay feeds it the recorded events
and compares its actions with the recorded ones.
"""

from collections import deque
from collections.abc import Mapping
from itertools import islice
from typing import NamedTuple

from popkernel.kernel.decisions.actions import (
    Action,
    Forget,
    Full,
    Join,
    Kill,
    Restart,
    Rouse,
    Send,
    Spawn,
    Suspect,
    WriteLog,
)
from popkernel.proto import messages as m
from popkernel.proto.files.tables import MailUser
from popkernel.proto.log_levels import DEBUG, ERROR, WARNING

__all__ = ["Core", "Settings"]

# an actor whose session's client has gone may stay silent so long: a slow disk may be busy with its QUIT
_QUIT_SECONDS = 30
_MOST_AWAITING = 100_000  # logins under way: a listener that announces without end must not fill the memory
_GROWTH = 1 << 20  # octets by which an actor must have grown to count as larger than the others
_COPIED = 1 << 19  # octets of inherited pages that such an actor has copied in addition: no peak has them
_LARGE = 8  # an actor that has grown by this part of the budget, as a divisor, is not kept warm


class Settings(NamedTuple):
    """Hold the configuration that the decisions need. Times are in seconds."""

    warm_seconds: float = 3600.0
    warm_octets: int = 1 << 30  # octets that idle actors may have together
    warm_max: int = 1 << 30  # idle actors; fewer if there may be few processes
    park_seconds: int = 30  # 0: never
    # with so many busy actors one second of silence parks a session; from half as many, park_seconds falls.
    # With more sessions than that, an actor whose session is parked is not kept warm.
    crowd: int = 1000
    restart_intensity: int = 5
    restart_seconds: float = 30.0
    login_delay: int = 0  # seconds between two logins of one user (RFC 2449 section 6.5)


class Key(NamedTuple):
    """Name a session: the listener, and that listener's number for the session."""

    listener: str
    session: int


class Maildir:
    """Hold the kernel's knowledge of a user's maildir actor."""

    __slots__ = ("grown", "key", "name", "parks", "retiring", "row", "stale", "user", "waiting")

    def __init__(self, user: str, row: MailUser) -> None:
        self.user = user
        self.row = row  # the user table's, at its fork
        self.name = f"maildir.{user}"
        self.key: Key | None = None  # the session that holds the lease
        self.grown = 0  # octets that it has more than others, for a large mailbox
        self.parks = 0.0  # before this time its session can't have been silent long enough to be parked
        self.retiring = False  # told to end: the next session waits for that
        self.stale = False  # older than the user table: retired as soon as its session is over
        # the session that gets the maildrop once its last one, or this actor, has ended
        self.waiting: Key | None = None


class Core:
    """Keep the kernel's state. `now` arguments are monotonic seconds."""

    # Users whose session was handed back by an actor whose maildir had moved, and was neither parked nor
    # ended since. A class attribute, for older recordings of the state lack it.
    handed: frozenset[str] = frozenset()

    # the operator has said that no session begins; a class attribute likewise
    draining: bool = False

    # how many more actors may be started; None: no limit is near (kernel/supervisor/descriptor_room.py)
    room: int | None = None

    # What was measured of an actor forked on trial, and what is assumed until then: octets of its own when
    # idle, and the most that it had, own or shared, in KiB; 0: unknown.
    actor_octets = 2_500_000
    actor_peak = 0
    idle_grown = 0  # sum of `grown` of the idle actors

    def __init__(self, users: Mapping[str, MailUser], settings: Settings) -> None:
        self.users = users
        self.settings = settings
        self.awaiting: set[Key] = set()
        self.hung: set[Key] = set()  # logins whose client shut its sending side before it had a maildrop
        self.leases: dict[str, Key] = {}
        self.waiting: dict[Key, str] = {}  # sessions that wait for a maildrop: its user
        # sessions whose client has gone and whose maildir actor has not yet sent SessionClosed
        self.leaving: set[Key] = set()
        self.sessions: dict[Key, tuple[str, float]] = {}  # user, and when it began
        self.maildirs: dict[str, Maildir] = {}
        self.idle: dict[str, float] = {}  # user -> when the actor became idle, the oldest first
        # parked sessions by user: the lease is kept, the process may end; with the actor's state
        self.asleep: dict[str, tuple[Key, bytes]] = {}
        self.roused: set[str] = set()  # users whose parked session waits for a retiring actor's end
        self.logins: dict[str, float] = {}  # user -> time of the last login, if login_delay is set
        self.deaths: dict[str, deque[float]] = {}  # singleton -> when it ended unexpectedly

    # -- logging in
    def awaits(self, listener: str, message: m.LoginStarted) -> list[Action]:
        """Record a login that a listener announces; a listener that announces without end is killed."""
        key = Key(listener, message.session)
        if (
            key in self.sessions
            and (maildir := self.maildirs.get(self.sessions[key][0]))
            and maildir.key == key
            and maildir.retiring
        ):
            self._free(maildir)  # the actor died before it could send SessionClosed
        if key not in self.sessions and key not in self.waiting:
            self.awaiting.add(key)
        if (
            len(self.awaiting) > _MOST_AWAITING
            and sum(k.listener == listener for k in self.awaiting) > _MOST_AWAITING // 2
        ):
            # removed at once: else each message that it sends before its end would cost this count again
            self.awaiting = {k for k in self.awaiting if k.listener != listener}
            return [WriteLog(ERROR, "logins.endless", {"process": listener}), Kill(listener)]
        return []

    def granted(self, message: m.LoginGranted, now: float) -> list[Action]:
        """Give a session the maildrop that auth grants: once, and only if its listener announced it."""
        key = Key(message.listener, message.session)
        if key not in self.awaiting:
            return [WriteLog(DEBUG, "login.too_late", {"process": message.listener})]
        self.awaiting.discard(key)
        row = self.users.get(message.user)
        if row is None:
            return [
                WriteLog(WARNING, "login.no_maildrop", {"user": message.user}),
                Send(key.listener, m.SessionRefused(key.session, "AUTH", "wrong name or password")),
            ]
        if self.draining:
            turned = m.SessionRefused(key.session, "SYS/TEMP", "no new sessions now, try again later")
            return [Send(key.listener, turned)]
        if self._too_soon(message.user, now):
            return [
                Send(
                    key.listener,
                    m.SessionRefused(
                        key.session, "LOGIN-DELAY", f"only one login in {self.settings.login_delay} seconds"
                    ),
                )
            ]
        return self._open(message.user, row, key, now)

    def _too_soon(self, user: str, now: float) -> bool:
        """Return whether `login_delay` forbids a login now; a refused login does not restart the delay."""
        return self.settings.login_delay > 0 and now - self.logins.get(user, -1e9) < self.settings.login_delay

    def _open(self, user: str, row: MailUser, key: Key, now: float) -> list[Action]:
        """Give the maildrop to a session, refuse it, or let it wait.

        It waits for the end of a session whose client has gone, or of a retiring actor.
        """
        actions: list[Action] = []
        if user in self.asleep:
            if self.asleep[user][0] not in self.leaving:
                return [self._in_use(key)]
            actions += self.sleeper_gone(user)
        maildir = self.maildirs.get(user)
        if maildir is None and self.full:
            turned = m.SessionRefused(key.session, "SYS/TEMP", "the server is full now, try again later")
            return [*actions, *self.no_room(user), Send(key.listener, turned)]
        if maildir is None:
            actions += self.start(user, row)
            maildir = self.maildirs[user]
        elif (maildir.waiting is not None and maildir.waiting not in self.hung) or (
            maildir.key is not None and maildir.key not in self.leaving
        ):
            return [*actions, self._in_use(key)]
        elif maildir.retiring or maildir.key is not None:
            if maildir.waiting is not None:
                actions.append(self._in_use(maildir.waiting))
                self._stop_waiting(maildir.waiting)
            maildir.waiting = key
            self.waiting[key] = user
            # the actor may be hung, and would never end the session
            return [*actions, Suspect(maildir.name, 0 if maildir.key is None else _QUIT_SECONDS)]
        self.leases[user] = key
        self.sessions[key] = (user, now)
        if self.settings.login_delay:
            self.logins[user] = now  # at most one entry for each user
        maildir.key = key
        self._not_idle(maildir)
        if key in self.hung:
            self.hung.remove(key)
            self.leaving.add(key)
        actions.append(
            Join(
                key.listener,
                m.SessionAdmitted(key.session, user),
                maildir.name,
                m.SessionOpen(key.session, self._park(maildir, now)),
            )
        )
        return actions

    def _in_use(self, key: Key) -> Action:
        text = "another session has this mailbox open"
        return Send(key.listener, m.SessionRefused(key.session, "IN-USE", text))

    def start(self, user: str, row: MailUser) -> list[Action]:
        """Have a user's maildir actor forked. The user must have none."""
        maildir = self.maildirs[user] = Maildir(user, row)
        if self.room is None:
            return [Spawn(maildir.name, row)]
        self.room -= 1
        return [*self._retire_oldest(), Spawn(maildir.name, row)]

    def short(self, room: int | None) -> list[Action]:
        """Take how many more actors may be started, None for no limit."""
        self.room = room
        return []

    @property
    def full(self) -> bool:
        """Return whether there is no room for another actor."""
        return self.room is not None and self.room <= 0

    def no_room(self, user: str) -> list[Action]:
        """Report that an actor cannot be started, and retire idle ones so that the next can be."""
        return [Full(user), *self._retire_oldest()]

    def _retire_oldest(self) -> list[Action]:
        """Retire the two actors that have been idle longest, for each new one while there is little room."""
        return self.let_go(2)

    # -- parked sessions
    def _park(self, maildir: Maildir, now: float) -> int:
        """Return the seconds of silence after which the actor is to park its session.

        An actor that parks before half of them have passed breaks the rules (`Maildir.parks`).
        """
        seconds, crowd = self.settings.park_seconds, self.settings.crowd
        busy = len(self.maildirs) - len(self.idle)
        if 2 * busy > crowd:
            # falls linearly, so that the number of actors settles: with one step it would oscillate around it
            seconds = min(seconds, max(1, 2 * seconds * (crowd - busy) // max(1, crowd)))
        maildir.parks = now + (seconds / 2 if seconds else 1e12)
        return seconds

    def parked(self, name: str, message: m.SessionParked | m.SessionMoved, now: float) -> list[Action]:
        """Park a session that its maildir actor hands over.

        The session keeps the lease. Its actor is idle from now on, or is retired.
        """
        maildir = self.maildirs.get(name.removeprefix("maildir."))
        if isinstance(message, m.SessionMoved):
            return [] if maildir is None else self._moved(maildir, message)
        if maildir is None or maildir.key is None or maildir.key.session != message.session:
            return []
        self._grows(maildir, message.peak)
        if maildir.key in self.leaving:  # its client has gone meanwhile, so nothing would ever wake it
            self._free(maildir)
            return (
                self._serve_waiting(maildir, now)
                if maildir.waiting is not None and not maildir.stale
                else self._keep_idle(maildir, now)
            )
        self.asleep[maildir.user] = (maildir.key, message.state)
        maildir.key = None
        self.handed -= {maildir.user}
        actions = self._keep_idle(maildir, now)
        if len(self.sessions) > self.settings.crowd:
            # and one that was parked before there were so many
            earlier = next((user for user in self.idle if user in self.asleep), maildir.user)
            return [*actions, *self._retire(maildir.user), *self._retire(earlier)]
        return actions + self._retire(maildir.user) if self.room is not None else actions

    def _moved(self, maildir: Maildir, message: m.SessionMoved) -> list[Action]:
        """Keep the session of an actor whose maildir was replaced by another directory, for the next actor.

        The actor ends. If the same happens to the next one, the session ends too.
        """
        self.ending(maildir.name)
        if maildir.key is None or maildir.key.session != message.session:
            return []
        again = maildir.user in self.handed
        if again or maildir.key in self.leaving:
            self._free(maildir)
            return [WriteLog(WARNING, "maildrop.moved", {"user": maildir.user})] if again else []
        self.asleep[maildir.user] = (maildir.key, message.state)
        self.roused.add(maildir.user)
        self.handed |= {maildir.user}
        maildir.key = None
        return []

    def woken(self, user: str, now: float) -> list[Action]:
        """Wake a parked session whose client sent a command: hand its channel to its user's actor."""
        if user not in self.asleep:
            return []
        key, state = self.asleep[user]
        maildir = self.maildirs.get(user)
        actions: list[Action] = []
        if maildir is None:
            row = self.users.get(user)
            if row is None:
                return self.sleeper_gone(user)
            actions += self.start(user, row)
            maildir = self.maildirs[user]
        elif maildir.retiring:
            self.roused.add(user)
            return []
        del self.asleep[user]
        self.roused.discard(user)
        maildir.key = key
        self._not_idle(maildir)
        self.sessions[key] = (user, self.sessions.get(key, (user, now))[1])
        return [
            *actions,
            Rouse(user, maildir.name, m.SessionWake(key.session, self._park(maildir, now), state)),
        ]

    def sleeper_gone(self, user: str) -> list[Action]:
        """End a parked session whose client has gone: free the lease, remove no message."""
        key, _ = self.asleep.pop(user)
        self.roused.discard(user)
        self.handed -= {user}
        self.sessions.pop(key, None)
        self.leaving.discard(key)
        if self.leases.get(user) == key:
            del self.leases[user]
        return [Forget(user)]

    # -- ends of sessions
    def closed(self, name: str, message: m.SessionClosed, now: float) -> list[Action]:
        """Free the lease of a session that its maildir actor has finished."""
        maildir = self.maildirs.get(name.removeprefix("maildir."))
        if maildir is None or maildir.key is None or maildir.key.session != message.session:
            return []
        actions: list[Action] = (
            [WriteLog(WARNING, "maildrop.not_removed", {"user": maildir.user, "messages": message.failed})]
            if message.failed
            else []
        )
        self._grows(maildir, message.peak)
        self._free(maildir)
        if maildir.waiting is not None and not maildir.stale:
            return actions + self._serve_waiting(maildir, now)
        return actions + self._keep_idle(maildir, now)

    def _keep_idle(self, maildir: Maildir, now: float) -> list[Action]:
        """Keep an actor without a session, unless it is old or very large; retire those idle longest."""
        # retiring: it sent ActorLeaving with the session's end
        if self._unwanted(maildir) or maildir.retiring:
            return self._retire(maildir.user)
        self._is_idle(maildir, now)
        return self._fit(0)

    def _unwanted(self, maildir: Maildir) -> bool:
        """Return whether an actor is not kept warm, but only until it has received the mail under way."""
        return maildir.stale or maildir.grown > self.settings.warm_octets // _LARGE

    def _is_idle(self, maildir: Maildir, now: float) -> None:
        if maildir.user not in self.idle:
            self.idle_grown += maildir.grown
        self.idle[maildir.user] = now

    def _not_idle(self, maildir: Maildir) -> None:
        if self.idle.pop(maildir.user, None) is not None:
            self.idle_grown -= maildir.grown

    def _fit(self, least: int) -> list[Action]:
        """Retire the actors that have been idle longest until the others fit, but keep `least` of them."""
        actions: list[Action] = []
        while len(self.idle) > least and (
            len(self.idle) > self.settings.warm_max or self.idle_octets > self.settings.warm_octets
        ):
            actions += self._retire(next(iter(self.idle)))
        return actions

    # -- memory
    @property
    def idle_octets(self) -> int:
        """Return the memory that the idle actors have of their own."""
        return len(self.idle) * self.actor_octets + self.idle_grown

    @property
    def holds(self) -> int:
        """Return how many idle actors may be kept, if none has grown."""
        return min(self.settings.warm_max, self.settings.warm_octets // self.actor_octets)

    def measured(self, octets: int, peak: int) -> list[Action]:
        """Take what was measured of an actor forked on trial; 0 octets: nothing was."""
        self.actor_peak = peak
        if octets:
            self.actor_octets = octets
        return self._fit(0)

    def let_go(self, many: int) -> list[Action]:
        """Retire so many of the actors that have been idle longest: the system is short of something."""
        return [e for user in list(islice(self.idle, many)) for e in self._retire(user)]

    def _grows(self, maildir: Maildir, peak: int) -> None:
        """Take the most memory that a busy actor had, in KiB; 0: unknown.

        The number may be false: it counts no further than to where the actor is not kept warm, so that one
        that refuses to retire takes no more than that from the others.
        """
        more = (peak - self.actor_peak) * 1024 if self.actor_peak and peak else 0
        if more >= _GROWTH:
            maildir.grown = min(more + _COPIED, self.settings.warm_octets // _LARGE + 1)

    def _serve_waiting(self, maildir: Maildir, now: float) -> list[Action]:
        """Give the maildrop to the session that waited for it: with this actor, or a new one if it ended."""
        key, maildir.waiting = maildir.waiting, None
        if key is None:
            return []
        del self.waiting[key]
        row = self.users.get(maildir.user)
        if row is None:
            return [
                Send(
                    key.listener,
                    m.SessionRefused(key.session, "SYS/TEMP", "the mailbox is not available now"),
                )
            ]
        return self._open(maildir.user, row, key, now)

    def _free(self, maildir: Maildir) -> None:
        if maildir.key is not None:
            self.sessions.pop(maildir.key, None)
            self.leaving.discard(maildir.key)
            if self.leases.get(maildir.user) == maildir.key:
                del self.leases[maildir.user]
            maildir.key = None
            self.handed -= {maildir.user}

    def ended(self, listener: str, message: m.ConnectionEnded) -> list[Action]:
        """Record that a listener's connection is closed.

        The maildir actor frees the lease, not this message. But from now on the user's next session waits for
        that instead of being refused: a client may quit and log in again at once.
        """
        key = Key(listener, message.session)
        self.awaiting.discard(key)
        self.hung.discard(key)
        if key in self.sessions:
            self.leaving.add(key)
        self._stop_waiting(key)
        return []

    def client_hung_up(self, listener: str, message: m.ClientHungUp) -> list[Action]:
        """Record that a client shut its sending side. It has most likely gone, but may still read.

        As after the end of its connection, the user's next login waits for this session and is not refused.
        If this login itself waits for a session's end, the next one takes its place.
        """
        key = Key(listener, message.session)
        if key in self.sessions:
            self.leaving.add(key)
        elif key in self.waiting or key in self.awaiting:
            self.hung.add(key)
        return []

    def login_over(self, listener: str, session: int) -> list[Action]:
        """Forget a login that its listener has refused, also if it waited for a maildrop."""
        key = Key(listener, session)
        self.awaiting.discard(key)
        self.hung.discard(key)
        self._stop_waiting(key)
        return []

    def kicked(self, key: Key) -> list[Action]:
        """End a session, or a login under way, for the operator.

        The user's next login does not have to wait for the listener and the maildir actor to notice.
        """
        if key in self.sessions:
            self.leaving.add(key)
        else:
            self.login_over(*key)
        return [Send(key.listener, m.SessionKick(key.session))]

    def stuck(self, key: Key) -> list[Action]:
        """End a kicked session that its listener has not ended, with its maildir actor if it has one."""
        user = self.sessions[key][0] if key in self.sessions else ""
        if user in self.asleep and self.asleep[user][0] == key:
            return self.sleeper_gone(user)
        maildir = self.maildirs.get(user)
        return [Kill(maildir.name)] if maildir is not None and maildir.key == key else []

    def drain(self, on: bool) -> list[Action]:
        """Begin no session from now on, or begin them again."""
        self.draining = on
        return []

    def _stop_waiting(self, key: Key) -> None:
        maildir = self.maildirs.get(self.waiting.pop(key, ""))
        if maildir is not None:
            maildir.waiting = None

    def listener_gone(self, listener: str) -> list[Action]:
        """Forget the logins of a listener that ended.

        Its sessions' maildir actors see their channels end, and send SessionClosed.
        """
        self.awaiting = {k for k in self.awaiting if k.listener != listener}
        self.hung = {k for k in self.hung if k.listener != listener}
        self.leaving |= {k for k in self.sessions if k.listener == listener}
        for key in [k for k in self.waiting if k.listener == listener]:
            self._stop_waiting(key)
        return []

    # -- maildir actors
    def maildir_gone(self, name: str, now: float) -> list[Action]:
        """Free the lease of a maildir actor that ended, and start the next for the session that waited."""
        maildir = self.maildirs.pop(name.removeprefix("maildir."), None)
        if maildir is None:
            return []
        self._not_idle(maildir)
        self._free(maildir)
        if maildir.user in self.roused:
            return self.woken(maildir.user, now)
        return self._serve_waiting(maildir, now)

    def sweep(self, now: float) -> list[Action]:
        """Retire maildir actors that have been idle for `warm_seconds`."""
        actions: list[Action] = []
        for user, since in list(self.idle.items()):
            if since + self.settings.warm_seconds <= now:
                actions += self._retire(user)
            elif not self._unwanted(self.maildirs[user]):  # those come first, in no order
                break
        return actions

    def next_sweep(self) -> float | None:
        """Return when `sweep` will have something to do, None if no actor is idle."""
        first = next(iter(self.idle.values()), None)
        return None if first is None else first + self.settings.warm_seconds

    def _retire(self, user: str) -> list[Action]:
        maildir = self.maildirs.get(user)
        if maildir is None:
            return []
        self._not_idle(maildir)
        if maildir.retiring or maildir.key is not None:
            return []
        maildir.retiring = True
        return [Send(maildir.name, m.ActorRetire())]

    def used(self, user: str, now: float) -> list[Action]:
        """Restart the idle time of an actor that gets a delivery; retire the oldest if there are too many."""
        maildir = self.maildirs[user]
        if maildir.key is not None or (user in self.idle and self._unwanted(maildir)):
            return []
        self._not_idle(maildir)
        self._is_idle(maildir, now)
        return self._fit(1)

    def stays(self, user: str, now: float) -> list[Action]:
        """Use an actor again that refused to retire because it is receiving mail.

        The session that waited for its end gets it. A stale or very large actor is told again after a second.
        """
        maildir = self.maildirs.get(user)
        if maildir is None or not maildir.retiring:
            return []
        maildir.retiring = False
        if maildir.key is not None:  # it said that it ends, untold: it is not idle before its session ends
            return []
        if user in self.roused:
            return self.woken(user, now)
        if maildir.waiting is not None:
            return self._serve_waiting(maildir, now)
        self._is_idle(maildir, now)
        if self._unwanted(maildir):
            del self.idle[user]
            self.idle = {user: now - self.settings.warm_seconds + 1, **self.idle}
        return []

    def ending(self, name: str) -> None:
        """Give nothing new to an actor whose process is about to end."""
        maildir = self.maildirs.get(name.removeprefix("maildir."))
        if maildir is not None:
            maildir.retiring = True
            self._not_idle(maildir)

    def retire_all(self) -> list[Action]:
        """Retire all actors, the busy ones after their sessions: they have old settings."""
        return self.retire_changed(list(self.maildirs))

    def retire_changed(self, users: list[str]) -> list[Action]:
        """Retire the actors of these users, and of those whose row differs from the user table's."""
        named = set(users)
        for user, maildir in self.maildirs.items():
            if user in named or maildir.row != self.users.get(user):
                maildir.stale = True
        return [e for user in list(self.idle) if self.maildirs[user].stale for e in self._retire(user)]

    # -- restarts
    def died(self, name: str, now: float) -> Restart:
        """Decide about the restart of a singleton that ended unexpectedly.

        As OTP's supervisor: after a pause that doubles, and not after more than `restart_intensity` ends
        within `restart_seconds`.
        """
        deaths = self.deaths.setdefault(name, deque())
        deaths.append(now)
        while deaths and deaths[0] < now - self.settings.restart_seconds:
            deaths.popleft()
        if len(deaths) > self.settings.restart_intensity:
            return Restart(name, -1.0)
        return Restart(
            name,
            min(
                0.0 if len(deaths) == 1 else 0.1 * 2 ** min(len(deaths) - 2, 16),
                self.settings.restart_seconds,
            ),
        )
