"""Register the service's processes: their state, the kernel's channels to them, and calls for their ends.

The registry makes channels, sends messages, and has parents kill their children. Each part of the kernel that
keeps something for processes (sessions, seats, maildrops) puts a function into `on_exit`. None knows the
others.
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

# Messages a second; honest maildir actors and listeners of one connection send fewer. The gate hears of the
# latter's logins, and is ended if it cannot read as fast.
_MOST_MESSAGES = 2000
_LEAVE_SECONDS = 1.0  # for a process that said that it ends
_NO_ROOM = "no room for its memory, descriptors or threads"
_SOFTWARE, _TEMPFAIL = EXITS["software"].code, EXITS["tempfail"].code


class Process:
    """An actor that runs, or is about to. Times are the loop's, in seconds."""

    __slots__ = (
        "accusations",
        "accusers",
        "address",
        "cancel_fork",
        "channel",
        "counters",
        "counters_answered",
        "counters_asked",
        "hello",
        "ids",
        "kill_ordered",
        "kind",
        "last_peer",
        "leaves_by",
        "messages",
        "messages_since",
        "name",
        "on_failed",
        "on_hello",
        "parent",
        "pid",
        "restarts",
        "session",
        "since",
        "state",
    )

    def __init__(self, name: str, channel: Channel, parent: str) -> None:
        self.name = name
        self.kind = kind_of(name)
        self.channel = channel
        # the process that forks and reaps it; "" while it waits for its fork (kernel/supervisor/spawning.py)
        self.parent = parent
        self.pid = 0
        # uid and gid of a maildir actor, from the user table when it was forked
        self.ids: tuple[int, int] | None = None
        # number of the one session that a listener of a single connection may name; 0 for other processes
        self.session = 0
        self.address = ""  # of that session's client, as its gate said; "" for other processes
        self.state = "starting"  # ahead (kernel/supervisor/gates.py), starting, serving, draining, stopping
        self.hello: m.Hello | None = None
        self.counters = m.Counters(0, 0, 0)
        self.counters_asked = self.counters_answered = 0  # number of requests and of answers
        self.restarts = 0
        self.messages, self.messages_since = 0, 0.0  # count for floods(), and when counting began
        self.since = 0.0
        self.accusers: dict[str, float] = {}  # maildir actors that accused it of breaking the rules, and when
        self.accusations: list[float] = []  # when it accused a singleton
        self.kill_ordered = False  # after an accusation
        # when a process that said it ends must have ended, or be free of sessions; 0: it stays
        self.leaves_by = 0.0
        self.last_peer = ""  # the actor that got the last channel to it
        self.on_hello: Callable[[], None] | None = None  # for the one part that waits until it serves
        # likewise if it cannot serve: why, and the code (sysexits(3))
        self.on_failed: Callable[[str, int], None] | None = None
        self.cancel_fork: Callable[[], None] | None = None  # while it waits for its fork

    @property
    def log_owner(self) -> str:
        """Return the name that a line about its end counts for, in the log's quota.

        For a listener of one connection it is the gate's: such listeners' names are never used twice.
        """
        return self.parent if self.session else self.name

    def ask(self) -> int:
        """Ask it for its counters, and return the question's number.

        The answer comes after the process has handled all messages sent before.
        """
        self.counters_asked += 1
        self.channel.send(m.CountersRequest())
        return self.counters_asked

    def floods(self, now: float) -> bool:
        """Count a message; return whether it sends more in a second than an honest process for one user."""
        if now - self.messages_since > 1.0:
            self.messages, self.messages_since = 0, now
        self.messages += 1
        return self.messages > _MOST_MESSAGES


class Exit(NamedTuple):
    """How a process ended."""

    status: int  # of wait(2)
    why: str = ""  # why it could not be started, if the system had no room
    expected: bool = False  # it was told to end

    @property
    def unreported(self) -> bool:
        """Return whether it broke a promise, and its SIGSYS handler could not report the call.

        The handler does not run while a library blocks all signals of its thread, as glibc 2.41 does around
        clone(2).
        """
        return os.WIFSIGNALED(self.status) and os.WTERMSIG(self.status) == signal.SIGSYS

    @property
    def how(self) -> str:
        """Return the status in words."""
        if os.WIFSIGNALED(self.status):
            number = os.WTERMSIG(self.status)
            with contextlib.suppress(ValueError):
                return f"signal {signal.Signals(number).name}" + (
                    " (a broken promise)" if self.unreported else ""
                )
            return f"signal {number}"
        code = os.waitstatus_to_exitcode(self.status)
        return f"exit {code}" + (" (a broken promise)" if code == 128 + 31 else "")

    def unstarted(self, name: str) -> tuple[str, int]:
        """Return the error text for a process that ended before it served, and the code (sysexits(3))."""
        if self.why:
            return f"{name} could not be started: {self.why}", _TEMPFAIL
        if self.status == _TEMPFAIL << 8:
            return f"{name} could not be started: {_NO_ROOM}", _TEMPFAIL
        return f"{name} ended before it served: {self.how}", _SOFTWARE


def _nothing(*_: object) -> None:
    """Do nothing: the callbacks' default."""


class Processes:
    """Keep all processes by name, in the order of enrolment.

    `init` is the kernel's channel to init, which is not one of them.
    """

    init: Channel

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._processes: dict[str, Process] = {}
        self.phase = "starting"  # of the service: starting, running, stopping
        # the next two are Channel's callbacks; a channel's tag is its process
        self.on_message: Callable[[Channel, Message, list[int]], None] = _nothing
        self.on_dropped: Callable[[Channel, str], None] = _nothing
        # for a message whose descriptor had no room
        self.on_lost: Callable[[Process, Message], None] = _nothing
        self.on_kill: Callable[[Process], None] = _nothing  # after its parent was told to kill it
        self.on_exit: Sequence[Callable[[Process, Exit], None]] = ()  # called in this order

    # -- looking up
    def __len__(self) -> int:
        return len(self._processes)

    def __iter__(self) -> Iterator[Process]:
        return iter(list(self._processes.values()))  # a copy: the loop's body may end other processes

    def __contains__(self, name: str) -> bool:
        return name in self._processes

    def __getitem__(self, name: str) -> Process:
        return self._processes[name]

    def get(self, name: str) -> Process | None:
        """Return the process of that name, or None."""
        return self._processes.get(name)

    def of_kind(self, *kinds: str) -> list[Process]:
        """Return all processes of these rows of the topology."""
        return [process for process in self._processes.values() if process.kind in kinds]

    def children(self, parent: str) -> list[Process]:
        """Return all processes that `parent` forked."""
        return [process for process in self._processes.values() if process.parent == parent]

    def has(self, process: Process) -> bool:
        """Return whether this very process is registered, not another of its name."""
        return self._processes.get(process.name) is process

    # -- adding
    def enrol(self, name: str, parent: str) -> tuple[Process, socket.socket]:
        """Register an actor that `parent` is to start. Return it, and the actor's end of its channel.

        The caller sets the process's fields, and then calls the trace's started(): TraceStart must be the
        first message on the channel.

        Raises:
            OSError: the system has no room for a channel.
        """
        mine, its = pair()
        channel = Channel(self._loop, mine, "kernel", name, self.on_message, self.on_dropped)
        process = channel.tag = Process(name, channel, parent)
        channel.on_lost = lambda message: self.on_lost(process, message)
        self.add(process)
        return process, its

    def add(self, process: Process) -> None:
        """Register a process by its name."""
        self._processes[process.name] = process

    def withdraw(self, process: Process) -> None:
        """Remove a process that could not be started, without calling `on_exit`."""
        del self._processes[process.name]
        process.channel.close()

    # -- sending
    def send(self, to: str, message: Message, fds: Sequence[int] = ()) -> None:
        """Send a message to the actor named `to`, if it is registered."""
        process = self._processes.get(to)
        if process is not None:
            process.channel.send(message, fds)

    def send_init(self, message: Message, fds: Sequence[int] = ()) -> None:
        """Send a message to init."""
        self.init.send(message, fds)

    # -- ending
    def kill(self, process: Process) -> None:
        """Have its parent kill it: only a parent can be sure that a process number is still its child's."""
        if process.cancel_fork is not None:
            process.cancel_fork()
            return
        if process.parent == "init":
            self.send_init(m.ProcessKill(process.name))
        else:
            self.send(process.parent, m.ProcessKill(process.name))
        self.on_kill(process)

    def kill_if_it_stays(self, process: Process) -> None:
        """Have a process killed that said it ends, if it has not ended within a second."""
        self._loop.later(_LEAVE_SECONDS, lambda: self.kill(process) if self.has(process) else None)

    def violates(self, process: Process, why: str, fds: Sequence[int] = ()) -> None:
        """End a process that sent a well-formed message with false contents, as after a malformed one."""
        discard(fds)
        process.channel.close()
        self.on_dropped(process.channel, why)

    def exited(self, message: m.ProcessExited, why: str = "") -> None:
        """Remove a process that ended, and call `on_exit`. `why`: why it could not be started, else ""."""
        process = self._processes.pop(message.name, None)
        if process is None:
            return
        if not process.channel.closed:
            process.channel.receive()  # messages that it sent before it ended
            process.channel.close()
        end = Exit(message.status, why, process.state in ("stopping", "draining") or self.phase == "stopping")
        for on_exit in self.on_exit:
            on_exit(process, end)

    def orphaned(self, parent: str) -> None:
        """Remove the children of a dead spawner or gate: the system killed them (PR_SET_PDEATHSIG)."""
        for child in self.children(parent):
            self.exited(
                m.ProcessExited(
                    child.name, max(child.pid, 1), 0 if child.state == "ahead" else int(signal.SIGKILL)
                )
            )


def without_count(name: str) -> str:
    """Return an instance's name without the count of its replacements: "auth" for "auth~2"."""
    return name.partition("~")[0]
