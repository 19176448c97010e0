"""Start the singletons, name them, join auth with listeners, and restart those that end unexpectedly."""

from collections.abc import Callable

from popkernel.kernel.config.keys import Config
from popkernel.kernel.config.user_table import roots_of
from popkernel.kernel.decisions import leases
from popkernel.kernel.decisions.actions import Action, Join
from popkernel.kernel.operator.tracing import Taps
from popkernel.kernel.processes import Exit, Process, Processes, without_count
from popkernel.kernel.runtime.actor import SOFTWARE, TEMPFAIL
from popkernel.kernel.runtime.deadlines import Deadline
from popkernel.kernel.runtime.log import Log
from popkernel.kernel.runtime.loop import Loop
from popkernel.kernel.supervisor.gates import Gates
from popkernel.kernel.supervisor.shutdown import Shutdown
from popkernel.proto import messages as m
from popkernel.proto.log_levels import ERROR
from popkernel.proto.topology import edge, kind_of

__all__ = ["Singletons"]

_AGAIN_SECONDS = 1.0  # until the next try to start one, if there was no room
_START_PATIENCE = edge("kernel", "init").deadline  # seconds until Hello
_LONGEST_PAUSE = 30.0  # seconds between two tries, while the system has no room
_READS = {  # the files that each reads before Hello, by their keys
    "auth": "auth_table or oauth_jwks",
    "listener": "a certificate, a key, key_passphrase_file or block_list",
}


class Singletons:
    """Keep the processes that init starts.

    As in OTP: started in the topology's order, restarted with a growing pause, and given up after too many
    restarts within a time.
    """

    def __init__(
        self,
        loop: Loop,
        processes: Processes,
        core: leases.Core,
        log: Log,
        taps: Taps,
        gates: Gates,
        shutdown: Shutdown,
        config: Config,
        do: Callable[[list[Action]], None],
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
        self.door = (
            "gate" if config.isolation == "connection" else "listener"
        )  # the kind that accepts connections
        self.spawner = self.auth = self.mda = ""  # names of the ones in force
        self.listeners: list[str] = []
        self._restarts: dict[str, int] = {}
        # name without count -> how often in a row it ended before it served
        self._unstarted: dict[str, int] = {}
        # name without count -> how many there were; the count in the names of replacements
        self._launched: dict[str, int] = {}

    # -- start
    def begin(self) -> None:
        """Start all singletons for the first time."""
        try:
            self.put_in_force(self.launch(roots_of(dict(self._core.users)), auth=True, listeners=True))
            if self._config.lmtp or self._config.lmtp_listen:
                self.mda = self._launch("mda", self._new_name("mda"))
        except OSError as error:
            self._shutdown.give_up(TEMPFAIL, f"no room to start all that serves: {error.strerror}")

    def launch(self, roots: list[bytes] | None, *, auth: bool, listeners: bool) -> list[str]:
        """Start, under new names, the ones that a reload replaces.

        Args:
            roots: for a spawner; None: the one in force stays.
            auth: whether to start an auth.
            listeners: whether to start listeners or gates.

        Returns:
            Their names.

        Raises:
            OSError: no room for all; none is left.
        """
        kinds: dict[str, str] = {}
        if roots is not None:
            kinds["spawner"] = "spawner"
        if auth:
            kinds["auth"] = "auth"
        if listeners:
            kinds |= dict.fromkeys([f"{self.door}.{n}" for n in range(self._config.listeners)], self.door)
        names: list[str] = []
        try:
            for name, kind in kinds.items():
                names.append(self._launch(kind, self._new_name(name), roots if kind == "spawner" else None))
        except OSError:
            self.give_up(names)
            raise
        return names

    def launch_spawner(self) -> str:
        """Start a spawner alone under a new name, and return the name. OSError: no room."""
        return self._launch("spawner", self._new_name("spawner"), roots_of(dict(self._core.users)))

    def give_up(self, names: list[str]) -> None:
        """Kill actors that `launch` started."""
        for process in [self._processes[name] for name in names if name in self._processes]:
            process.on_hello = process.on_failed = None
            process.state = "stopping"
            self._processes.kill(process)

    def put_in_force(self, names: list[str]) -> None:
        """Use these actors from now on. `names`: as `launch` returned them."""
        self.spawner = next((name for name in names if kind_of(name) == "spawner"), self.spawner)
        self.auth = next((name for name in names if kind_of(name) == "auth"), self.auth)
        self.listeners = [name for name in names if kind_of(name) == self.door] or self.listeners

    def serves_all(self, *names: str) -> bool:
        """Return whether all these actors serve: a reload may keep them."""
        there = [self._processes.get(name) for name in names]
        return all(process is not None and process.state == "serving" for process in there)

    def in_force(self) -> list[str]:
        """Return the names of the actors that a reload may replace."""
        return [self.spawner, self.auth, *self.listeners]

    def needed(self) -> list[str]:
        """Return the names of the actors without which the service is not whole."""
        return [*self.in_force(), *([self.mda] if self.mda else [])]

    def _new_name(self, name: str) -> str:
        self._launched[name] = self._launched.get(name, 0) + 1
        return name if self._launched[name] == 1 else f"{name}~{self._launched[name]}"

    def _launch(self, kind: str, name: str, roots: list[bytes] | None = None) -> str:
        """Have init start an actor, and return its name. Until it serves, messages wait in its channel."""
        process, its = self._processes.enrol(name, "init")
        process.restarts = self._restarts.get(without_count(name), 0)
        self._taps.started(process)
        try:
            self._processes.send_init(m.SingletonStart(kind, name, roots or []), [its.fileno()])
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
        why = f"{process.name} did not start within {_START_PATIENCE} s" + (
            f": is it reading {reads}?" if reads else ""
        )
        if not process.pid and self._processes.phase == "running" and process.on_failed is None:
            # init has not acted yet, but will when it runs again: a second request would be of no use
            self._log(ERROR, "process.start_ignored", process=process.name, why=why)
            self._loop.later(_START_PATIENCE, lambda: self._too_slow(process))
            return
        self._processes.kill(process)
        # do not wait for its end: it may hang in a system call that no signal interrupts
        if process.on_failed is not None:
            process.on_failed(why, TEMPFAIL)
        elif self._processes.phase == "starting":
            self._shutdown.give_up(TEMPFAIL, why)
        else:
            self._log(ERROR, "process.start_late", process=process.name, why=why)

    # -- channels between them
    def wire(self, process: Process) -> None:
        """Join a new auth with all listeners, or a new listener with auth, once both serve; open gates."""
        auth = self._processes.get(self.auth)
        if auth is None or auth.state != "serving":
            return
        for other in self._processes if process.name == self.auth else [process]:
            if other.kind == "listener" and other.state in ("serving", "draining", "ahead"):
                self._do([Join(self.auth, m.PeerChannel(other.name), other.name, m.PeerChannel(self.auth))])
            elif other.kind == "gate" and other.state in ("serving", "draining"):
                self._gates.opens(other)

    # -- ends
    def on_exit(self, process: Process, end: Exit) -> None:
        """Report a start that failed, or restart an actor in force that ended unexpectedly."""
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
        # most likely the system is short of something; the service runs, so the tries have no end
        if process.hello is None:
            tries = self._unstarted[name] = self._unstarted.get(name, 0) + 1
            self._restart_later(
                process, end.unstarted(process.name)[0], min(0.1 * 2 ** min(tries, 16), _LONGEST_PAUSE)
            )
            return
        verdict = self._core.died(name, self._loop.now)
        if verdict.seconds < 0:
            self._log(ERROR, "process.given_up", process=process.name, how=how)
            self._shutdown.give_up(SOFTWARE, f"{process.name} ended again and again, last: {how}")
            return
        self._restart_later(process, f"{process.name} ended: {how}", verdict.seconds)

    def listen_socket_shut(self, process: Process, message: m.ListenSocketShut, fds: list[int]) -> None:
        """Replace a listener or gate whose listening socket was shut down; init makes new sockets.

        The old one keeps its sessions.
        """
        del message, fds
        if process.name not in self.listeners or process.state != "serving":
            return
        why = f"{process.name}: a listening socket was shut down, by it or by another listener"
        verdict = self._core.died(without_count(process.name), self._loop.now)
        if verdict.seconds < 0:
            self._log(ERROR, "listener.given_up", process=process.name)
            self._shutdown.give_up(SOFTWARE, why)
            return
        process.state = "draining"
        process.channel.send(m.ListenerDrain())
        name = self._new_name(without_count(process.name))
        self.listeners[self.listeners.index(process.name)] = name
        self._log(ERROR, "listener.replaced", process=process.name, successor=name)
        self._loop.later(verdict.seconds, lambda: self._start_again(name, process.kind))

    def _restart_later(self, process: Process, why: str, seconds: float) -> None:
        name = without_count(process.name)
        self._log(ERROR, "process.restarting", process=process.name, why=why, seconds=round(seconds, 1))
        self._taps.note("Restart", process.name, seconds=seconds)
        self._restarts[name] = self._restarts.get(name, 0) + 1
        self._loop.later(seconds, lambda: self._start_again(process.name, process.kind))

    def serves(self, name: str) -> None:
        """Count no failed starts any more: the actor has sent Hello."""
        self._unstarted.pop(without_count(name), None)

    def _start_again(self, name: str, kind: str) -> None:
        if self._processes.phase != "running":
            return
        # a reload may have put another in its place meanwhile
        if name not in (*self.in_force(), self.mda) or name in self._processes:
            return
        try:
            self._launch(kind, name, roots_of(dict(self._core.users)) if kind == "spawner" else None)
        except OSError as error:
            self._log(
                ERROR,
                "process.start_failed",
                process=name,
                error=error.strerror,
                seconds=round(_AGAIN_SECONDS),
            )
            self._loop.later(_AGAIN_SECONDS, lambda: self._start_again(name, kind))
