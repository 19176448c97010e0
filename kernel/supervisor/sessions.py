"""Handle what listeners and auth send about sessions: pass it to kernel/decisions/leases.py, and log it once.

Messages of two channels arrive in no order between them. Where an earlier message on another channel would
change the decision, that channel is read first.
"""

from collections.abc import Callable
from typing import Any

from popkernel.kernel.decisions import leases
from popkernel.kernel.decisions.actions import Action
from popkernel.kernel.operator.history import History
from popkernel.kernel.operator.log_quota import ActorLines
from popkernel.kernel.operator.session_list import Announced
from popkernel.kernel.operator.status import (
    NO_PHASES,
    Phases,
    login_denied,
    login_failed,
    session_over,
    sessions_lost,
)
from popkernel.kernel.processes import Exit, Process, Processes
from popkernel.kernel.runtime.log import Log
from popkernel.kernel.runtime.loop import Loop
from popkernel.kernel.supervisor.descriptor_room import Room
from popkernel.kernel.supervisor.gates import Gates
from popkernel.kernel.supervisor.hung_actors import HungActors
from popkernel.proto import messages as m
from popkernel.proto.log_levels import DEBUG, INFO, NOTICE, WARNING
from popkernel.proto.trace.session_names import session_of

__all__ = ["Sessions"]

_MOST_WAIT = 45.0  # seconds; a listener waits for 60, and auth has used some of them
_MOST_OPENED = 200_000  # more than a system has descriptors for
_LONGEST_NAME = 64  # characters of a name that a client typed; the tables' names are no longer


class Sessions:
    """Handle LoginStarted, LoginGranted, LoginDenied, ClientHungUp, ConnectionEnded and LoginFailed."""

    def __init__(
        self,
        loop: Loop,
        processes: Processes,
        core: leases.Core,
        log: Log,
        lines: ActorLines,
        room: Room,
        hung: HungActors,
        gates: Gates,
        history: History,
        do: Callable[[list[Action], str], None],
    ) -> None:
        """`do`: see `Execution.do`."""
        self._loop = loop
        self._processes = processes
        self._core = core
        self._log = log
        self._lines = lines
        self._room = room
        self._hung = hung
        self._gates = gates
        self._history = history
        self._do = do
        # sessions that wait for their maildrop: when that ends at the latest
        self._waiting: dict[leases.Key, float] = {}
        # sessions whose listener has not sent ConnectionEnded: user, and when they began
        self._opened: dict[leases.Key, tuple[str, float]] = {}
        # clients of sessions, from LoginStarted to the login's refusal or the end of the connection
        self.clients: dict[leases.Key, Announced] = {}
        # of those that auth took more than a moment for: how long
        self._phases: dict[leases.Key, Phases] = {}

    def login_started(self, listener: Process, message: m.LoginStarted, fds: list[int]) -> None:
        """Record a login that its listener is about to ask auth about."""
        del fds
        if not self._its_own(listener, message.session):
            return
        key = leases.Key(listener.name, message.session)
        there = self._core.sessions.get(key)
        if there is not None:  # a login before this one failed in that actor: its SessionClosed may be unread
            self._receive(f"maildir.{there[0]}")
        self.clients[key] = Announced(
            message.user[:_LONGEST_NAME],
            self._address(listener, message.address),
            message.tls,
            message.mechanism,
            self._loop.now,
        )
        if len(self.clients) > _MOST_OPENED:
            del self.clients[next(iter(self.clients))]
        self._do(self._core.awaits(listener.name, message), "")
        if listener.session:
            self._gates.login(listener, begun=True)

    def login_granted(self, auth: Process, message: m.LoginGranted, fds: list[int]) -> None:
        """Give a session its maildrop after auth has granted the login."""
        del auth, fds
        listener = self._processes.get(message.listener)
        if listener is not None and listener.kind == "listener" and not listener.channel.closed:
            listener.channel.receive()  # it sent LoginStarted before it asked auth
            holder = self._core.leases.get(message.user)
            # the holder's SessionClosed or ConnectionEnded may be unread
            if holder is not None:
                self._receive(f"maildir.{message.user}")
                self._receive(holder.listener)
            self._room.update()
            self._note_grant(leases.Key(message.listener, message.session), message.user)
            self._do(self._core.granted(message, self._loop.now), f"maildir.{message.user}")
            if holder is not None and self._core.leases.get(message.user) == holder:
                self._check_alive(holder.listener)
            key = leases.Key(message.listener, message.session)
            self._limit_wait(key)
            if message.queue_ms or message.hash_ms or message.penalty_ms:
                if len(self._phases) >= _MOST_OPENED:
                    del self._phases[next(iter(self._phases))]
                self._phases[key] = Phases(message.queue_ms, message.hash_ms, message.penalty_ms)

    def _note_grant(self, key: leases.Key, user: str) -> None:
        """Note that auth grants a login, and to whom, if its listener has announced it."""
        said = self.clients.get(key)
        if said is not None and key in self._core.awaiting:
            self.clients[key] = said._replace(user=user, granted=True)

    def _limit_wait(self, key: leases.Key) -> None:
        """Refuse the session if its maildrop is not free in time.

        The listener's own deadline would blame the password check.
        """
        if key in self._core.waiting:
            due = self._waiting[key] = self._loop.now + _MOST_WAIT
            self._loop.later(_MOST_WAIT, lambda: self._wait_expired(key, due))

    def _wait_expired(self, key: leases.Key, due: float) -> None:
        if self._waiting.get(key) != due:  # the session has logged in again since
            return
        del self._waiting[key]
        user = self._core.waiting.get(key)
        if user is not None:
            self._do(self._core.login_over(key.listener, key.session), "")
            self._processes.send(
                key.listener,
                m.SessionRefused(key.session, "SYS/TEMP", "the mailbox is not available now, try again"),
            )
            self._lines(
                f"maildir.{user}",
                WARNING,
                "login.waited",
                user=user,
                seconds=round(_MOST_WAIT),
            )

    def opened(self, key: leases.Key) -> None:
        """Record that a session has its maildrop."""
        self._opened[key] = self._core.sessions[key]
        if len(self._opened) > _MOST_OPENED:  # a listener that never sends ConnectionEnded
            del self._opened[next(iter(self._opened))]

    def connection_ended(self, process: Process, message: m.ConnectionEnded, fds: list[int]) -> None:
        """End a session whose connection is closed, as its listener or its gate reports."""
        del fds
        if process.kind == "gate":
            self._gates.connection_ended(process, message)
            return
        if not self._its_own(process, message.session):
            return
        key = leases.Key(process.name, message.session)
        user = self._opened.pop(key, ("", 0.0))[0]
        if message.user != user:  # it left before it was told, or its listener lies
            message = message._replace(user=user if message.user else "")
        if process.session:
            message = message._replace(address=self._address(process, message.address))
        self.clients.pop(key, None)
        phases = self._phases.pop(key, NO_PHASES)
        self._do(self._core.ended(process.name, message), "")
        fields = session_over(process.name, message, phases)
        if message.user:
            self._history.event("session.over", fields)
        self._event(process, INFO if message.user else DEBUG, "session.over", fields)
        if message.fault:
            event = "tls.failed" if message.fault == "tls" else "client.failed"
            self.client_failed(process, event, message.address, message.reason)

    def client_failed(self, listener: Process, event: str, address: str, reason: str) -> None:
        """Log what kept a client from logging in, in plain words."""
        address = self._address(listener, address)
        if self._lines.fault(listener.name, event, address, reason, alone=bool(listener.session)):
            self._history.event(event, {"address": address, "reason": reason})

    def client_hung_up(self, listener: Process, message: m.ClientHungUp, fds: list[int]) -> None:
        """A client that waits for an answer has shut its sending side."""
        del fds
        if self._its_own(listener, message.session):
            self._do(self._core.client_hung_up(listener.name, message), "")

    def on_exit(self, process: Process, end: Exit) -> None:
        """End the sessions of a listener that ended; of a gate, those of all its listeners."""
        del end
        if process.session:  # the only one: no search
            key = leases.Key(process.name, process.session)
            self.clients.pop(key, None)
            self._phases.pop(key, None)
            self._lost([key])
        elif process.kind == "listener":
            self._lost_of({process.name})
            self.clients = {key: said for key, said in self.clients.items() if key.listener != process.name}
            self._do(self._core.listener_gone(process.name), "")
        elif process.kind == "gate":
            self._lost_of({listener.name for listener in self._processes.children(process.name)})

    def _lost_of(self, listeners: set[str]) -> None:
        self._phases = {key: one for key, one in self._phases.items() if key.listener not in listeners}
        self._lost([key for key in self._opened if key.listener in listeners])

    def _lost(self, keys: list[leases.Key]) -> None:
        for fields in sessions_lost(self._opened, keys, self._loop.now):
            self._history.event("session.over", fields)
            self._log.event(INFO, "session.over", fields)

    def login_failed(self, listener: Process, message: m.LoginFailed, fds: list[int]) -> None:
        """Let the session wait for nothing more, and log the failed login unless auth has reported it."""
        del fds
        if self._its_own(listener, message.session):
            said = self.clients.pop(leases.Key(listener.name, message.session), None)
            self._do(self._core.login_over(listener.name, message.session), "")
            if listener.session:
                self._gates.login(listener, begun=False)
            if message.why != "auth":
                grant = said if said is not None and said.granted else None
                # a granted login's user is named as the table has it, as in auth's lines and a session's
                user = message.user if grant is None else grant.user
                address = self._address(listener, message.address)
                fields = login_failed(message._replace(user=user, address=address))
                self._login_failed(listener, NOTICE, fields, granted=grant is not None)

    def login_denied(self, auth: Process, message: m.LoginDenied, fds: list[int]) -> None:
        """Log a login that auth refused.

        Only that: the listener's LoginFailed ends it here, and comes before its next LoginStarted.
        """
        del fds
        # repetitions of one mistyped password are of less interest
        level = DEBUG if message.reason == "repeat" else NOTICE
        listener = self._processes.get(message.listener)
        if listener is not None:
            message = message._replace(address=self._address(listener, message.address))
        elif session_of(message.listener):  # what it said of its client may be a lie
            message = message._replace(address="")
        self._login_failed(listener or auth, level, login_denied(message))

    def _login_failed(
        self, listener: Process, level: int, fields: dict[str, Any], *, granted: bool = False
    ) -> None:
        self._history.event("login.failed", fields, granted=granted)
        self._event(listener, level, "login.failed", fields)

    def _event(self, listener: Process, level: int, event: str, fields: dict[str, Any]) -> None:
        self._lines.event(listener.name, level, event, fields, alone=bool(listener.session))

    def _address(self, listener: Process, said: str) -> str:
        """Return a client's address: as its gate said, if the listener is of one connection."""
        if listener.session and not listener.address:
            self._receive(listener.parent)  # the gate said it before it forked the listener
        return listener.address if listener.session else said

    def _its_own(self, listener: Process, session: int) -> bool:
        """Return whether a listener may name that session: one of a single connection may name only that."""
        if listener.session in (0, session):
            return True
        self._processes.violates(listener, "a session that is not its own")
        return False

    def _check_alive(self, name: str) -> None:
        """Check a listener of one connection whose session kept another out: nothing else checks those."""
        process = self._processes.get(name)
        if process is not None and process.session:
            self._hung.suspect(process)

    def _receive(self, name: str) -> None:
        process = self._processes.get(name)
        if process is not None and not process.channel.closed:
            process.channel.receive()
