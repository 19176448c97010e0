"""Another spawner takes over where a directory above maildirs is another by now than the one that the spawner's cage holds.

As with a reload, sessions go on with whom they have, and the old spawner goes when its last child has gone.
"""

from typing import TYPE_CHECKING

from popkernel.kernel.processes import Process
from popkernel.kernel.runtime.log import ERROR, WARNING
from popkernel.proto import messages as m

if TYPE_CHECKING:
    from popkernel.kernel.supervisor.main import Supervisor

__all__ = ["LAST_CHILD_SECONDS", "Heir"]

LAST_CHILD_SECONDS = 86400  # that a spawner which was replaced has for its children
_APART = 5.0  # seconds between two: who may replace such a directory may do so without end
_MOST = 4  # spawners: an old one stays as long as a session of its lasts


class Heir:
    """The spawner that is being started to take the place of the one in force; `name` is "" where there is none."""

    def __init__(self, supervisor: "Supervisor") -> None:
        self._kernel = supervisor
        self.name = ""
        self._last = -_APART  # when one was started

    def displaced(self, process: Process, message: m.Displaced, fds: list[int]) -> None:
        """A spawner's word. Of one that is not in force it is no news."""
        del fds
        k = self._kernel
        if self.name or process.name != k.singletons.spawner or k.state != "running":
            return
        root = message.root.decode(errors="backslashreplace")
        why = f"{root!r} was replaced, or something was mounted over it or above it, since {process.name} began"
        if sum(p.kind == "spawner" for p in k.processes.values()) >= _MOST:
            k.actor_line(process.name, ERROR, f"{why}; {_MOST} spawners still have sessions: reload to have another", "kernel")
            return
        if k.loop.now - self._last < _APART:
            k.actor_line(process.name, WARNING, f"{why}; another takes over soon", "kernel")
            return
        self._last = k.loop.now
        try:
            self.name = k.singletons.launch_spawner()
        except OSError as error:
            k.log_line(ERROR, f"{why}; another spawner cannot be started: {error.strerror}")
            return
        k.processes[self.name].on_hello = self._takes_over
        k.log_line(WARNING, f"{why}; {self.name} takes over")

    def _takes_over(self) -> None:
        k = self._kernel
        old = k.processes.get(k.singletons.spawner)
        k.processes[self.name].on_hello = None
        k.singletons.spawner, self.name = self.name, ""
        k.spawning.go_on()
        if old is not None and k.state == "running":
            old.state = "draining"
            old.channel.send(m.Stop(LAST_CHILD_SECONDS))
            k.do(k.core.retire_all())  # so that it need not stay for long

    def give_way(self) -> None:
        """A reload has put another in force."""
        k = self._kernel
        if self.name in k.processes:
            k.processes[self.name].on_hello = None
            k.singletons.give_up([self.name])
        self.name = ""

    def failed(self, why: str) -> None:
        """It ended before it served. The old one goes on, and who finds the directory replaced asks for the next."""
        self.name = ""
        self._kernel.log_line(ERROR, why)
