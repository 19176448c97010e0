"""The kernel's shell: makes the channels, takes every message, and sees who ends. Never sees a byte from the network.

It knows users' names, uids and paths, and no hash. It trusts no actor: every message is decoded against the table, and what it means
is judged by kernel/decisions. A singleton that breaks the rules is ended; the word of a maildir actor, which runs as a mail user, ends
nobody but itself (else one user's compromised process could end everyone's listener).

Beside it, a module for each thing that it does. Each is given what it needs, and none knows this one, which puts them together: it hands
each message to whose affair it is, and tells those whom the end of a process concerns (kernel/processes.py).
"""

import os
import time
from collections.abc import Callable
from typing import Any, NoReturn

from popkernel.kernel.config.keys import Config
from popkernel.kernel.config.user_table import code_of, handed_over, judge
from popkernel.kernel.decisions import leases
from popkernel.kernel.decisions.deliveries import Deliveries
from popkernel.kernel.decisions.log_quota import ActorLines
from popkernel.kernel.decisions.recipients import Rules
from popkernel.kernel.operator.control import ControlServer
from popkernel.kernel.operator.status import status
from popkernel.kernel.operator.tracing import Taps
from popkernel.kernel.processes import Process, Processes
from popkernel.kernel.runtime.actor import TEMPFAIL, Actor, Boot
from popkernel.kernel.runtime.channel import Channel, Message, discard
from popkernel.kernel.runtime.descriptors import say_nothing
from popkernel.kernel.runtime.log import DEBUG, ERROR, NOTICE, WARNING, Log, printable
from popkernel.kernel.runtime.process_title import set_title
from popkernel.kernel.supervisor.descriptor_room import Room
from popkernel.kernel.supervisor.execution import Execution
from popkernel.kernel.supervisor.gates import Gates
from popkernel.kernel.supervisor.hung_actors import HungActors
from popkernel.kernel.supervisor.liveness import Liveness
from popkernel.kernel.supervisor.maildirs import Maildirs
from popkernel.kernel.supervisor.misbehaviour import Misbehaviour
from popkernel.kernel.supervisor.parking import Parking
from popkernel.kernel.supervisor.reload import Reloads
from popkernel.kernel.supervisor.sessions import Sessions
from popkernel.kernel.supervisor.shutdown import Shutdown
from popkernel.kernel.supervisor.singletons import Singletons
from popkernel.kernel.supervisor.spawner_succession import Succession
from popkernel.kernel.supervisor.spawning import Spawning
from popkernel.proto import messages as m
from popkernel.proto.schema import UnsayableError, sayable

__all__ = ["Supervisor"]


class Supervisor(Actor):
    """The kernel, as an actor among the others."""

    def __init__(self, boot: Boot) -> None:
        super().__init__(boot, many=True)
        self.config: Config = boot.config["service"]
        self.log_line = Log(self.config.log, self.config.verbose, self.config.log_format)
        self.actor_line = ActorLines(self.log_line, self.loop)
        self.processes = Processes(self.loop)
        self.core = leases.Core({}, _settings(self.config))
        self.deliveries = Deliveries(
            self.core, _rules(self.config), frozenset((0, boot.uid, *boot.config["mta_uids"])), tcp=bool(self.config.lmtp_listen),
        )
        self.started = time.monotonic()
        self.asking: list[Callable[[dict[str, Any]], None]] = []
        self._put_together()
        self._connect()

    def _put_together(self) -> None:
        """Each is given those below it; a function that is one of its own, or is made later, stands for those above."""
        loop, there, core, deliveries, log, lines = self.loop, self.processes, self.core, self.deliveries, self.log_line, self.actor_line
        self.room = room = Room(loop, core, log, self.config)
        self.taps = taps = Taps(loop, there, core, deliveries, version=self.boot.config["version"], nofile=room.limit, left=room.left)
        self.hung = hung = HungActors(loop, self._hangs)
        self.liveness = Liveness(loop, there, core, log, lines, hung)
        self.misbehaviour = Misbehaviour(loop, there, core, deliveries, log, lines, taps, hung)
        self.shutdown = Shutdown(loop, there, core, deliveries, log, self._hangs, self._stops)
        self.gates = Gates(loop, there, core, lines, taps, room, self.config.listeners, self._do, self._wire)
        self.singletons = Singletons(loop, there, core, log, taps, self.gates, self.shutdown, self.config, self._do)
        self.client_sessions = Sessions(loop, there, core, log, lines, room, hung, self.gates, self._do)
        self.parking = Parking(loop, core, self._do, lambda: self.spawning.free)
        self.maildirs = Maildirs(loop, there, core, deliveries, lines, room, self.liveness, self.parking, self._do)
        self.spawning = Spawning(loop, there, taps, room, self.liveness, self.singletons, self.parking.wake_next, self.maildirs.gone)
        self.succession = Succession(loop, there, core, log, lines, self.singletons, self.spawning, self._do)
        self.reloads = Reloads(
            loop, there, core, log, self.liveness, self.singletons, self.succession, self.spawning, self.config, self._do,
        )
        self.execution = Execution(
            loop, there, core, deliveries, log, lines, room, hung, self.liveness, self.client_sessions, self.parking, self.spawning,
        )

    def _connect(self) -> None:
        """Whose affair each message is, and whose the end of a process, in this order."""
        there = self.processes
        there.on_message, there.on_gone, there.on_lost = self._on_actor, self._on_actor_gone, self.maildirs.lost
        there.on_kill = self.liveness.killed
        there.on_exit = [
            keeper.on_exit
            for keeper in (
                self.misbehaviour, self.taps, self.maildirs, self.client_sessions, self.gates, self.spawning, self.succession,
                self.shutdown, self.singletons,
            )
        ]
        self.room.holders += [there, self.spawning, self.parking, self.taps]
        self.on_kernel_message: dict[type, Callable[[Process, Any, list[int]], None]] = {
            m.Hello: self._hello, m.Failed: self._failed, m.Log: self._logs, m.Counters: self._counters, m.Exited: self._exited,
            m.Broke: self.misbehaviour.promise_broken, m.Refused: self.misbehaviour.refused, m.Late: self.misbehaviour.late,
            m.Awaiting: self.client_sessions.awaiting, m.Granted: self.client_sessions.granted, m.Ended: self.client_sessions.ended,
            m.LoginFailed: self.client_sessions.login_failed, m.Deaf: self.singletons.deaf, m.Displaced: self.succession.displaced,
            m.Closed: self.maildirs.closed, m.Parked: self.maildirs.parked, m.Moved: self.maildirs.moved, m.Busy: self.maildirs.busy,
            m.Leaving: self.maildirs.leaving, m.Recipient: self.maildirs.recipient,
        }

    # -- the beginning
    def begin(self) -> NoReturn:
        """Take the user table, lock in, start everyone, serve."""
        say_nothing(0, 1)  # it keeps the log alone
        self.init = self.processes.init = Channel(self.loop, self.boot.channel, "kernel", "init", self._on_init, self._on_init_gone)
        self.init.on_lost = self._lost_of_init
        if self.log_line.system is not None:
            self.log_line.system.again = lambda: self.processes.tell_init(m.Signal("SYSLOG"))
        try:
            self.core.users = judge(handed_over(self.boot.config["table"]), self.config.user_table, self.config.subdir)
        except ValueError as error:
            self.shutdown.give_up(code_of(error), str(error))
            self.run()
        except OSError as error:
            self.shutdown.give_up(TEMPFAIL, f"the user table could not be taken: {error.strerror}")
            self.run()
        set_title("kernel")
        self._lock_in()
        self.control = ControlServer(self.loop, self.boot.config["control"], self._command, self.taps.attach)
        self.room.holders.append(self.control.clients)
        self.singletons.begin()
        self.liveness.begin()
        self.run()

    def _lock_in(self) -> None:
        self.lock([(self.config.run_dir, "rc")])

    def _broke(self, call: str, promise: str) -> None:
        self.log_line(ERROR, f"kernel broke its promises: {call} would need {promise!r}")

    # -- messages
    def _on_actor(self, channel: Channel, message: Message, fds: list[int]) -> None:
        if channel.tag.kind == "maildir.{user}" and channel.tag.floods(self.loop.now):
            self.processes.violates(channel.tag, "messages without end", fds)
            return
        handler = self.on_kernel_message.get(type(message))
        if handler is None:
            self.processes.violates(channel.tag, f"{type(message).__name__} is nothing that it may say now", fds)
            return
        try:
            handler(channel.tag, message, fds)
        except UnsayableError as error:  # what follows from it can't be said: it is not done, and the kernel goes on
            self.actor_line(channel.peer, ERROR, f"{channel.peer}: {type(message).__name__} could not be acted on: {error}", "kernel")
        except (OSError, MemoryError) as error:  # all else that there may be no room for has a place where it is caught
            discard(fds)
            self.execution.without(channel.tag, message, error)

    def _on_actor_gone(self, channel: Channel, why: str) -> None:
        """The channel ended. What follows from it follows from the process's end, which is hurried on."""
        process: Process = channel.tag
        if why:
            self.misbehaviour.rules_broken(process, why)
        self.maildirs.channel_ended(process)
        if process.session and not why:  # most likely it has just ended, with its client: no word to its gate for that
            self.processes.kill_if_it_stays(process)
        else:
            self.processes.kill(process)

    def _on_init(self, channel: Channel, message: Message, fds: list[int]) -> None:
        del channel
        if isinstance(message, m.Started):
            process = self.processes.get(message.name)
            if process is not None:
                process.pid = message.pid
        elif isinstance(message, m.Exited):
            if not self.liveness.late_end(message.pid):
                self.processes.gone(message)
        elif isinstance(message, m.Counters):
            self.liveness.init_answers()
        elif isinstance(message, m.Unstarted):
            self.processes.gone(m.Exited(message.name, os.getpid(), TEMPFAIL << 8), message.text)
        elif isinstance(message, m.Reread):
            self.reloads.reread(message.later, fds[0])
        elif isinstance(message, m.Unread):
            self.reloads.unread(message.status, message.text)
        elif isinstance(message, m.Syslog):
            self._take_syslog(fds)
        elif isinstance(message, m.Signal):
            word, _, rest = message.name.partition(" ")
            if word == "TERM":
                self.shutdown.begin()
            elif word == "ALIVE":
                self.processes.tell_init(m.Signal("ALIVE"))
            else:
                self.reloads.looked(rest)

    def _take_syslog(self, fds: list[int]) -> None:
        if self.log_line.system is not None:
            self.log_line.system.take(fds[0])
        else:
            discard(fds)

    def _on_init_gone(self, channel: Channel, why: str) -> None:
        del channel, why
        # Init was killed, and can't tidy up. Its lock is held by this process too, so nobody starts here before it has gone.
        self.boot.config["tidy"]()
        os._exit(TEMPFAIL)

    def _hello(self, process: Process, message: m.Hello, fds: list[int]) -> None:
        if process.hello is not None:
            self.processes.violates(process, "hello, again", fds)
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
        self.singletons.serves(process.name)
        if process.kind == "spawner":
            self.spawning.go_on()
        if process.on_hello is not None:
            process.on_hello()
            return
        self.singletons.wire(process)
        if self.processes.phase == "starting" and all(p.state == "serving" or p.session for p in self.processes):
            self.processes.phase = "running"
            took, many = time.monotonic() - self.started, len(self.core.users)
            text = f"ready: {', '.join(self.boot.config['addresses'])} ({many} user{'s' * (many != 1)}, {took:.2f} s)"
            self.processes.tell_init(m.Running(sayable(text)))
            self.room.ready()
            if not self.log_line.seen:
                self.log_line(NOTICE, text)

    def _failed(self, process: Process, message: m.Failed, fds: list[int]) -> None:
        del fds
        if process.on_failed is not None:
            process.on_failed(message.text, message.status)
            return
        if self.processes.phase == "starting":
            self.shutdown.give_up(message.status, message.text)
            return
        for line in message.text.split("\n"):
            self.actor_line(process.name, DEBUG if self.shutdown.early else ERROR, line)  # one fault is enough to start with

    def _logs(self, process: Process, message: m.Log, fds: list[int]) -> None:
        """One line, and always with its name, so that no actor can write another's."""
        del fds
        line = printable(message.text.removeprefix(f"{process.name}: "))
        self.actor_line(process.name, message.level, line)
        if message.level <= WARNING:
            self.reloads.warned(process.name, line)

    def _counters(self, process: Process, message: m.Counters, fds: list[int]) -> None:
        del fds
        process.counters = message
        process.answered += 1
        self.spawning.counters(process)

    def _exited(self, process: Process, message: m.Exited, fds: list[int]) -> None:
        """The spawner's word on its own children only."""
        del fds
        child = self.processes.get(message.name)
        if child is not None and child.parent == process.name:
            self.processes.gone(message)

    def _lost_of_init(self, message: Message) -> None:
        """Init's word came, and there was no room for its descriptor. The log's socket is asked for again with one of the next lines."""
        if isinstance(message, m.Reread):
            self.reloads.lost(self.nofile)

    # -- what those below ask of those above
    def _do(self, effects: list[leases.Effect], about: str = "") -> None:
        """Have done what kernel/decisions has decided. `about`: whose share of the log a line of theirs is, "" for nobody's."""
        self.execution.do(effects, about)

    def _wire(self, process: Process) -> None:
        self.singletons.wire(process)

    def _stops(self) -> None:
        self.reloads.stop()

    def _hangs(self, process: Process, seconds: int) -> None:
        """It has not answered for so long: end it."""
        if self.processes.has(process):
            self.actor_line.end(process.whose, ERROR, f"{process.name} is not alive: it has not answered for {seconds} s; ended")
            self.processes.kill(process)

    # -- the operator
    def _command(self, name: str, answer: Callable[[dict[str, Any]], None]) -> None:
        """`status`, `stop`, `reload`, from who may (kernel/operator/control.py has checked)."""
        if name == "status":
            self.asking.append(answer)
            if len(self.asking) == 1:  # who asks meanwhile gets the same answer: a flood of questions is one question to the actors
                for process in self.processes:
                    process.ask()
                self.loop.later(0.1 if self.processes else 0.0, self._tell_status)
        elif name == "stop":
            answer({"ok": True})
            self.loop.later(0.0, self.shutdown.begin)
        elif name == "reload":
            self.reloads.ask(answer)
        else:
            answer({"ok": False, "error": "no such command"})

    def _tell_status(self) -> None:
        asking, self.asking = self.asking, []
        said = status(
            self.boot, self.unveiled, self.processes, self.core, self.started, refused=self.misbehaviour.refusals,
            broken=self.misbehaviour.broken,
        )
        for answer in asking:
            answer(said)


def _settings(config: Config) -> leases.Settings:
    """What of the configuration decides about maildir actors and restarts."""
    return leases.Settings(
        warm_seconds=config.warm_seconds, warm_max=config.warm_max, park_seconds=config.park_seconds, crowd=config.crowd,
        restart_intensity=config.restart_intensity, restart_seconds=config.restart_seconds, login_delay=config.login_delay,
    )


def _rules(config: Config) -> Rules:
    """What of the configuration decides whose an address is."""
    return Rules(separators=config.subaddress, fold=config.recipient_case == "fold", domains=config.recipient_domains)
