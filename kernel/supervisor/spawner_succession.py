"""Another spawner takes over where a directory above maildirs is another by now than the one that the spawner's cage holds.

As with a reload, sessions go on with whom they have, and the old spawner goes when its last child has gone.
"""

from collections.abc import Callable

from popkernel.kernel.decisions.leases import Core, Effect
from popkernel.kernel.decisions.log_quota import ActorLines
from popkernel.kernel.processes import Exit, Process, Processes
from popkernel.kernel.runtime.log import ERROR, WARNING, Log
from popkernel.kernel.runtime.loop import Loop
from popkernel.kernel.supervisor.singletons import Singletons
from popkernel.kernel.supervisor.spawning import Spawning
from popkernel.proto import messages as m

__all__ = ["LAST_CHILD_SECONDS", "Succession"]

LAST_CHILD_SECONDS = 86400  # that a spawner which was replaced has for its children
_APART = 5.0  # seconds between two: who may replace such a directory may do so without end
_MOST = 4  # spawners: an old one stays as long as a session of its lasts


class Succession:
    """The spawner that is being started to take the place of the one in force; `name` is "" where there is none."""

    def __init__(
        self, loop: Loop, processes: Processes, core: Core, log: Log, lines: ActorLines, singletons: Singletons, spawning: Spawning,
        do: Callable[[list[Effect]], None],
    ) -> None:
        self._loop = loop
        self._processes = processes
        self._core = core
        self._log = log
        self._lines = lines
        self._singletons = singletons
        self._spawning = spawning
        self._do = do
        self.name = ""
        self._last = -_APART  # when one was started

    def displaced(self, process: Process, message: m.Displaced, fds: list[int]) -> None:
        """A spawner's word. Of one that is not in force it is no news."""
        del fds
        if self.name or process.name != self._singletons.spawner or self._processes.phase != "running":
            return
        root = message.root.decode(errors="backslashreplace")
        why = f"{root!r} was replaced, or something was mounted over it or above it, since {process.name} began"
        if len(self._processes.of_kind("spawner")) >= _MOST:
            self._lines(process.name, ERROR, f"{why}; {_MOST} spawners still have sessions: reload to have another", "kernel")
            return
        if self._loop.now - self._last < _APART:
            self._lines(process.name, WARNING, f"{why}; another takes over soon", "kernel")
            return
        self._last = self._loop.now
        try:
            self.name = self._singletons.launch_spawner()
        except OSError as error:
            self._log(ERROR, f"{why}; another spawner cannot be started: {error.strerror}")
            return
        self._processes[self.name].on_hello = self._takes_over
        self._log(WARNING, f"{why}; {self.name} takes over")

    def _takes_over(self) -> None:
        old = self._processes.get(self._singletons.spawner)
        self._processes[self.name].on_hello = None
        self._singletons.spawner, self.name = self.name, ""
        self._spawning.go_on()
        if old is not None and self._processes.phase == "running":
            old.state = "draining"
            old.channel.send(m.Stop(LAST_CHILD_SECONDS))
            self._do(self._core.retire_all())  # so that it need not stay for long

    def give_way(self) -> None:
        """A reload has put another in force."""
        if self.name in self._processes:
            self._processes[self.name].on_hello = None
            self._singletons.give_up([self.name])
        self.name = ""

    def on_exit(self, process: Process, end: Exit) -> None:
        """It ended before it served. The old one goes on, and who finds the directory replaced asks for the next."""
        if process.name == self.name:
            self.name = ""
            self._log(ERROR, end.unstarted(process.name)[0])
