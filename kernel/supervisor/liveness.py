"""Check that init and the singletons answer, that forked actors start, and that retired or killed ones end.

A singleton that hangs is killed, and started again as after any other end. The kernel cannot kill init: it
logs that init does not answer, and goes on with all that needs no new process.
"""

import os
import signal

from popkernel.kernel.decisions.leases import Core
from popkernel.kernel.operator.log_quota import ActorLines
from popkernel.kernel.processes import Process, Processes
from popkernel.kernel.runtime.deadlines import LATE, Deadline
from popkernel.kernel.runtime.log import Log
from popkernel.kernel.runtime.loop import Loop
from popkernel.kernel.supervisor.hung_actors import START_SECONDS, HungActors
from popkernel.proto import messages as m
from popkernel.proto.log_levels import ERROR, NOTICE
from popkernel.proto.topology import actor as row_of
from popkernel.proto.topology import edge

__all__ = ["Liveness"]

_LOOK_SECONDS = 1.0  # between two checks whether an actor that is leaving still has a session


class Liveness:
    """Ask processes periodically whether they live, and keep the deadlines for starts and ends."""

    def __init__(
        self, loop: Loop, processes: Processes, core: Core, log: Log, lines: ActorLines, hung: HungActors
    ) -> None:
        self._loop = loop
        self._processes = processes
        self._core = core
        self._log = log
        self._lines = lines
        self._hung = hung
        self._seconds = edge("kernel", "auth").deadline  # between two requests, and for an answer
        self._asked = False  # init has a request that it has not answered
        self._silent = 0  # number of periods without its answer
        # process numbers of hung processes that were replaced before they ended
        self._written_off: set[int] = set()

    @property
    def init_lives(self) -> bool:
        """Whether init has answered lately."""
        return not self._silent

    # -- periodic requests
    def begin(self) -> None:
        """Start the periodic requests."""
        timer = self._loop.later(self._seconds, lambda: self._beat(timer.due))

    def _beat(self, due: float) -> None:
        self.begin()
        if self._processes.phase == "stopping":
            return
        if not self._asked:
            self._asked = True
            self._processes.send_init(m.CountersRequest())
        elif self._loop.now - due <= LATE:
            self._silent += 1
            if self._silent == 2:  # at least one whole period
                self._log(ERROR, "init.silent", pid=os.getppid(), seconds=self._seconds)
        for process in self._processes:
            if process.parent == "init" and process.hello is not None:
                self._hung.suspect(process)

    def init_answers(self) -> None:
        """Take init's answer, its counters."""
        if self._silent > 1:
            self._log(NOTICE, "init.answers")
        self._asked, self._silent = False, 0

    # -- maildir actors that start or leave
    def forked(self, process: Process) -> None:
        """Check later that a maildir actor which the spawner is forking has sent Hello."""
        name = process.name  # not the process: the timer would keep thousands of ended ones in memory
        self._loop.later(self._seconds, lambda: self._check_hello(name))

    def _check_hello(self, name: str) -> None:
        process = self._processes.get(name)
        if process is not None and process.hello is None:
            self._hung.suspect(process, START_SECONDS)

    def retires(self, name: str) -> None:
        """Check later that a maildir actor which was told to retire has ended or refused."""
        self._loop.later(self._seconds, lambda: self._check_retired(name))
        self.goes(name)

    def _check_retired(self, name: str) -> None:
        process = self._processes.get(name)
        maildir = self._core.maildirs.get(name.removeprefix("maildir."))
        if process is not None and maildir is not None and maildir.retiring:
            self._hung.suspect(process)

    def goes(self, name: str) -> None:
        """Set a deadline for the end of a maildir actor that is leaving: sessions and mail may wait for it.

        It counts while no session is open, for an open one is still served. RetireRefused cancels it.
        """
        process = self._processes.get(name)
        if process is not None and not process.leaves_by:
            self._await_end(process)

    def _await_end(self, process: Process) -> None:
        name = process.name
        maildir = self._core.maildirs.get(name.removeprefix("maildir."))
        free = maildir is not None and maildir.key is None
        seconds = row_of(name).shutdown if free else _LOOK_SECONDS
        due = process.leaves_by = self._loop.now + seconds
        self._loop.later(seconds, lambda: self._overstays(name, due, free=free))

    def _overstays(self, name: str, due: float, *, free: bool) -> None:
        process, maildir = self._processes.get(name), self._core.maildirs.get(name.removeprefix("maildir."))
        if (
            process is None
            or process.leaves_by != due
            or maildir is None
            or self._processes.phase == "stopping"
        ):
            return
        if not maildir.retiring:
            process.leaves_by = 0.0
        elif free and maildir.key is None and process.parent and self._loop.now - due <= LATE:
            self._lines.end(name, ERROR, "process.overstayed", process=name, seconds=row_of(name).shutdown)
            self._processes.kill(process)
        else:
            self._await_end(process)

    def leaves(self, process: Process, seconds: int) -> None:
        """Kill a replaced singleton that was told to end within `seconds`, if it has not."""
        self._loop.later(seconds + self._seconds, lambda: self._kill_late(process))

    def _kill_late(self, process: Process) -> None:
        if self._processes.has(process):
            self._processes.kill(process)

    # -- kills
    def killed(self, process: Process) -> None:
        """Check later that a process which its parent was told to kill has ended."""
        name, pid = process.name, process.pid
        Deadline(self._loop, START_SECONDS, lambda: self._unkilled(name, pid))

    def _unkilled(self, name: str, pid: int) -> None:
        """Log a process that survived its kill, and start another in its place if it is a singleton.

        Most likely it waits for a disk that hangs; no signal ends such a process.
        """
        process = self._processes.get(name)
        if process is None or process.pid != pid or self._processes.phase == "stopping":
            return
        self._lines.end(
            process.log_owner,
            ERROR,
            "process.unkilled",
            process=process.name,
            pid=process.pid or "?",
            seconds=START_SECONDS,
            parent=process.parent,
        )
        if process.parent == "init" and self.init_lives and process.pid:
            self._written_off.add(process.pid)
            self._processes.exited(m.ProcessExited(process.name, process.pid, int(signal.SIGKILL)))

    def late_end(self, pid: int) -> bool:
        """Return whether a process that ended had been replaced before: then its end has no consequences."""
        if pid not in self._written_off:
            return False
        self._written_off.discard(pid)
        return True
