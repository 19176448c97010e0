"""The processes that the kernel has had started: what it knows of each, its channel to each, and what follows from an end.

The registry makes the channels, sends, and has parents end their children. What follows from the end of a process is the affair of those
who keep something for it (sessions, seats, maildrops): each puts its function into `on_exit`, and none knows the others.
"""

import contextlib
import os
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from popkernel.kernel.runtime.channel import Channel, Message, discard, pair
from popkernel.kernel.runtime.exit_codes import EXITS
from popkernel.kernel.runtime.loop import Loop
from popkernel.proto import messages as m
from popkernel.proto.topology import kind_of

__all__ = ["Exit", "Process", "Processes", "without_count"]

_MOST_SAID = 2000  # messages
_GONE_SECONDS = 1.0  # for one that said that it goes
_NO_ROOM = "no room for its memory, descriptors or threads"
_SOFTWARE, _TEMPFAIL = EXITS["software"].code, EXITS["tempfail"].code


class Process:
    """An actor that runs, or is about to."""

    __slots__ = (
        "accusations", "accusers", "answered", "asked", "call_off", "channel", "condemned", "counters", "goes", "hello", "ids", "kind",
        "met", "name", "on_failed", "on_hello", "parent", "pid", "restarts", "said", "said_since", "session", "since", "state",
    )

    def __init__(self, name: str, channel: Channel, parent: str) -> None:
        self.name = name
        self.kind = kind_of(name)
        self.channel = channel
        self.parent = parent  # who forked it and reaps it; "" while it waits for its fork (kernel/supervisor/spawning.py)
        self.pid = 0
        self.ids: tuple[int, int] | None = None  # uid and gid of a maildir actor, as its row had them when it was forked
        self.session = 0  # of a listener that serves one connection alone: the only one it may speak of
        self.state = "starting"  # ahead (kernel/supervisor/gates.py), starting, serving, draining, stopping
        self.hello: m.Hello | None = None
        self.counters = m.Counters(0, 0, 0)
        self.asked = self.answered = 0  # for its counters, how often
        self.restarts = 0
        self.said, self.said_since = 0, 0.0  # messages, in a second that began then
        self.since = 0.0
        self.accusers: dict[str, float] = {}  # maildir actors that said it broke the rules, and when
        self.accusations: list[float] = []  # when it said that of a singleton
        self.condemned = False  # its end has been ordered on somebody's word
        self.goes = 0.0  # by when one that goes of its own will has to be gone, or to have no session; 0: it stays
        self.met = ""  # who was last given a channel to it
        self.on_hello: Callable[[], None] | None = None  # of who waits for it to serve, and of nobody else
        self.on_failed: Callable[[str, int], None] | None = None  # likewise: why it cannot, and the code (sysexits(3))
        self.call_off: Callable[[], None] | None = None  # while it waits for its fork: see to it that it is not forked

    @property
    def whose(self) -> str:
        """Whose share of the log its end is: listeners of one connection each have no name twice, so it is their gate's."""
        return self.parent if self.session else self.name

    def ask(self) -> int:
        """Ask it for its counters, which come once it has done with all that it was told before; which question this is."""
        self.asked += 1
        self.channel.send(m.Report())
        return self.asked

    def floods(self, now: float) -> bool:
        """One more message has come; whether that is more than an honest maildir actor ever says in a second."""
        if now - self.said_since > 1.0:
            self.said, self.said_since = 0, now
        self.said += 1
        return self.said > _MOST_SAID


class Exit(NamedTuple):
    """How a process ended."""

    status: int  # wait(2)'s
    why: str = ""  # what there was no room for, where it could not even be started
    expected: bool = False  # it was told to go

    @property
    def silent(self) -> bool:
        """Whether the system ended it for a call that it may not make, and its handler could not say which.

        The handler is not called where a library had blocked the signals of its thread, as glibc 2.41 does around clone.
        """
        return os.WIFSIGNALED(self.status) and os.WTERMSIG(self.status) == signal.SIGSYS

    @property
    def how(self) -> str:
        """The status in words."""
        if os.WIFSIGNALED(self.status):
            number = os.WTERMSIG(self.status)
            with contextlib.suppress(ValueError):
                return f"signal {signal.Signals(number).name}" + (" (a broken promise)" if self.silent else "")
            return f"signal {number}"
        code = os.waitstatus_to_exitcode(self.status)
        return f"exit {code}" + (" (a broken promise)" if code == 128 + 31 else "")

    def unstarted(self, name: str) -> tuple[str, int]:
        """What to say of one that ended before it served, and the code (sysexits(3))."""
        if self.why:
            return f"{name} could not be started: {self.why}", _TEMPFAIL
        if self.status == _TEMPFAIL << 8:
            return f"{name} could not be started: {_NO_ROOM}", _TEMPFAIL
        return f"{name} ended before it served: {self.how}", _SOFTWARE


def _nothing(*_: object) -> None:
    """Before anybody has asked to be told."""


class Processes:
    """The registry: all processes by name, in the order in which they were enrolled. `init` is the channel to who is none of them."""

    init: Channel

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._there: dict[str, Process] = {}
        self.phase = "starting"  # of the service: starting, running, stopping
        self.on_message: Callable[[Channel, Message, list[int]], None] = _nothing  # Channel's; its tag is the process
        self.on_gone: Callable[[Channel, str], None] = _nothing
        self.on_lost: Callable[[Process, Message], None] = _nothing  # a message came whose descriptor had no room
        self.on_kill: Callable[[Process], None] = _nothing  # its parent was told to end it
        self.on_exit: Sequence[Callable[[Process, Exit], None]] = ()  # in this order

    # -- looked up
    def __len__(self) -> int:
        return len(self._there)

    def __iter__(self) -> Iterator[Process]:
        return iter(list(self._there.values()))  # what is done with one may end another

    def __contains__(self, name: str) -> bool:
        return name in self._there

    def __getitem__(self, name: str) -> Process:
        return self._there[name]

    def get(self, name: str) -> Process | None:
        """The process of that name, None where there is none."""
        return self._there.get(name)

    def of_kind(self, *kinds: str) -> list[Process]:
        """All of these rows of the table."""
        return [process for process in self._there.values() if process.kind in kinds]

    def children(self, parent: str) -> list[Process]:
        """All that were forked by that one."""
        return [process for process in self._there.values() if process.parent == parent]

    def has(self, process: Process) -> bool:
        """Whether it is still there, and not another of its name."""
        return self._there.get(process.name) is process

    # -- enrolled
    def enrol(self, name: str, parent: str) -> tuple[Process, socket.socket]:
        """Make the channel of an actor that `parent` is to start; what the kernel knows of it, and the actor's end. OSError: no room.

        To be followed by the trace's started(), once what is known of it is in its place: Watch comes before anything else.
        """
        mine, its = pair()
        channel = Channel(self._loop, mine, "kernel", name, self.on_message, self.on_gone)
        process = channel.tag = Process(name, channel, parent)
        channel.on_lost = lambda message: self.on_lost(process, message)
        self.add(process)
        return process, its

    def add(self, process: Process) -> None:
        """From now on it is known by its name."""
        self._there[process.name] = process

    def withdraw(self, process: Process) -> None:
        """It could not be started: nothing follows from that."""
        del self._there[process.name]
        process.channel.close()

    # -- told
    def send(self, to: str, message: Message, fds: Sequence[int] = ()) -> None:
        """Say something to an actor, if it is there."""
        process = self._there.get(to)
        if process is not None:
            process.channel.send(message, fds)

    def tell_init(self, message: Message, fds: Sequence[int] = ()) -> None:
        """Say something to init."""
        self.init.send(message, fds)

    # -- ended
    def kill(self, process: Process) -> None:
        """Have its parent end it: only the parent can be sure whose the process number is."""
        if process.call_off is not None:
            process.call_off()
            return
        if process.parent == "init":
            self.tell_init(m.Kill(process.name))
        else:
            self.send(process.parent, m.Kill(process.name))
        self.on_kill(process)

    def kill_if_it_stays(self, process: Process) -> None:
        """It goes by itself, most likely: should it not have gone in a moment, have it ended."""
        self._loop.later(_GONE_SECONDS, lambda: self.kill(process) if self.has(process) else None)

    def violates(self, process: Process, why: str, fds: Sequence[int] = ()) -> None:
        """A message that is whole and not true: ends its sender as one that is not whole does."""
        discard(fds)
        process.channel.close()
        self.on_gone(process.channel, why)

    def gone(self, message: m.Exited, why: str = "") -> None:
        """A process is no more. `why`: what there was no room for, where there was none for it."""
        process = self._there.pop(message.name, None)
        if process is None:
            return
        if not process.channel.gone:
            process.channel.read()  # its last words
            process.channel.close()
        end = Exit(message.status, why, process.state in ("stopping", "draining") or self.phase == "stopping")
        for on_exit in self.on_exit:
            on_exit(process, end)

    def orphaned(self, parent: str) -> None:
        """The system ended a dead spawner's or gate's children (PR_SET_PDEATHSIG); nobody is left to tell us of each."""
        for child in self.children(parent):
            self.gone(m.Exited(child.name, max(child.pid, 1), 0 if child.state == "ahead" else int(signal.SIGKILL)))


def without_count(name: str) -> str:
    """An instance's name without the count of its replacements."""
    return name.partition("~")[0]
