"""The end of the service: in reverse of the start, each stage when the one before has gone; then init is told why, and with what code."""

import os
from typing import TYPE_CHECKING, NoReturn

from popkernel.kernel.processes import Process
from popkernel.kernel.runtime.deadlines import Deadline
from popkernel.kernel.runtime.log import ERROR, NOTICE
from popkernel.kernel.supervisor.hung_actors import Hung
from popkernel.proto import messages as m
from popkernel.proto.schema import sayable
from popkernel.proto.topology import actor as row_of

if TYPE_CHECKING:
    from popkernel.kernel.supervisor.main import Supervisor

__all__ = ["Stopping"]

_STAGES = (("mda",), ("gate", "listener"), ("maildir.{user}",), ("auth",), ("spawner",))
_SECONDS = 10  # for a stage, where its row does not give it less
_GIVEN_UP_SECONDS = 2
_SILENT_SECONDS = 4  # within which who stops must say that it lives


class Stopping:
    """One stop, asked for or forced; whatever asks for it again changes nothing."""

    def __init__(self, supervisor: "Supervisor") -> None:
        self._kernel = supervisor
        self._status, self._text = 0, ""  # what init leaves with, and says
        self.early = False  # before it was ready, for a fault that init tells of
        self._seconds = _SECONDS
        self._stages = list(_STAGES)  # those to come
        self._awaited: set[str] = set()  # those whose end the next stage waits for
        self._silent = Hung(supervisor.loop, supervisor.hangs)

    def give_up(self, status: int, text: str) -> None:
        """The service can't go on: say why, end everyone, leave with that code. What keeps it from starting init says, as its last word."""
        k = self._kernel
        if k.state == "stopping":  # for what was said first; what follows is its consequence, or another's who failed at the same moment
            return
        if k.state == "starting" and not k.log_line.seen:
            k.log_line(ERROR, text)
        self._status, self._text = status, text
        self.begin(_GIVEN_UP_SECONDS)

    def begin(self, seconds: int = _SECONDS) -> None:
        """Stop; `seconds` for each stage at most."""
        k = self._kernel
        if k.state == "stopping":
            return
        self.early = k.state == "starting" and self._status != 0
        if not self.early:
            k.log_line(NOTICE, "stopping")
        k.state = "stopping"
        k.reloads.stop()
        self._seconds = seconds
        self._ask_alive(list(k.processes.values()))
        self._next()

    def gone(self, name: str) -> None:
        """A process has ended, during the stop."""
        self._awaited.discard(name)
        self._next()

    def _next(self) -> None:
        k = self._kernel
        while not self._awaited:
            if not self._stages:
                self._over()
            kinds = self._stages.pop(0)
            told = [p for p in k.processes.values() if p.kind in kinds]
            stage = [p for p in told if p.state != "ahead"]  # those wait for a client to come: their gate's end is theirs
            seconds = min(self._seconds, row_of(kinds[0]).shutdown)
            self._ask_alive(stage)  # before it is told to stop: that may keep it busy for a while
            for process in told:
                process.channel.send(m.Stop(seconds))
            for process in stage:
                process.state = "stopping"
            self._awaited = {process.name for process in stage}
            if stage:
                Deadline(k.loop, seconds + 1, lambda stage=stage: self._hurry(stage))  # type: ignore[misc]

    def _ask_alive(self, processes: list[Process]) -> None:
        """Who ends politely answers meanwhile; who says nothing is not waited for to the end of its time.

        But a maildir actor that has a session or a delivery may be at its QUIT, or wait for the disk or a lock, and sees nothing else until
        then; and whose end is its children's is not ended before they had theirs.
        """
        parents = {p.parent for p in self._kernel.processes.values() if self._serves(p)}
        for process in processes:
            maildir = process.kind == "maildir.{user}"
            if process.hello is not None and process.name not in parents and not (maildir and self._serves(process)):
                self._silent.suspect(process, _SILENT_SECONDS)

    def _serves(self, process: Process) -> bool:
        """Whether it has a session, or mail may be on its way into it."""
        if process.kind != "maildir.{user}":
            return bool(process.session) and process.state != "ahead"
        user = process.name.removeprefix("maildir.")
        maildir = self._kernel.core.maildirs.get(user)
        return user in self._kernel.deliveries.holders or (maildir is not None and maildir.key is not None)

    def _hurry(self, stage: list[Process]) -> None:
        k = self._kernel
        for process in stage:
            if k.processes.get(process.name) is process:
                k.kill(process)
                if process.parent in k.processes:  # who is stopped itself ends nobody, and tells of no end
                    self._silent.suspect(k.processes[process.parent], _SILENT_SECONDS)

    def _over(self) -> NoReturn:
        k = self._kernel
        k.tell_init(m.Ending(self._status, sayable(self._text)))
        if not self.early:
            k.log_line(NOTICE, "stopped")
        os._exit(0)
