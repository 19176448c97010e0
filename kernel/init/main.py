"""Run init, the process that the operator starts.

It binds the ports, forks the kernel, starts singletons in fresh interpreters on the kernel's orders, passes
signals on to the kernel, and tidies up at the end. It reads nothing that came from the network.
"""

import os
import signal
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from popkernel.kernel.config.keys import Config
from popkernel.kernel.config.loading import ConfigError
from popkernel.kernel.init.file_watching import FileWatch
from popkernel.kernel.init.ids import actor_ids, mta_uids
from popkernel.kernel.init.inputs import InputReader, Inputs, watched_files
from popkernel.kernel.init.mailbox_check import MailboxCheck
from popkernel.kernel.init.pass_phrase import HeldPhrase
from popkernel.kernel.init.requirements import give_up_powers, require, require_cage
from popkernel.kernel.init.run_directory import RunDir, StartError
from popkernel.kernel.init.service_manager import Watchdog, notify
from popkernel.kernel.init.singleton_settings import Known, SingletonSettings, is_same, spawner_changes
from popkernel.kernel.init.singleton_start import Child, fork_failure, start, start_failure, wait_for_children
from popkernel.kernel.init.sockets import ListenSockets, unix_socket
from popkernel.kernel.runtime.actor import Boot, ignore_signals
from popkernel.kernel.runtime.channel import Channel, Message, counts, pair
from popkernel.kernel.runtime.child_process import do_and_leave, end
from popkernel.kernel.runtime.deadlines import Deadline, Patience
from popkernel.kernel.runtime.exit_codes import EXITS
from popkernel.kernel.runtime.log import destination, doubt, say
from popkernel.kernel.runtime.loop import Loop
from popkernel.kernel.runtime.scheduling import unhurried
from popkernel.kernel.runtime.signals import take_signals
from popkernel.kernel.runtime.system_log import connect_for
from popkernel.kernel.sandbox import lock as sandbox
from popkernel.kernel.sandbox.libc import SandboxError
from popkernel.proto import messages as m
from popkernel.proto.log_events import text_of
from popkernel.proto.log_levels import ERROR, NOTICE, WARNING, highest
from popkernel.proto.schema import UnsendableError, fit_text
from popkernel.proto.topology import actor as row_of

__all__ = ["run"]

SOFTWARE, OSERR, CONFIG, TEMPFAIL = (EXITS[name].code for name in ("software", "oserr", "config", "tempfail"))
# what a fresh interpreter runs; tests replace it to run hostile code in an actor
BOOT = ["-m", "popkernel.kernel.runtime.singleton_boot"]
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD, signal.SIGQUIT)
_LAST_WAIT = 5.0  # seconds for children to end by themselves once the kernel has ended
# for a stop: the sum of all its stages' limits (kernel/supervisor/shutdown.py)
_STOP_SECONDS = 45.0
# how long `start --daemon` waits for faults of mailboxes, once the service is ready
_CHECK_SECONDS = 1.0
# certificates that ReloadInputs names, and characters of a path
_MOST_CERTIFICATES, _PATH = 64, 400


def run(
    config: Config,
    again: Callable[[], Config],
    version: str,
    on_ready: Callable[[], None] | None = None,
    phrase: HeldPhrase | None = None,
    toml_path: str | None = None,
) -> int:
    """Run the service with this process as init, until its end. Return the exit code (sysexits(3)).

    Args:
        config: the configuration.
        again: reads the configuration anew, for a reload.
        version: popkernel's.
        on_ready: called once all actors serve; this process is in the sandbox by then.
        phrase: the pass phrase of the private keys, if it was asked for.
        toml_path: the file of -f; init checks its permissions only.
    """
    try:
        require_cage(config)
        give_up_powers()
        ids = actor_ids(config)
        mta_uids(config)  # raises now for users that do not exist
        for lack in require(config, ids):
            say(WARNING, "service.doubt", config.log_format, problem=str(lack))
        # Blocked until serve() handles them: a SIGTERM now would leave the run directory behind.
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        run_dir = RunDir(config.run_dir)
        try:
            listening = ListenSockets(config)
            control = unix_socket(config.control, 0o600)
        except BaseException:
            run_dir.tidy()
            raise
    except StartError as error:
        say(ERROR, "service.failed", config.log_format, error=str(error))
        return error.status
    except ConfigError as error:
        say(ERROR, "service.failed", config.log_format, error=str(error))
        return CONFIG
    except OSError as error:
        say(ERROR, "service.failed", config.log_format, error=start_failure(error))
        return TEMPFAIL
    init = Init(config, again, version, ids, run_dir, listening, phrase)
    init.on_ready = on_ready
    init.toml_path = toml_path or ""
    return init.serve(control)


class Init:
    """The parent of the kernel and of the singletons."""

    def __init__(
        self,
        config: Config,
        again: Callable[[], Config],
        version: str,
        ids: dict[str, tuple[int, int]],
        run_dir: RunDir,
        listening: ListenSockets,
        phrase: HeldPhrase | None,
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
        trusted = sorted({0, os.geteuid(), *mta_uids(config)})  # until the next start, as in the kernel
        self.settings = SingletonSettings(listening, version, trusted, phrase)
        self.toml_path = ""
        self.on_ready: Callable[[], None] | None = None
        self.contents: dict[str, str] = {}  # digests of the files that actors read at their start
        self.running = False  # all actors have served
        # during a reload: what to return to if it fails
        self.before: Known | None = None
        self.reread_again = False  # a SIGHUP came during a reload
        self.watching = FileWatch(self.loop, self._reread)
        self.reading: InputReader | None = None
        self.mailbox_check: MailboxCheck | None = None
        self.stopping = False
        self.patience = Patience(
            self.loop,
            lambda: self._send_kernel(m.KernelCheck()),
            lambda: self.stopping or self.before is not None,
            self._end_kernel,
        )
        self.watchdog = Watchdog(self.loop, lambda: self._send_kernel(m.KernelCheck()))

    def serve(self, control: socket.socket) -> int:
        """Read the inputs, fork the kernel, and carry out its orders. Return the exit code (sysexits(3))."""
        unhurried()
        try:
            self.wakes = take_signals(self.loop, _SIGNALS, self._signal)
            self.loop.soon(lambda: self._read(lambda read: self._begin(read, control)))
            self._run()
        except OSError as error:  # before the kernel was forked
            self.status, self.text = TEMPFAIL, start_failure(error)
        except SandboxError as error:
            self.status, self.text = OSERR, f"init can't lock itself in: {error}"
        self._tidy()
        if self.status:
            self._say(ERROR, "service.failed", error=self.text or f"ended with status {self.status}")
        return self.status

    def _run(self) -> None:
        """Run the loop to its end.

        An unexpected error costs the event that raised it; the loop goes on.
        """
        while True:
            try:
                self.loop.run()
            except OSError as error:
                if self.kernel is None:
                    raise
                self._say(ERROR, "init.error", error=str(error))
                time.sleep(0.1)  # so that an error that repeats does not take the processor
            else:
                return

    def _begin(self, inputs: Inputs, control: socket.socket) -> None:
        """Fork the kernel with the inputs that were read, and enter the sandbox."""
        self.reading = None
        if inputs.config is None:
            self.status, self.text = inputs.code, inputs.error
            self.loop.stop()
            return
        self.watching.mark_read(inputs.states)
        self.contents = dict(inputs.contents)
        mine, its = pair()
        self.kernel_pid = os.fork()
        if self.kernel_pid == 0:
            mine.close()
            do_and_leave(lambda: self._become_kernel(its, control, inputs), SOFTWARE)
        self.children[self.kernel_pid] = Child("kernel", os.getuid())
        its.close()
        control.close()
        os.close(inputs.table)
        self.kernel = Channel(self.loop, mine, "init", "kernel", self._on_kernel, self._on_kernel_dropped)
        self.kernel.on_lost = self._lost
        if not self.config.insecure_no_sandbox:
            row = row_of("init")
            sandbox.report_broken(
                lambda call, promise: self._say(
                    ERROR, "process.broke_promise", process="init", call=call, promise=promise, then="ended"
                )
            )
            sandbox.pledge(
                sandbox.compile_promises(row.promises, threads=True, nested=row.nested, sockets=row.sockets)
            )

    def _tidy(self) -> None:
        for helper in (self.mailbox_check, self.reading, self.watching):
            if helper is not None:
                helper.end()
        wait_for_children(self.children, _LAST_WAIT)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            # a second signal while Python finalizes would spoil the exit status
            signal.signal(number, signal.SIG_IGN)
        self.run_dir.tidy()

    def _say(self, level: int, event: str, /, **fields: Any) -> None:
        say(level, event, self.config.log_format, **fields)

    def _become_kernel(self, channel: socket.socket, control: socket.socket, inputs: Inputs) -> NoReturn:
        from popkernel.kernel.supervisor.main import Supervisor

        signal.set_wakeup_fd(-1)
        for fd in self.wakes:
            os.close(fd)
        addresses = self.listening.addresses()
        for sock in (*self.listening.tls, *self.listening.plain, *self.listening.lmtp):
            sock.close()
        if self.phrase is not None:
            self.phrase.close()
        # the lock stays open here too: if init is killed, it is held until the kernel has tidied up
        config = {
            "control": control,
            "service": self.config,
            "version": self.version,
            "addresses": addresses,
            "log_level": highest(self.config.verbose, quiet=self.config.quiet),
            "ids": self.ids,
            "mta_uids": mta_uids(self.config),
            "tidy": self.run_dir.tidy,
            "table": inputs.table,
            "certificates": list(inputs.certificates),
        }
        boot = Boot(
            "kernel", channel, os.getuid(), os.getgid(), config, sandboxed=not self.config.insecure_no_sandbox
        )
        ignore_signals()
        Supervisor(boot).begin()

    # -- signals
    def _signal(self, number: int) -> None:
        if number == signal.SIGCHLD:
            self._reap()
        elif self.kernel is None:
            if number != signal.SIGHUP:  # the service has not begun, so there is nothing to reload
                self.status = 0
                self.loop.stop()
        elif self.kernel.closed:
            return
        elif number == signal.SIGHUP:
            self._reread()
        else:
            notify("STOPPING=1")
            self.kernel.send(m.ServiceStop())
            if not self.stopping:
                self.stopping = True
                Deadline(
                    self.loop,
                    _STOP_SECONDS,
                    lambda: self._end_kernel(f"has not ended within {_STOP_SECONDS:.0f} s"),
                )
            self.patience.begin()

    def _end_kernel(self, why: str) -> None:
        """Kill the kernel; its end ends the service."""
        self.status, self.text = SOFTWARE, f"the kernel {why}; ended"
        end(self.kernel_pid)
        # in case it hangs in the system, where SIGKILL has no effect yet
        self.loop.later(_LAST_WAIT, self.loop.stop)

    # -- a reload
    def _reread(self) -> None:
        """Begin a reload by reading the inputs: with faulty ones nothing changes."""
        if self.reading is not None or self.before is not None:
            self.reread_again = True
            return
        notify(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")
        self._read(self._have_read)

    def _read(self, over: Callable[[Inputs], None]) -> None:
        try:
            self.reading = InputReader(self.loop, self.config, self.again, over)
        except OSError as error:
            over(Inputs(fork_failure(error), TEMPFAIL))

    def _have_read(self, inputs: Inputs) -> None:
        self.reading = None
        self.watching.mark_read(inputs.states)
        if inputs.config is None:
            self._send_kernel(m.ReloadInputsFailed(inputs.code, fit_text(inputs.error)))
            self._settled()
            return
        before = self.before = Known(self.config, self.ids, self.contents)
        after = Known(inputs.config, dict(inputs.ids), dict(inputs.contents))
        self.config, self.ids, self.contents = after
        paths = [fit_text(path)[-_PATH:] for path, _ in inputs.certificates[:_MOST_CERTIFICATES]]
        self._send_kernel(
            m.ReloadInputs(
                ", ".join(inputs.later)[:2000],
                *spawner_changes(before.config, after.config),
                not is_same("auth", before, after),
                not is_same("listener", before, after),
                paths,
                [end for _, end in inputs.certificates[:_MOST_CERTIFICATES]],
            ),
            [inputs.table],
        )
        os.close(inputs.table)
        self.patience.begin()

    def _settled(self) -> None:
        """Report the end of a reload, watch the files in force, and begin the next reload if one is due."""
        notify("READY=1")
        self.watching.set(watched_files(self.config) if self.config.watch else [])
        if self.reread_again:
            self.reread_again = False
            self._reread()

    def _reread_over(self, *, good: bool) -> None:
        """Take the result of a reload from the kernel; undo it here if it failed."""
        if self.before is not None and not good:
            self.config, self.ids, self.contents = self.before
        self.before = None
        if good:
            self._check_mailboxes("reload", self._send_mailbox_faults)
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
            for helper in (self.mailbox_check, self.reading, self.watching):
                if helper is not None:
                    helper.reaped(pid)
            if child is None:
                continue
            if pid == self.kernel_pid and self.kernel is not None:
                self.kernel.receive()  # ServiceEnding, with the exit code, may still wait in the channel
                self.loop.stop()
            else:
                self._send_kernel(m.ProcessExited(child.name, pid, status & 0xFFFF))

    # -- the kernel's orders
    def _on_kernel(self, channel: Channel, message: Message, fds: list[int]) -> None:
        if isinstance(message, m.SingletonStart):
            self._execute(message, fds[0])
        elif isinstance(message, m.ProcessKill):
            for pid, child in self.children.items():
                if child.name == message.name:
                    end(pid, child.uid)
        elif isinstance(message, m.ServiceRunning):
            self._running(message)
        elif isinstance(message, m.ReloadRequest):
            self._reread()
        elif isinstance(message, m.ReloadDone):
            self._reread_over(good=message.good)
        elif isinstance(message, m.SyslogRequest):
            connect_for(lambda fd: self._send_kernel(m.SyslogChannel(), [fd]))
        elif isinstance(message, m.KernelLives):
            self.patience.answered()
            self.watchdog.answered()
        elif isinstance(message, m.CountersRequest):
            channel.send(m.Counters(counts.messages_in, counts.messages_out, 0))
        elif isinstance(message, m.ServiceEnding):
            self.status, self.text = message.status, message.text

    def _lost(self, message: Message) -> None:
        """Report an order to start a singleton whose channel's descriptor had no room."""
        if isinstance(message, m.SingletonStart):
            self._send_kernel(
                m.ProcessUnstarted(
                    message.name, "no room for its channel in init: too many open files (RLIMIT_NOFILE)"
                )
            )

    def _running(self, message: m.ServiceRunning) -> None:
        config = self.config
        self.running = True
        ready = {
            "addresses": message.addresses,
            "users": message.users,
            "memory": message.memory,
            "seconds": message.milliseconds / 1000,
        }
        timed = destination(config.log) == "stderr" and not os.isatty(2)
        say(NOTICE, "service.ready", config.log_format, timed=timed, **ready)
        lost = doubt(config.log, daemon=config.daemon)
        if lost is not None:
            self._say(WARNING, "service.doubt", problem=str(lost))
        notify(f"READY=1\nSTATUS=popkernel: {text_of('service.ready', ready)}\nMAINPID={os.getpid()}")
        self.watchdog.begin()
        self.watching.set(watched_files(self.config) if self.config.watch else [])
        self._check_mailboxes("start", self._mailboxes_at_start)
        self.loop.later(_CHECK_SECONDS, self._ready)

    def _ready(self) -> None:
        """Call `on_ready`: the service is up, and faults of mailboxes are reported or take long to find."""
        on_ready, self.on_ready = self.on_ready, None
        if on_ready is not None:
            on_ready()

    # -- mailboxes
    def _check_mailboxes(self, why: str, over: Callable[[str, list[str]], None]) -> None:
        """Check the mailboxes of the table in force. A check of an earlier table is ended."""
        if self.mailbox_check is not None:
            self.mailbox_check.end()
        config = self.config
        sensitive = [self.toml_path, config.user_table, config.auth_table, config.oauth_jwks]
        fold = config.recipient_case == "fold"
        actors = {uid: actor for actor, (uid, _gid) in self.ids.items()} if os.geteuid() == 0 else {}
        try:
            self.mailbox_check = MailboxCheck(
                self.loop,
                config.user_table,
                config.subdir,
                lambda lines: over(why, lines),
                sensitive,
                fold=fold,
                actors=actors,
            )
        except OSError as error:
            self.mailbox_check = None
            over(why, [f"mailboxes were not looked at, {fork_failure(error)}; see `popkernel check`"])

    def _mailboxes_at_start(self, why: str, lines: list[str]) -> None:
        if destination(self.config.log) == "syslog" and (self.on_ready is not None or not self.config.daemon):
            for line in lines:  # to standard error as well: the operator who starts it does not see the log
                self._say(WARNING, "mailbox.fault", fault=line)
        self._send_mailbox_faults(why, lines)
        self._ready()

    def _send_mailbox_faults(self, why: str, lines: list[str]) -> None:
        """Send the faults to the kernel, which logs them and answers the operator who asked for a reload."""
        for line in lines:
            self._send_kernel(m.MailboxFault(why, line))
        self._send_kernel(m.MailboxesChecked(why))

    def _send_kernel(self, message: Message, fds: Sequence[int] = ()) -> None:
        if self.kernel is not None and not self.kernel.closed:
            try:
                self.kernel.send(message, fds)
            except UnsendableError as error:
                self._say(ERROR, "message.untold", message=type(message).__name__, error=str(error))
                if isinstance(message, m.ReloadInputsFailed | m.ProcessUnstarted):  # the kernel waits for it
                    self.kernel.send(message._replace(text="a text that cannot be told"))

    def _on_kernel_dropped(self, channel: Channel, why: str) -> None:
        """End the service after the kernel ended, or kill it after it broke the rules."""
        del channel
        if why:
            self.text = f"the kernel broke the rules: {why}"
            end(self.kernel_pid)
        elif not self.text and self.status:
            self.text = "the kernel is gone"
        self.loop.stop()

    def _execute(self, message: m.SingletonStart, channel: int) -> None:
        """Start a singleton. Its settings come from init's configuration, not from the bus."""
        uid, gid = self.ids.get(row_of(message.actor).runs_as, (os.getuid(), os.getgid()))
        if self.running and self.before is None:
            # it starts again, and reads its files as they are now: the next reload replaces it in any case
            self.contents.pop("listener" if message.actor == "gate" else message.actor, None)
        try:
            self.listening.renew()
            config, fds = self.settings.of(self.config, message)
            blob = {
                "uid": uid,
                "gid": gid,
                "config": config,
                "fds": fds,
                "sandboxed": not self.config.insecure_no_sandbox,
            }
            pid = start(self.loop, BOOT, message.name, blob, [channel, *fds])
        except (OSError, StartError) as error:
            self._send_kernel(
                m.ProcessUnstarted(
                    message.name, fit_text(fork_failure(error) if isinstance(error, OSError) else str(error))
                )
            )
            return
        finally:
            os.close(channel)
        self.children[pid] = Child(message.name, uid)
        self._send_kernel(m.ProcessStarted(message.name, pid))
