"""Do what kernel/decisions decides: send messages, have actors forked, make channels between them."""

import os

from popkernel.kernel.decisions import leases
from popkernel.kernel.decisions.deliveries import Deliveries
from popkernel.kernel.decisions.log_quota import ActorLines
from popkernel.kernel.processes import Process, Processes
from popkernel.kernel.runtime.channel import Message, pair
from popkernel.kernel.runtime.log import ERROR, Log
from popkernel.kernel.runtime.loop import Loop
from popkernel.kernel.supervisor.descriptor_room import Room
from popkernel.kernel.supervisor.hung_actors import HungActors
from popkernel.kernel.supervisor.liveness import Liveness
from popkernel.kernel.supervisor.parking import Parking
from popkernel.kernel.supervisor.sessions import Sessions
from popkernel.kernel.supervisor.spawning import Spawning
from popkernel.proto import messages as m

__all__ = ["Execution"]

_FULL = "the server is full now, try again later"
_AGAIN_SECONDS = 0.5  # until two singletons are joined for whose channel there was no room


class Execution:
    """The hands of what decides."""

    def __init__(
        self, loop: Loop, processes: Processes, core: leases.Core, deliveries: Deliveries, log: Log, lines: ActorLines, room: Room,
        hung: HungActors, liveness: Liveness, sessions: Sessions, parking: Parking, spawning: Spawning,
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

    def do(self, effects: list[leases.Effect], about: str = "") -> None:
        """In this order. `about`: whose share of the log a line of theirs is, "" for nobody's."""
        for effect in effects:
            match effect:
                case leases.Send(to, message):
                    self._processes.send(to, message)
                    if type(message) is m.Retire:
                        self._liveness.retires(to)
                case leases.Join(one, to_one, other, to_other):
                    self._join(one, to_one, other, to_other)
                case leases.Spawn(name, row):
                    self._spawning.spawn(name, row)
                case leases.Rouse(user, name, wake):
                    self._rouse(name, wake, self._parking.take(user))
                case leases.Forget(user):
                    self._parking.forget(user)
                case leases.Kill(name):
                    if name in self._processes:
                        self._processes.kill(self._processes[name])
                case leases.Full(user):
                    self._room.full(user)
                case leases.Suspect(name, seconds):
                    if name in self._processes:
                        self._hung.suspect(self._processes[name], seconds)
                case leases.Line(level, text) if about:
                    self._lines(about, level, text, "kernel")
                case leases.Line(level, text):
                    self._log(level, text)

    def _join(self, one: str, to_one: Message, other: str, to_other: Message) -> None:
        """A channel between two actors: whoever is gone, the other sees its end at once."""
        try:
            ends = pair()
        except OSError:
            self._apart(one, to_one, other, to_other)
            return
        if isinstance(to_one, m.Opened):
            self._sessions.opened(leases.Key(one, to_one.session))
        with ends[0], ends[1]:
            for name, message, end in ((other, to_other, ends[1]), (one, to_one, ends[0])):
                process = self._processes.get(name)
                if process is None:
                    continue
                process.met = one
                try:
                    process.channel.send(message, [end.fileno()])
                except OSError:
                    self._apart(one, to_one, other, to_other)
                    return
                if process.session and type(message) is m.Opened:  # no more one of those who make room for others
                    self._processes.send(process.parent, m.Entered(process.session))

    def _apart(self, one: str, to_one: Message, other: str, to_other: Message) -> None:
        """There is no room for their channel: who waits for it hears so, and nobody has a maildrop that nobody serves."""
        user = other.removeprefix("maildir.")
        if isinstance(to_one, m.Opened):
            self._processes.send(one, m.Turned(to_one.session, "SYS/TEMP", _FULL))
            self.do(self._core.closed(other, m.Closed(to_one.session, 0, 0), self._loop.now))
            self._room.full(user)
        elif isinstance(to_one, m.Maildrop):
            self._deliveries.holders.pop(user, None)
            self._processes.send(one, m.NoMaildrop(to_one.request, "4.3.2", _FULL))
            self._room.full(user)
        else:  # two singletons
            there = self._processes.get(one), self._processes.get(other)
            self._loop.later(_AGAIN_SECONDS, lambda: self._join_later(there, (one, to_one, other, to_other)))

    def _join_later(self, there: tuple[Process | None, Process | None], join: tuple[str, Message, str, Message]) -> None:
        if there == (self._processes.get(join[0]), self._processes.get(join[2])):
            self._join(*join)

    def without(self, process: Process, message: Message, error: Exception) -> None:
        """A message could not be acted on for want of something: that costs its session, whose actor goes, and nothing is half-done."""
        why = (error.strerror if isinstance(error, OSError) else "") or "no memory"
        self._lines(process.name, ERROR, f"{process.name}: {type(message).__name__} could not be acted on: {why}", "kernel")
        users = [process.name]
        if isinstance(message, m.Granted):
            self._processes.send(message.listener, m.Turned(message.session, "SYS/TEMP", _FULL))
            users = [f"maildir.{message.user}"]
        elif isinstance(message, m.Recipient):
            self._processes.send(process.name, m.NoMaildrop(message.request, "4.3.2", _FULL))
        for name in users:
            there = self._processes.get(name)
            if there is not None and (there.kind == "maildir.{user}" or there.session):
                self._processes.kill(there)

    def _rouse(self, name: str, wake: m.Wake, fd: int) -> None:
        """A session that slept goes on; where its channel cannot be handed over, its client sees the end."""
        try:
            self._processes.send(name, wake, [fd])
        except OSError:
            self.do(self._core.closed(name, m.Closed(wake.session, 0, 0), self._loop.now))
        os.close(fd)
