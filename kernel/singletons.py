"""The singletons: who is in force, how each is named and started, who meets whom, and what follows when one ends unasked."""

from typing import TYPE_CHECKING

from popkernel.kernel import core
from popkernel.kernel.actor import SOFTWARE
from popkernel.kernel.log import ERROR
from popkernel.kernel.process import Process, plain
from popkernel.kernel.usertable import roots_of
from popkernel.proto import messages as m
from popkernel.proto.topology import edge

if TYPE_CHECKING:
    from popkernel.kernel.supervisor import Supervisor

__all__ = ["Singletons"]

_START_PATIENCE = edge("kernel", "init").deadline  # seconds an actor may take to say hello


class Singletons:
    """Those that init starts. As in OTP: in the table's order, again with back-off, and past an intensity no more."""

    def __init__(self, supervisor: "Supervisor") -> None:
        self._kernel = supervisor
        self.door = "gate" if supervisor.config.isolation == "connection" else "listener"  # who takes connections
        self.spawner = self.auth = self.mda = ""  # names of those in force
        self.listeners: list[str] = []
        self._restarts: dict[str, int] = {}
        self._launched: dict[str, int] = {}  # by plain name, how often: what tells a replacement's name from the first's

    # -- started
    def begin(self) -> None:
        """Start everyone, for the first time."""
        self.put_in_force(self.launch(roots_of(dict(self._kernel.core.users))))
        config = self._kernel.config
        if config.lmtp or config.lmtp_listen:
            self.mda = self._launch("mda", self._new_name("mda"))

    def launch(self, roots: list[bytes]) -> list[str]:
        """Start new ones of all that a reload replaces, under new names: the spawner, auth, those at the door."""
        doors = [f"{self.door}.{n}" for n in range(self._kernel.config.listeners)]
        kinds = {"spawner": "spawner", "auth": "auth", **dict.fromkeys(doors, self.door)}
        return [self._launch(kind, self._new_name(name), roots if kind == "spawner" else None) for name, kind in kinds.items()]

    def put_in_force(self, names: list[str]) -> None:
        """From now on these are meant, of launch()."""
        self.spawner, self.auth, *self.listeners = names

    def in_force(self) -> list[str]:
        """Names of those that a reload replaces."""
        return [self.spawner, self.auth, *self.listeners]

    def _new_name(self, name: str) -> str:
        self._launched[name] = self._launched.get(name, 0) + 1
        return name if self._launched[name] == 1 else f"{name}~{self._launched[name]}"

    def _launch(self, kind: str, name: str, roots: list[bytes] | None = None) -> str:
        """Have init start one; its name. What it sends before it serves waits in its channel."""
        k = self._kernel
        process, its = k.enrol(name, "init")
        process.restarts = self._restarts.get(plain(name), 0)
        k.taps.started(process)
        k.tell_init(m.Execute(kind, name, roots or []), [its.fileno()])
        its.close()
        k.loop.later(_START_PATIENCE, lambda: self._too_slow(process))
        return name

    def _too_slow(self, process: Process) -> None:
        k = self._kernel
        if process.state == "starting" and k.processes.get(process.name) is process:
            k.log_line(ERROR, f"{process.name} did not say hello within {_START_PATIENCE} seconds")
            k.kill(process)

    # -- joined
    def wire(self, process: Process) -> None:
        """Join a new auth with every listener, a new listener with auth, once both serve; a gate opens when there is an auth."""
        k = self._kernel
        auth = k.processes.get(self.auth)
        if auth is None or auth.state != "serving":
            return
        for other in list(k.processes.values()) if process.name == self.auth else [process]:
            if other.kind == "listener" and other.state in ("serving", "draining", "ahead"):
                k.do([core.Join(self.auth, m.Peer(other.name), other.name, m.Peer(self.auth))])
            elif other.kind == "gate" and other.state in ("serving", "draining"):
                k.gates.opens(other)

    # -- ended
    def ended(self, process: Process, how: str) -> None:
        """One is no more, and nobody had asked for it."""
        k = self._kernel
        if k.state == "starting":
            k.stopping.give_up(SOFTWARE, f"{process.name} ended before it served: {how}")
            return
        name = plain(process.name)
        verdict = k.core.died(name, k.loop.now)
        if verdict.seconds < 0:
            k.log_line(ERROR, f"{process.name} ended again and again ({how}): giving up")
            k.stopping.give_up(SOFTWARE, f"{process.name} ended again and again, last: {how}")
            return
        k.log_line(ERROR, f"{process.name} ended: {how}; again in {verdict.seconds:.1f} s")
        k.taps.note("Restart", process.name, seconds=verdict.seconds)
        self._restarts[name] = self._restarts.get(name, 0) + 1
        k.loop.later(verdict.seconds, lambda: self._again(process.name, process.kind))

    def _again(self, name: str, kind: str) -> None:
        k = self._kernel
        if k.state != "running":
            return
        if name not in (*self.in_force(), self.mda) or name in k.processes:  # a reload has put another in its place meanwhile
            return
        self._launch(kind, name, roots_of(dict(k.core.users)) if kind == "spawner" else None)
