"""The singletons: who is in force, how each is named and started, who meets whom, and what follows when one ends unasked."""

from typing import TYPE_CHECKING

from popkernel.kernel.config.user_table import roots_of
from popkernel.kernel.decisions import leases
from popkernel.kernel.processes import Process, how_ended, plain
from popkernel.kernel.runtime.actor import SOFTWARE, TEMPFAIL
from popkernel.kernel.runtime.deadlines import Deadline
from popkernel.kernel.runtime.log import ERROR
from popkernel.proto import messages as m
from popkernel.proto.topology import edge

if TYPE_CHECKING:
    from popkernel.kernel.supervisor.main import Supervisor

__all__ = ["Singletons"]

_AGAIN_SECONDS = 1.0  # until one is tried again for which there was no room
_START_PATIENCE = edge("kernel", "init").deadline  # seconds an actor may take to say hello
_LONGEST_PAUSE = 30.0  # seconds between two tries where the system has no room
_NO_ROOM = "no room for its memory, descriptors or threads"
_READS = {  # what each reads before it says hello, by the keys that name it
    "auth": "auth_table or oauth_jwks", "listener": "a certificate, a key, key_passphrase_file or block_list",
}


class Singletons:
    """Those that init starts. As in OTP: in the table's order, again with back-off, and past an intensity no more."""

    def __init__(self, supervisor: "Supervisor") -> None:
        self._kernel = supervisor
        self.door = "gate" if supervisor.config.isolation == "connection" else "listener"  # who takes connections
        self.spawner = self.auth = self.mda = ""  # names of those in force
        self.listeners: list[str] = []
        self._restarts: dict[str, int] = {}
        self._unstarted: dict[str, int] = {}  # by plain name, how often in a row it ended before it served
        self._launched: dict[str, int] = {}  # by plain name, how often: what tells a replacement's name from the first's

    # -- started
    def begin(self) -> None:
        """Start everyone, for the first time."""
        k = self._kernel
        try:
            self.put_in_force(self.launch(roots_of(dict(k.core.users))))
            if k.config.lmtp or k.config.lmtp_listen:
                self.mda = self._launch("mda", self._new_name("mda"))
        except OSError as error:
            k.stopping.give_up(TEMPFAIL, f"no room to start all that serves: {error.strerror}")

    def launch(self, roots: list[bytes]) -> list[str]:
        """Start new ones of all that a reload replaces, under new names: the spawner, auth, those at the door. OSError: no room for all."""
        doors = [f"{self.door}.{n}" for n in range(self._kernel.config.listeners)]
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
        return self._launch("spawner", self._new_name("spawner"), roots_of(dict(self._kernel.core.users)))

    def give_up(self, names: list[str]) -> None:
        """End those that launch() started."""
        k = self._kernel
        for process in [k.processes[name] for name in names if name in k.processes]:
            process.state = "stopping"
            k.kill(process)

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
        try:
            k.tell_init(m.Execute(kind, name, roots or []), [its.fileno()])
        except OSError:
            del k.processes[name]
            process.channel.close()
            raise
        finally:
            its.close()
        Deadline(k.loop, _START_PATIENCE, lambda: self._too_slow(process))
        return name

    def _too_slow(self, process: Process) -> None:
        k = self._kernel
        if process.state != "starting" or k.processes.get(process.name) is not process:
            return
        reads = _READS.get(process.kind.replace("gate", "listener"), "")
        why = f"{process.name} did not start within {_START_PATIENCE} s" + (f": is it reading {reads}?" if reads else "")
        if not process.pid and k.state == "running" and not k.reloads.concerned(process.name):
            k.log_line(ERROR, f"{why}: init has not started it")  # and will when it goes on: nothing is gained by asking it for another
            k.loop.later(_START_PATIENCE, lambda: self._too_slow(process))
            return
        k.kill(process)
        reload = k.reloads.concerned(process.name)
        if reload is not None:  # it may hang in the system, where no signal reaches it: nobody waits for its end
            reload.fail(why, TEMPFAIL)
        elif k.state == "starting":
            k.stopping.give_up(TEMPFAIL, why)
        else:
            k.log_line(ERROR, why)

    # -- joined
    def wire(self, process: Process) -> None:
        """Join a new auth with every listener, a new listener with auth, once both serve; a gate opens when there is an auth."""
        k = self._kernel
        auth = k.processes.get(self.auth)
        if auth is None or auth.state != "serving":
            return
        for other in list(k.processes.values()) if process.name == self.auth else [process]:
            if other.kind == "listener" and other.state in ("serving", "draining", "ahead"):
                k.do([leases.Join(self.auth, m.Peer(other.name), other.name, m.Peer(self.auth))])
            elif other.kind == "gate" and other.state in ("serving", "draining"):
                k.gates.opens(other)

    # -- ended
    def unstarted(self, process: Process, status: int, why: str = "") -> tuple[str, int]:
        """What to say of one that ended before it served, and the code (sysexits(3)). `why`: what init says there was no room for."""
        if why:
            return f"{process.name} could not be started: {why}", TEMPFAIL
        if status == TEMPFAIL << 8:
            return f"{process.name} could not be started: {_NO_ROOM}", TEMPFAIL
        return f"{process.name} ended before it served: {how_ended(status)}", SOFTWARE

    def ended(self, process: Process, status: int, why: str = "") -> None:
        """One is no more, and nobody had asked for it."""
        k = self._kernel
        if k.state == "starting":
            text, code = self.unstarted(process, status, why)
            k.stopping.give_up(code, text)
            return
        name, how = plain(process.name), how_ended(status)
        if process.hello is None:  # most likely for want of something; for others the service goes on, so it is tried for ever
            tries = self._unstarted[name] = self._unstarted.get(name, 0) + 1
            self._later(process, self.unstarted(process, status, why)[0], min(0.1 * 2 ** min(tries, 16), _LONGEST_PAUSE))
            return
        verdict = k.core.died(name, k.loop.now)
        if verdict.seconds < 0:
            k.log_line(ERROR, f"{process.name} ended again and again ({how}): giving up")
            k.stopping.give_up(SOFTWARE, f"{process.name} ended again and again, last: {how}")
            return
        self._later(process, f"{process.name} ended: {how}", verdict.seconds)

    def deaf(self, process: Process) -> None:
        """One at the door has no listening socket any more: another takes over, on sockets that init makes; old sessions go on."""
        k = self._kernel
        if process.name not in self.listeners or process.state != "serving":
            return
        why = f"{process.name}: a listening socket was shut down, by it or by another listener"
        verdict = k.core.died(plain(process.name), k.loop.now)
        if verdict.seconds < 0:
            k.log_line(ERROR, f"{why}, again and again: giving up")
            k.stopping.give_up(SOFTWARE, why)
            return
        process.state = "draining"
        process.channel.send(m.Drain())
        name = self._new_name(plain(process.name))
        self.listeners[self.listeners.index(process.name)] = name
        k.log_line(ERROR, f"{why}; {name} takes over")
        k.loop.later(verdict.seconds, lambda: self._again(name, process.kind))

    def _later(self, process: Process, why: str, seconds: float) -> None:
        k, name = self._kernel, plain(process.name)
        k.log_line(ERROR, f"{why}; again in {seconds:.1f} s")
        k.taps.note("Restart", process.name, seconds=seconds)
        self._restarts[name] = self._restarts.get(name, 0) + 1
        k.loop.later(seconds, lambda: self._again(process.name, process.kind))

    def serves(self, name: str) -> None:
        """It has said hello."""
        self._unstarted.pop(plain(name), None)

    def _again(self, name: str, kind: str) -> None:
        k = self._kernel
        if k.state != "running":
            return
        if name not in (*self.in_force(), self.mda) or name in k.processes:  # a reload has put another in its place meanwhile
            return
        try:
            self._launch(kind, name, roots_of(dict(k.core.users)) if kind == "spawner" else None)
        except OSError as error:
            k.log_line(ERROR, f"{name} cannot be started: {error.strerror}; again in {_AGAIN_SECONDS:.0f} s")
            k.loop.later(_AGAIN_SECONDS, lambda: self._again(name, kind))
