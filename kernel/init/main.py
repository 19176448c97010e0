"""Init: the process the operator started.

It binds the ports, forks the kernel, starts singletons afresh on the kernel's orders, passes the operator's signals on, and tidies up
when all is over. It reads nothing that ever came from the network.
"""

import os
import signal
import socket
import time
from collections.abc import Callable, Sequence
from typing import NoReturn

from popkernel.kernel.config.keys import Config, ConfigError
from popkernel.kernel.init.file_watching import WatchedBeside
from popkernel.kernel.init.ids import actor_ids, mta_uids
from popkernel.kernel.init.inputs import Read, Reading, watched
from popkernel.kernel.init.mailbox_check import Look
from popkernel.kernel.init.pass_phrase import Held
from popkernel.kernel.init.requirements import give_up_powers, require, require_cage
from popkernel.kernel.init.run_directory import RunDir, StartError
from popkernel.kernel.init.service_manager import notify
from popkernel.kernel.init.singleton_settings import Telling
from popkernel.kernel.init.singleton_start import Child, no_room, short_of, start, wait_for_children
from popkernel.kernel.init.sockets import Listening, unix_socket
from popkernel.kernel.runtime.actor import Boot
from popkernel.kernel.runtime.channel import Channel, Message, counts, pair
from popkernel.kernel.runtime.child_process import do_and_leave, end
from popkernel.kernel.runtime.deadlines import Deadline, Patience
from popkernel.kernel.runtime.exit_codes import EXITS
from popkernel.kernel.runtime.log import ERROR, NOTICE, WARNING, destination, doubt, say
from popkernel.kernel.runtime.loop import Loop
from popkernel.kernel.runtime.scheduling import unhurried
from popkernel.kernel.runtime.signals import take_signals
from popkernel.kernel.runtime.system_log import connect_for
from popkernel.kernel.sandbox import lock as sandbox
from popkernel.proto import messages as m
from popkernel.proto.schema import UnsayableError, sayable
from popkernel.proto.topology import actor as row_of

__all__ = ["run"]

SOFTWARE, OSERR, CONFIG, TEMPFAIL = (EXITS[name].code for name in ("software", "oserr", "config", "tempfail"))
BOOT = ["-m", "popkernel.kernel.runtime.singleton_boot"]  # what a fresh interpreter runs; tests that attack from inside wrap it
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD, signal.SIGQUIT)
_LAST_WAIT = 5.0  # seconds for children to go by themselves once the kernel is gone
_STOP_SECONDS = 45.0  # for a stop: all stages of it (kernel/supervisor/shutdown.py), each to the end of its time
_LOOK_SECONDS = 1.0  # how long `start --daemon` stays for what is wrong with mailboxes, once the service is ready


def run(
    config: Config, again: Callable[[], Config], version: str, on_ready: Callable[[], None] | None = None, phrase: Held | None = None,
    toml_path: str | None = None,
) -> int:
    """Serve in this process until the end; the exit code. `again` reads the configuration anew, for a reload.

    `on_ready` is called once, when the service is whole; this process is locked in by then. `phrase`: of the
    private keys, where it was asked for. `toml_path`: the file of -f, of which only who may change it is looked at.
    """
    try:
        require_cage(config)
        give_up_powers()
        ids = actor_ids(config)
        mta_uids(config)  # complains now about users that are not there
        for lack in require(config, ids):
            say(WARNING, str(lack), config.log_format)
        # Signals wait until somebody takes them: a SIGTERM now would leave the run directory behind.
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        run_dir = RunDir(config.run_dir)
        try:
            listening = Listening(config)
            control = unix_socket(config.control, 0o600)
        except BaseException:
            run_dir.tidy()
            raise
    except StartError as error:
        say(ERROR, str(error), config.log_format)
        return error.status
    except ConfigError as error:
        say(ERROR, str(error), config.log_format)
        return CONFIG
    except OSError as error:
        say(ERROR, short_of(error), config.log_format)
        return TEMPFAIL
    init = Init(config, again, version, ids, run_dir, listening, phrase)
    init.on_ready = on_ready
    init.toml_path = toml_path or ""
    return init.serve(control)


class Init:
    """The parent of the kernel and of the singletons."""

    def __init__(
        self, config: Config, again: Callable[[], Config], version: str, ids: dict[str, tuple[int, int]], run_dir: RunDir,
        listening: Listening, phrase: Held | None,
    ) -> None:
        self.config = config
        self.again = again
        self.version = version
        self.ids = ids
        self.run_dir = run_dir
        self.listening = listening
        self.loop = Loop()
        self.children: dict[int, Child] = {}
        self.kernel: Channel | None = None
        self.kernel_pid = 0
        self.status = SOFTWARE
        self.text = ""
        self.phrase = phrase
        trusted = sorted({0, os.geteuid(), *mta_uids(config)})  # as the kernel has them: until the next start
        self.telling = Telling(listening, version, trusted, phrase)
        self.toml_path = ""
        self.on_ready: Callable[[], None] | None = None
        self.before: tuple[Config, dict[str, tuple[int, int]]] | None = None  # while a reload is under way: what to go back to
        self.reread_again = False  # a SIGHUP came meanwhile
        self.watching = WatchedBeside(self.loop, self._reread)
        self.reading: Reading | None = None
        self.look: Look | None = None
        self.stopping = False
        self.patience = Patience(
            self.loop, lambda: self._tell_kernel(m.Signal("ALIVE")), lambda: self.stopping or self.before is not None, self._end_kernel,
        )

    def serve(self, control: socket.socket) -> int:
        """Read the user table, fork the kernel, then obey it."""
        unhurried()
        try:
            self.wakes = take_signals(self.loop, _SIGNALS, self._signal)
            self.loop.soon(lambda: self._read(lambda read: self._begin(read, control)))
            self._run()
        except OSError as error:  # before there was anything to serve with
            self.status, self.text = TEMPFAIL, short_of(error)
        except sandbox.SandboxError as error:
            self.status, self.text = OSERR, f"init can't lock itself in: {error}"
        self._tidy()
        if self.status:
            self._say(ERROR, self.text or f"ended with status {self.status}")
        return self.status

    def _run(self) -> None:
        """To the end. An error that nobody foresaw costs what it was about; sockets and pipes are looked at again."""
        while True:
            try:
                self.loop.run()
            except OSError as error:
                if self.kernel is None:
                    raise
                self._say(ERROR, f"init goes on after an error: {error}")
                time.sleep(0.1)  # one that comes each time leaves the processor to others
            else:
                return

    def _begin(self, read: Read, control: socket.socket) -> None:
        """With the user table that was read: fork the kernel, and lock in."""
        self.reading = None
        if read.config is None:
            self.status, self.text = read.code, read.error
            self.loop.stop()
            return
        self.watching.taken(read.states)
        mine, its = pair()
        self.kernel_pid = os.fork()
        if self.kernel_pid == 0:
            mine.close()
            do_and_leave(lambda: self._become_kernel(its, control, read.table), SOFTWARE)
        self.children[self.kernel_pid] = Child("kernel", os.getuid())
        its.close()
        control.close()
        os.close(read.table)
        self.kernel = Channel(self.loop, mine, "init", "kernel", self._on_kernel, self._on_kernel_gone)
        self.kernel.on_lost = self._lost
        if not self.config.insecure_no_sandbox:
            row = row_of("init")
            sandbox.report_broken(lambda call, promise: self._say(ERROR, f"init broke its promises: {call} would need {promise!r}; ended"))
            sandbox.pledge(sandbox.compile_promises(row.promises, threads=True, nested=row.nested, sockets=row.sockets))

    def _tidy(self) -> None:
        for beside in (self.look, self.reading, self.watching):
            if beside is not None:
                beside.end()
        wait_for_children(self.children, _LAST_WAIT)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # a second one must not turn a clean end into a death while Python goes down
        self.run_dir.tidy()

    def _say(self, level: int, text: str) -> None:
        say(level, text, self.config.log_format)

    def _become_kernel(self, channel: socket.socket, control: socket.socket, table: int) -> NoReturn:
        from popkernel.kernel.supervisor.main import Supervisor

        signal.set_wakeup_fd(-1)
        for fd in self.wakes:
            os.close(fd)
        addresses = self.listening.addresses()
        for sock in (*self.listening.tls, *self.listening.plain, *self.listening.lmtp):
            sock.close()
        if self.phrase is not None:
            self.phrase.close()
        config = {  # the lock stays open here too: should init be killed, it is held until the kernel has tidied up
            "control": control, "service": self.config, "version": self.version, "addresses": addresses,
            "verbose": self.config.verbose, "ids": self.ids, "mta_uids": mta_uids(self.config),
            "tidy": self.run_dir.tidy, "table": table,
        }
        boot = Boot("kernel", channel, os.getuid(), os.getgid(), config, sandboxed=not self.config.insecure_no_sandbox)
        Supervisor(boot).begin()

    # -- signals
    def _signal(self, number: int) -> None:
        if number == signal.SIGCHLD:
            self._reap()
        elif self.kernel is None:
            if number != signal.SIGHUP:  # it has not begun yet
                self.status = 0
                self.loop.stop()
        elif self.kernel.gone:
            return
        elif number == signal.SIGHUP:
            self._reread()
        else:
            notify("STOPPING=1")
            self.kernel.send(m.Signal("TERM"))
            if not self.stopping:
                self.stopping = True
                Deadline(self.loop, _STOP_SECONDS, lambda: self._end_kernel(f"has not ended within {_STOP_SECONDS:.0f} s"))
            self.patience.begin()

    def _end_kernel(self, why: str) -> None:
        """All is over then; whoever it has left is ended with it."""
        self.status, self.text = SOFTWARE, f"the kernel {why}; ended"
        end(self.kernel_pid)
        self.loop.later(_LAST_WAIT, self.loop.stop)  # should it hang in the system, where no signal reaches it

    # -- a reload
    def _reread(self) -> None:
        """A reload begins with the configuration: a bad one changes nothing."""
        if self.reading is not None or self.before is not None:
            self.reread_again = True
            return
        notify(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")
        self._read(self._have_read)

    def _read(self, over: Callable[[Read], None]) -> None:
        try:
            self.reading = Reading(self.loop, self.config, self.again, over)
        except OSError as error:
            over(Read(no_room(error), TEMPFAIL))

    def _have_read(self, read: Read) -> None:
        self.reading = None
        self.watching.taken(read.states)
        if read.config is None:
            self._tell_kernel(m.Unread(read.code, sayable(read.error)))
            self._settled()
            return
        self.before = self.config, self.ids
        self.config, self.ids = read.config, dict(read.ids)
        self._tell_kernel(m.Reread(", ".join(read.later)[:2000]), [read.table])
        os.close(read.table)
        self.patience.begin()

    def _settled(self) -> None:
        """Nothing of a reload is under way any more."""
        notify("READY=1")
        self.watching.set(watched(self.config) if self.config.watch else [])
        if self.reread_again:
            self.reread_again = False
            self._reread()

    def _reread_over(self, *, good: bool) -> None:
        """The kernel says how the reload went."""
        if self.before is not None and not good:
            self.config, self.ids = self.before
        self.before = None
        if good:
            self._look("reload", self._tell_mailboxes)
        self._settled()

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            child = self.children.pop(pid, None)
            for beside in (self.look, self.reading, self.watching):
                if beside is not None:
                    beside.reaped(pid)
            if child is None:
                continue
            if pid == self.kernel_pid and self.kernel is not None:
                self.kernel.read()  # its last word, with the exit code, may be there and not yet taken
                self.loop.stop()
            else:
                self._tell_kernel(m.Exited(child.name, pid, status & 0xFFFF))

    # -- the kernel's orders
    def _on_kernel(self, channel: Channel, message: Message, fds: list[int]) -> None:
        if isinstance(message, m.Execute):
            self._execute(message, fds[0])
        elif isinstance(message, m.Kill):
            for pid, child in self.children.items():
                if child.name == message.name:
                    end(pid, child.uid)
        elif isinstance(message, m.Running):
            self._running(message.text)
        elif isinstance(message, m.Signal):
            if message.name == "HUP":
                self._reread()
            elif message.name == "SYSLOG":
                connect_for(lambda fd: self._tell_kernel(m.Syslog(), [fd]))
            elif message.name == "ALIVE":
                self.patience.answered()
            else:
                self._reread_over(good=message.name == "DONE")
        elif isinstance(message, m.Report):
            channel.send(m.Counters(counts.messages_in, counts.messages_out, 0))
        elif isinstance(message, m.Ending):
            self.status, self.text = message.status, message.text

    def _lost(self, message: Message) -> None:
        """The kernel's order came, and there was no room for the channel that is the actor's."""
        if isinstance(message, m.Execute):
            self._tell_kernel(m.Unstarted(message.name, "no room for its channel in init: too many open files (RLIMIT_NOFILE)"))

    def _running(self, text: str) -> None:
        config = self.config
        say(NOTICE, text, config.log_format, timed=destination(config.log) == "stderr" and not os.isatty(2))
        lost = doubt(config.log, daemon=config.daemon)
        if lost is not None:
            self._say(WARNING, str(lost))
        notify(f"READY=1\nSTATUS=popkernel: {text}\nMAINPID={os.getpid()}")
        self.watching.set(watched(self.config) if self.config.watch else [])
        self._look("start", self._mailboxes_at_start)
        self.loop.later(_LOOK_SECONDS, self._ready)

    def _ready(self) -> None:
        """Whoever started us may go on: the service is whole, and what is wrong with mailboxes is said, or takes long."""
        on_ready, self.on_ready = self.on_ready, None
        if on_ready is not None:
            on_ready()

    # -- mailboxes
    def _look(self, why: str, over: Callable[[str, list[str]], None]) -> None:
        """At the mailboxes of the table in force. One look at a time: a later table makes an earlier look idle."""
        if self.look is not None:
            self.look.end()
        config = self.config
        decisive = [self.toml_path, config.user_table, config.auth_table, config.oauth_jwks]
        fold = config.recipient_case == "fold"
        actors = {uid: actor for actor, (uid, _gid) in self.ids.items()} if os.geteuid() == 0 else {}
        try:
            self.look = Look(
                self.loop, config.user_table, config.subdir, lambda lines: over(why, lines), decisive, fold=fold, actors=actors,
            )
        except OSError as error:
            self.look = None
            over(why, [f"mailboxes were not looked at, {no_room(error)}; see `popkernel check`"])

    def _mailboxes_at_start(self, why: str, lines: list[str]) -> None:
        if destination(self.config.log) == "syslog" and (self.on_ready is not None or not self.config.daemon):
            for line in lines:  # whoever started us reads no log, but standard error
                self._say(WARNING, line)
        self._tell_mailboxes(why, lines)
        self._ready()

    def _tell_mailboxes(self, why: str, lines: list[str]) -> None:
        """The kernel writes them into the log, and tells whoever asked for a reload."""
        for line in lines:
            self._tell_kernel(m.Signal(f"MAILBOX {why} {line}"))
        self._tell_kernel(m.Signal(f"LOOKED {why}"))

    def _tell_kernel(self, message: Message, fds: Sequence[int] = ()) -> None:
        if self.kernel is not None and not self.kernel.gone:
            try:
                self.kernel.send(message, fds)
            except UnsayableError as error:
                self._say(ERROR, f"{type(message).__name__} could not be told: {error}")
                if isinstance(message, m.Unread | m.Unstarted):  # somebody waits for it
                    self.kernel.send(message._replace(text="a text that cannot be told"))

    def _on_kernel_gone(self, channel: Channel, why: str) -> None:
        """The kernel ended, or broke the rules; either way all is over."""
        del channel
        if why:
            self.text = f"the kernel broke the rules: {why}"
            end(self.kernel_pid)
        elif not self.text and self.status:
            self.text = "the kernel is gone"
        self.loop.stop()

    def _execute(self, message: m.Execute, channel: int) -> None:
        """Start a singleton. What it is told comes from here and not from the bus."""
        uid, gid = self.ids.get(row_of(message.actor).runs_as, (os.getuid(), os.getgid()))
        try:
            self.listening.renew()
            config, fds = self.telling.of(self.config, message)
            blob = {"uid": uid, "gid": gid, "config": config, "fds": fds, "sandboxed": not self.config.insecure_no_sandbox}
            pid = start(self.loop, BOOT, message.name, blob, [channel, *fds])
        except (OSError, StartError) as error:
            self._tell_kernel(m.Unstarted(message.name, sayable(no_room(error) if isinstance(error, OSError) else str(error))))
            return
        finally:
            os.close(channel)
        self.children[pid] = Child(message.name, uid)
        self._tell_kernel(m.Started(message.name, pid))
