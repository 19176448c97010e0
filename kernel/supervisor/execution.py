"""Carry out the actions of kernel/decisions: send messages, have actors forked, join them by channels."""

import os

from popkernel.kernel.decisions import leases
from popkernel.kernel.decisions.actions import (
    Action,
    Forget,
    Full,
    Join,
    Kill,
    Rouse,
    Send,
    Spawn,
    Suspect,
    WriteLog,
)
from popkernel.kernel.decisions.deliveries import Deliveries
from popkernel.kernel.operator.log_quota import ActorLines
from popkernel.kernel.processes import Process, Processes
from popkernel.kernel.runtime.channel import Message, pair
from popkernel.kernel.runtime.log import Log
from popkernel.kernel.runtime.loop import Loop
from popkernel.kernel.supervisor.descriptor_room import Room
from popkernel.kernel.supervisor.hung_actors import HungActors
from popkernel.kernel.supervisor.liveness import Liveness
from popkernel.kernel.supervisor.parking import Parking
from popkernel.kernel.supervisor.sessions import Sessions
from popkernel.kernel.supervisor.spawning import Spawning
from popkernel.proto import messages as m
from popkernel.proto.log_levels import ERROR

__all__ = ["Execution"]

_FULL = "the server is full now, try again later"
_AGAIN_SECONDS = 0.5  # until the next try to join two singletons, if there was no room for their channel


class Execution:
    """Carry out actions."""

    def __init__(
        self,
        loop: Loop,
        processes: Processes,
        core: leases.Core,
        deliveries: Deliveries,
        log: Log,
        lines: ActorLines,
        room: Room,
        hung: HungActors,
        liveness: Liveness,
        sessions: Sessions,
        parking: Parking,
        spawning: Spawning,
    ) -> None:
        self._loop = loop
        self._processes = processes
        self._core = core
        self._deliveries = deliveries
        self._log = log
        self._lines = lines
        self._room = room
        self._hung = hung
        self._liveness = liveness
        self._sessions = sessions
        self._parking = parking
        self._spawning = spawning

    def do(self, actions: list[Action], about: str = "") -> None:
        """Carry out actions in their order.

        `about`: the process in whose share of the log (log_quota.py) their lines count, "" for none.
        """
        for action in actions:
            match action:
                case Send(to, message):
                    self._processes.send(to, message)
                    if type(message) is m.ActorRetire:
                        self._liveness.retires(to)
                case Join(one, to_one, other, to_other):
                    self._join(one, to_one, other, to_other)
                case Spawn(name, row):
                    self._spawning.spawn(name, row)
                case Rouse(user, name, wake):
                    self._rouse(name, wake, self._parking.take(user))
                case Forget(user):
                    self._parking.forget(user)
                case Kill(name):
                    if name in self._processes:
                        self._processes.kill(self._processes[name])
                case Full(user):
                    self._room.full(user)
                case Suspect(name, seconds):
                    if name in self._processes:
                        self._hung.suspect(self._processes[name], seconds)
                case WriteLog(level, event, fields) if about:
                    self._lines(about, level, event, **fields)
                case WriteLog(level, event, fields):
                    self._log.event(level, event, fields)

    def _join(self, one: str, to_one: Message, other: str, to_other: Message) -> None:
        """Make a channel between two actors. If one has gone, the other sees the channel end at once."""
        try:
            ends = pair()
        except OSError:
            self._join_failed(one, to_one, other, to_other)
            return
        if isinstance(to_one, m.SessionAdmitted):
            self._sessions.opened(leases.Key(one, to_one.session))
        with ends[0], ends[1]:
            for name, message, end in ((other, to_other, ends[1]), (one, to_one, ends[0])):
                process = self._processes.get(name)
                if process is None:
                    continue
                process.last_peer = one
                try:
                    process.channel.send(message, [end.fileno()])
                except OSError:
                    self._join_failed(one, to_one, other, to_other)
                    return
                # once logged in, its gate must not close it to make room for others
                if process.session and type(message) is m.SessionAdmitted:
                    self._processes.send(process.parent, m.GateSeatLoggedIn(process.session))

    def _join_failed(self, one: str, to_one: Message, other: str, to_other: Message) -> None:
        """Refuse the session or the recipient, and free its lease, if there is no room for the channel."""
        user = other.removeprefix("maildir.")
        if isinstance(to_one, m.SessionAdmitted):
            self._processes.send(one, m.SessionRefused(to_one.session, "SYS/TEMP", _FULL))
            self.do(self._core.closed(other, m.SessionClosed(to_one.session, 0, 0, 0, []), self._loop.now))
            self._room.full(user)
        elif isinstance(to_one, m.RecipientFound):
            self._deliveries.holders.pop(user, None)
            self._processes.send(one, m.RecipientUnknown(to_one.request, "4.3.2", _FULL))
            self._room.full(user)
        else:  # two singletons
            there = self._processes.get(one), self._processes.get(other)
            self._loop.later(_AGAIN_SECONDS, lambda: self._join_later(there, (one, to_one, other, to_other)))

    def _join_later(
        self, there: tuple[Process | None, Process | None], join: tuple[str, Message, str, Message]
    ) -> None:
        if there == (self._processes.get(join[0]), self._processes.get(join[2])):
            self._join(*join)

    def give_up_message(self, process: Process, message: Message, error: Exception) -> None:
        """Give up a message that could not be handled for want of memory or descriptors.

        Its session's actor is killed, so that nothing stays half done.
        """
        why = (error.strerror if isinstance(error, OSError) else "") or "no memory"
        self._lines(
            process.name,
            ERROR,
            "message.failed",
            process=process.name,
            message=type(message).__name__,
            error=why,
        )
        users = [process.name]
        if isinstance(message, m.LoginGranted):
            self._processes.send(message.listener, m.SessionRefused(message.session, "SYS/TEMP", _FULL))
            users = [f"maildir.{message.user}"]
        elif isinstance(message, m.RecipientLookup):
            self._processes.send(process.name, m.RecipientUnknown(message.request, "4.3.2", _FULL))
        for name in users:
            there = self._processes.get(name)
            if there is not None and (there.kind == "maildir.{user}" or there.session):
                self._processes.kill(there)

    def _rouse(self, name: str, wake: m.SessionWake, fd: int) -> None:
        """Hand a parked session's channel to its actor; if there is no room, the session ends."""
        try:
            self._processes.send(name, wake, [fd])
        except OSError:
            self.do(self._core.closed(name, m.SessionClosed(wake.session, 0, 0, 0, []), self._loop.now))
        os.close(fd)
