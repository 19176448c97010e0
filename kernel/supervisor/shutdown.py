"""Stop the service in stages, in reverse of its start; then tell init the reason and the exit code.

A stage begins when all processes of the one before have ended.
"""

import os
from collections.abc import Callable, Iterable
from typing import NoReturn

from popkernel.kernel.decisions.deliveries import Deliveries
from popkernel.kernel.decisions.leases import Core
from popkernel.kernel.processes import Exit, Process, Processes
from popkernel.kernel.runtime.deadlines import Deadline
from popkernel.kernel.runtime.log import Log
from popkernel.kernel.runtime.loop import Loop
from popkernel.kernel.supervisor.hung_actors import HungActors
from popkernel.proto import messages as m
from popkernel.proto.log_levels import ERROR, NOTICE
from popkernel.proto.schema import fit_text
from popkernel.proto.topology import actor as row_of

__all__ = ["Shutdown"]

_STAGES = (("mda",), ("gate", "listener"), ("maildir.{user}",), ("auth",), ("spawner",))
_SECONDS = 10  # for a stage, unless its actors' row in the topology gives less
_GIVEN_UP_SECONDS = 2  # likewise, after a fault
_SILENT_SECONDS = 4  # for a process that stops to answer that it is alive


class Shutdown:
    """Carry out one stop, asked for or after a fault; further requests change nothing."""

    def __init__(
        self,
        loop: Loop,
        processes: Processes,
        core: Core,
        deliveries: Deliveries,
        log: Log,
        hangs: Callable[[Process, int], None],
        on_begin: Callable[[], None],
    ) -> None:
        """`hangs`: as for HungActors. `on_begin`: called once, before the first ActorStop."""
        self._loop = loop
        self._processes = processes
        self._core = core
        self._deliveries = deliveries
        self._log = log
        self._on_begin = on_begin
        self._status, self._text = 0, ""  # init's exit code and last message
        self.early = False  # stopped before the service was ready, by a fault that init reports
        self._seconds = _SECONDS
        self._stages = list(_STAGES)  # not yet begun
        self._awaited: set[str] = set()  # the next stage waits for their ends
        self._silent = HungActors(loop, hangs)

    def give_up(self, status: int, text: str) -> None:
        """Stop because of a fault: log it, end all processes, and have init exit with that code.

        A fault that keeps the service from starting is reported by init, as its last message.
        """
        phase = self._processes.phase
        # the first fault counts: later ones are its consequences, or happened at the same moment
        if phase == "stopping":
            return
        if phase == "starting" and not self._log.seen:
            self._log(ERROR, "service.failed", error=text)
        self._status, self._text = status, text
        self.begin(_GIVEN_UP_SECONDS)

    def begin(self, seconds: int = _SECONDS) -> None:
        """Stop the service. `seconds`: the most for each stage."""
        if self._processes.phase == "stopping":
            return
        self.early = self._processes.phase == "starting" and self._status != 0
        if not self.early:
            self._log(NOTICE, "service.stopping")
        self._processes.phase = "stopping"
        self._on_begin()
        self._seconds = seconds
        self._ask_alive(self._processes)
        self._next()

    def on_exit(self, process: Process, end: Exit) -> None:
        """Begin the next stage if this was the last process of the current one."""
        del end
        if self._processes.phase == "stopping":
            self._awaited.discard(process.name)
            self._next()

    def _next(self) -> None:
        while not self._awaited:
            if not self._stages:
                self._over()
            kinds = self._stages.pop(0)
            processes = self._processes.of_kind(*kinds)
            # a free seat (gates.py) has no process yet, and ends with its gate
            stage = [p for p in processes if p.state != "ahead"]
            seconds = min(self._seconds, row_of(kinds[0]).shutdown)
            self._ask_alive(stage)  # before ActorStop, which may keep an actor busy for a while
            for process in processes:
                process.channel.send(m.ActorStop(seconds))
            for process in stage:
                process.state = "stopping"
            self._awaited = {process.name for process in stage}
            if stage:
                Deadline(self._loop, seconds + 1, lambda stage=stage: self._kill(stage))  # type: ignore[misc]

    def _ask_alive(self, processes: Iterable[Process]) -> None:
        """Ask processes whether they are alive, so that a hung one does not take the stage's whole time.

        Not asked are maildir actors with a session or a delivery: they may be busy with a QUIT, the disk or a
        lock, and cannot answer. Nor are the parents of serving processes, whose end would end these too.
        """
        parents = {p.parent for p in self._processes if self._serves(p)}
        for process in processes:
            maildir = process.kind == "maildir.{user}"
            if (
                process.hello is not None
                and process.name not in parents
                and not (maildir and self._serves(process))
            ):
                self._silent.suspect(process, _SILENT_SECONDS)

    def _serves(self, process: Process) -> bool:
        """Return whether a process has a session, or may be receiving mail."""
        if process.kind != "maildir.{user}":
            return bool(process.session) and process.state != "ahead"
        user = process.name.removeprefix("maildir.")
        maildir = self._core.maildirs.get(user)
        return user in self._deliveries.holders or (maildir is not None and maildir.key is not None)

    def _kill(self, stage: list[Process]) -> None:
        for process in stage:
            if self._processes.has(process):
                self._processes.kill(process)
                # a parent that hangs kills nobody, and reports no end
                if process.parent in self._processes:
                    self._silent.suspect(self._processes[process.parent], _SILENT_SECONDS)

    def _over(self) -> NoReturn:
        self._processes.send_init(m.ServiceEnding(self._status, fit_text(self._text)))
        if not self.early:
            self._log(NOTICE, "service.stopped")
        os._exit(0)
