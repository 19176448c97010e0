"""The sessions, as those say who serve them: what listeners and auth tell, taken to kernel/decisions/leases.py, and to the log once each.

Channels are read in no order among themselves. So what must have been sent before a word is fetched first, where it decides.
"""

from collections.abc import Callable
from typing import Any

from popkernel.kernel.decisions import leases
from popkernel.kernel.decisions.log_quota import ActorLines
from popkernel.kernel.operator.status import login_failed, session_over, sessions_lost
from popkernel.kernel.processes import Exit, Process, Processes
from popkernel.kernel.runtime.log import DEBUG, INFO, NOTICE, WARNING, Log
from popkernel.kernel.runtime.loop import Loop
from popkernel.kernel.supervisor.descriptor_room import Room
from popkernel.kernel.supervisor.gates import Gates
from popkernel.kernel.supervisor.hung_actors import HungActors
from popkernel.proto import messages as m

__all__ = ["Sessions"]

_MOST_WAIT = 45.0  # seconds; a listener waits for 60, and some of them went with auth
_MOST_OPENED = 200_000  # more than a system has descriptors for


class Sessions:
    """What the kernel makes of Awaiting, Granted, Ended and LoginFailed."""

    def __init__(
        self, loop: Loop, processes: Processes, core: leases.Core, log: Log, lines: ActorLines, room: Room, hung: HungActors, gates: Gates,
        do: Callable[[list[leases.Effect], str], None],
    ) -> None:
        """`do`: with whose share of the log a line of theirs is, "" for nobody's."""
        self._loop = loop
        self._processes = processes
        self._core = core
        self._log = log
        self._lines = lines
        self._room = room
        self._hung = hung
        self._gates = gates
        self._do = do
        self._waiting: dict[leases.Key, float] = {}  # sessions that had to wait for their maildrop: until when at most
        self._opened: dict[leases.Key, tuple[str, float]] = {}  # sessions that their listener has not said to be over: user, since when

    def awaiting(self, listener: Process, message: m.Awaiting, fds: list[int]) -> None:
        """A listener has a login that auth is about to judge."""
        del fds
        if not self._its_own(listener, message.session):
            return
        there = self._core.sessions.get(leases.Key(listener.name, message.session))
        if there is not None:  # its login before this one failed there: that it is over waits in the channel
            self._read(f"maildir.{there[0]}")
        self._do(self._core.awaits(listener.name, message), "")

    def granted(self, auth: Process, message: m.Granted, fds: list[int]) -> None:
        """Auth has found a password, or a token, to be right."""
        del auth, fds
        listener = self._processes.get(message.listener)
        if listener is not None and listener.kind == "listener" and not listener.channel.gone:
            listener.channel.read()  # its Awaiting was sent before auth was asked: it is there
            holder = self._core.leases.get(message.user)
            if holder is not None:  # the lease may be free already, or its session's client gone: the word of it waits in a channel
                self._read(f"maildir.{message.user}")
                self._read(holder.listener)
            self._room.look()
            self._do(self._core.granted(message, self._loop.now), f"maildir.{message.user}")
            if holder is not None and self._core.leases.get(message.user) == holder:
                self._lives(holder.listener)
            self._waits(leases.Key(message.listener, message.session))

    def _waits(self, key: leases.Key) -> None:
        """Where that session has to wait for its maildrop, it hears so in time: its listener would say that no password can be checked."""
        if key in self._core.waiting:
            due = self._waiting[key] = self._loop.now + _MOST_WAIT
            self._loop.later(_MOST_WAIT, lambda: self._in_vain(key, due))

    def _in_vain(self, key: leases.Key, due: float) -> None:
        if self._waiting.get(key) != due:  # it logged in anew meanwhile
            return
        del self._waiting[key]
        user = self._core.waiting.get(key)
        if user is not None:
            self._do(self._core.login_over(key.listener, key.session), "")
            self._processes.send(key.listener, m.Turned(key.session, "SYS/TEMP", "the mailbox is not available now, try again"))
            self._lines(f"maildir.{user}", WARNING, f"{user}: a login waited {_MOST_WAIT:.0f} s for the mailbox, in vain", "kernel")

    def opened(self, key: leases.Key) -> None:
        """A session has its maildrop."""
        self._opened[key] = self._core.sessions[key]
        if len(self._opened) > _MOST_OPENED:  # a listener that never says what is over
            del self._opened[next(iter(self._opened))]

    def ended(self, process: Process, message: m.Ended, fds: list[int]) -> None:
        """A session is over, says its listener, or its gate."""
        del fds
        if process.kind == "gate":
            self._gates.ended(process, message)
            return
        if not self._its_own(process, message.session):
            return
        self._opened.pop(leases.Key(process.name, message.session), None)
        self._do(self._core.ended(process.name, message), "")
        self._event(process, INFO if message.user else DEBUG, "session over", session_over(message))

    def on_exit(self, process: Process, end: Exit) -> None:
        """A listener is no more, nor are its sessions; with a gate those of all its listeners."""
        del end
        if process.session:  # of the only one: all sessions need not be looked through
            self._lost([leases.Key(process.name, process.session)])
        elif process.kind == "listener":
            self._lost_of({process.name})
            self._do(self._core.listener_gone(process.name), "")
        elif process.kind == "gate":
            self._lost_of({listener.name for listener in self._processes.children(process.name)})

    def _lost_of(self, listeners: set[str]) -> None:
        self._lost([key for key in self._opened if key.listener in listeners])

    def _lost(self, keys: list[leases.Key]) -> None:
        for fields in sessions_lost(self._opened, keys, self._loop.now):
            self._log.event(INFO, "session over", fields)

    def login_failed(self, listener: Process, message: m.LoginFailed, fds: list[int]) -> None:
        """A password was wrong, says a listener."""
        del fds
        if self._its_own(listener, message.session):
            self._do(self._core.login_over(listener.name, message.session), "")
            level = INFO if message.why == "repeat" else NOTICE  # one mistyped password is one line, by however many ways it came
            self._event(listener, level, "login failed", login_failed(message))

    def _event(self, listener: Process, level: int, event: str, fields: dict[str, Any]) -> None:
        self._lines.event(listener.name, level, event, fields, alone=bool(listener.session))

    def _its_own(self, listener: Process, session: int) -> bool:
        """Whether a listener may speak of that session: one that serves a single connection of no other."""
        if listener.session in (0, session):
            return True
        self._processes.violates(listener, "a session that is not its own")
        return False

    def _lives(self, name: str) -> None:
        """Somebody was turned away for that listener's session. Of one that serves it alone nobody else asks whether it lives."""
        process = self._processes.get(name)
        if process is not None and process.session:
            self._hung.suspect(process)

    def _read(self, name: str) -> None:
        process = self._processes.get(name)
        if process is not None and not process.channel.gone:
            process.channel.read()
