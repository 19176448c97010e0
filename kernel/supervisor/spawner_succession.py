"""Replace the spawner if a directory above maildirs was replaced: its sandbox still holds the old directory.

As in a reload, open sessions keep their actors, and the old spawner ends after its last child.
"""

from collections.abc import Callable

from popkernel.kernel.decisions.actions import Action
from popkernel.kernel.decisions.leases import Core
from popkernel.kernel.operator.log_quota import ActorLines
from popkernel.kernel.processes import Exit, Process, Processes
from popkernel.kernel.runtime.log import Log
from popkernel.kernel.runtime.loop import Loop
from popkernel.kernel.supervisor.singletons import Singletons
from popkernel.kernel.supervisor.spawning import Spawning
from popkernel.proto import messages as m
from popkernel.proto.log_levels import ERROR, WARNING

__all__ = ["LAST_CHILD_SECONDS", "Succession"]

LAST_CHILD_SECONDS = 86400  # for a replaced spawner to wait for its children
WARM_SECONDS = 3600  # after which a replaced spawner's children end, the busy ones after their sessions
_APART = 5.0  # seconds between two replacements: the directory may be replaced again and again
_MOST = 4  # spawners at a time: an old one stays as long as one of its sessions


class Succession:
    """Start a successor for the spawner in force. `name`: the successor while it starts, else ""."""

    def __init__(
        self,
        loop: Loop,
        processes: Processes,
        core: Core,
        log: Log,
        lines: ActorLines,
        singletons: Singletons,
        spawning: Spawning,
        do: Callable[[list[Action]], None],
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
        self._due = False  # the spawner in force should be replaced, and could not be
        # spawners that began when a directory above maildirs did not exist
        self._incomplete: set[str] = set()
        self._last = -_APART  # when the last successor was started

    @property
    def due(self) -> bool:
        """Return whether a reload is to replace the spawner in force, whatever has changed."""
        return self._due or self._singletons.spawner in self._incomplete

    def roots_missing(self, process: Process, message: m.RootsMissing, fds: list[int]) -> None:
        """Note that a new spawner does not see all directories above maildirs."""
        del message, fds
        self._incomplete.add(process.name)

    def root_displaced(self, process: Process, message: m.RootDisplaced, fds: list[int]) -> None:
        """Start a successor for a spawner that found a directory replaced, if it is the one in force."""
        del fds
        if self.name or process.name != self._singletons.spawner or self._processes.phase != "running":
            return
        self._due = True
        root = message.root.decode(errors="backslashreplace")
        stale = {"process": process.name, "root": root}
        if len(self._processes.of_kind("spawner")) >= _MOST:
            self._lines(
                process.name,
                ERROR,
                "spawner.too_many",
                **stale,
                spawners=_MOST,
            )
            for spawner in self._processes.of_kind("spawner"):
                if spawner is not process:  # it may only have warm actors: then the next report finds room
                    self._retire_children(spawner.name)
            return
        if self._loop.now - self._last < _APART:
            self._lines(process.name, WARNING, "spawner.replaced_soon", **stale)
            return
        self._last = self._loop.now
        try:
            self.name = self._singletons.launch_spawner()
        except OSError as error:
            self._log(ERROR, "spawner.not_replaced", **stale, error=error.strerror)
            return
        successor = self._processes[self.name]
        successor.on_hello = lambda: self._takes_over(successor)
        self._log(WARNING, "spawner.replaced", **stale, successor=self.name)

    def _takes_over(self, successor: Process) -> None:
        successor.on_hello = None
        if not self._processes.has(successor):  # it has ended, and this was read after that
            return
        old = self._processes.get(self._singletons.spawner)
        self._singletons.spawner, self.name = self.name, ""
        self._due = False
        self._spawning.go_on()
        if old is not None and self._processes.phase == "running":
            self.leaves(old)
            self._do(self._core.retire_all())  # so that the old one can end soon

    def leaves(self, old: Process) -> None:
        """Have a replaced spawner end after its last child.

        A user who polls would keep an actor warm for ever: so the children are retired after an hour, or as
        soon as there are too many spawners.
        """
        name = old.name
        old.state = "draining"
        old.channel.send(m.ActorStop(LAST_CHILD_SECONDS))
        self._loop.later(WARM_SECONDS, lambda: self._retire_children(name))
        for spawner in self._processes.of_kind("spawner")[:-_MOST]:
            self._retire_children(spawner.name)

    def _retire_children(self, spawner: str) -> None:
        users = [child.name.removeprefix("maildir.") for child in self._processes.children(spawner)]
        self._do(self._core.retire_changed(users))

    def give_way(self) -> None:
        """Kill the successor: a reload has put another spawner in force."""
        self._due = False
        if self.name in self._processes:
            self._processes[self.name].on_hello = None
            self._singletons.give_up([self.name])
        self.name = ""

    def on_exit(self, process: Process, end: Exit) -> None:
        """Forget a successor that ended before it served.

        The old spawner goes on, and asks again when it finds the directory replaced.
        """
        self._incomplete.discard(process.name)
        if process.name == self.name:
            self.name = ""
            self._log(ERROR, "process.unstarted", process=process.name, why=end.unstarted(process.name)[0])
