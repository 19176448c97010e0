"""What the kernel decides, as a function of what it is told: leases, sessions, maildir actors, restarts. Sans I/O.

Each method takes a message or an event and returns what is to be done, a list of effects (effects.py); kernel/supervisor does it.
No clock, no descriptors, no processes here: replay feeds this the same events and compares the same effects.
"""

from collections import deque
from collections.abc import Mapping
from itertools import islice
from typing import NamedTuple

from popkernel.kernel.decisions.effects import Effect, Forget, Full, Join, Kill, Line, Restart, Rouse, Send, Spawn, Suspect
from popkernel.proto import messages as m
from popkernel.proto.files.tables import MailUser

__all__ = ["Core", "Effect", "Forget", "Full", "Join", "Kill", "Line", "Restart", "Rouse", "Send", "Settings", "Spawn", "Suspect"]

_QUIT_SECONDS = 30  # that an actor may say nothing whose session's client has gone: a slow disk may be busy with its QUIT
_MOST_AWAITING = 100_000  # logins under way: a listener that goes on announcing must not fill this memory


class Settings(NamedTuple):
    """What of the configuration decides. Seconds."""

    warm_seconds: float = 60.0
    warm_max: int = 500
    park_seconds: int = 30  # 0: never
    crowd: int = 1000  # maildir actors beyond which sessions are parked after a second of silence
    restart_intensity: int = 5
    restart_seconds: float = 30.0
    login_delay: int = 0  # seconds between two logins of one user (RFC 2449 section 6.5)


class Key(NamedTuple):
    """A session: the listener's name and that listener's number for it."""

    listener: str
    session: int


class Maildir:
    """What the kernel knows of a user's maildir actor."""

    __slots__ = ("key", "name", "parks", "retiring", "row", "stale", "user", "waiting")

    def __init__(self, user: str, row: MailUser) -> None:
        self.user = user
        self.row = row  # as it was when it was forked
        self.name = f"maildir.{user}"
        self.key: Key | None = None  # the session that holds the lease
        self.parks = 0.0  # before then it can't have been silent long enough to be parked
        self.retiring = False  # told to go: the next session waits for its end
        self.stale = False  # older than the user table: to go as soon as its session is over
        self.waiting: Key | None = None  # the session that gets the maildrop once its last one, or this actor, has ended


class Core:
    """The kernel's state. `now` arguments are monotonic seconds."""

    # Users whose session was handed back by an actor whose maildir had moved, and has neither slept nor ended since.
    handed: frozenset[str] = frozenset()  # here: recordings of before have none

    room: int | None = None  # how many more actors there may be, where that is little; kernel/supervisor/descriptor_room.py looks

    def __init__(self, users: Mapping[str, MailUser], settings: Settings) -> None:
        self.users = users
        self.settings = settings
        self.awaiting: set[Key] = set()
        self.leases: dict[str, Key] = {}
        self.waiting: dict[Key, str] = {}  # whose maildrop those wait for that can't have it yet
        self.leaving: set[Key] = set()  # sessions whose client has gone and whose maildir actor has not yet said Closed
        self.sessions: dict[Key, tuple[str, float]] = {}  # user, since when
        self.maildirs: dict[str, Maildir] = {}
        self.idle: dict[str, float] = {}  # user -> since when; in that order
        self.asleep: dict[str, tuple[Key, bytes]] = {}  # parked sessions: the lease is kept, the process may go
        self.roused: set[str] = set()  # those of them that wait for a retiring actor's end
        self.logins: dict[str, float] = {}  # user -> when last given a maildrop, where logins must lie apart
        self.deaths: dict[str, deque[float]] = {}

    # -- logging in
    def awaits(self, listener: str, message: m.Awaiting) -> list[Effect]:
        """A listener announces a login."""
        key = Key(listener, message.session)
        if key in self.sessions and (maildir := self.maildirs.get(self.sessions[key][0])) and maildir.key == key and maildir.retiring:
            self._free(maildir)  # it died before it could say Closed
        if key not in self.sessions and key not in self.waiting:
            self.awaiting.add(key)
        if len(self.awaiting) > _MOST_AWAITING and sum(k.listener == listener for k in self.awaiting) > _MOST_AWAITING // 2:
            self.awaiting = {k for k in self.awaiting if k.listener != listener}  # or what it says before its end would each cost as much
            return [Line(3, f"{listener} announces logins without end; ended"), Kill(listener)]
        return []

    def granted(self, message: m.Granted, now: float) -> list[Effect]:
        """Auth says who a session is. True only of one that its listener announced, and once."""
        key = Key(message.listener, message.session)
        if key not in self.awaiting:
            return [Line(7, f"a login of {message.listener} was over before auth had its answer")]
        self.awaiting.discard(key)
        row = self.users.get(message.user)
        if row is None:
            return [
                Line(4, f"{message.user} is in the authorization table and not in the user table: no login"),
                Send(key.listener, m.Turned(key.session, "AUTH", "wrong name or password")),
            ]
        if self._too_soon(message.user, now):
            return [Send(key.listener, m.Turned(key.session, "LOGIN-DELAY", f"only one login in {self.settings.login_delay} seconds"))]
        return self._open(message.user, row, key, now)

    def _too_soon(self, user: str, now: float) -> bool:
        """Measured from login to login; one that is refused does not begin the time anew."""
        return self.settings.login_delay > 0 and now - self.logins.get(user, -1e9) < self.settings.login_delay

    def _open(self, user: str, row: MailUser, key: Key, now: float) -> list[Effect]:
        """Give the maildrop to a session, or have it wait for one whose client has gone or for an actor that is to go."""
        effects: list[Effect] = []
        if user in self.asleep:
            if self.asleep[user][0] not in self.leaving:
                return [Send(key.listener, m.Turned(key.session, "IN-USE", "another session has this mailbox open"))]
            effects += self.sleeper_gone(user)
        maildir = self.maildirs.get(user)
        if maildir is None and self.full:
            turned = m.Turned(key.session, "SYS/TEMP", "the server is full now, try again later")
            return [*effects, *self.no_room(user), Send(key.listener, turned)]
        if maildir is None:
            effects += self.start(user, row)
            maildir = self.maildirs[user]
        elif maildir.waiting is not None or (maildir.key is not None and maildir.key not in self.leaving):
            return [*effects, Send(key.listener, m.Turned(key.session, "IN-USE", "another session has this mailbox open"))]
        elif maildir.retiring or maildir.key is not None:
            maildir.waiting = key
            self.waiting[key] = user
            return [*effects, Suspect(maildir.name, 0 if maildir.key is None else _QUIT_SECONDS)]  # or it may be waited for in vain
        self.leases[user] = key
        self.sessions[key] = (user, now)
        if self.settings.login_delay:
            self.logins[user] = now  # no more of them than users
        maildir.key = key
        self.idle.pop(user, None)
        effects.append(Join(key.listener, m.Opened(key.session, user), maildir.name, m.Open(key.session, self._park(maildir, now))))
        return effects

    def start(self, user: str, row: MailUser) -> list[Effect]:
        """Have a user's maildir actor forked; there must be none."""
        maildir = self.maildirs[user] = Maildir(user, row)
        if self.room is None:
            return [Spawn(maildir.name, row)]
        self.room -= 1
        return [*self._idle_go(), Spawn(maildir.name, row)]

    def short(self, room: int | None) -> list[Effect]:
        """There is room for so many actors more, or for as many as may come."""
        self.room = room
        return []

    @property
    def full(self) -> bool:
        """Whether there is no room for one more actor."""
        return self.room is not None and self.room <= 0

    def no_room(self, user: str) -> list[Effect]:
        """An actor of that user cannot be started; the next may be."""
        return [Full(user), *self._idle_go()]

    def _idle_go(self) -> list[Effect]:
        """Where there is little room, two that are idle go for each that comes: the oldest."""
        return [e for user in list(islice(self.idle, 2)) for e in self._retire(user)]

    # -- sessions sleep
    def _park(self, maildir: Maildir, now: float) -> int:
        """How long a session may be silent before its process is wanted for others. Its actor may be early by clocks' grain, by no half."""
        seconds = min(1, self.settings.park_seconds) if len(self.maildirs) > self.settings.crowd else self.settings.park_seconds
        maildir.parks = now + (seconds / 2 if seconds else 1e12)
        return seconds

    def parked(self, name: str, message: m.Parked | m.Moved, now: float) -> list[Effect]:
        """A maildir actor hands its session over. The lease stays the session's; the actor is idle, or goes."""
        maildir = self.maildirs.get(name.removeprefix("maildir."))
        if isinstance(message, m.Moved):
            return [] if maildir is None else self._moved(maildir, message)
        if maildir is None or maildir.key is None or maildir.key.session != message.session:
            return []
        if maildir.key in self.leaving:  # its client went meanwhile: nothing will ever wake it
            self._free(maildir)
            return self._next(maildir, now) if maildir.waiting is not None and not maildir.stale else self._rests(maildir, now)
        self.asleep[maildir.user] = (maildir.key, message.state)
        maildir.key = None
        self.handed -= {maildir.user}
        effects = self._rests(maildir, now)
        return effects + self._retire(maildir.user) if len(self.maildirs) > self.settings.crowd or self.room is not None else effects

    def _moved(self, maildir: Maildir, message: m.Moved) -> list[Effect]:
        """Another directory is in the place of the maildir that this actor sees: it goes, its session is for the next one, but once."""
        self.ending(maildir.name)
        if maildir.key is None or maildir.key.session != message.session:
            return []
        again = maildir.user in self.handed
        if again or maildir.key in self.leaving:
            self._free(maildir)
            return [Line(4, f"{maildir.user}: the maildir is moved again and again; the session ends")] if again else []
        self.asleep[maildir.user] = (maildir.key, message.state)
        self.roused.add(maildir.user)
        self.handed |= {maildir.user}
        maildir.key = None
        return []

    def woken(self, user: str, now: float) -> list[Effect]:
        """A parked session's client has spoken: its channel and what there was to it go to its user's actor."""
        if user not in self.asleep:
            return []
        key, state = self.asleep[user]
        maildir = self.maildirs.get(user)
        effects: list[Effect] = []
        if maildir is None:
            row = self.users.get(user)
            if row is None:
                return self.sleeper_gone(user)
            effects += self.start(user, row)
            maildir = self.maildirs[user]
        elif maildir.retiring:
            self.roused.add(user)
            return []
        del self.asleep[user]
        self.roused.discard(user)
        maildir.key = key
        self.idle.pop(user, None)
        self.sessions[key] = (user, self.sessions.get(key, (user, now))[1])
        return [*effects, Rouse(user, maildir.name, m.Wake(key.session, self._park(maildir, now), state))]

    def sleeper_gone(self, user: str) -> list[Effect]:
        """A parked session's client has gone: nothing is removed, the lease is free."""
        key, _ = self.asleep.pop(user)
        self.roused.discard(user)
        self.handed -= {user}
        self.sessions.pop(key, None)
        self.leaving.discard(key)
        if self.leases.get(user) == key:
            del self.leases[user]
        return [Forget(user)]

    # -- sessions end
    def closed(self, name: str, message: m.Closed, now: float) -> list[Effect]:
        """A maildir actor has done with a session: the lease is free."""
        maildir = self.maildirs.get(name.removeprefix("maildir."))
        if maildir is None or maildir.key is None or maildir.key.session != message.session:
            return []
        effects: list[Effect] = [Line(4, f"{maildir.user}: {message.failed} messages could not be removed")] if message.failed else []
        self._free(maildir)
        if maildir.waiting is not None and not maildir.stale:
            return effects + self._next(maildir, now)
        return effects + self._rests(maildir, now)

    def _rests(self, maildir: Maildir, now: float) -> list[Effect]:
        """An actor without a session is kept for a while, within a number."""
        if maildir.stale or maildir.retiring:  # the latter of its own will: it said so with the session's end
            return self._retire(maildir.user)
        self.idle[maildir.user] = now
        return self._retire(next(iter(self.idle))) if len(self.idle) > self.settings.warm_max else []

    def _next(self, maildir: Maildir, now: float) -> list[Effect]:
        """Whoever waited for this maildrop gets it, from this actor or, where it has gone, from a new one."""
        key, maildir.waiting = maildir.waiting, None
        if key is None:
            return []
        del self.waiting[key]
        row = self.users.get(maildir.user)
        if row is None:
            return [Send(key.listener, m.Turned(key.session, "SYS/TEMP", "the mailbox is not available now"))]
        return self._open(maildir.user, row, key, now)

    def _free(self, maildir: Maildir) -> None:
        if maildir.key is not None:
            self.sessions.pop(maildir.key, None)
            self.leaving.discard(maildir.key)
            if self.leases.get(maildir.user) == maildir.key:
                del self.leases[maildir.user]
            maildir.key = None
            self.handed -= {maildir.user}

    def ended(self, listener: str, message: m.Ended) -> list[Effect]:
        """A listener's connection is over. Its lease, if any, is freed by the maildir actor, not by this word.

        But from now on the next session of that user waits for this, instead of being turned away: a client that quits and
        logs in again at once must not meet its own past.
        """
        key = Key(listener, message.session)
        self.awaiting.discard(key)
        if key in self.sessions:
            self.leaving.add(key)
        self._waits_no_more(key)
        return []

    def login_over(self, listener: str, session: int) -> list[Effect]:
        """A listener has told its client no. Where that was its own word, because the kernel's did not come, nothing waits any more."""
        key = Key(listener, session)
        self.awaiting.discard(key)
        self._waits_no_more(key)
        return []

    def _waits_no_more(self, key: Key) -> None:
        maildir = self.maildirs.get(self.waiting.pop(key, ""))
        if maildir is not None:
            maildir.waiting = None

    def listener_gone(self, listener: str) -> list[Effect]:
        """Its maildir actors see their channels end; nothing else is to be done for its sessions."""
        self.awaiting = {k for k in self.awaiting if k.listener != listener}
        self.leaving |= {k for k in self.sessions if k.listener == listener}
        for key in [k for k in self.waiting if k.listener == listener]:
            self._waits_no_more(key)
        return []

    # -- maildir actors
    def maildir_gone(self, name: str, now: float) -> list[Effect]:
        """A maildir actor's process is no more: its lease is free, and who waited for its end gets a new one."""
        maildir = self.maildirs.pop(name.removeprefix("maildir."), None)
        if maildir is None:
            return []
        self.idle.pop(maildir.user, None)
        self._free(maildir)
        if maildir.user in self.roused:
            return self.woken(maildir.user, now)
        return self._next(maildir, now)

    def sweep(self, now: float) -> list[Effect]:
        """Let go of maildir actors that have been idle long enough."""
        effects: list[Effect] = []
        for user, since in list(self.idle.items()):
            if since + self.settings.warm_seconds > now:
                break
            effects += self._retire(user)
        return effects

    def next_sweep(self) -> float | None:
        """When `sweep` will have something to do, None for not so soon."""
        first = next(iter(self.idle.values()), None)
        return None if first is None else first + self.settings.warm_seconds

    def _retire(self, user: str) -> list[Effect]:
        self.idle.pop(user, None)
        maildir = self.maildirs.get(user)
        if maildir is None or maildir.retiring or maildir.key is not None:
            return []
        maildir.retiring = True
        return [Send(maildir.name, m.Retire())]

    def used(self, user: str, now: float) -> list[Effect]:
        """A delivery goes to that actor: where it has no session it is idle from now on, and another goes for it if need be."""
        if self.maildirs[user].key is not None:
            return []
        self.idle.pop(user, None)
        self.idle[user] = now
        return self._retire(next(iter(self.idle))) if len(self.idle) > max(1, self.settings.warm_max) else []

    def stays(self, user: str, now: float) -> list[Effect]:
        """It could not retire: a message is on its way in. Who waited for its end has it; a stale one is asked again soon."""
        maildir = self.maildirs.get(user)
        if maildir is None or not maildir.retiring:
            return []
        maildir.retiring = False
        if user in self.roused:
            return self.woken(user, now)
        if maildir.waiting is not None:
            return self._next(maildir, now)
        self.idle[user] = now
        if maildir.stale:
            del self.idle[user]
            self.idle = {user: now - self.settings.warm_seconds + 1, **self.idle}
        return []

    def ending(self, name: str) -> None:
        """An actor's channel has ended, so its process is about to: nothing new for it."""
        maildir = self.maildirs.get(name.removeprefix("maildir."))
        if maildir is not None:
            maildir.retiring = True
            self.idle.pop(maildir.user, None)

    def retire_all(self) -> list[Effect]:
        """Let go of all, the idle ones now, the others after their sessions (a reload: users may have moved)."""
        for maildir in self.maildirs.values():
            maildir.stale = True
        return [e for user in list(self.idle) for e in self._retire(user)]

    # -- restarts
    def died(self, name: str, now: float) -> Restart:
        """A singleton ended unasked: again after a pause that doubles; past the intensity, no more (OTP's supervisor)."""
        deaths = self.deaths.setdefault(name, deque())
        deaths.append(now)
        while deaths and deaths[0] < now - self.settings.restart_seconds:
            deaths.popleft()
        if len(deaths) > self.settings.restart_intensity:
            return Restart(name, -1.0)
        return Restart(name, min(0.0 if len(deaths) == 1 else 0.1 * 2 ** min(len(deaths) - 2, 16), self.settings.restart_seconds))
