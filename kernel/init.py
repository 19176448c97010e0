"""Init: the process the operator started.

It binds the ports, forks the kernel, starts singletons afresh on the kernel's orders, passes the operator's signals on, and tidies up
when all is over. It reads nothing that ever came from the network.
"""

import contextlib
import fcntl
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import fields, replace
from typing import NoReturn

import msgpack
from popkernel.kernel.actor import Boot
from popkernel.kernel.channel import Channel, Message, pair
from popkernel.kernel.child import do_and_leave
from popkernel.kernel.config import Config, ConfigError
from popkernel.kernel.exits import EXITS
from popkernel.kernel.ids import actor_ids, mta_uids
from popkernel.kernel.listening import Listening, unix_socket
from popkernel.kernel.log import ERROR, NOTICE, WARNING, destination, say
from popkernel.kernel.look import Look
from popkernel.kernel.loop import Loop
from popkernel.kernel.passphrase import Held
from popkernel.kernel.priority import unhurried
from popkernel.kernel.rundir import RunDir, StartError
from popkernel.kernel.sandbox import lock as sandbox
from popkernel.kernel.told import Telling
from popkernel.kernel.watching import Watching
from popkernel.proto import messages as m
from popkernel.proto.topology import actor as row_of

__all__ = ["run"]

SOFTWARE, OSERR, CONFIG = (EXITS[name].code for name in ("software", "oserr", "config"))
BOOT = ["-m", "popkernel.kernel.boot"]  # what a fresh interpreter runs; tests that attack from inside wrap it
_RELOADED = frozenset({  # keys that a reload puts in force; the others wait for the next start
    "auth_table", "cert", "key", "tls_min", "allow_plaintext", "login_case", "login_seconds", "idle_seconds", "max_sessions",
    "auth_cache_seconds",
    "hostname", "quota", "quota_users", "quota_temporary", "listener_user", "auth_user", "session_memory",
    "certs", "key_passphrase_file", "max_sessions_address", "connects_per_minute", "max_handshakes", "max_logins",
    "max_logins_user", "most_errors", "max_commands", "proxy_networks",
    "penalty_seconds", "ipv6_prefix", "block_list", "oauth_issuer", "oauth_audience", "oauth_jwks", "oauth_user_claim", "oauth_scope",
    "watch", "deletion", "hide_trashed", "set_seen", "expire_days", "uidl_from",
})
_ROOM = " " * 200  # an argument that nobody reads: room for title.py to write a name into
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD, signal.SIGQUIT)
_LAST_WAIT = 5.0  # seconds for children to go by themselves once the kernel is gone
_LOOK_SECONDS = 1.0  # how long `start --daemon` stays for what is wrong with mailboxes, once the service is ready


def run(
    config: Config, again: Callable[[], Config], version: str, on_ready: Callable[[], None] | None = None, phrase: Held | None = None,
    toml_path: str | None = None,
) -> int:
    """Serve in this process until the end; the exit code. `again` reads the configuration anew, for a reload.

    `on_ready` is called once, when the service is whole; this process is locked in by then. `phrase`: of the
    private keys, where it was asked for. `toml_path`: the file of -f, of which only who may change it is looked at.
    """
    # Signals wait until somebody takes them: a SIGTERM now would leave the run directory behind.
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        _check_sandbox(config)
        _give_up_powers()
        ids = actor_ids(config)
        mta_uids(config)  # complains now about users that are not there
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
    init = Init(config, again, version, ids, run_dir, listening, phrase)
    init.on_ready = on_ready
    init.toml_path = toml_path or ""
    return init.serve(control)


def _check_sandbox(config: Config) -> None:
    lacks = sandbox.missing()
    if lacks and not config.insecure_no_sandbox:
        raise StartError(OSERR, "actors can't be locked in here: " + "; ".join(lacks))


def _give_up_powers() -> None:
    """What no process of ours needs of root's powers, none has."""
    capabilities = row_of("init").capabilities
    try:
        sandbox.bound_capabilities(capabilities)
        sandbox.keep_capabilities(capabilities)
    except sandbox.SandboxError as error:
        raise StartError(OSERR, str(error)) from None


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
        self.children: dict[int, str] = {}
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
        self.watching = Watching(self.loop, self._watched, self._reread)
        self.look: Look | None = None

    def serve(self, control: socket.socket) -> int:
        """Fork the kernel, then obey it."""
        unhurried()
        mine, its = pair()
        woken, wake = os.pipe()
        self.kernel_pid = os.fork()
        if self.kernel_pid == 0:
            os.close(woken)
            os.close(wake)
            mine.close()
            do_and_leave(lambda: self._become_kernel(its, control), SOFTWARE)
        its.close()
        control.close()
        os.set_blocking(woken, False)
        os.set_blocking(wake, False)
        self._take_signals(woken, wake)
        self.children[self.kernel_pid] = "kernel"
        self.kernel = Channel(self.loop, mine, "init", "kernel", self._on_kernel, self._on_kernel_gone)
        if not self.config.insecure_no_sandbox:
            row = row_of("init")
            sandbox.report_broken(lambda call, promise: self._say(ERROR, f"init broke its promises: {call} would need {promise!r}; ended"))
            sandbox.pledge(sandbox.compile_promises(row.promises, threads=True, nested=row.nested, sockets=row.sockets))
        self.loop.run()
        if self.look is not None:
            self.look.end()
        self._wait_for_children()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # a second one must not turn a clean end into a death while Python goes down
        self.run_dir.tidy()
        if self.status:
            self._say(ERROR, self.text or f"ended with status {self.status}")
        return self.status

    def _say(self, level: int, text: str) -> None:
        say(level, text, self.config.log_format)

    def _become_kernel(self, channel: socket.socket, control: socket.socket) -> NoReturn:
        from popkernel.kernel.supervisor import Supervisor

        addresses = self.listening.addresses()
        for sock in (*self.listening.tls, *self.listening.plain, *self.listening.lmtp):
            sock.close()
        if self.phrase is not None:
            self.phrase.close()
        config = {  # the lock stays open here too: should init be killed, it is held until the kernel has tidied up
            "control": control, "service": self.config, "version": self.version, "addresses": addresses,
            "verbose": self.config.verbose, "ids": self.ids, "mta_uids": mta_uids(self.config),
            "tidy": self.run_dir.tidy,
        }
        boot = Boot("kernel", channel, os.getuid(), os.getgid(), config, sandboxed=not self.config.insecure_no_sandbox)
        supervisor = Supervisor(boot)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        supervisor.begin()

    # -- signals
    def _take_signals(self, woken: int, wake: int) -> None:
        """Python's handlers only note a signal; the descriptor wakes the loop."""
        for number in _SIGNALS:
            signal.signal(number, lambda *_: None)
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)

        def ready(events: int) -> None:
            del events
            for number in set(os.read(woken, 512)):
                self._signal(number)

        self.loop.add(woken, ready)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)

    def _signal(self, number: int) -> None:
        if self.kernel is None or self.kernel.gone:
            self._reap()
            return
        if number == signal.SIGCHLD:
            self._reap()
        elif number == signal.SIGHUP:
            self._reread()
        else:
            notify("STOPPING=1")
            self.kernel.send(m.Signal("TERM"))

    def _watched(self) -> list[str]:
        """The files that a reload reads, but for the configuration itself: its keys are the operator's to put in force."""
        config = self.config
        pairs = [path for pair in config.certs for path in pair]
        paths = [config.auth_table, config.user_table, config.cert, config.key, *pairs, config.block_list, config.oauth_jwks]
        return [*paths, config.key_passphrase_file]

    def _reread(self) -> None:
        """A reload begins with the configuration: a bad one changes nothing."""
        assert self.kernel is not None
        if self.before is not None:
            self.reread_again = True
            return
        notify(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")
        try:
            new = self.again()
            changed = [f.name for f in fields(Config) if getattr(new, f.name) != getattr(self.config, f.name)]
            fixed = [name for name in changed if name not in _RELOADED]
            config = replace(new, **{name: getattr(self.config, name) for name in fixed})
            ids = actor_ids(config)
        except ConfigError as error:
            self.kernel.send(m.Signal(("NOT " + str(error))[:2000]))
            notify("READY=1")
            return
        self.before = self.config, self.ids
        self.config, self.ids = config, ids
        self.watching.taken()
        self.watching.set(on=config.watch)
        self.kernel.send(m.Signal(" ".join(["HUP", ", ".join(fixed)]).strip()[:2000]))

    def _reread_over(self, *, good: bool) -> None:
        """The kernel says how the reload went."""
        if self.before is not None and not good:
            self.config, self.ids = self.before
            self.watching.set(on=self.config.watch)
        self.before = None
        notify("READY=1")
        if good:
            self._look("reload", self._tell_mailboxes)
        if self.reread_again:
            self.reread_again = False
            self._reread()

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            name = self.children.pop(pid, "")
            if self.look is not None:
                self.look.reaped(pid)
            if name == "kernel":
                if self.kernel is not None:
                    self.kernel.read()  # its last word, with the exit code, may be there and not yet taken
                self.loop.stop()
            elif name and self.kernel is not None:
                self.kernel.send(m.Exited(name, pid, status & 0xFFFF))

    # -- the kernel's orders
    def _on_kernel(self, channel: Channel, message: Message, fds: list[int]) -> None:
        del channel
        if isinstance(message, m.Execute):
            self._execute(message, fds[0])
        elif isinstance(message, m.Kill):
            for pid, name in list(self.children.items()):
                if name == message.name:
                    os.kill(pid, signal.SIGKILL)  # our child, not reaped yet: the number is nobody else's
        elif isinstance(message, m.Running):
            self._running(message.text)
        elif isinstance(message, m.Signal):
            if message.name == "HUP":
                self._reread()
            else:
                self._reread_over(good=message.name == "DONE")
        elif isinstance(message, m.Ending):
            self.status, self.text = message.status, message.text

    def _running(self, text: str) -> None:
        self._say(NOTICE, text)
        notify(f"READY=1\nSTATUS=popkernel: {text}\nMAINPID={os.getpid()}")
        self.watching.set(on=self.config.watch)
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
        self.look = Look(self.loop, config.user_table, config.subdir, lambda lines: over(why, lines), decisive, fold=fold)

    def _mailboxes_at_start(self, why: str, lines: list[str]) -> None:
        if destination(self.config.log) == "syslog" and (self.on_ready is not None or not self.config.daemon):
            for line in lines:  # whoever started us reads no log, but standard error
                self._say(WARNING, line)
        self._tell_mailboxes(why, lines)
        self._ready()

    def _tell_mailboxes(self, why: str, lines: list[str]) -> None:
        """The kernel writes them into the log, and tells whoever asked for a reload."""
        if self.kernel is not None and not self.kernel.gone:
            for line in lines:
                self.kernel.send(m.Signal(f"MAILBOX {why} {line}"))
            self.kernel.send(m.Signal(f"LOOKED {why}"))

    def _on_kernel_gone(self, channel: Channel, why: str) -> None:
        """The kernel ended, or broke the rules; either way all is over."""
        del channel
        if why:
            self.text = f"the kernel broke the rules: {why}"
            os.kill(self.kernel_pid, signal.SIGKILL)
        elif not self.text and self.status:
            self.text = "the kernel is gone"
        self.loop.stop()

    def _execute(self, message: m.Execute, channel: int) -> None:
        """Start a singleton: fork, exec a fresh interpreter. What it is told comes on a pipe, from here and not from the bus."""
        config, fds = self.telling.of(self.config, message)
        uid, gid = self.ids.get(row_of(message.actor).runs_as, (os.getuid(), os.getgid()))
        blob = {"uid": uid, "gid": gid, "config": config, "fds": fds, "sandboxed": not self.config.insecure_no_sandbox}
        reading, writing = os.pipe()
        packed = msgpack.packb(blob)
        fcntl.fcntl(writing, getattr(fcntl, "F_SETPIPE_SZ", 1031), max(65536, len(packed) + 4096))
        os.write(writing, packed)
        os.close(writing)
        pid = os.fork()
        if pid == 0:
            try:
                _exec(message.name, reading, [channel, *fds])
            finally:
                os._exit(OSERR)
        os.close(reading)
        os.close(channel)
        self.children[pid] = message.name
        assert self.kernel is not None
        self.kernel.send(m.Started(message.name, pid))

    # -- the end
    def _wait_for_children(self) -> None:
        """They go when their channel to the kernel ends; who does not is ended."""
        until = time.monotonic() + _LAST_WAIT
        while self.children:
            pid, _ = os.waitpid(-1, os.WNOHANG)
            if pid:
                self.children.pop(pid, None)
            elif time.monotonic() > until:
                for child in self.children:
                    os.kill(child, signal.SIGKILL)
                until += _LAST_WAIT
            else:
                time.sleep(0.005)


def _exec(name: str, blob: int, fds: list[int]) -> None:
    """In the child: keep those descriptors, lose everything else, become a fresh interpreter."""
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # stays so over exec: those are init's
    for fd in (blob, *fds):
        os.set_inheritable(fd, True)
    arguments = [sys.executable, "-I", *BOOT, name, str(fds[0]), str(blob), _ROOM]
    os.execve(
        sys.executable,
        arguments,
        {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", **({"TZ": os.environ["TZ"]} if "TZ" in os.environ else {})},
    )


def notify(text: str) -> None:
    """sd_notify(3): tell the service manager, where there is one."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path:
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.connect("\0" + path[1:] if path[0] == "@" else path)
        sock.sendall(text.encode())
