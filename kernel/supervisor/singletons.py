"""The singletons: who is in force, how each is named and started, who meets whom, and what follows when one ends unasked."""

from collections.abc import Callable

from popkernel.kernel.config.keys import Config
from popkernel.kernel.config.user_table import roots_of
from popkernel.kernel.decisions import leases
from popkernel.kernel.operator.tracing import Taps
from popkernel.kernel.processes import Exit, Process, Processes, without_count
from popkernel.kernel.runtime.actor import SOFTWARE, TEMPFAIL
from popkernel.kernel.runtime.deadlines import Deadline
from popkernel.kernel.runtime.log import ERROR, Log
from popkernel.kernel.runtime.loop import Loop
from popkernel.kernel.supervisor.gates import Gates
from popkernel.kernel.supervisor.shutdown import Shutdown
from popkernel.proto import messages as m
from popkernel.proto.topology import edge

__all__ = ["Singletons"]

_AGAIN_SECONDS = 1.0  # until one is tried again for which there was no room
_START_PATIENCE = edge("kernel", "init").deadline  # seconds an actor may take to say hello
_LONGEST_PAUSE = 30.0  # seconds between two tries where the system has no room
_READS = {  # what each reads before it says hello, by the keys that name it
    "auth": "auth_table or oauth_jwks", "listener": "a certificate, a key, key_passphrase_file or block_list",
}


class Singletons:
    """Those that init starts. As in OTP: in the table's order, again with back-off, and past an intensity no more."""

    def __init__(
        self, loop: Loop, processes: Processes, core: leases.Core, log: Log, taps: Taps, gates: Gates, shutdown: Shutdown, config: Config,
        do: Callable[[list[leases.Effect]], None],
    ) -> None:
        self._loop = loop
        self._processes = processes
        self._core = core
        self._log = log
        self._taps = taps
        self._gates = gates
        self._shutdown = shutdown
        self._config = config
        self._do = do
        self.door = "gate" if config.isolation == "connection" else "listener"  # who takes connections
        self.spawner = self.auth = self.mda = ""  # names of those in force
        self.listeners: list[str] = []
        self._restarts: dict[str, int] = {}
        self._unstarted: dict[str, int] = {}  # by name without count, how often in a row it ended before it served
        self._launched: dict[str, int] = {}  # by name without count, how often: what tells a replacement's name from the first's

    # -- started
    def begin(self) -> None:
        """Start everyone, for the first time."""
        try:
            self.put_in_force(self.launch(roots_of(dict(self._core.users))))
            if self._config.lmtp or self._config.lmtp_listen:
                self.mda = self._launch("mda", self._new_name("mda"))
        except OSError as error:
            self._shutdown.give_up(TEMPFAIL, f"no room to start all that serves: {error.strerror}")

    def launch(self, roots: list[bytes]) -> list[str]:
        """Start new ones of all that a reload replaces, under new names: the spawner, auth, those at the door. OSError: no room for all."""
        doors = [f"{self.door}.{n}" for n in range(self._config.listeners)]
        kinds = {"spawner": "spawner", "auth": "auth", **dict.fromkeys(doors, self.door)}
        names: list[str] = []
        try:
            for name, kind in kinds.items():
                names.append(self._launch(kind, self._new_name(name), roots if kind == "spawner" else None))
        except OSError:
            self.give_up(names)
            raise
        return names

    def launch_spawner(self) -> str:
        """Start one alone, under a new name, which is returned. OSError: no room."""
        return self._launch("spawner", self._new_name("spawner"), roots_of(dict(self._core.users)))

    def give_up(self, names: list[str]) -> None:
        """End those that launch() started."""
        for process in [self._processes[name] for name in names if name in self._processes]:
            process.on_hello = process.on_failed = None
            process.state = "stopping"
            self._processes.kill(process)

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
        process, its = self._processes.enrol(name, "init")
        process.restarts = self._restarts.get(without_count(name), 0)
        self._taps.started(process)
        try:
            self._processes.tell_init(m.Execute(kind, name, roots or []), [its.fileno()])
        except OSError:
            self._processes.withdraw(process)
            raise
        finally:
            its.close()
        Deadline(self._loop, _START_PATIENCE, lambda: self._too_slow(process))
        return name

    def _too_slow(self, process: Process) -> None:
        if process.state != "starting" or not self._processes.has(process):
            return
        reads = _READS.get(process.kind.replace("gate", "listener"), "")
        why = f"{process.name} did not start within {_START_PATIENCE} s" + (f": is it reading {reads}?" if reads else "")
        if not process.pid and self._processes.phase == "running" and process.on_failed is None:
            self._log(ERROR, f"{why}: init has not started it")  # and will when it goes on: nothing is gained by asking it for another
            self._loop.later(_START_PATIENCE, lambda: self._too_slow(process))
            return
        self._processes.kill(process)
        if process.on_failed is not None:  # it may hang in the system, where no signal reaches it: nobody waits for its end
            process.on_failed(why, TEMPFAIL)
        elif self._processes.phase == "starting":
            self._shutdown.give_up(TEMPFAIL, why)
        else:
            self._log(ERROR, why)

    # -- joined
    def wire(self, process: Process) -> None:
        """Join a new auth with every listener, a new listener with auth, once both serve; a gate opens when there is an auth."""
        auth = self._processes.get(self.auth)
        if auth is None or auth.state != "serving":
            return
        for other in self._processes if process.name == self.auth else [process]:
            if other.kind == "listener" and other.state in ("serving", "draining", "ahead"):
                self._do([leases.Join(self.auth, m.Peer(other.name), other.name, m.Peer(self.auth))])
            elif other.kind == "gate" and other.state in ("serving", "draining"):
                self._gates.opens(other)

    # -- ended
    def on_exit(self, process: Process, end: Exit) -> None:
        """Who waits for it to serve hears that it does not; one in force that nobody had asked to go is started again."""
        if process.on_failed is not None:
            process.on_failed(*end.unstarted(process.name))
        elif not end.expected and process.name in (*self.in_force(), self.mda):
            self._ended(process, end)

    def _ended(self, process: Process, end: Exit) -> None:
        if self._processes.phase == "starting":
            text, code = end.unstarted(process.name)
            self._shutdown.give_up(code, text)
            return
        name, how = without_count(process.name), end.how
        if process.hello is None:  # most likely for want of something; for others the service goes on, so it is tried for ever
            tries = self._unstarted[name] = self._unstarted.get(name, 0) + 1
            self._later(process, end.unstarted(process.name)[0], min(0.1 * 2 ** min(tries, 16), _LONGEST_PAUSE))
            return
        verdict = self._core.died(name, self._loop.now)
        if verdict.seconds < 0:
            self._log(ERROR, f"{process.name} ended again and again ({how}): giving up")
            self._shutdown.give_up(SOFTWARE, f"{process.name} ended again and again, last: {how}")
            return
        self._later(process, f"{process.name} ended: {how}", verdict.seconds)

    def deaf(self, process: Process, message: m.Deaf, fds: list[int]) -> None:
        """One at the door has no listening socket any more: another takes over, on sockets that init makes; old sessions go on."""
        del message, fds
        if process.name not in self.listeners or process.state != "serving":
            return
        why = f"{process.name}: a listening socket was shut down, by it or by another listener"
        verdict = self._core.died(without_count(process.name), self._loop.now)
        if verdict.seconds < 0:
            self._log(ERROR, f"{why}, again and again: giving up")
            self._shutdown.give_up(SOFTWARE, why)
            return
        process.state = "draining"
        process.channel.send(m.Drain())
        name = self._new_name(without_count(process.name))
        self.listeners[self.listeners.index(process.name)] = name
        self._log(ERROR, f"{why}; {name} takes over")
        self._loop.later(verdict.seconds, lambda: self._again(name, process.kind))

    def _later(self, process: Process, why: str, seconds: float) -> None:
        name = without_count(process.name)
        self._log(ERROR, f"{why}; again in {seconds:.1f} s")
        self._taps.note("Restart", process.name, seconds=seconds)
        self._restarts[name] = self._restarts.get(name, 0) + 1
        self._loop.later(seconds, lambda: self._again(process.name, process.kind))

    def serves(self, name: str) -> None:
        """It has said hello."""
        self._unstarted.pop(without_count(name), None)

    def _again(self, name: str, kind: str) -> None:
        if self._processes.phase != "running":
            return
        if name not in (*self.in_force(), self.mda) or name in self._processes:  # a reload has put another in its place meanwhile
            return
        try:
            self._launch(kind, name, roots_of(dict(self._core.users)) if kind == "spawner" else None)
        except OSError as error:
            self._log(ERROR, f"{name} cannot be started: {error.strerror}; again in {_AGAIN_SECONDS:.0f} s")
            self._loop.later(_AGAIN_SECONDS, lambda: self._again(name, kind))
