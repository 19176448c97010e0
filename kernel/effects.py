"""What core.py and deliveries.py decide, done: messages sent, actors forked, channels made between them."""

import os
import signal
from typing import TYPE_CHECKING

from popkernel.kernel import core
from popkernel.kernel.channel import Message, pair
from popkernel.proto import messages as m
from popkernel.proto.tables import MailUser

if TYPE_CHECKING:
    from popkernel.kernel.supervisor import Supervisor

__all__ = ["Effects"]


class Effects:
    """The hands of what decides."""

    def __init__(self, supervisor: "Supervisor") -> None:
        self._kernel = supervisor

    def do(self, effects: list[core.Effect], about: str = "") -> None:
        """In this order. `about`: whose share of the log a line of theirs is, "" for nobody's."""
        k = self._kernel
        for effect in effects:
            match effect:
                case core.Send(to, message):
                    k.send(to, message)
                    if type(message) is m.Retire:
                        k.pulse.retires(to)
                case core.Join(one, to_one, other, to_other):
                    if isinstance(to_one, m.Opened):
                        k.ledger.opened(core.Key(one, to_one.session))
                    self._join(one, to_one, other, to_other)
                case core.Spawn(name, row):
                    self._spawn(name, row)
                case core.Rouse(user, name, wake):
                    fd = k.parking.take(user)
                    k.send(name, wake, [fd])
                    os.close(fd)
                case core.Forget(user):
                    k.parking.forget(user)
                case core.Kill(name):
                    if name in k.processes:
                        k.kill(k.processes[name])
                case core.Suspect(name):
                    if name in k.processes:
                        k.hung.suspect(k.processes[name])
                case core.Line(level, text) if about:
                    k.actor_line(about, level, text, "kernel")
                case core.Line(level, text):
                    k.log_line(level, text)

    def _join(self, one: str, to_one: Message, other: str, to_other: Message) -> None:
        """A channel between two actors: whoever is gone, the other sees its end at once."""
        k = self._kernel
        ends = pair()
        for name, message, end in ((other, to_other, ends[1]), (one, to_one, ends[0])):
            process = k.processes.get(name)
            if process is not None:
                process.met = one
                process.channel.send(message, [end.fileno()])
                if process.session and type(message) is m.Opened:
                    k.gates.entered(process)
            end.close()

    def _spawn(self, name: str, row: MailUser) -> None:
        k = self._kernel
        spawner = k.processes.get(k.singletons.spawner)
        process, its = k.enrol(name, k.singletons.spawner)
        process.ids = (row.uid, row.gid)
        k.taps.started(process)
        k.pulse.forked(process)
        if spawner is None:  # it died, and the next one is not due yet: nobody would ever tell of this actor's end
            k.loop.soon(lambda: k.gone(m.Exited(name, 1, int(signal.SIGKILL))))
        else:
            spawner.channel.send(m.Spawn(name, row.uid, row.gid, os.fsencode(row.maildir)), [its.fileno()])
        its.close()
