"""Do what kernel/decisions decides: send messages, have actors forked, make channels between them."""

import os
from typing import TYPE_CHECKING

from popkernel.kernel.decisions import leases
from popkernel.kernel.processes import Process
from popkernel.kernel.runtime.channel import Message, pair
from popkernel.kernel.runtime.log import ERROR
from popkernel.proto import messages as m

if TYPE_CHECKING:
    from popkernel.kernel.supervisor.main import Supervisor

__all__ = ["Effects"]

_FULL = "the server is full now, try again later"
_AGAIN_SECONDS = 0.5  # until two singletons are joined for whose channel there was no room


class Effects:
    """The hands of what decides."""

    def __init__(self, supervisor: "Supervisor") -> None:
        self._kernel = supervisor

    def do(self, effects: list[leases.Effect], about: str = "") -> None:
        """In this order. `about`: whose share of the log a line of theirs is, "" for nobody's."""
        k = self._kernel
        for effect in effects:
            match effect:
                case leases.Send(to, message):
                    k.send(to, message)
                    if type(message) is m.Retire:
                        k.pulse.retires(to)
                case leases.Join(one, to_one, other, to_other):
                    self._join(one, to_one, other, to_other)
                case leases.Spawn(name, row):
                    k.spawning.spawn(name, row)
                case leases.Rouse(user, name, wake):
                    self._rouse(name, wake, k.parking.take(user))
                case leases.Forget(user):
                    k.parking.forget(user)
                case leases.Kill(name):
                    if name in k.processes:
                        k.kill(k.processes[name])
                case leases.Full(user):
                    k.room.full(user)
                case leases.Suspect(name, seconds):
                    if name in k.processes:
                        k.hung.suspect(k.processes[name], seconds)
                case leases.Line(level, text) if about:
                    k.actor_line(about, level, text, "kernel")
                case leases.Line(level, text):
                    k.log_line(level, text)

    def _join(self, one: str, to_one: Message, other: str, to_other: Message) -> None:
        """A channel between two actors: whoever is gone, the other sees its end at once."""
        k = self._kernel
        try:
            ends = pair()
        except OSError:
            self._apart(one, to_one, other, to_other)
            return
        if isinstance(to_one, m.Opened):
            k.ledger.opened(leases.Key(one, to_one.session))
        with ends[0], ends[1]:
            for name, message, end in ((other, to_other, ends[1]), (one, to_one, ends[0])):
                process = k.processes.get(name)
                if process is None:
                    continue
                process.met = one
                try:
                    process.channel.send(message, [end.fileno()])
                except OSError:
                    self._apart(one, to_one, other, to_other)
                    return
                if process.session and type(message) is m.Opened:
                    k.gates.entered(process)

    def _apart(self, one: str, to_one: Message, other: str, to_other: Message) -> None:
        """There is no room for their channel: who waits for it hears so, and nobody has a maildrop that nobody serves."""
        k = self._kernel
        user = other.removeprefix("maildir.")
        if isinstance(to_one, m.Opened):
            k.send(one, m.Turned(to_one.session, "SYS/TEMP", _FULL))
            self.do(k.core.closed(other, m.Closed(to_one.session, 0, 0), k.loop.now))
            k.room.full(user)
        elif isinstance(to_one, m.Maildrop):
            k.deliveries.holders.pop(user, None)
            k.send(one, m.NoMaildrop(to_one.request, "4.3.2", _FULL))
            k.room.full(user)
        else:  # two singletons
            there = k.processes.get(one), k.processes.get(other)
            k.loop.later(_AGAIN_SECONDS, lambda: self._join_later(there, (one, to_one, other, to_other)))

    def _join_later(self, there: tuple[Process | None, Process | None], join: tuple[str, Message, str, Message]) -> None:
        if there == (self._kernel.processes.get(join[0]), self._kernel.processes.get(join[2])):
            self._join(*join)

    def without(self, process: Process, message: Message, error: Exception) -> None:
        """A message could not be acted on for want of something: that costs its session, whose actor goes, and nothing is half-done."""
        k = self._kernel
        why = (error.strerror if isinstance(error, OSError) else "") or "no memory"
        k.actor_line(process.name, ERROR, f"{process.name}: {type(message).__name__} could not be acted on: {why}", "kernel")
        users = [process.name]
        if isinstance(message, m.Granted):
            k.send(message.listener, m.Turned(message.session, "SYS/TEMP", _FULL))
            users = [f"maildir.{message.user}"]
        elif isinstance(message, m.Recipient):
            k.send(process.name, m.NoMaildrop(message.request, "4.3.2", _FULL))
        for name in users:
            there = k.processes.get(name)
            if there is not None and (there.kind == "maildir.{user}" or there.session):
                k.kill(there)

    def _rouse(self, name: str, wake: m.Wake, fd: int) -> None:
        """A session that slept goes on; where its channel cannot be handed over, its client sees the end."""
        k = self._kernel
        try:
            k.send(name, wake, [fd])
        except OSError:
            self.do(k.core.closed(name, m.Closed(wake.session, 0, 0), k.loop.now))
        os.close(fd)
