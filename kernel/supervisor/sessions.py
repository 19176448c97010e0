"""The sessions, as those say who serve them: what listeners and auth tell, taken to kernel/decisions/leases.py, and to the log once each.

Channels are read in no order among themselves. So what must have been sent before a word is fetched first, where it decides.
"""

from typing import TYPE_CHECKING, Any

from popkernel.kernel.decisions import leases
from popkernel.kernel.operator.status import login_failed, session_over, sessions_lost
from popkernel.kernel.processes import Process
from popkernel.kernel.runtime.log import DEBUG, INFO, NOTICE, WARNING
from popkernel.proto import messages as m

if TYPE_CHECKING:
    from popkernel.kernel.supervisor.main import Supervisor

__all__ = ["Ledger"]


_MOST_WAIT = 45.0  # seconds; a listener waits for 60, and some of them went with auth
_MOST_OPENED = 200_000  # more than a system has descriptors for


class Ledger:
    """What the kernel makes of Awaiting, Granted, Ended and LoginFailed."""

    def __init__(self, supervisor: "Supervisor") -> None:
        self._kernel = supervisor
        self._waiting: dict[leases.Key, float] = {}  # sessions that had to wait for their maildrop: until when at most
        self._opened: dict[leases.Key, tuple[str, float]] = {}  # sessions that their listener has not said to be over: user, since when

    def awaiting(self, listener: Process, message: m.Awaiting, fds: list[int]) -> None:
        """A listener has a login that auth is about to judge."""
        del fds
        k = self._kernel
        if not self._its_own(listener, message.session):
            return
        there = k.core.sessions.get(leases.Key(listener.name, message.session))
        if there is not None:  # its login before this one failed there: that it is over waits in the channel
            self._read(f"maildir.{there[0]}")
        k.do(k.core.awaits(listener.name, message))

    def granted(self, auth: Process, message: m.Granted, fds: list[int]) -> None:
        """Auth has found a password, or a token, to be right."""
        del auth, fds
        k = self._kernel
        listener = k.processes.get(message.listener)
        if listener is not None and listener.kind == "listener" and not listener.channel.gone:
            listener.channel.read()  # its Awaiting was sent before auth was asked: it is there
            holder = k.core.leases.get(message.user)
            if holder is not None:  # the lease may be free already, or its session's client gone: the word of it waits in a channel
                self._read(f"maildir.{message.user}")
                self._read(holder.listener)
            k.room.look()
            k.do(k.core.granted(message, k.loop.now), f"maildir.{message.user}")
            if holder is not None and k.core.leases.get(message.user) == holder:
                self._lives(holder.listener)
            self._waits(leases.Key(message.listener, message.session))

    def _waits(self, key: leases.Key) -> None:
        """Where that session has to wait for its maildrop, it hears so in time: its listener would say that no password can be checked."""
        k = self._kernel
        if key in k.core.waiting:
            due = self._waiting[key] = k.loop.now + _MOST_WAIT
            k.loop.later(_MOST_WAIT, lambda: self._in_vain(key, due))

    def _in_vain(self, key: leases.Key, due: float) -> None:
        if self._waiting.get(key) != due:  # it logged in anew meanwhile
            return
        del self._waiting[key]
        k, user = self._kernel, self._kernel.core.waiting.get(key)
        if user is not None:
            k.do(k.core.login_over(key.listener, key.session))
            k.send(key.listener, m.Turned(key.session, "SYS/TEMP", "the mailbox is not available now, try again"))
            k.actor_line(f"maildir.{user}", WARNING, f"{user}: a login waited {_MOST_WAIT:.0f} s for the mailbox, in vain", "kernel")

    def opened(self, key: leases.Key) -> None:
        """A session has its maildrop."""
        self._opened[key] = self._kernel.core.sessions[key]
        if len(self._opened) > _MOST_OPENED:  # a listener that never says what is over
            del self._opened[next(iter(self._opened))]

    def ended(self, process: Process, message: m.Ended, fds: list[int]) -> None:
        """A session is over, says its listener, or its gate."""
        del fds
        k = self._kernel
        if process.kind == "gate":
            k.gates.ended(process, message)
            return
        if not self._its_own(process, message.session):
            return
        self._opened.pop(leases.Key(process.name, message.session), None)
        k.do(k.core.ended(process.name, message))
        self._event(process, INFO if message.user else DEBUG, "session over", session_over(message))

    def lost(self, listeners: set[str]) -> None:
        """These listeners are no more, nor are their sessions."""
        self._lost([key for key in self._opened if key.listener in listeners])

    def lost_one(self, listener: Process) -> None:
        """The same of a listener of one session: all sessions need not be looked through."""
        self._lost([leases.Key(listener.name, listener.session)])

    def _lost(self, keys: list[leases.Key]) -> None:
        for fields in sessions_lost(self._opened, keys, self._kernel.loop.now):
            self._kernel.log_line.event(INFO, "session over", fields)

    def login_failed(self, listener: Process, message: m.LoginFailed, fds: list[int]) -> None:
        """A password was wrong, says a listener."""
        del fds
        if self._its_own(listener, message.session):
            self._kernel.do(self._kernel.core.login_over(listener.name, message.session))
            level = INFO if message.why == "repeat" else NOTICE  # one mistyped password is one line, by however many ways it came
            self._event(listener, level, "login failed", login_failed(message))

    def _event(self, listener: Process, level: int, event: str, fields: dict[str, Any]) -> None:
        self._kernel.actor_line.event(listener.name, level, event, fields, alone=bool(listener.session))

    def _its_own(self, listener: Process, session: int) -> bool:
        """Whether a listener may speak of that session: one that serves a single connection of no other."""
        if listener.session in (0, session):
            return True
        self._kernel.violates(listener, "a session that is not its own", [])
        return False

    def _lives(self, name: str) -> None:
        """Somebody was turned away for that listener's session. Of one that serves it alone nobody else asks whether it lives."""
        process = self._kernel.processes.get(name)
        if process is not None and process.session:
            self._kernel.hung.suspect(process)

    def _read(self, name: str) -> None:
        process = self._kernel.processes.get(name)
        if process is not None and not process.channel.gone:
            process.channel.read()
