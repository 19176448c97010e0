"""Run the kernel's process: make all channels, and dispatch messages and process ends to the keepers.

The kernel reads no octet from the network. It knows users' names, uids and paths, but no hash. It trusts no
actor: each message is decoded against the topology table, and kernel/decisions decides what follows. An
actor that breaks the rules on its channel to the kernel is killed. What it says about others counts only as
misbehaviour.py allows, so that one user's compromised process cannot end everyone's listener.

Each module of this folder keeps one thing (sessions, gates, parked sessions ...). It is given what it needs,
and does not import this module, which makes them and connects them (kernel/processes.py).
"""

import contextlib
import os
import pwd
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from popkernel.kernel.config.keys import Config
from popkernel.kernel.config.user_table import exit_code, read_descriptor, users_of
from popkernel.kernel.decisions import leases
from popkernel.kernel.decisions.actions import Action
from popkernel.kernel.decisions.deliveries import Deliveries
from popkernel.kernel.decisions.recipients import Rules
from popkernel.kernel.operator.commands import Commands
from popkernel.kernel.operator.control import Client, ControlServer
from popkernel.kernel.operator.health import Health
from popkernel.kernel.operator.history import History
from popkernel.kernel.operator.log_quota import ActorLines
from popkernel.kernel.operator.login_load import LoginLoads
from popkernel.kernel.operator.session_list import SessionList
from popkernel.kernel.operator.status import status
from popkernel.kernel.operator.tracing import Taps
from popkernel.kernel.processes import Process, Processes
from popkernel.kernel.resources.memory_limits import Limits, budget, limits, most_warm
from popkernel.kernel.runtime.actor import TEMPFAIL, Actor, Boot
from popkernel.kernel.runtime.channel import Channel, Message, discard
from popkernel.kernel.runtime.descriptors import say_nothing
from popkernel.kernel.runtime.log import Log
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
from popkernel.kernel.supervisor.warm_actors import WarmActors
from popkernel.proto import messages as m
from popkernel.proto.log_events import objection, text_of
from popkernel.proto.log_levels import DEBUG, ERROR, NOTICE, WARNING, highest
from popkernel.proto.schema import UnsendableError, fit_text

__all__ = ["Supervisor"]


class Supervisor(Actor):
    """Run the kernel as an actor: the same loop, channels and sandbox as the others have."""

    def __init__(self, boot: Boot) -> None:
        super().__init__(boot, many=True)
        self.config: Config = boot.config["service"]
        self.log_writer = Log(
            self.config.log,
            highest(self.config.verbose, quiet=self.config.quiet),
            self.config.log_format,
        )
        self.actor_log = ActorLines(self.log_writer, self.loop, self._log_owner)
        self.processes = Processes(self.loop)
        self.limits = limits()
        self.core = leases.Core({}, _settings(self.config, self.limits))
        self.deliveries = Deliveries(
            self.core,
            _rules(self.config),
            frozenset((0, boot.uid, *boot.config["mta_uids"])),
            tcp=bool(self.config.lmtp_listen),
        )
        self.started = time.monotonic()
        self.names = _names(0, os.geteuid())  # now: the sandbox will hide the system's users
        self.asking: list[Callable[[dict[str, Any]], None]] = []
        self._put_together()
        self._connect()

    def _put_together(self) -> None:
        """Make the keepers from the lowest up; a lambda or a method stands for one that is made later."""
        loop, processes, core, deliveries, log, lines = (
            self.loop,
            self.processes,
            self.core,
            self.deliveries,
            self.log_writer,
            self.actor_log,
        )
        self.login_loads = LoginLoads(loop, processes, log)
        self.history = history = History(self.config.history)
        self.room = room = Room(loop, core, log, self.config)
        self.taps = taps = Taps(
            loop,
            processes,
            core,
            deliveries,
            log,
            version=self.boot.config["version"],
            nofile=room.limit,
            left=room.left,
            announced=lambda: self.client_sessions.clients,
        )
        self.hung = hung = HungActors(loop, self._hangs)
        self.liveness = Liveness(loop, processes, core, log, lines, hung)
        self.misbehaviour = Misbehaviour(loop, processes, core, deliveries, log, lines, taps, hung)
        self.shutdown = Shutdown(loop, processes, core, deliveries, log, self._hangs, self._stops)
        self.gates = Gates(
            loop, processes, core, lines, taps, room, self.config.listeners, self._do, self._wire
        )
        self.singletons = Singletons(
            loop, processes, core, log, taps, self.gates, self.shutdown, self.config, self._do
        )
        self.client_sessions = Sessions(
            loop, processes, core, log, lines, room, hung, self.gates, history, self._do
        )
        self.parking = Parking(loop, core, self._do, lambda: self.spawning.free)
        self.maildirs = Maildirs(
            loop, processes, core, deliveries, lines, room, self.liveness, self.parking, history, self._do
        )
        self.spawning = Spawning(
            loop,
            processes,
            taps,
            room,
            self.liveness,
            self.singletons,
            self.parking.wake_next,
            self.maildirs.exited,
        )
        self.succession = Succession(
            loop, processes, core, log, lines, self.singletons, self.spawning, self._do
        )
        self.warm = WarmActors(loop, core, log, self._do)
        self.reloads = Reloads(
            loop,
            processes,
            core,
            log,
            self.liveness,
            self.singletons,
            self.succession,
            self.spawning,
            self.config,
            self._do,
        )
        self.reloads.certificates = self.boot.config.get("certificates", [])
        session_list = SessionList(
            core, processes, lambda: self.client_sessions.clients, self.parking.since, lambda: loop.now
        )
        health = Health(
            loop,
            processes,
            core,
            self.login_loads,
            self.singletons.needed,
            lambda: self.liveness.init_lives,
            lambda: self.reloads.certificates,
        )
        self.commands = Commands(
            loop,
            processes,
            core,
            lambda: deliveries.rules,
            log,
            history,
            session_list,
            health,
            lambda: self.singletons.auth,
            self._do,
        )
        self.execution = Execution(
            loop,
            processes,
            core,
            deliveries,
            log,
            lines,
            room,
            hung,
            self.liveness,
            self.client_sessions,
            self.parking,
            self.spawning,
        )

    def _connect(self) -> None:
        """Set the handler of each message, and the keepers that hear of a process's end, in this order."""
        processes = self.processes
        processes.on_message, processes.on_dropped, processes.on_lost = (
            self._on_actor,
            self._on_actor_dropped,
            self.maildirs.lost,
        )
        processes.on_kill = self.liveness.killed
        processes.on_exit = [
            keeper.on_exit
            for keeper in (
                self.misbehaviour,
                self.taps,
                self.maildirs,
                self.client_sessions,
                self.gates,
                self.spawning,
                self.succession,
                self.shutdown,
                self.singletons,
                self.reloads,
            )
        ]
        self.room.holders += [processes, self.spawning, self.parking, self.taps, self.warm]
        self.on_kernel_message: dict[type, Callable[[Process, Any, list[int]], None]] = {
            m.Hello: self._hello,
            m.ActorFailed: self._actor_failed,
            m.LogEvent: self._log_event,
            m.Counters: self._counters,
            m.ProcessExited: self._process_exited,
            m.PromiseBroken: self.misbehaviour.promise_broken,
            m.PeerRefused: self.misbehaviour.peer_refused,
            m.PeerTimeout: self.misbehaviour.peer_timeout,
            m.LoginStarted: self.client_sessions.login_started,
            m.LoginGranted: self.client_sessions.login_granted,
            m.LoginMemoryTaken: self.reloads.memory_taken,
            m.ConnectionEnded: self.client_sessions.connection_ended,
            m.GateSeatTaken: self.gates.seat_taken,
            m.ClientHungUp: self.client_sessions.client_hung_up,
            m.AccountState: self.commands.account_state,
            m.LoginLoad: self.login_loads.login_load,
            m.PlacesRefused: self.login_loads.places_refused,
            m.LoginFailed: self.client_sessions.login_failed,
            m.LoginDenied: self.client_sessions.login_denied,
            m.ListenSocketShut: self.singletons.listen_socket_shut,
            m.ImageTried: self.warm.image_tried,
            m.RootDisplaced: self.succession.root_displaced,
            m.RootsMissing: self.succession.roots_missing,
            m.SessionClosed: self.maildirs.session_closed,
            m.SessionParked: self.maildirs.session_parked,
            m.SessionMoved: self.maildirs.session_moved,
            m.RetireRefused: self.maildirs.retire_refused,
            m.ActorLeaving: self.maildirs.actor_leaving,
            m.RecipientLookup: self.maildirs.recipient_lookup,
        }

    # -- start
    def begin(self) -> NoReturn:
        """Read the user table, enter the sandbox, start the singletons, serve."""
        say_nothing(0, 1)  # standard error stays open: it may be the log
        self.init = self.processes.init = Channel(
            self.loop, self.boot.channel, "kernel", "init", self._on_init, self._on_init_dropped
        )
        self.init.on_lost = self._lost_of_init
        if self.log_writer.system is not None:
            self.log_writer.system.again = lambda: self.processes.send_init(m.SyslogRequest())
        try:
            self.core.users = users_of(
                read_descriptor(self.boot.config["table"]), self.config.user_table, self.config.subdir
            )
        except ValueError as error:
            self.shutdown.give_up(exit_code(error), str(error))
            self.run()
        except OSError as error:
            self.shutdown.give_up(TEMPFAIL, f"the user table could not be taken: {error.strerror}")
            self.run()
        set_title("kernel")
        self.warm.begin(self.limits.groups)
        self._lock_in()
        self.control = ControlServer(
            self.loop, self.boot.config["control"], self._command, self.taps.attach, self.names
        )
        self.room.holders.append(self.control.clients)
        self.singletons.begin()
        self.liveness.begin()
        self.run()

    def _lock_in(self) -> None:
        self.lock([(self.config.run_dir, "rc")])

    def _broke(self, call: str, promise: str) -> None:
        self.log(ERROR, "process.broke_promise", process="kernel", call=call, promise=promise)

    def log(self, level: int, event: str, /, **fields: Any) -> None:
        """Write an event of the kernel's own into the log."""
        self.log_writer.event(level, event, fields)

    # -- messages
    def _on_actor(self, channel: Channel, message: Message, fds: list[int]) -> None:
        process: Process = channel.tag
        if (process.session or process.kind == "maildir.{user}") and process.floods(self.loop.now):
            self.processes.violates(process, "messages without end", fds)
            return
        handler = self.on_kernel_message.get(type(message))
        if handler is None:
            self.processes.violates(
                channel.tag, f"{type(message).__name__} is nothing that it may say now", fds
            )
            return
        try:
            handler(channel.tag, message, fds)
        except UnsendableError as error:
            # a message that would have to follow cannot be encoded: the kernel goes on without it
            self.actor_log(
                channel.peer,
                ERROR,
                "message.failed",
                process=channel.peer,
                message=type(message).__name__,
                error=str(error),
            )
        except (OSError, MemoryError) as error:
            # shortages that a handler can answer itself are caught in it
            discard(fds)
            self.execution.give_up_message(channel.tag, message, error)

    def _on_actor_dropped(self, channel: Channel, why: str) -> None:
        """Have the process of an ended channel killed: its end then frees what it holds."""
        process: Process = channel.tag
        if why:
            self.misbehaviour.rules_broken(process, why)
        self.maildirs.channel_ended(process)
        # A listener of one connection most likely ends by itself, with its client: do not trouble its gate.
        if process.session and not why:
            self.processes.kill_if_it_stays(process)
        else:
            self.processes.kill(process)

    def _on_init(self, channel: Channel, message: Message, fds: list[int]) -> None:
        del channel
        if isinstance(message, m.ProcessStarted):
            process = self.processes.get(message.name)
            if process is not None:
                process.pid = message.pid
        elif isinstance(message, m.ProcessExited):
            if not self.liveness.late_end(message.pid):
                self.processes.exited(message)
        elif isinstance(message, m.Counters):
            self.liveness.init_answers()
        elif isinstance(message, m.ProcessUnstarted):
            self.processes.exited(m.ProcessExited(message.name, os.getpid(), TEMPFAIL << 8), message.text)
        elif isinstance(message, m.ReloadInputs):
            self.reloads.reread(message, fds[0])
        elif isinstance(message, m.ReloadInputsFailed):
            self.reloads.unread(message.status, message.text)
        elif isinstance(message, m.SyslogChannel):
            self._receive_syslog(fds)
        elif isinstance(message, m.ServiceStop):
            self.shutdown.begin()
        elif isinstance(message, m.KernelCheck):
            self.processes.send_init(m.KernelLives())
        elif isinstance(message, m.MailboxFault):
            self.reloads.mailbox_fault(message.after, message.text)
        elif isinstance(message, m.MailboxesChecked):
            self.reloads.mailboxes_checked(message.after)

    def _receive_syslog(self, fds: list[int]) -> None:
        if self.log_writer.system is not None:
            self.log_writer.system.receive(fds[0])
        else:
            discard(fds)

    def _on_init_dropped(self, channel: Channel, why: str) -> None:
        del channel, why
        # Init was killed, and can't tidy up. This process holds the lock too, so no other server starts here
        # before it ends.
        self.boot.config["tidy"]()
        os._exit(TEMPFAIL)

    def _hello(self, process: Process, message: m.Hello, fds: list[int]) -> None:
        if process.hello is not None:
            self.processes.violates(process, "hello, again", fds)
            return
        process.hello = message
        process.pid = message.pid
        if process.state in ("starting", "ahead"):  # else it has been told to end meanwhile
            process.state = "serving"
        process.since = self.loop.now
        self.log(DEBUG, "process.serves", process=process.name, pid=message.pid)
        self.taps.note("Began", process.name, pid=message.pid)
        if process.kind == "maildir.{user}":
            return
        if process.session:
            self.gates.taken(process)
            return
        if self.core.draining and process.kind in ("listener", "gate", "mda"):
            process.channel.send(m.ServiceDrain(on=True))
        self.singletons.serves(process.name)
        if process.kind == "spawner":
            self.spawning.go_on()
        if process.on_hello is not None:
            process.on_hello()
            return
        self.singletons.wire(process)
        if self.processes.phase == "starting" and all(p.state == "serving" for p in self._needed()):
            self._ready()

    def _needed(self) -> Iterator[Process]:
        """Yield the processes that a start waits for: not those of users who log in meanwhile."""
        return (p for p in self.processes if not p.session and p.kind != "maildir.{user}")

    def _ready(self) -> None:
        """Say that the service is ready: init says it at the terminal, this process where the log is."""
        self.processes.phase = "running"
        took, users = time.monotonic() - self.started, len(self.core.users)
        addresses = fit_text(", ".join(self.boot.config["addresses"]))
        memory = self.warm.memory
        self.processes.send_init(m.ServiceRunning(addresses, users, memory, round(took * 1000)))
        self.room.ready()
        if not self.log_writer.seen:
            self.log(
                NOTICE,
                "service.ready",
                addresses=addresses,
                users=users,
                memory=memory,
                seconds=round(took, 3),
            )

    def _actor_failed(self, process: Process, message: m.ActorFailed, fds: list[int]) -> None:
        del fds
        if process.on_failed is not None:
            process.on_failed(message.text, message.status)
            return
        if self.processes.phase == "starting":
            self.shutdown.give_up(message.status, message.text)
            return
        for line in message.text.split("\n"):
            # init reports the first fault of a failed start; the others are its consequences
            level = DEBUG if self.shutdown.early else ERROR
            self.actor_log.said(process.name, level, "process.failed", {"error": line})

    def _log_owner(self, name: str) -> str:
        process = self.processes.get(name)
        return name if process is None else process.log_owner

    def _log_event(self, process: Process, message: m.LogEvent, fds: list[int]) -> None:
        """Log an actor's event: one that its kind may send, under its own name."""
        level, event, fields = message
        why = objection(process.kind, level, event, fields)
        if why:
            self.processes.violates(process, why, fds)
            return
        if event == "tls.failed":
            self.client_sessions.client_failed(process, event, str(fields["address"]), str(fields["reason"]))
            return
        if event == "delivery.done":  # the kernel knows whose actor it is: first, and whatever that says
            mailbox: dict[str, str | int] = {"mailbox": process.name.removeprefix("maildir.")}
            fields = mailbox | fields | mailbox
        if self.actor_log.said(process.name, level, event, fields):
            self.history.event(event, fields, process.name)
        if level <= WARNING:
            self.reloads.warned(process.name, event, text_of(event, fields))

    def _counters(self, process: Process, message: m.Counters, fds: list[int]) -> None:
        del fds
        process.counters = message
        process.counters_answered += 1
        self.spawning.counters(process)

    def _process_exited(self, process: Process, message: m.ProcessExited, fds: list[int]) -> None:
        """Take the end of a child from its own parent only."""
        del fds
        child = self.processes.get(message.name)
        if child is not None and child.parent == process.name:
            self.processes.exited(message)

    def _lost_of_init(self, message: Message) -> None:
        """Handle a message of init whose descriptor had no room here.

        The log's socket needs nothing: one of the next lines asks for it again.
        """
        if isinstance(message, m.ReloadInputs):
            self.reloads.lost(self.nofile)

    # -- calls to keepers that are made later
    def _do(self, actions: list[Action], about: str = "") -> None:
        """Carry out actions, see `Execution.do`."""
        self.execution.do(actions, about)

    def _wire(self, process: Process) -> None:
        self.singletons.wire(process)

    def _stops(self) -> None:
        self.reloads.stop()

    def _hangs(self, process: Process, seconds: int) -> None:
        """Kill a process that has not answered for `seconds`."""
        if self.processes.has(process):
            self.actor_log.end(
                process.log_owner,
                ERROR,
                "process.hung",
                process=process.name,
                seconds=seconds,
            )
            self.processes.kill(process)

    # -- the operator
    def _command(self, client: Client, request: dict[str, Any]) -> None:
        """Carry out a command; kernel/operator/control.py checked the caller's rights."""
        name, answer = request["command"], client.answer
        if name == "status":
            self.asking.append(answer)
            # requests that come meanwhile get the same answer: a flood of them costs the actors one
            if len(self.asking) == 1:
                for process in self.processes:
                    process.ask()
                self.loop.later(0.1 if self.processes else 0.0, self._send_status)
        elif name == "stop":
            answer({"ok": True})
            self.loop.later(0.0, self.shutdown.begin)
        elif name == "reload":
            self.reloads.ask(answer)
        else:
            self.commands.run(client, request)

    def _send_status(self) -> None:
        asking, self.asking = self.asking, []
        said = status(
            self.boot,
            self.unveiled,
            self.processes,
            self.core,
            self.started,
            warm=self.warm.status(),
            logins=self.login_loads.status(),
            refused=self.misbehaviour.refusals,
            broken=self.misbehaviour.broken,
        )
        for answer in asking:
            answer(said)


def _names(*uids: int) -> dict[int, str]:
    """Return the names of these users, of those that have one."""
    names = {}
    for uid in uids:
        with contextlib.suppress(KeyError):
            names[uid] = pwd.getpwuid(uid).pw_name
    return names


def _settings(config: Config, found: Limits) -> leases.Settings:
    """Return the keys that decide about maildir actors and restarts."""
    return leases.Settings(
        warm_seconds=config.warm_seconds,
        warm_octets=budget(config, found),
        warm_max=most_warm(found),
        park_seconds=config.park_seconds,
        crowd=config.crowd,
        restart_intensity=config.restart_intensity,
        restart_seconds=config.restart_seconds,
        login_delay=config.login_delay,
    )


def _rules(config: Config) -> Rules:
    """Return the rules by which an address is matched with a user."""
    return Rules(
        separators=config.subaddress, fold=config.recipient_case == "fold", domains=config.recipient_domains
    )
