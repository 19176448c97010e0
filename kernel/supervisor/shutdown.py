"""The end of the service: in reverse of the start, each stage when the one before has gone; then init is told why, and with what code."""

import os
from collections.abc import Callable, Iterable
from typing import NoReturn

from popkernel.kernel.decisions.deliveries import Deliveries
from popkernel.kernel.decisions.leases import Core
from popkernel.kernel.processes import Exit, Process, Processes
from popkernel.kernel.runtime.deadlines import Deadline
from popkernel.kernel.runtime.log import ERROR, NOTICE, Log
from popkernel.kernel.runtime.loop import Loop
from popkernel.kernel.supervisor.hung_actors import HungActors
from popkernel.proto import messages as m
from popkernel.proto.schema import sayable
from popkernel.proto.topology import actor as row_of

__all__ = ["Shutdown"]

_STAGES = (("mda",), ("gate", "listener"), ("maildir.{user}",), ("auth",), ("spawner",))
_SECONDS = 10  # for a stage, where its row does not give it less
_GIVEN_UP_SECONDS = 2
_SILENT_SECONDS = 4  # within which who stops must say that it lives


class Shutdown:
    """One stop, asked for or forced; whatever asks for it again changes nothing."""

    def __init__(
        self, loop: Loop, processes: Processes, core: Core, deliveries: Deliveries, log: Log,
        hangs: Callable[[Process, int], None], on_begin: Callable[[], None],
    ) -> None:
        """`hangs`: as for HungActors. `on_begin`: called once, before anybody is told to stop."""
        self._loop = loop
        self._processes = processes
        self._core = core
        self._deliveries = deliveries
        self._log = log
        self._on_begin = on_begin
        self._status, self._text = 0, ""  # what init leaves with, and says
        self.early = False  # before it was ready, for a fault that init tells of
        self._seconds = _SECONDS
        self._stages = list(_STAGES)  # those to come
        self._awaited: set[str] = set()  # those whose end the next stage waits for
        self._silent = HungActors(loop, hangs)

    def give_up(self, status: int, text: str) -> None:
        """The service can't go on: say why, end everyone, leave with that code. What keeps it from starting init says, as its last word."""
        phase = self._processes.phase
        if phase == "stopping":  # for what was said first; what follows is its consequence, or another's who failed at the same moment
            return
        if phase == "starting" and not self._log.seen:
            self._log(ERROR, text)
        self._status, self._text = status, text
        self.begin(_GIVEN_UP_SECONDS)

    def begin(self, seconds: int = _SECONDS) -> None:
        """Stop; `seconds` for each stage at most."""
        if self._processes.phase == "stopping":
            return
        self.early = self._processes.phase == "starting" and self._status != 0
        if not self.early:
            self._log(NOTICE, "stopping")
        self._processes.phase = "stopping"
        self._on_begin()
        self._seconds = seconds
        self._ask_alive(self._processes)
        self._next()

    def on_exit(self, process: Process, end: Exit) -> None:
        """During the stop: the next stage may begin."""
        del end
        if self._processes.phase == "stopping":
            self._awaited.discard(process.name)
            self._next()

    def _next(self) -> None:
        while not self._awaited:
            if not self._stages:
                self._over()
            kinds = self._stages.pop(0)
            told = self._processes.of_kind(*kinds)
            stage = [p for p in told if p.state != "ahead"]  # those wait for a client to come: their gate's end is theirs
            seconds = min(self._seconds, row_of(kinds[0]).shutdown)
            self._ask_alive(stage)  # before it is told to stop: that may keep it busy for a while
            for process in told:
                process.channel.send(m.Stop(seconds))
            for process in stage:
                process.state = "stopping"
            self._awaited = {process.name for process in stage}
            if stage:
                Deadline(self._loop, seconds + 1, lambda stage=stage: self._hurry(stage))  # type: ignore[misc]

    def _ask_alive(self, processes: Iterable[Process]) -> None:
        """Who ends politely answers meanwhile; who says nothing is not waited for to the end of its time.

        But a maildir actor that has a session or a delivery may be at its QUIT, or wait for the disk or a lock, and sees nothing else until
        then; and whose end is its children's is not ended before they had theirs.
        """
        parents = {p.parent for p in self._processes if self._serves(p)}
        for process in processes:
            maildir = process.kind == "maildir.{user}"
            if process.hello is not None and process.name not in parents and not (maildir and self._serves(process)):
                self._silent.suspect(process, _SILENT_SECONDS)

    def _serves(self, process: Process) -> bool:
        """Whether it has a session, or mail may be on its way into it."""
        if process.kind != "maildir.{user}":
            return bool(process.session) and process.state != "ahead"
        user = process.name.removeprefix("maildir.")
        maildir = self._core.maildirs.get(user)
        return user in self._deliveries.holders or (maildir is not None and maildir.key is not None)

    def _hurry(self, stage: list[Process]) -> None:
        for process in stage:
            if self._processes.has(process):
                self._processes.kill(process)
                if process.parent in self._processes:  # who is stopped itself ends nobody, and tells of no end
                    self._silent.suspect(self._processes[process.parent], _SILENT_SECONDS)

    def _over(self) -> NoReturn:
        self._processes.tell_init(m.Ending(self._status, sayable(self._text)))
        if not self.early:
            self._log(NOTICE, "stopped")
        os._exit(0)
