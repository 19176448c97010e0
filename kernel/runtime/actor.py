"""What every actor has in common: how it begins, how it locks itself in, its channel to the kernel, how it ends.

The ritual, in this order for each: take the configuration it was started with, read what it may only read now (tables,
certificates), drop its ids, unveil, start its threads if it has any, pledge, say Hello; only then read the first message.
Nothing is imported or opened once the ids are dropped: all this may lie where only root can enter.
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
from popkernel.kernel.runtime.loop import Loop
from popkernel.kernel.runtime.tap import ActorTap
from popkernel.kernel.sandbox import lock as sandbox
from popkernel.proto import messages as m
from popkernel.proto.schema import sayable
from popkernel.proto.topology import Actor as Row
from popkernel.proto.topology import actor as row_of

__all__ = ["Actor", "Boot", "become"]

SOFTWARE, OSERR, TEMPFAIL = 70, 71, 75  # sysexits(3)
_DEBUG = 7  # syslog(3)


class Boot:
    """What a process is told when it becomes an actor: its name, its channel, its ids, its configuration."""

    __slots__ = ("channel", "config", "gid", "kernel", "name", "program", "row", "sandboxed", "uid")

    def __init__(
        self,
        name: str,
        channel: socket.socket,
        uid: int,
        gid: int,
        config: dict[str, Any],
        *,
        sandboxed: bool = True,
        program: bytes | None = None,
    ) -> None:
        """`program`: the promises, compiled before (the warm image)."""
        self.name = name
        self.channel = channel
        self.kernel: Channel | None = None  # what was made of it, once the actor serves
        self.uid = uid
        self.gid = gid
        self.config = config
        self.sandboxed = sandboxed
        self.program = program
        self.row: Row = row_of(name)


MORE_DESCRIPTORS = "raise it: LimitNOFILE= in the unit, ulimit -n in a shell, openfiles in login.conf(5)"
"""The mend where RLIMIT_NOFILE is what is met."""


def hard_limit(which: int) -> int:
    """The system's bound on a limit, setrlimit(2); a very large number for none."""
    hard = resource.getrlimit(which)[1]
    return (1 << 31) if hard == resource.RLIM_INFINITY else hard


def become(boot: Boot, main: Callable[[Boot], None]) -> NoReturn:
    """Be the actor, to its end. What it did not foresee is one line for the log; at debug, each call on the way there is one too.

    What an exception says is told before the hello only: later it may hold what a client typed.
    """
    try:
        main(boot)
    except sandbox.SandboxError as error:
        _last_words(boot, OSERR, f"{boot.name} can't lock itself in: {error}", [])
    except Exception as error:  # noqa: BLE001 - whatever it is, the kernel hears of it
        way = _way(error.__traceback__)
        if boot.kernel is None and _wants(error):
            what = getattr(error, "strerror", None) or str(error) or "no memory"
            _last_words(boot, TEMPFAIL, f"{boot.name} could not be started: {what}", way)
        said = str(error) if boot.kernel is None else getattr(error, "strerror", None) or ""
        what = ": ".join(filter(None, (type(error).__name__, " ".join(said.split()))))
        text = f"{boot.name} failed by a fault of its own: {what} ({'/'.join(way[-1].split('/')[-3:])}); -vv shows the way there"
        _last_words(boot, SOFTWARE, text, way)
    os._exit(SOFTWARE)


def _wants(error: Exception) -> bool:
    """Whether it is for want of something that there may be more of in a moment."""
    if isinstance(error, OSError):
        return error.errno in WANT
    return isinstance(error, MemoryError) or "start new thread" in str(error)  # threading has no error of its own for that


def _way(trace: TracebackType | None) -> list[str]:
    """File, line and function of each call, the last one last. The module traceback would be more to load than all of this."""
    way = []
    while trace is not None:
        code = trace.tb_frame.f_code
        way.append(f"{code.co_filename}:{trace.tb_lineno} {code.co_name}")
        trace = trace.tb_next
    return way


def _last_words(boot: Boot, status: int, text: str, way: Sequence[str]) -> NoReturn:
    with contextlib.suppress(Exception):
        channel = boot.kernel or Channel(Loop(), boot.channel, boot.name, "kernel", lambda *_: None, lambda *_: None)
        if int(boot.config.get("verbose", 0)) + 5 >= _DEBUG:
            for line in way:
                channel.send(m.Log(_DEBUG, sayable(line)))
        channel.send(m.Failed(status, sayable(text)))
        if not channel.waiting and not channel.gone:
            os._exit(status)
    with contextlib.suppress(OSError):  # the kernel can't be told
        os.write(2, f"popkernel: {ascii(text)[1:-1]}\n".encode())
    os._exit(status)


class Actor:
    """The shell that all actors share. Subclasses put their messages' handlers into `handlers`."""

    def __init__(self, boot: Boot, *, many: bool = False) -> None:
        self.boot = boot
        self.loop = Loop(many=many)
        self.kernel: Channel | None = None
        self.handlers: dict[type, Callable[[Any, list[int]], None]] = {
            m.Report: self._report, m.Stop: self._stop, m.Watch: self._watch, m.Unwatch: self._unwatch,
        }
        self.verbose = int(boot.config.get("verbose", 0))
        self.unveiled = ""
        self._dropped = False
        self.nofile = 0  # descriptors this process may have: what it asked for, or less where the system's hard limit is lower
        if boot.program is None:  # who is forked from the warm image inherits it
            for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGPIPE, signal.SIGQUIT):
                signal.signal(number, signal.SIG_IGN)  # the terminal's and the service manager's words are for init

    # -- the beginning
    def lock(
        self,
        paths: Sequence[tuple[str | bytes, str]] = (),
        *,
        nofile: int | None = None,
        threads: Callable[[], None] | None = None,
    ) -> None:
        """Drop ids, unveil `paths` and nothing else, start threads, pledge. Without a sandbox the ids are dropped all the same."""
        row = self.boot.row
        many = threads is not None
        program = self.boot.program
        if program is None and self.boot.sandboxed:  # what it imports may lie where only root can enter
            program = sandbox.compile_promises(row.promises, threads=many, nested=row.nested, sockets=row.sockets)
        self.drop_ids(nofile)
        self.unveiled = sayable("\n".join([f"{os.fsdecode(path)}:{permissions}" for path, permissions in paths]))
        if program is not None:
            sandbox.unveil(paths)  # nobody but init has a socket that was not handed over: the filter has no call for one, Landlock no TCP
        if threads is not None:
            threads()
        if row.runs_as == "root":  # the others have no capability since they dropped their ids
            sandbox.keep_capabilities(row.capabilities)
        if program is not None:
            sandbox.report_broken(self._broke)
            sandbox.pledge(program, all_threads=many)

    def drop_ids(self, nofile: int | None = None) -> None:
        """Limits and ids, for good. `lock` does it for those who did not have to do something in between."""
        if not self._dropped:
            self._dropped = True
            row = self.boot.row
            self.nofile = min(nofile or row.nofile, hard_limit(resource.RLIMIT_NOFILE))
            sandbox.set_limits(nofile=self.nofile, memory=row.memory or None)
            if row.singleton:  # what the spawner's children inherit is the spawner's
                sandbox.bound_capabilities(row.capabilities)
            sandbox.drop_ids(self.boot.uid, self.boot.gid)
            self._die_with_parent()

    def _die_with_parent(self) -> None:
        die_with_parent = self.boot.config.get("die_with_parent")
        if die_with_parent is not None:
            die_with_parent()

    def _broke(self, call: str, promise: str) -> None:
        """The last word: written at once, past every queue, for nothing of this process runs after it."""
        if self.kernel is not None and not self.kernel.gone:
            self.kernel.send(m.Broke(call[:200], promise[:200]))

    def connect(self) -> None:
        """Take up the channel to the kernel, and say hello. From now on messages come in."""
        self.kernel = Channel(self.loop, self.boot.channel, self.boot.name, "kernel", self._on_kernel, self._on_kernel_gone)
        self.boot.kernel = self.kernel
        self.kernel.on_lost = self.lost
        promises = self.boot.row.promises if self.boot.sandboxed else "NONE: --insecure-no-sandbox"
        self.kernel.send(m.Hello(os.getpid(), promises, self.unveiled))

    def fail(self, status: int, text: str) -> NoReturn:
        """Can't serve: tell the kernel why, and go."""
        _last_words(self.boot, status, text, [])

    # -- the middle
    def tell(self, message: Message, fds: Sequence[int] = ()) -> None:
        """Say something to the kernel."""
        if self.kernel is not None:
            self.kernel.send(message, fds)

    def log(self, level: int, text: str) -> None:
        """A line for the log; `level` as in syslog(3). Nothing of it may be a secret or a client's unescaped words."""
        if level <= 5 + self.verbose:
            self.tell(m.Log(level, sayable(text)))

    def refuse(self, channel: Channel, why: str) -> None:
        """A peer broke the rules: the channel is closed, and the kernel told who it was."""
        channel.close()
        self.tell(m.Refused(sayable(f"{channel.peer}>{channel.me}"), channel.peer, sayable(why)))

    def _on_kernel(self, channel: Channel, message: Message, fds: list[int]) -> None:
        del channel
        self.handlers[type(message)](message, fds)

    def lost(self, message: Message) -> None:
        """The kernel's word came, and its descriptor had no room here. Who can tell whom it concerns does; else it is not done."""
        name = type(message).__name__
        self.log(3, f"{self.boot.name}: no room for the descriptor of {name}: {self.nofile} may be open (RLIMIT_NOFILE)")

    def _on_kernel_gone(self, channel: Channel, why: str) -> None:
        """Without a kernel there is no service: go, and at once."""
        del channel, why
        os._exit(TEMPFAIL)

    def sessions(self) -> int:
        """How many clients are served; for status."""
        return 0

    def _report(self, message: m.Report, fds: list[int]) -> None:
        del message, fds
        self.tell(m.Counters(counts.messages_in, counts.messages_out, self.sessions()))

    # -- watched
    def _watch(self, message: m.Watch, fds: list[int]) -> None:
        """Somebody watches. With one more Watch the tap stays, may show more, and says anew how things stand."""
        if isinstance(watch.tap, ActorTap):
            os.close(fds[0])
            watch.tap.payload = message.payload
        else:
            watch.tap = ActorTap(self.loop, adopt(fds[0]), self.boot.name, self.session_of, payload=message.payload)
        watch.tap.note("Settings", 0, {**self.settings(), "timers": True, "turns": True})

    def _unwatch(self, message: m.Unwatch, fds: list[int]) -> None:
        del message, fds
        if isinstance(watch.tap, ActorTap):
            watch.tap.flush()
            watch.tap.close()

    def session_of(self, channel: Channel, message: Message) -> int:
        """The session that a message on a channel belongs to, 0 for none; subclasses know more."""
        del channel
        return int(getattr(message, "session", 0))

    def told(self) -> dict[str, Any]:
        """Return the settings that a replay needs, as kernel/config/keys.py marks them."""
        return {name: self.boot.config[name] for name in self.boot.config["shown"]}

    def settings(self) -> dict[str, Any]:
        """What decides what this actor says, of its configuration and of what is under way: a replay begins with it. Nothing secret."""
        return {}

    def _stop(self, message: m.Stop, fds: list[int]) -> None:
        del fds
        self.stop(message.seconds)

    def stop(self, seconds: int) -> None:
        """Finish politely; subclasses that have clients say goodbye first."""
        del seconds
        self.end()

    def end(self) -> None:
        """Leave, having said everything that waits to be said to the kernel."""
        if self.kernel is not None and self.kernel.waiting:
            self.loop.later(0.01, self.end)
            return
        if isinstance(watch.tap, ActorTap):
            watch.tap.flush()
        os._exit(0)

    def run(self) -> NoReturn:
        """Serve to the end."""
        if gc.isenabled():  # not in who was forked from a warm image
            gc.collect()
            gc.freeze()  # what is there now stays, and need not be looked through again and again
            gc.set_threshold(10_000, 20, 50)  # a session leaves some cycles; measured, 2 % of a listener's time
        self.loop.run()
        os._exit(SOFTWARE)
