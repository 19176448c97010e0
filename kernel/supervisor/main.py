"""The kernel's shell: makes the channels, takes every message, and sees who ends. Never sees a byte from the network.

It knows users' names, uids and paths, and no hash. It trusts no actor: every message is decoded against the table, and what it means
is judged by kernel/decisions. A singleton that breaks the rules is ended; the word of a maildir actor, which runs as a mail user, ends
nobody but itself (else one user's compromised process could end everyone's listener).

Beside it, a module for each thing that it does: singletons.py starts and restarts, execution.py does what kernel/decisions decides,
sessions.py follows the sessions, reload.py replaces, shutdown.py ends.
"""

import os
import signal
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from popkernel.kernel.config.keys import Config
from popkernel.kernel.config.user_table import code_of, handed_over, judge
from popkernel.kernel.decisions import leases
from popkernel.kernel.decisions.deliveries import Deliveries
from popkernel.kernel.decisions.log_quota import ActorLines
from popkernel.kernel.decisions.misbehaviour import Blame
from popkernel.kernel.decisions.recipients import Rules
from popkernel.kernel.operator.control import ControlServer
from popkernel.kernel.operator.status import status
from popkernel.kernel.operator.tracing import Taps
from popkernel.kernel.processes import UNKNOWN_CALL, Process, broke_in_silence, how_ended
from popkernel.kernel.runtime.actor import TEMPFAIL, Actor, Boot
from popkernel.kernel.runtime.channel import Channel, Message, discard, pair
from popkernel.kernel.runtime.descriptors import say_nothing
from popkernel.kernel.runtime.log import DEBUG, ERROR, NOTICE, WARNING, Log, printable
from popkernel.kernel.runtime.loop import Timer
from popkernel.kernel.runtime.process_title import set_title
from popkernel.kernel.supervisor.descriptor_room import Room
from popkernel.kernel.supervisor.execution import Effects
from popkernel.kernel.supervisor.gates import Gates
from popkernel.kernel.supervisor.hung_actors import Hung
from popkernel.kernel.supervisor.liveness import Pulse
from popkernel.kernel.supervisor.parking import Parking
from popkernel.kernel.supervisor.reload import Reloads
from popkernel.kernel.supervisor.sessions import Ledger
from popkernel.kernel.supervisor.shutdown import Stopping
from popkernel.kernel.supervisor.singletons import Singletons
from popkernel.kernel.supervisor.spawner_succession import Heir
from popkernel.kernel.supervisor.spawning import Spawning
from popkernel.proto import messages as m
from popkernel.proto.schema import UnsayableError, sayable
from popkernel.proto.topology import actor as row_of

__all__ = ["Supervisor"]


class Supervisor(Actor):
    """The kernel, as an actor among the others; `processes` are all that it has had started, by name."""

    def __init__(self, boot: Boot) -> None:
        super().__init__(boot, many=True)
        config: Config = boot.config["service"]
        self.config = config
        self.log_line = Log(config.log, config.verbose, config.log_format)
        self.actor_line = ActorLines(self.log_line, self.loop)
        self.processes: dict[str, Process] = {}
        self.init: Channel | None = None
        self.core = leases.Core({}, leases.Settings(
            warm_seconds=config.warm_seconds, warm_max=config.warm_max, park_seconds=config.park_seconds, crowd=config.crowd,
            restart_intensity=config.restart_intensity, restart_seconds=config.restart_seconds, login_delay=config.login_delay,
        ))
        self.deliveries = Deliveries(
            self.core,
            Rules(separators=config.subaddress, fold=config.recipient_case == "fold", domains=config.recipient_domains),
            frozenset((0, boot.uid, *boot.config["mta_uids"])), tcp=bool(config.lmtp_listen),
        )
        effects = Effects(self)
        self.do, self.do_without = effects.do, effects.without
        self.taps = Taps(self)
        self.blame = Blame(self)
        self.gates = Gates(self)
        self.singletons = Singletons(self)
        self.heir = Heir(self)
        self.ledger = Ledger(self)
        self.reloads = Reloads(self)
        self.stopping = Stopping(self)
        self.state = "starting"
        self.started = time.monotonic()
        self.sweeper: Timer | None = None
        self.hung = Hung(self.loop, self.hangs)
        self.pulse = Pulse(self)
        self.room = Room(self)
        self.spawning = Spawning(self)
        self.parking = Parking(self.loop, self.core, self.do, lambda: self.spawning.free)
        self.asking: list[Callable[[dict[str, Any]], None]] = []
        self.refused = 0
        self.broken = 0
        self.on_kernel_message: dict[type, Callable[[Process, Any, list[int]], None]] = {
            m.Hello: self._hello, m.Failed: self._failed, m.Broke: self._broke_promise, m.Refused: self.blame.refused, m.Log: self._logs,
            m.Counters: self._counters, m.Awaiting: self.ledger.awaiting, m.Granted: self.ledger.granted, m.Ended: self.ledger.ended,
            m.LoginFailed: self.ledger.login_failed, m.Deaf: self._deaf, m.Displaced: self.heir.displaced, m.Closed: self._closed,
            m.Exited: self._exited, m.Parked: self._parked, m.Moved: self._moved, m.Late: self.blame.late,
            m.Recipient: self._recipient, m.Busy: self._busy, m.Leaving: self._leaving,
        }

    # -- the beginning
    def begin(self) -> NoReturn:
        """Take the user table, lock in, start everyone, serve."""
        say_nothing(0, 1)  # it keeps the log alone
        self.init = Channel(self.loop, self.boot.channel, "kernel", "init", self._on_init, self._on_init_gone)
        self.init.on_lost = self._lost_of_init
        if self.log_line.system is not None:
            self.log_line.system.again = lambda: self.tell_init(m.Signal("SYSLOG"))
        try:
            self.core.users = judge(handed_over(self.boot.config["table"]), self.config.user_table, self.config.subdir)
        except ValueError as error:
            self.stopping.give_up(code_of(error), str(error))
            self.run()
        except OSError as error:
            self.stopping.give_up(TEMPFAIL, f"the user table could not be taken: {error.strerror}")
            self.run()
        set_title("kernel")
        self._lock_in()
        self.control = ControlServer(self.loop, self.boot.config["control"], self._command, self.taps.attach)
        self.singletons.begin()
        self.pulse.begin()
        self.run()

    def _lock_in(self) -> None:
        self.lock([(self.config.run_dir, "rc")])

    def _broke(self, call: str, promise: str) -> None:
        self.log_line(ERROR, f"kernel broke its promises: {call} would need {promise!r}")

    # -- channels
    def enrol(self, name: str, parent: str) -> tuple[Process, socket.socket]:
        """Make the channel of an actor that `parent` is to start; what the kernel knows of it, and the actor's end.

        To be followed by taps.started(), once what is known of it is in its place: Watch comes before anything else.
        """
        mine, its = pair()
        channel = Channel(self.loop, mine, "kernel", name, self._on_actor, self._on_actor_gone)
        process = channel.tag = Process(name, channel, parent)
        channel.on_lost = lambda message: self._lost(process, message)
        self.processes[name] = process
        return process, its

    def tell_init(self, message: Message, fds: Sequence[int] = ()) -> None:
        """Say something to init."""
        assert self.init is not None
        self.init.send(message, fds)

    # -- messages
    def _on_actor(self, channel: Channel, message: Message, fds: list[int]) -> None:
        if channel.tag.kind == "maildir.{user}" and channel.tag.floods(self.loop.now):
            self.violates(channel.tag, "messages without end", fds)
            return
        handler = self.on_kernel_message.get(type(message))
        if handler is None:
            self.violates(channel.tag, f"{type(message).__name__} is nothing that it may say now", fds)
            return
        try:
            handler(channel.tag, message, fds)
        except UnsayableError as error:  # what follows from it can't be said: it is not done, and the kernel goes on
            self.actor_line(channel.peer, ERROR, f"{channel.peer}: {type(message).__name__} could not be acted on: {error}", "kernel")
        except (OSError, MemoryError) as error:  # all else that there may be no room for has a place where it is caught
            discard(fds)
            self.do_without(channel.tag, message, error)

    def violates(self, process: Process, why: str, fds: list[int]) -> None:
        """A message that is whole and not true: ends its sender as one that is not whole does."""
        discard(fds)
        process.channel.close()
        self._on_actor_gone(process.channel, why)

    def _on_actor_gone(self, channel: Channel, why: str) -> None:
        """The channel ended. What follows from it follows from the process's end, which is hurried on."""
        process: Process = channel.tag
        if why:
            self.refused += 1
            self.actor_line.end(_whose(process), ERROR, f"{process.name} broke the rules on its channel to the kernel: {why}; ended")
            self.taps.note("Refused", process.name, reason=why, by="kernel")
        if process.kind == "maildir.{user}":
            self.core.ending(process.name)
        if process.session and not why:  # most likely it has just ended, with its client: no word to its gate for that
            self.loop.later(1.0, lambda: self._gone_by_now(process))
            return
        self.kill(process)

    def _on_init(self, channel: Channel, message: Message, fds: list[int]) -> None:
        del channel
        if isinstance(message, m.Started):
            process = self.processes.get(message.name)
            if process is not None:
                process.pid = message.pid
        elif isinstance(message, m.Exited):
            if not self.pulse.late_end(message.pid):
                self.gone(message)
        elif isinstance(message, m.Counters):
            self.pulse.init_answers()
        elif isinstance(message, m.Unstarted):
            self.gone(m.Exited(message.name, os.getpid(), TEMPFAIL << 8), message.text)
        elif isinstance(message, m.Reread):
            self.reloads.reread(message.later, fds[0])
        elif isinstance(message, m.Unread):
            self.reloads.unread(message.status, message.text)
        elif isinstance(message, m.Syslog):
            self._take_syslog(fds)
        elif isinstance(message, m.Signal):
            word, _, rest = message.name.partition(" ")
            if word == "TERM":
                self.stopping.begin()
            elif word == "ALIVE":
                self.tell_init(m.Signal("ALIVE"))
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
            self.violates(process, "hello, again", fds)
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
        if self.state == "starting" and all(p.state == "serving" or p.session for p in self.processes.values()):
            self.state = "running"
            took, many = time.monotonic() - self.started, len(self.core.users)
            text = f"ready: {', '.join(self.boot.config['addresses'])} ({many} user{'s' * (many != 1)}, {took:.2f} s)"
            self.tell_init(m.Running(sayable(text)))
            self.room.ready()
            if not self.log_line.seen:
                self.log_line(NOTICE, text)

    def _failed(self, process: Process, message: m.Failed, fds: list[int]) -> None:
        del fds
        reload = self.reloads.concerned(process.name)
        if reload is not None:
            reload.fail(message.text, message.status)
            return
        if self.state == "starting":
            self.stopping.give_up(message.status, message.text)
            return
        for line in message.text.split("\n"):
            self.actor_line(process.name, DEBUG if self.stopping.early else ERROR, line)  # one fault is enough to start with

    def _broke_promise(self, process: Process, message: m.Broke, fds: list[int]) -> None:
        del fds
        self._broken(process, message.call, message.promise)
        self.loop.later(1.0, lambda: self._gone_by_now(process))

    def _broken(self, process: Process, call: str, promise: str) -> None:
        """A promise is broken; empty where not even the system says which."""
        self.broken += 1
        why = printable(call) + (f" would need {promise!r}" if promise else "")
        self.actor_line.end(process.name, ERROR, f"{process.name} broke its promises: {why}; ended")
        self.taps.note("Broke", process.name, call=call, promise=promise)

    def _gone_by_now(self, process: Process) -> None:
        """Should it have said that it broke a promise, and not gone."""
        if self.processes.get(process.name) is process:
            self.kill(process)

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

    def _closed(self, process: Process, message: m.Closed, fds: list[int]) -> None:
        del fds
        self.do(self.core.closed(process.name, message, self.loop.now), process.name)
        self._schedule_sweep()

    def _recipient(self, process: Process, message: m.Recipient, fds: list[int]) -> None:
        del fds
        self.room.look()
        self.do(self.deliveries.recipient(process.name, message, self.loop.now))
        self._schedule_sweep()

    def _leaving(self, process: Process, message: m.Leaving, fds: list[int]) -> None:
        del message, fds
        if process.kind == "maildir.{user}":
            self.core.ending(process.name)
            self.pulse.goes(process.name)

    def _busy(self, process: Process, message: m.Busy, fds: list[int]) -> None:
        del message, fds
        process.goes = 0.0
        self.do(self.deliveries.busy(process.name, self.loop.now))
        self._schedule_sweep()

    def _deaf(self, process: Process, message: m.Deaf, fds: list[int]) -> None:
        del message, fds
        self.singletons.deaf(process)

    def _exited(self, process: Process, message: m.Exited, fds: list[int]) -> None:
        """The spawner's word on its own children only."""
        del fds
        child = self.processes.get(message.name)
        if child is not None and child.parent == process.name:
            self.gone(message)

    def _parked(self, process: Process, message: m.Parked, fds: list[int]) -> None:
        if self.parking.too_soon(process.name, message):
            self.violates(process, "a session parked that was not silent for so long", fds)
            return
        self.room.look()
        self.parking.park(process.name, message, fds[0])
        self._schedule_sweep()

    def _moved(self, process: Process, message: m.Moved, fds: list[int]) -> None:
        """It is to go, and the session waits for that."""
        self.parking.park(process.name, message, fds[0])
        self.loop.later(1.0, lambda: self._gone_by_now(process))

    def _lost(self, process: Process, message: Message) -> None:
        """A session was handed over, and there is no room for its channel: it ends, and so does its actor, which has it no more."""
        self.room.full(process.name.removeprefix("maildir."))
        if isinstance(message, m.Parked | m.Moved):
            self.do(self.core.closed(process.name, m.Closed(message.session, 0, 0), self.loop.now))

    def _lost_of_init(self, message: Message) -> None:
        """Init's word came, and there was no room for its descriptor. The log's socket is asked for again with one of the next lines."""
        if isinstance(message, m.Reread):
            self.reloads.lost()

    # -- orders
    def send(self, to: str, message: Message, fds: Sequence[int] = ()) -> None:
        """Say something to an actor, if it is there."""
        process = self.processes.get(to)
        if process is not None:
            process.channel.send(message, fds)

    def hangs(self, process: Process, seconds: int) -> None:
        """It has not answered for so long: end it."""
        if self.processes.get(process.name) is process:
            self.actor_line.end(_whose(process), ERROR, f"{process.name} is not alive: it has not answered for {seconds} s; ended")
            self.kill(process)

    def kill(self, process: Process) -> None:
        """Have its parent end it: only the parent can be sure whose the process number is."""
        if self.spawning.forget(process):
            return
        if process.parent == "init":
            self.tell_init(m.Kill(process.name))
        else:
            self.send(process.parent, m.Kill(process.name))
        self.pulse.killed(process)

    # -- ends
    def gone(self, message: m.Exited, why: str = "") -> None:
        """A process is no more. `why`: what there was no room for, where there was none for it."""
        process = self.processes.pop(message.name, None)
        if process is None:
            return
        if not process.channel.gone:
            process.channel.read()  # its last words
            process.channel.close()
        how = how_ended(message.status)
        if broke_in_silence(message.status):
            self._broken(process, UNKNOWN_CALL, "")
        self.taps.gone(process, how)
        expected = process.state in ("stopping", "draining") or self.state == "stopping"
        if process.kind == "maildir.{user}":
            if message.status:
                self.actor_line.end(process.name, WARNING, f"{process.name} ended: {how}")
            self.maildir_gone(process.name)
        elif process.kind == "mda":
            self.deliveries.mda_gone(process.name)
        elif process.session:
            self.ledger.lost_one(process)
            if message.status and not expected:
                self.actor_line.end(_whose(process), WARNING, f"{process.name} ended: {how}")
            self.gates.over(process)
        elif process.kind == "listener":
            self.ledger.lost({process.name})
            self.do(self.core.listener_gone(process.name))
        elif process.kind == "gate":
            self.ledger.lost({p.name for p in self.processes.values() if p.parent == process.name})
            self.gates.gone(process)
            self._orphans(process.name)
        elif process.kind == "spawner":
            self._orphans(process.name)
            self.spawning.go_on()
        if process.name == self.heir.name:
            self.heir.failed(self.singletons.unstarted(process, message.status, why)[0])
            expected = True
        reload = self.reloads.concerned(process.name)
        if self.state == "stopping":
            self.stopping.gone(process.name)
        elif reload is not None:
            reload.fail(*self.singletons.unstarted(process, message.status, why))
        elif row_of(process.name).restart == "permanent" and not process.session and not expected:
            self.singletons.ended(process, message.status, why)

    def maildir_gone(self, name: str) -> None:
        """A maildir actor is no more, or never was."""
        self.room.look()
        self.do(self.core.maildir_gone(name, self.loop.now))
        self.do(self.deliveries.maildir_gone(name, self.loop.now))

    def _orphans(self, parent: str) -> None:
        """The system ended a dead spawner's or gate's children (PR_SET_PDEATHSIG); nobody is left to tell us of each."""
        for child in [p for p in self.processes.values() if p.parent == parent]:
            self.gone(m.Exited(child.name, max(child.pid, 1), 0 if child.state == "ahead" else int(signal.SIGKILL)))

    def _schedule_sweep(self) -> None:
        if self.sweeper is None:
            due = self.core.next_sweep()
            if due is not None:
                self.sweeper = self.loop.later(max(0.5, due - self.loop.now), self._sweep)

    def _sweep(self) -> None:
        self.sweeper = None
        self.do(self.core.sweep(self.loop.now))
        self._schedule_sweep()

    # -- the operator
    def _command(self, name: str, answer: Callable[[dict[str, Any]], None]) -> None:
        """`status`, `stop`, `reload`, from who may (kernel/operator/control.py has checked)."""
        if name == "status":
            self.asking.append(answer)
            if len(self.asking) == 1:  # who asks meanwhile gets the same answer: a flood of questions is one question to the actors
                for process in self.processes.values():
                    process.ask()
                self.loop.later(0.1 if self.processes else 0.0, self._tell_status)
        elif name == "stop":
            answer({"ok": True})
            self.loop.later(0.0, self.stopping.begin)
        elif name == "reload":
            self.reloads.ask(answer)
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
