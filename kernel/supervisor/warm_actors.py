"""Say how many idle maildir actors stay warm, and let them go while memory is short.

The budget is warm_memory; what an actor needs is what the spawner measured. kernel/decisions/leases.py
decides which actors are retired.
"""

from collections.abc import Callable

from popkernel.kernel.decisions.actions import Action
from popkernel.kernel.decisions.leases import Core
from popkernel.kernel.processes import Process
from popkernel.kernel.resources.memory_limits import in_units, rounded
from popkernel.kernel.resources.memory_pressure import MemoryPressure
from popkernel.kernel.runtime.log import Log
from popkernel.kernel.runtime.loop import Loop
from popkernel.proto import messages as m
from popkernel.proto.log_levels import DEBUG, NOTICE

__all__ = ["WarmActors"]

_COMPLAINTS = 10.0  # seconds between two lines in the log


class WarmActors:
    """Keep the budget's figures."""

    def __init__(self, loop: Loop, core: Core, log: Log, do: Callable[[list[Action]], None]) -> None:
        self._loop = loop
        self._core = core
        self._log = log
        self._do = do
        self._pressure: MemoryPressure | None = None
        self._gone = 0  # actors let go since the last line about it
        self._said = -_COMPLAINTS

    def begin(self, groups: tuple[str, ...]) -> None:
        """Watch for memory pressure; before the sandbox. `groups`: directories of the control groups."""
        self._pressure = MemoryPressure(self._loop, groups, self.let_go)

    def __len__(self) -> int:
        return len(self._pressure or ())

    @property
    def memory(self) -> str:
        """Return the budget for people: "2.4 GiB"; "" if no actor stays."""
        settings = self._core.settings
        return in_units(settings.warm_octets) if settings.warm_octets and settings.warm_seconds else ""

    def image_tried(self, process: Process, message: m.ImageTried, fds: list[int]) -> None:
        """Take what was measured at the start of a spawner, some time after its Hello."""
        del process, fds
        self._do(self._core.measured(message.octets, message.peak))
        self._log(DEBUG, "warm.budget", actors=rounded(self._core.holds), memory=self.memory)

    def let_go(self) -> None:
        """Retire the half of the idle actors that has been unused longest: memory is short."""
        core = self._core
        many = (len(core.idle) + 1) // 2
        if not many:
            return
        self._do(core.let_go(many))
        self._gone += many
        if self._loop.now - self._said >= _COMPLAINTS:
            self._said = self._loop.now
            self._log(NOTICE, "warm.let_go", actors=self._gone, left=len(core.idle))
            self._gone = 0

    def status(self) -> dict[str, int]:
        """Return the figures for `popkernel status`; memory in octets."""
        core = self._core
        return {
            "actors": len(core.idle),
            "holds": core.holds,
            "memory": core.settings.warm_octets,
            "memory_used": core.idle_octets,
            "memory_actor": core.actor_octets,
        }
