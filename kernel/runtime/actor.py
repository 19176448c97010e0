"""Run an actor: its start, its sandbox, its channel to the kernel and its end, the same for all actors.

The order at a start is fixed: take the configuration, read the files that need root (tables, certificates),
drop the ids, unveil, start threads if there are any, pledge, send Hello; only then read the first message.
Nothing is imported or opened after the ids are dropped: the files may be in directories that only root can
enter.
"""

import contextlib
import gc
import os
import resource
import signal
import socket
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, NoReturn

from popkernel.kernel.runtime.channel import Channel, Message, adopt, counts, watch
from popkernel.kernel.runtime.exit_codes import WANT
from popkernel.kernel.runtime.tap import ActorTap
from popkernel.kernel.runtime.world import WORLD, World
from popkernel.kernel.sandbox import lock as sandbox
from popkernel.kernel.sandbox.libc import SandboxError
from popkernel.proto import messages as m
from popkernel.proto.log_levels import DEBUG, ERROR, INFO, WARNING
from popkernel.proto.schema import fit_fields, fit_text
from popkernel.proto.topology import Actor as Row
from popkernel.proto.topology import actor as row_of

__all__ = ["Actor", "Boot", "become", "ignore_signals"]

SOFTWARE, OSERR, TEMPFAIL = 70, 71, 75  # sysexits(3)


class Boot:
    """Hold what a process gets when it becomes an actor: name, channel, ids, configuration and world."""

    __slots__ = ("channel", "config", "gid", "kernel", "name", "program", "row", "sandboxed", "uid", "world")

    def __init__(
        self,
        name: str,
        channel: socket.socket | int,
        uid: int,
        gid: int,
        config: dict[str, Any],
        *,
        sandboxed: bool = True,
        program: bytes | None = None,
        world: World = WORLD,
    ) -> None:
        """`channel`: the actor's end of its channel to the kernel, a socket or a descriptor.

        `program`: the compiled promises, if the warm image has compiled them.
        """
        self.name = name
        self.channel = channel
        self.kernel: Channel | None = None  # made of `channel` when the actor connects
        self.uid = uid
        self.gid = gid
        self.config = config
        self.sandboxed = sandboxed
        self.program = program
        self.world = world
        self.row: Row = row_of(name)


MORE_DESCRIPTORS = "raise it: LimitNOFILE= in the unit, ulimit -n in a shell, openfiles in login.conf(5)"
"""The advice when RLIMIT_NOFILE is too low."""


def hard_limit(which: int) -> int:
    """Return the hard limit of a resource, setrlimit(2); a very large number if there is none."""
    hard = resource.getrlimit(which)[1]
    return (1 << 31) if hard == resource.RLIM_INFINITY else hard


def become(boot: Boot, main: Callable[[Boot], None]) -> NoReturn:
    """Run the actor until the process ends.

    An unexpected exception becomes one line in the log; at level debug, each call of its traceback too. The
    exception's text is shown only before Hello: later it may hold what a client typed.
    """
    if boot.program is None:  # a fork of the warm image has inherited it
        ignore_signals()
    try:
        main(boot)
    except SandboxError as error:
        _last_words(boot, OSERR, f"{boot.name} can't lock itself in: {error}", [])
    except Exception as error:  # noqa: BLE001 - the kernel is told of every exception
        way = _way(error.__traceback__)
        if boot.kernel is None and _wants(error):
            what = getattr(error, "strerror", None) or str(error) or "no memory"
            _last_words(boot, TEMPFAIL, f"{boot.name} could not be started: {what}", way)
        said = str(error) if boot.kernel is None else getattr(error, "strerror", None) or ""
        what = ": ".join(filter(None, (type(error).__name__, " ".join(said.split()))))
        text = (
            f"{boot.name} failed by a fault of its own: {what} ({'/'.join(way[-1].split('/')[-3:])});"
            " -v shows the way there"
        )
        _last_words(boot, SOFTWARE, text, way)
    os._exit(SOFTWARE)


def ignore_signals() -> None:
    """Ignore the signals of the terminal and the service manager: init handles them."""
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGPIPE, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)


def _wants(error: Exception) -> bool:
    """Return whether an error means a shortage that may soon be over."""
    if isinstance(error, OSError):
        return error.errno in WANT
    # threading raises a plain RuntimeError
    return isinstance(error, MemoryError) or "start new thread" in str(error)


def _way(trace: TracebackType | None) -> list[str]:
    """Return file, line and function of each call, the innermost last.

    The module traceback is not used: loading it costs memory.
    """
    way = []
    while trace is not None:
        code = trace.tb_frame.f_code
        way.append(f"{code.co_filename}:{trace.tb_lineno} {code.co_name}")
        trace = trace.tb_next
    return way


def _last_words(boot: Boot, status: int, text: str, way: Sequence[str]) -> NoReturn:
    told = False
    with contextlib.suppress(Exception):
        channel = boot.kernel or boot.world.channel(
            boot.world.loop(), boot.channel, boot.name, "kernel", lambda *_: None, lambda *_: None
        )
        if boot.config.get("log_level", INFO) >= DEBUG:
            for call in way:
                channel.send(m.LogEvent(DEBUG, "process.failed_at", fit_fields({"call": call})))
        channel.send(m.ActorFailed(status, fit_text(text)))
        told = not channel.waiting and not channel.closed
    if not told:
        with contextlib.suppress(OSError):
            os.write(2, f"popkernel: {ascii(text)[1:-1]}\n".encode())
    boot.world.leave(status)


class Actor:
    """Be the base of all actors' shells. Subclasses put the handlers of their messages into `handlers`."""

    def __init__(self, boot: Boot, *, many: bool = False) -> None:
        self.boot = boot
        self.world = boot.world
        self.loop = self.world.loop(many=many)
        self.kernel: Channel | None = None
        self.handlers: dict[type, Callable[[Any, list[int]], None]] = {
            m.CountersRequest: self._report,
            m.ActorStop: self._stop,
            m.TraceStart: self._watch,
            m.TraceStop: self._unwatch,
        }
        self.highest = boot.config.get("log_level", INFO)
        self.unveiled = ""
        self._dropped = False
        # descriptors this process may have: its row's number, or less if the system's hard limit is lower
        self.nofile = 0

    # -- start
    def lock(
        self,
        paths: Sequence[tuple[str | bytes, str]] = (),
        *,
        nofile: int | None = None,
        threads: Callable[[], None] | None = None,
    ) -> None:
        """Drop the ids, unveil `paths` and nothing else, start threads, pledge.

        Without a sandbox only the ids are dropped, and the threads started.
        """
        row = self.boot.row
        many = threads is not None
        program = self.boot.program
        if program is None and self.boot.sandboxed:  # before the ids: it imports modules
            program = sandbox.compile_promises(
                row.promises, threads=many, nested=row.nested, sockets=row.sockets
            )
        self.drop_ids(nofile)
        self.unveiled = fit_text(
            "\n".join([f"{os.fsdecode(path)}:{permissions}" for path, permissions in paths])
        )
        if program is not None:
            # no actor can make a socket: the filter allows no call for it, and Landlock no TCP
            sandbox.unveil(paths)
        if threads is not None:
            threads()
        if row.runs_as == "root":  # the others lost their capabilities with their ids
            sandbox.keep_capabilities(row.capabilities)
        if program is not None:
            sandbox.report_broken(self._broke)
            sandbox.pledge(program, all_threads=many)

    def drop_ids(self, nofile: int | None = None) -> None:
        """Set the limits and drop the ids. `lock` calls it, unless the actor already did."""
        if not self._dropped:
            self._dropped = True
            row = self.boot.row
            self.nofile = min(nofile or row.nofile, hard_limit(resource.RLIMIT_NOFILE))
            sandbox.set_limits(nofile=self.nofile, memory=row.memory or None)
            if row.singleton:  # the spawner's children inherit its bounding set
                sandbox.bound_capabilities(row.capabilities)
            sandbox.drop_ids(self.boot.uid, self.boot.gid)
            self._die_with_parent()

    def _die_with_parent(self) -> None:
        die_with_parent = self.boot.config.get("die_with_parent")
        if die_with_parent is not None:
            die_with_parent()

    def _broke(self, call: str, promise: str) -> None:
        """Send the last message, PromiseBroken, at once: after it nothing of this process runs."""
        if self.kernel is not None and not self.kernel.closed:
            self.kernel.send(m.PromiseBroken(call[:200], promise[:200]))

    def connect(self, event: str = "", problems: Sequence[str] = ()) -> None:
        """Open the channel to the kernel and send Hello. From now on messages come in.

        `event`: of the log; each of `problems` is one such warning. They leave together with Hello: once all
        new actors have sent theirs, a reload may answer its caller, and the answer has these warnings.
        """
        self.kernel = self.world.channel(
            self.loop, self.boot.channel, self.boot.name, "kernel", self._on_kernel, self._on_kernel_dropped
        )
        self.boot.kernel = self.kernel
        self.kernel.on_lost = self.lost
        promises = self.boot.row.promises if self.boot.sandboxed else "NONE: --insecure-no-sandbox"
        hello = m.Hello(os.getpid(), promises, self.unveiled)
        if problems:
            warnings = [m.LogEvent(WARNING, event, fit_fields({"problem": text})) for text in problems]
            self.kernel.send_all([hello, *warnings])
        else:
            self.kernel.send(hello)

    def fail(self, status: int, text: str) -> NoReturn:
        """Tell the kernel why this actor can't serve, and end. `status`: a code of sysexits(3)."""
        _last_words(self.boot, status, text, [])

    # -- serving
    def send(self, message: Message, fds: Sequence[int] = ()) -> None:
        """Say something to the kernel."""
        if self.kernel is not None:
            self.kernel.send(message, fds)

    def log(self, level: int, event: str, /, **fields: str | int) -> None:
        """Send an event for the log (proto/log_events.py). No field may be a secret."""
        if level <= self.highest:
            self.tell(level, event, **fields)

    def tell(self, level: int, event: str, /, **fields: str | int) -> None:
        """Send an event that the kernel keeps in its history, whether it is logged or not."""
        self.send(m.LogEvent(level, event, fit_fields(fields)))

    def refuse(self, channel: Channel, why: str) -> None:
        """Close the channel of a peer that broke the rules, and tell the kernel its name."""
        channel.close()
        self.send(m.PeerRefused(fit_text(f"{channel.peer}>{channel.me}"), channel.peer, fit_text(why)))

    def _on_kernel(self, channel: Channel, message: Message, fds: list[int]) -> None:
        del channel
        self.handlers[type(message)](message, fds)

    def lost(self, message: Message) -> None:
        """Log a message of the kernel whose descriptor had no room here: it is not acted on.

        Subclasses that know which session it concerns end that session.
        """
        self.log(ERROR, "descriptor.lost", message=type(message).__name__, limit=self.nofile)

    def _on_kernel_dropped(self, channel: Channel, why: str) -> None:
        """End at once: without a kernel there is no service."""
        del channel, why
        self.world.leave(TEMPFAIL)

    def sessions(self) -> int:
        """Return the number of clients served, for `popkernel status`."""
        return 0

    def _report(self, message: m.CountersRequest, fds: list[int]) -> None:
        del message, fds
        self.send(m.Counters(counts.messages_in, counts.messages_out, self.sessions()))

    # -- trace
    def _watch(self, message: m.TraceStart, fds: list[int]) -> None:
        """Set the tap, and note the settings that a replay begins with.

        A second TraceStart keeps the tap, sets `payload` anew, and notes the settings again.
        """
        if isinstance(watch.tap, ActorTap):
            os.close(fds[0])
            watch.tap.payload = message.payload
        else:
            watch.tap = ActorTap(
                self.loop, adopt(fds[0]), self.boot.name, self.session_of, payload=message.payload
            )
        watch.tap.note("Settings", 0, {**self.settings(), "timers": True, "turns": True})

    def _unwatch(self, message: m.TraceStop, fds: list[int]) -> None:
        del message, fds
        if isinstance(watch.tap, ActorTap):
            watch.tap.flush()
            watch.tap.close()

    def session_of(self, channel: Channel, message: Message) -> int:
        """Return the session that a message on a channel belongs to, 0 for none; subclasses know more."""
        del channel
        return int(getattr(message, "session", 0))

    def told(self) -> dict[str, Any]:
        """Return the settings that a replay needs, as kernel/config/keys.py marks them."""
        return {name: self.boot.config[name] for name in self.boot.config["shown"]}

    def settings(self) -> dict[str, Any]:
        """Return the configuration and the state from which a replay of this actor begins. Nothing secret."""
        return {}

    def _stop(self, message: m.ActorStop, fds: list[int]) -> None:
        del fds
        self.stop(message.seconds)

    def stop(self, seconds: int) -> None:
        """End within `seconds`; subclasses that have clients finish with them first."""
        del seconds
        self.end()

    def end(self) -> None:
        """End the process, after all queued messages to the kernel have been sent."""
        if self.kernel is not None and self.kernel.waiting:
            self.loop.later(0.01, self.end)
            return
        if isinstance(watch.tap, ActorTap):
            watch.tap.flush()
        self.world.leave(0)

    def run(self) -> NoReturn:
        """Serve until the process ends."""
        if gc.isenabled():  # not in a fork of the warm image
            gc.collect()
            gc.freeze()  # the objects made so far stay, so no collection need visit them
            # a session leaves some cycles; collecting them takes 2 % of a listener's time
            gc.set_threshold(10_000, 20, 50)
        self.loop.run()
        os._exit(SOFTWARE)
