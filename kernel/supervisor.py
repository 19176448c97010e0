"""The kernel's shell: makes the channels, keeps the actors running, does what core.py decides. Never sees a byte from the network.

It knows users' names, uids and paths, and no hash. It trusts no actor: every message is decoded against the table, and what it means
is judged by core.py. A singleton that breaks the rules is ended; the word of a maildir actor, which runs as a mail user, ends nobody
but itself (else one user's compromised process could end everyone's listener).
"""

import os
import signal
import time
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from popkernel.kernel import core
from popkernel.kernel.actor import SOFTWARE, TEMPFAIL, Actor, Boot
from popkernel.kernel.actorlines import ActorLines
from popkernel.kernel.blame import Blame
from popkernel.kernel.channel import Channel, Message, pair
from popkernel.kernel.config import Config
from popkernel.kernel.control import ControlServer
from popkernel.kernel.deliveries import Deliveries
from popkernel.kernel.gates import Gates
from popkernel.kernel.hung import Hung
from popkernel.kernel.log import DEBUG, ERROR, INFO, NOTICE, WARNING, Log, printable
from popkernel.kernel.loop import Timer
from popkernel.kernel.parking import Parking
from popkernel.kernel.process import Process, how_ended, plain
from popkernel.kernel.recipients import Rules
from popkernel.kernel.reload import Asker, Reload
from popkernel.kernel.status import login_failed, session_over, sessions_lost, status
from popkernel.kernel.taps import Taps
from popkernel.kernel.title import set_title
from popkernel.kernel.usertable import NoTableError, read_users, roots_of
from popkernel.proto import messages as m
from popkernel.proto.schema import UnsayableError
from popkernel.proto.tables import MailUser
from popkernel.proto.topology import actor as row_of
from popkernel.proto.topology import edge

__all__ = ["Supervisor"]

CONFIG = 78  # sysexits(3)
_SILENT = 4  # seconds within which who stops must say that it lives
_START_PATIENCE = edge("kernel", "init").deadline  # seconds an actor may take to say hello


class Supervisor(Actor):
    """Supervises as OTP does: starts in the table's order, stops in reverse, restarts with back-off, gives up past an intensity."""

    def __init__(self, boot: Boot) -> None:
        super().__init__(boot, many=True)
        config: Config = boot.config["service"]
        self.config = config
        self.log_line = Log(config.log, config.verbose, config.log_format)
        self.actor_line = ActorLines(self.log_line, self.loop)
        self.processes: dict[str, Process] = {}
        self.init: Channel | None = None
        self.core = core.Core({}, core.Settings(
            warm_seconds=config.warm_seconds, warm_max=config.warm_max, park_seconds=config.park_seconds, crowd=config.crowd,
            restart_intensity=config.restart_intensity, restart_seconds=config.restart_seconds, login_delay=config.login_delay,
        ))
        self.deliveries = Deliveries(
            self.core,
            Rules(separators=config.subaddress, fold=config.recipient_case == "fold", domains=config.recipient_domains),
            frozenset((0, boot.uid, *boot.config["mta_uids"])), tcp=bool(config.lmtp_listen),
        )
        self.taps = Taps(self)
        self.blame = Blame(self)
        self.opened: dict[core.Key, tuple[str, float]] = {}  # sessions that their listener has not said to be over: user, since when
        self.gates = Gates(self)
        self.restarts: dict[str, int] = {}
        self.launched: dict[str, int] = {}  # by plain name, how often: what tells a replacement's name from the first's
        self.spawner = self.auth = self.mda = ""  # names of those in force
        self.listeners: list[str] = []
        self.door = "gate" if config.isolation == "connection" else "listener"  # who takes connections
        self.state = "starting"
        self.started = time.monotonic()
        self.sweeper: Timer | None = None
        self.hung = Hung(self.loop, self._hangs)
        self.silent = Hung(self.loop, self._hangs)  # of those that are to stop
        self.parking = Parking(self.loop, self.core, self.do)
        self.asking: list[Callable[[dict[str, Any]], None]] = []
        self.refused = 0
        self.broken = 0
        self.reload: Reload | None = None
        self.stopping: set[str] = set()  # those whose end the next stage waits for
        self.asked: Callable[[dict[str, Any]], None] | None = None  # who asked for a reload that init has not yet begun
        self.asker = Asker(self, None, [])  # of the last reload, or of the start
        self.on_kernel_message: dict[type, Callable[[Process, Any, list[int]], None]] = {
            m.Hello: self._hello, m.Failed: self._failed, m.Broke: self._broke_promise, m.Refused: self.blame.refused, m.Log: self._logs,
            m.Counters: self._counters, m.Awaiting: self._awaiting, m.Granted: self._granted, m.Ended: self._ended,
            m.LoginFailed: self._login_failed, m.Closed: self._closed, m.Exited: self._exited,
            m.Parked: self._parked, m.Late: self.blame.late,
            m.Recipient: self._recipient, m.Busy: self._busy, m.Leaving: self._leaving,
        }

    # -- the beginning
    def begin(self) -> NoReturn:
        """Read the user table, lock in, start everyone, serve."""
        self.init = Channel(self.loop, self.boot.channel, "kernel", "init", self._on_init, self._on_init_gone)
        try:
            self.core.users = read_users(self.config.user_table, self.config.subdir)
        except ValueError as error:
            self.end_service(66 if isinstance(error, NoTableError) else 65, str(error))
            self.run()
        set_title("kernel")
        self._lock_in()
        self.control = ControlServer(self.loop, self.boot.config["control"], self._command, self.taps.attach)
        self.spawner = self.launch("spawner", roots_of(self.core.users))
        self.auth = self.launch("auth")
        self.listeners = [self.launch(self.door, number=n) for n in range(self.config.listeners)]
        if self.config.lmtp or self.config.lmtp_listen:
            self.mda = self.launch("mda")
        self.run()

    def _lock_in(self) -> None:
        paths: list[tuple[str | bytes, str]] = [
            (self.config.run_dir, "rwc"), (os.path.dirname(os.path.realpath(self.config.user_table)) or "/", "r"),
        ]
        self.lock([(path, permissions) for path, permissions in paths if os.path.isdir(path)])

    def _broke(self, call: str, promise: str) -> None:
        self.log_line(ERROR, f"kernel broke its promises: {call} would need {promise!r}")

    def launch(self, kind: str, roots: list[bytes] | None = None, number: int | None = None, name: str = "") -> str:
        """Have init start a singleton; its name. What it sends before it serves waits in its channel."""
        if not name:
            name = kind if number is None else f"{kind}.{number}"
            self.launched[name] = self.launched.get(name, 0) + 1
            if self.launched[name] > 1:
                name += f"~{self.launched[name]}"
        mine, its = pair()
        channel = Channel(self.loop, mine, "kernel", name, self._on_actor, self._on_actor_gone)
        process = Process(name, channel, "init")
        process.restarts = self.restarts.get(plain(name), 0)
        channel.tag = process
        self.processes[name] = process
        self.taps.started(process)
        assert self.init is not None
        self.init.send(m.Execute(kind, name, roots or []), [its.fileno()])
        its.close()
        self.loop.later(_START_PATIENCE, lambda: self._too_slow(process))
        return name

    def _too_slow(self, process: Process) -> None:
        if process.state == "starting" and self.processes.get(process.name) is process:
            self.log_line(ERROR, f"{process.name} did not say hello within {_START_PATIENCE} seconds")
            self.kill(process)

    # -- messages
    def _on_actor(self, channel: Channel, message: Message, fds: list[int]) -> None:
        if channel.tag.kind == "maildir.{user}" and channel.tag.floods(self.loop.now):
            self._violates(channel.tag, "messages without end", fds)
            return
        handler = self.on_kernel_message.get(type(message))
        if handler is None:
            self._violates(channel.tag, f"{type(message).__name__} is nothing that it may say now", fds)
            return
        try:
            handler(channel.tag, message, fds)
        except UnsayableError as error:  # what follows from it can't be said: it is not done, and the kernel goes on
            self.actor_line(channel.peer, ERROR, f"{channel.peer}: {type(message).__name__} could not be acted on: {error}", "kernel")

    def _violates(self, process: Process, why: str, fds: list[int]) -> None:
        """A message that is whole and not true: ends its sender as one that is not whole does."""
        for fd in fds:
            os.close(fd)
        process.channel.close()
        self._on_actor_gone(process.channel, why)

    def _on_actor_gone(self, channel: Channel, why: str) -> None:
        """The channel ended. What follows from it follows from the process's end, which is hurried on."""
        process: Process = channel.tag
        if why:
            self.refused += 1
            self.actor_line(_whose(process), ERROR, f"{process.name} broke the rules on its channel to the kernel: {why}; ended", "kernel")
            self.taps.note("Refused", process.name, reason=why, by="kernel")
        if process.kind == "maildir.{user}":
            self.core.ending(process.name)
        if process.session and not why:  # most likely it has just ended, with its client: no word to its gate for that
            self.loop.later(1.0, lambda: self._gone_by_now(process))
            return
        self.kill(process)

    def _on_init(self, channel: Channel, message: Message, fds: list[int]) -> None:
        del channel, fds
        if isinstance(message, m.Started):
            process = self.processes.get(message.name)
            if process is not None:
                process.pid = message.pid
        elif isinstance(message, m.Exited):
            self._gone(message)
        elif isinstance(message, m.Signal):
            self._signal(message.name)

    def _on_init_gone(self, channel: Channel, why: str) -> None:
        del channel, why
        # Init was killed, and can't tidy up. Its lock is held by this process too, so nobody starts here before it has gone.
        self.boot.config["tidy"]()
        os._exit(TEMPFAIL)

    def _signal(self, name: str) -> None:
        word, _, rest = name.partition(" ")
        if word == "TERM":
            self.stop(10)
            return
        if word in ("MAILBOX", "LOOKED"):
            self.asker.looked(*rest.partition(" ")[::2])
            return
        asked, self.asked = self.asked, None
        asker = Asker(self, asked, rest.split(", ") if word == "HUP" and rest else [])
        if word == "HUP":
            if rest:
                self.log_line(WARNING, f"changed in the configuration, in force only after the next start: {rest}")
            self.begin_reload(asker)
            return
        self.log_line(ERROR, f"not reloaded, what is in force stays: {rest}")
        asker.refuse(CONFIG, rest)

    def reloaded(self, asker: Asker, error: str, code: int = 0) -> None:
        """A reload is over; init, which has read the configuration for it, keeps that or goes back, and whoever asked is told."""
        assert self.init is not None
        self.init.send(m.Signal("NOT" if error else "DONE"))
        if error:
            asker.refuse(code, error)
            return
        self.asker.done()
        self.asker = asker
        asker.wait()

    def _hello(self, process: Process, message: m.Hello, fds: list[int]) -> None:
        if process.hello is not None:
            self._violates(process, "hello, again", fds)
            return
        process.hello = message
        process.pid = message.pid
        if process.state in ("starting", "ahead"):  # else it has been told to go meanwhile
            process.state = "serving"
        process.since = self.loop.now
        self.log_line(DEBUG, f"{process.name} serves (process {message.pid})")
        self.taps.note("Began", process.name, pid=message.pid)
        if process.kind == "maildir.{user}":
            return
        if process.session:
            self.gates.taken(process)
            return
        if process.on_hello is not None:
            process.on_hello()
            return
        self.wire(process)
        if self.state == "starting" and all(p.state == "serving" or p.session for p in self.processes.values()):
            self.state = "running"
            assert self.init is not None
            took = time.monotonic() - self.started
            text = f"ready: {', '.join(self.boot.config['addresses'])} ({len(self.core.users)} users, {took:.2f} s)"
            self.init.send(m.Running(text[:2000]))
            if not self.log_line.seen:
                self.log_line(NOTICE, text)

    def wire(self, process: Process) -> None:
        """Join a new auth with every listener, a new listener with auth, once both serve; a gate opens when there is an auth."""
        auth = self.processes.get(self.auth)
        if auth is None or auth.state != "serving":
            return
        for other in list(self.processes.values()) if process.name == self.auth else [process]:
            if other.kind == "listener" and other.state in ("serving", "draining", "ahead"):
                self._join_auth(other)
            elif other.kind == "gate" and other.state in ("serving", "draining"):
                self.gates.opens(other)

    def _join_auth(self, listener: Process) -> None:
        self.do([core.Join(self.auth, m.Peer(listener.name), listener.name, m.Peer(self.auth))])

    def _failed(self, process: Process, message: m.Failed, fds: list[int]) -> None:
        del fds
        if self.reload is not None and process.name in self.reload.names:
            self.reload.fail(message.text, message.status)
            return
        if self.state == "starting":
            self.end_service(message.status, message.text)
            return
        for line in message.text.split("\n"):
            self.actor_line(process.name, ERROR, line)

    def _broke_promise(self, process: Process, message: m.Broke, fds: list[int]) -> None:
        del fds
        self.broken += 1
        why = f"{process.name} broke its promises: {printable(message.call)} would need {message.promise!r}; ended"
        self.actor_line(process.name, ERROR, why, "kernel")
        self.taps.note("Broke", process.name, call=message.call, promise=message.promise)
        self.loop.later(1.0, lambda: self._gone_by_now(process))

    def _gone_by_now(self, process: Process) -> None:
        """Should it have said that it broke a promise, and not gone."""
        if self.processes.get(process.name) is process:
            self.kill(process)

    def _logs(self, process: Process, message: m.Log, fds: list[int]) -> None:
        """One line, and always with its name, so that no actor can write another's."""
        del fds
        self.actor_line(process.name, message.level, printable(message.text.removeprefix(f"{process.name}: ")))

    def _counters(self, process: Process, message: m.Counters, fds: list[int]) -> None:
        del fds
        process.counters = message

    def _its_own(self, process: Process, session: int) -> bool:
        """Whether a listener may speak of that session: one that serves a single connection of no other."""
        if process.session in (0, session):
            return True
        self._violates(process, "a session that is not its own", [])
        return False

    def _awaiting(self, process: Process, message: m.Awaiting, fds: list[int]) -> None:
        del fds
        if not self._its_own(process, message.session):
            return
        there = self.core.sessions.get(core.Key(process.name, message.session))
        holder = self.processes.get(f"maildir.{there[0]}") if there is not None else None
        if holder is not None and not holder.channel.gone:
            holder.channel.read()  # its login before this one failed there: that it is over waits in the channel
        self.do(self.core.awaits(process.name, message))

    def _granted(self, process: Process, message: m.Granted, fds: list[int]) -> None:
        del process, fds
        listener = self.processes.get(message.listener)
        if listener is not None and listener.kind == "listener" and not listener.channel.gone:
            listener.channel.read()  # its Awaiting was sent before auth was asked: it is there
            self._read_holder(message.user)
            self.do(self.core.granted(message, self.loop.now), f"maildir.{message.user}")

    def _read_holder(self, user: str) -> None:
        """The lease may be free already, or its session's client gone: the actor's or another listener's word waits in its channel."""
        holder = self.core.leases.get(user)
        if holder is None:
            return
        for name in (f"maildir.{user}", holder.listener):
            process = self.processes.get(name)
            if process is not None and not process.channel.gone:
                process.channel.read()

    def _ended(self, process: Process, message: m.Ended, fds: list[int]) -> None:
        del fds
        if process.kind == "gate":
            self.gates.ended(process, message)
            return
        if not self._its_own(process, message.session):
            return
        self.opened.pop(core.Key(process.name, message.session), None)
        self.do(self.core.ended(process.name, message))
        self._event(process, INFO if message.user else DEBUG, "session over", session_over(message))

    def _login_failed(self, process: Process, message: m.LoginFailed, fds: list[int]) -> None:
        del fds
        if self._its_own(process, message.session):
            self._event(process, NOTICE, "login failed", login_failed(message))

    def _event(self, process: Process, level: int, event: str, fields: dict[str, Any]) -> None:
        self.actor_line.event(process.name, level, event, fields, alone=bool(process.session))

    def _closed(self, process: Process, message: m.Closed, fds: list[int]) -> None:
        del fds
        self.do(self.core.closed(process.name, message, self.loop.now), process.name)
        self._schedule_sweep()

    def _recipient(self, process: Process, message: m.Recipient, fds: list[int]) -> None:
        del fds
        self.do(self.deliveries.recipient(process.name, message, self.loop.now))
        self._schedule_sweep()

    def _leaving(self, process: Process, message: m.Leaving, fds: list[int]) -> None:
        del message, fds
        self.core.ending(process.name)

    def _busy(self, process: Process, message: m.Busy, fds: list[int]) -> None:
        del message, fds
        self.do(self.deliveries.busy(process.name, self.loop.now))
        self._schedule_sweep()

    def _exited(self, process: Process, message: m.Exited, fds: list[int]) -> None:
        """The spawner's word on its own children only."""
        del fds
        child = self.processes.get(message.name)
        if child is not None and child.parent == process.name:
            self._gone(message)

    def _parked(self, process: Process, message: m.Parked, fds: list[int]) -> None:
        if self.parking.too_soon(process.name, message):
            self._violates(process, "a session parked that was not silent for so long", fds)
            return
        self.parking.park(process.name, message, fds[0])
        self._schedule_sweep()

    # -- effects
    def do(self, effects: list[core.Effect], about: str = "") -> None:
        """`about`: whose share of the log a line of theirs is, "" for nobody's."""
        for effect in effects:
            match effect:
                case core.Send(to, message):
                    self.send(to, message)
                case core.Join(one, to_one, other, to_other):
                    if isinstance(to_one, m.Opened):
                        key = core.Key(one, to_one.session)
                        self.opened[key] = self.core.sessions[key]
                    self._join(one, to_one, other, to_other)
                case core.Spawn(name, row):
                    self._spawn(name, row)
                case core.Rouse(user, name, wake):
                    fd = self.parking.take(user)
                    self.send(name, wake, [fd])
                    os.close(fd)
                case core.Forget(user):
                    self.parking.forget(user)
                case core.Kill(name):
                    if name in self.processes:
                        self.kill(self.processes[name])
                case core.Suspect(name):
                    if name in self.processes:
                        self.hung.suspect(self.processes[name])
                case core.Line(level, text) if about:
                    self.actor_line(about, level, text, "kernel")
                case core.Line(level, text):
                    self.log_line(level, text)

    def send(self, to: str, message: Message, fds: Sequence[int] = ()) -> None:
        process = self.processes.get(to)
        if process is not None:
            process.channel.send(message, fds)

    def _join(self, one: str, to_one: Message, other: str, to_other: Message) -> None:
        """A channel between two actors: whoever is gone, the other sees its end at once."""
        ends = pair()
        for name, message, end in ((other, to_other, ends[1]), (one, to_one, ends[0])):
            process = self.processes.get(name)
            if process is not None:
                process.met = one
                process.channel.send(message, [end.fileno()])
                if process.session and type(message) is m.Opened:
                    self.gates.entered(process)
            end.close()

    def _spawn(self, name: str, row: MailUser) -> None:
        spawner = self.processes.get(self.spawner)
        mine, its = pair()
        channel = Channel(self.loop, mine, "kernel", name, self._on_actor, self._on_actor_gone)
        process = Process(name, channel, self.spawner)
        process.ids = (row.uid, row.gid)
        channel.tag = process
        self.processes[name] = process
        self.taps.started(process)
        if spawner is None:  # it died, and the next one is not due yet: nobody would ever tell of this actor's end
            self.loop.soon(lambda: self._gone(m.Exited(name, 1, int(signal.SIGKILL))))
        else:
            spawner.channel.send(m.Spawn(name, row.uid, row.gid, os.fsencode(row.maildir)), [its.fileno()])
        its.close()

    def _hangs(self, process: Process, seconds: int) -> None:
        if self.processes.get(process.name) is process:
            self.actor_line(_whose(process), ERROR, f"{process.name} is not alive: it has not answered for {seconds} s; ended", "kernel")
            self.kill(process)

    def kill(self, process: Process) -> None:
        """Have its parent end it: only the parent can be sure whose the process number is."""
        if process.parent == "init":
            assert self.init is not None
            self.init.send(m.Kill(process.name))
        else:
            parent = self.processes.get(process.parent)
            if parent is not None:
                parent.channel.send(m.Kill(process.name))

    # -- ends
    def _gone(self, message: m.Exited) -> None:
        """A process is no more."""
        process = self.processes.pop(message.name, None)
        if process is None:
            return
        if not process.channel.gone:
            process.channel.read()  # its last words
            process.channel.close()
        how = how_ended(message.status)
        self.taps.gone(process, how)
        expected = process.state in ("stopping", "draining") or self.state == "stopping"
        if process.kind == "maildir.{user}":
            if message.status:
                self.actor_line(process.name, WARNING, f"{process.name} ended: {how}", "kernel")
            self.do(self.core.maildir_gone(process.name, self.loop.now))
            self.do(self.deliveries.maildir_gone(process.name, self.loop.now))
        elif process.kind == "mda":
            self.deliveries.mda_gone(process.name)
        elif process.session:
            self._sessions_lost([core.Key(process.name, process.session)])
            if message.status and not expected:
                self.actor_line(_whose(process), WARNING, f"{process.name} ended: {how}", "kernel")
            self.gates.over(process)
        elif process.kind == "listener":
            self._sessions_lost([key for key in self.opened if key.listener == process.name])
            self.do(self.core.listener_gone(process.name))
        elif process.kind == "gate":
            its = {p.name for p in self.processes.values() if p.parent == process.name}
            self._sessions_lost([key for key in self.opened if key.listener in its])
            self.gates.gone(process)
            self._orphans(process.name)
        elif process.kind == "spawner":
            self._orphans(process.name)
        self.stopping.discard(process.name)
        if self.state == "stopping":
            self._next_stop()
        elif self.reload is not None and process.name in self.reload.names:
            self.reload.fail(f"{process.name} ended: {how}", SOFTWARE)
        elif row_of(process.name).singleton and not process.session and not expected:
            self._restart(process, how)

    def _sessions_lost(self, keys: list[core.Key]) -> None:
        for fields in sessions_lost(self.opened, keys, self.loop.now):
            self.log_line.event(INFO, "session over", fields)

    def _orphans(self, parent: str) -> None:
        """The system ended a dead spawner's or gate's children (PR_SET_PDEATHSIG); nobody is left to tell us of each."""
        for child in [p for p in self.processes.values() if p.parent == parent]:
            self._gone(m.Exited(child.name, max(child.pid, 1), 0 if child.state == "ahead" else int(signal.SIGKILL)))

    def _restart(self, process: Process, how: str) -> None:
        name = plain(process.name)
        if self.state == "starting":
            self.end_service(SOFTWARE, f"{process.name} ended before it served: {how}")
            return
        verdict = self.core.died(name, self.loop.now)
        if verdict.seconds < 0:
            self.log_line(ERROR, f"{process.name} ended again and again ({how}): giving up")
            self.end_service(SOFTWARE, f"{process.name} ended again and again, last: {how}")
            return
        self.log_line(ERROR, f"{process.name} ended: {how}; again in {verdict.seconds:.1f} s")
        self.taps.note("Restart", process.name, seconds=verdict.seconds)
        self.restarts[name] = self.restarts.get(name, 0) + 1
        self.loop.later(verdict.seconds, lambda: self._again(process.name, process.kind))

    def _again(self, name: str, kind: str) -> None:
        if self.state != "running":
            return
        in_force = (self.spawner, self.auth, *self.listeners, self.mda)
        if name not in in_force or name in self.processes:  # a reload has put another in its place meanwhile
            return
        if kind == "spawner":
            self.launch(kind, roots_of(dict(self.core.users)), name=name)
        else:
            self.launch(kind, name=name)

    def _schedule_sweep(self) -> None:
        if self.sweeper is None:
            due = self.core.next_sweep()
            if due is not None:
                self.sweeper = self.loop.later(max(0.5, due - self.loop.now), self._sweep)

    def _sweep(self) -> None:
        self.sweeper = None
        self.do(self.core.sweep(self.loop.now))
        self._schedule_sweep()

    # -- the end of all
    def end_service(self, status: int, text: str) -> None:
        """The service can't go on: say why, end everyone, leave with that code. What keeps it from starting init says, as its last word."""
        if self.state == "starting" and not self.log_line.seen:
            self.log_line(ERROR, text)
        self.exit_status, self.exit_text = status, text
        self.stop(2)

    exit_status = 0
    exit_text = ""

    def stop(self, seconds: int) -> None:
        """Stop in reverse order, each stage when the one before has gone."""
        if self.state == "stopping":
            return
        self.ended_early = self.state == "starting" and self.exit_status != 0
        if not self.ended_early:
            self.log_line(NOTICE, "stopping")
        self.state = "stopping"
        self.stop_seconds = seconds
        self.stages = [("mda",), ("gate", "listener"), ("maildir.{user}",), ("auth",), ("spawner",)]
        self._ask_alive(list(self.processes.values()))
        self._next_stop()

    def _ask_alive(self, processes: list[Process]) -> None:
        """Who ends politely answers meanwhile; who says nothing is not waited for to the end of its time.

        But a maildir actor that has a session may be at its QUIT, and sees nothing else until the disk has it; and whose end is its
        children's is not ended before they had theirs.
        """
        parents = {p.parent for p in self.processes.values() if self._serves(p)}
        for process in processes:
            maildir = process.kind == "maildir.{user}"
            if process.hello is not None and process.name not in parents and not (maildir and self._serves(process)):
                self.silent.suspect(process, _SILENT)

    def _serves(self, process: Process) -> bool:
        """Whether it has a session."""
        if process.kind != "maildir.{user}":
            return bool(process.session) and process.state != "ahead"
        maildir = self.core.maildirs.get(process.name.removeprefix("maildir."))
        return maildir is not None and maildir.key is not None

    ended_early = False  # before it was ready, for a fault that init tells of
    stop_seconds = 10
    stages: list[tuple[str, ...]] = []  # noqa: RUF012  replaced, never changed in place, by stop()

    def _next_stop(self) -> None:
        while True:
            if self.stopping:
                return
            if not self.stages:
                break
            kinds, self.stages = self.stages[0], self.stages[1:]
            told = [p for p in self.processes.values() if p.kind in kinds]
            stage = [p for p in told if p.state != "ahead"]  # those wait for a client to come: their gate's end is theirs
            seconds = min(self.stop_seconds, row_of(kinds[0]).shutdown)
            for process in told:
                process.channel.send(m.Stop(seconds))
            for process in stage:
                process.state = "stopping"
            self.stopping = {process.name for process in stage}
            self._ask_alive(stage)
            if stage:
                self.loop.later(seconds + 1, lambda stage=stage: self._hurry(stage))  # type: ignore[misc]
        assert self.init is not None
        self.init.send(m.Ending(self.exit_status, self.exit_text[:2000]))
        if not self.ended_early:
            self.log_line(NOTICE, "stopped")
        os._exit(0)

    def _hurry(self, stage: list[Process]) -> None:
        for process in stage:
            if self.processes.get(process.name) is process:
                self.kill(process)
                if process.parent in self.processes:  # who is stopped itself ends nobody, and tells of no end
                    self.silent.suspect(self.processes[process.parent], _SILENT)

    # -- reload
    def begin_reload(self, asker: Asker) -> None:
        """Replace auth and listeners by new ones that read the new files."""
        if self.reload is not None or self.state != "running":
            self.reloaded(asker, "not now: the service is " + ("reloading" if self.reload else self.state) + "; try again", TEMPFAIL)
            return
        try:
            users = read_users(self.config.user_table, self.config.subdir)
        except ValueError as error:
            self.log_line(ERROR, f"not reloaded, what is in force stays: {error}")
            self.reloaded(asker, str(error), 66 if isinstance(error, NoTableError) else 65)
            return
        self.reload = Reload(self, users, asker)
        self.reload.begin()

    def _ask_reload(self, answer: Callable[[dict[str, Any]], None]) -> None:
        """It begins with init, which reads the configuration anew and says HUP or NOT."""
        if self.reload is not None or self.asked is not None or self.state != "running":
            now = self.state if self.state != "running" else "reloading"
            Asker(self, answer, []).refuse(TEMPFAIL, f"not now: the service is {now}; try again")
            return
        self.asked = answer
        assert self.init is not None
        self.init.send(m.Signal("HUP"))

    # -- the operator
    def _command(self, name: str, answer: Callable[[dict[str, Any]], None]) -> None:
        """`status`, `stop`, `reload`, from who may (control.py has checked)."""
        if name == "status":
            self.asking.append(answer)
            if len(self.asking) == 1:  # who asks meanwhile gets the same answer: a flood of questions is one question to the actors
                for process in self.processes.values():
                    process.channel.send(m.Report())
                self.loop.later(0.1 if self.processes else 0.0, self._tell_status)
        elif name == "stop":
            answer({"ok": True})
            self.loop.later(0.0, lambda: self.stop(10))
        elif name == "reload":
            self._ask_reload(answer)
        else:
            answer({"ok": False, "error": "no such command"})

    def _tell_status(self) -> None:
        asking, self.asking = self.asking, []
        said = status(self)
        for answer in asking:
            answer(said)


def _whose(process: Process) -> str:
    """Whose share of the log its end is: listeners of one connection each have no name twice, so it is their gate's."""
    return process.parent if process.session else process.name
