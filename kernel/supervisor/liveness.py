"""Deadlines of the kernel's own questions: whether init and the singletons live, whether who was forked serves, and who was ended ends.

A singleton that hangs is ended, and started anew as after any other end. Init cannot be ended from here: that it does not answer is
said, and all that needs no new process goes on.
"""

import os
import signal

from popkernel.kernel.decisions.leases import Core
from popkernel.kernel.decisions.log_quota import ActorLines
from popkernel.kernel.processes import Process, Processes
from popkernel.kernel.runtime.deadlines import LATE, Deadline
from popkernel.kernel.runtime.log import ERROR, NOTICE, Log
from popkernel.kernel.runtime.loop import Loop
from popkernel.kernel.supervisor.hung_actors import START_SECONDS, HungActors
from popkernel.proto import messages as m
from popkernel.proto.topology import actor as row_of
from popkernel.proto.topology import edge

__all__ = ["Liveness"]

_LOOK_SECONDS = 1.0  # from one look to the next whether an actor that goes still has a session


class Liveness:
    """Who is asked now and then, and who is waited for."""

    def __init__(self, loop: Loop, processes: Processes, core: Core, log: Log, lines: ActorLines, hung: HungActors) -> None:
        self._loop = loop
        self._processes = processes
        self._core = core
        self._log = log
        self._lines = lines
        self._hung = hung
        self._seconds = edge("kernel", "auth").deadline  # from one question to the next, and to the verdict
        self._asked = False  # init has a question that it has not answered
        self._silent = 0  # turns for which it has not
        self._written_off: set[int] = set()  # process numbers that another has taken the place of, though nobody saw their end

    @property
    def init_lives(self) -> bool:
        """Whether init has answered lately."""
        return not self._silent

    # -- now and then
    def begin(self) -> None:
        """From now on."""
        timer = self._loop.later(self._seconds, lambda: self._beat(timer.due))

    def _beat(self, due: float) -> None:
        self.begin()
        if self._processes.phase == "stopping":
            return
        if not self._asked:
            self._asked = True
            self._processes.tell_init(m.Report())
        elif self._loop.now - due <= LATE:
            self._silent += 1
            if self._silent == 2:  # one whole turn, at the least
                pid = os.getppid()
                self._log(
                    ERROR,
                    f"init (process {pid}) has not answered for {self._seconds} s: no actor can be started or ended until it goes on, and"
                    f" nothing reloaded; if it is stopped, kill -CONT {pid}",
                )
        for process in self._processes:
            if process.parent == "init" and process.hello is not None:
                self._hung.suspect(process)

    def init_answers(self) -> None:
        """Its counters have come."""
        if self._silent > 1:
            self._log(NOTICE, "init answers again")
        self._asked, self._silent = False, 0

    # -- forked, told to go
    def forked(self, process: Process) -> None:
        """The spawner was told of a maildir actor: by and by it says hello."""
        name = process.name  # not the process: thousands may come and go in that time
        self._loop.later(self._seconds, lambda: self._not_yet(name))

    def _not_yet(self, name: str) -> None:
        process = self._processes.get(name)
        if process is not None and process.hello is None:
            self._hung.suspect(process, START_SECONDS)

    def retires(self, name: str) -> None:
        """A maildir actor was told to go: it does, or says that it stays."""
        self._loop.later(self._seconds, lambda: self._still(name))
        self.goes(name)

    def _still(self, name: str) -> None:
        process = self._processes.get(name)
        maildir = self._core.maildirs.get(name.removeprefix("maildir."))
        if process is not None and maildir is not None and maildir.retiring:
            self._hung.suspect(process)

    def goes(self, name: str) -> None:
        """A maildir actor goes, says itself or the kernel. Who wants that maildrop waits for its end, so it has a deadline.

        It runs while no session is open: that one's client is served. Busy ends it.
        """
        process = self._processes.get(name)
        if process is not None and not process.goes:
            self._await_end(process)

    def _await_end(self, process: Process) -> None:
        name = process.name
        maildir = self._core.maildirs.get(name.removeprefix("maildir."))
        free = maildir is not None and maildir.key is None
        seconds = row_of(name).shutdown if free else _LOOK_SECONDS
        due = process.goes = self._loop.now + seconds
        self._loop.later(seconds, lambda: self._overstays(name, due, free=free))

    def _overstays(self, name: str, due: float, *, free: bool) -> None:
        process, maildir = self._processes.get(name), self._core.maildirs.get(name.removeprefix("maildir."))
        if process is None or process.goes != due or maildir is None or self._processes.phase == "stopping":
            return
        if not maildir.retiring:
            process.goes = 0.0
        elif free and maildir.key is None and process.parent and self._loop.now - due <= LATE:
            text = f"{name} was to go and has not gone in {row_of(name).shutdown} s; ended"
            self._lines.end(name, ERROR, text)
            self._processes.kill(process)
        else:
            self._await_end(process)

    def leaves(self, process: Process, seconds: int) -> None:
        """A singleton that another has taken the place of was told to go within so many seconds: it is ended where it has not."""
        self._loop.later(seconds + self._seconds, lambda: self._ends(process))

    def _ends(self, process: Process) -> None:
        if self._processes.has(process):
            self._processes.kill(process)

    # -- ended
    def killed(self, process: Process) -> None:
        """Its parent was told to end it."""
        name, pid = process.name, process.pid
        Deadline(self._loop, START_SECONDS, lambda: self._unkilled(name, pid))

    def _unkilled(self, name: str, pid: int) -> None:
        """It waits for a disk that hangs, most likely: such a process has no end. Somebody takes its place where that can be done."""
        process = self._processes.get(name)
        if process is None or process.pid != pid or self._processes.phase == "stopping":
            return
        self._lines.end(
            process.whose, ERROR,
            f"{process.name} (process {process.pid or '?'}) has not ended for {START_SECONDS} s though {process.parent} was told to end it:"
            f" it waits for a disk, or {process.parent} is stopped or may not (CAP_KILL)",
        )
        if process.parent == "init" and self.init_lives and process.pid:
            self._written_off.add(process.pid)
            self._processes.gone(m.Exited(process.name, process.pid, int(signal.SIGKILL)))

    def late_end(self, pid: int) -> bool:
        """Whether that process's end is no news: its place was given to another."""
        if pid not in self._written_off:
            return False
        self._written_off.discard(pid)
        return True
