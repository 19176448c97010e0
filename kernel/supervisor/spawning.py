"""Maildir actors that are to be forked: the spawner is told of a few at a time, the others wait here.

Its channel is read in order, and a fork takes milliseconds. Were it told of all at once, as when ten thousand parked sessions wake
together, it would come to the question whether it lives after the last of them, and be ended for being busy.
"""

import os
import signal
import socket
from collections import deque
from collections.abc import Callable

from popkernel.kernel.operator.tracing import Taps
from popkernel.kernel.processes import Exit, Process, Processes
from popkernel.kernel.runtime.loop import Loop
from popkernel.kernel.supervisor.descriptor_room import Room
from popkernel.kernel.supervisor.liveness import Liveness
from popkernel.kernel.supervisor.singletons import Singletons
from popkernel.proto import messages as m
from popkernel.proto.files.tables import MailUser

__all__ = ["Spawning"]

_LOT = 128  # after so many the spawner is asked for its counters: once they come, it has taken all that it was told before
_MOST = 2 * _LOT  # it may have been told of without having said so: a second or two of forks, and it never waits for the kernel


class Spawning:
    """Those that wait, and how many the spawner has been told of. `len()`: descriptors that are held for them."""

    def __init__(
        self, loop: Loop, processes: Processes, taps: Taps, room: Room, liveness: Liveness, singletons: Singletons,
        wake_next: Callable[[], bool], never: Callable[[str], None],
    ) -> None:
        """`wake_next`: wakes a session that sleeps and waits for its turn; whether there was one.

        `never`: called where there was no room for that actor's channel.
        """
        self._loop = loop
        self._processes = processes
        self._taps = taps
        self._room = room
        self._liveness = liveness
        self._singletons = singletons
        self._wake_next = wake_next
        self._never_enrolled = never
        self._waiting: dict[str, tuple[Process, socket.socket, MailUser]] = {}
        self._spawner: Process | None = None  # what follows is said of this one
        self._told = 0  # of so many, and it has not said yet that it took them
        self._since = 0  # of them, since it was last asked
        self._asked: deque[tuple[int, int]] = deque()  # which question, after how many

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def free(self) -> bool:
        """Whether the next one need not wait."""
        return self._in_force() is not None and not self._waiting and self._told < _MOST

    def _in_force(self) -> Process | None:
        spawner = self._processes.get(self._singletons.spawner)
        if spawner is not self._spawner:
            self._spawner, self._told, self._since = spawner, 0, 0
            self._asked.clear()
        return spawner

    def spawn(self, name: str, row: MailUser) -> None:
        """Have an actor forked, now or in its turn."""
        try:
            process, its = self._processes.enrol(name, "")
        except OSError:
            self._room.full(name.removeprefix("maildir."))
            self._loop.soon(lambda: self._never_enrolled(name))
            return
        process.ids = (row.uid, row.gid)
        process.call_off = lambda: self._forget(process)
        self._taps.started(process)
        self._waiting[name] = process, its, row
        self._tell()

    def _tell(self) -> None:
        spawner = self._in_force()
        while self._waiting and (spawner is None or self._told < _MOST):
            name = next(iter(self._waiting))
            process, its, row = self._waiting.pop(name)
            with its:
                self._tell_of(process, its, row, spawner)

    def _tell_of(self, process: Process, its: socket.socket, row: MailUser, spawner: Process | None) -> None:
        process.parent, process.call_off = self._singletons.spawner, None
        self._liveness.forked(process)
        try:
            if spawner is None:  # it died, and the next one is not due yet
                raise BlockingIOError
            spawner.channel.send(m.Spawn(process.name, row.uid, row.gid, os.fsencode(row.maildir)), [its.fileno()])
        except OSError:  # nobody would ever tell of this actor's end
            self._never(process)
            return
        self._told += 1
        self._since += 1
        if self._since == _LOT:
            self._asked.append((spawner.ask(), self._since))
            self._since = 0

    def _never(self, process: Process) -> None:
        """No process will be of that name."""
        self._loop.soon(lambda: self._over(process))

    def _over(self, process: Process) -> None:
        if self._processes.has(process):
            self._processes.gone(m.Exited(process.name, 1, int(signal.SIGKILL)))

    def counters(self, process: Process) -> None:
        """An actor has answered: where it is the spawner, it may have taken a lot."""
        if process is self._spawner:
            many = 0
            while self._asked and self._asked[0][0] <= process.answered:
                many += self._asked.popleft()[1]
            self._told -= many
            self.go_on(many)

    def go_on(self, many: int = 0) -> None:
        """There may be room again.

        Up to `many` sessions that sleep get into the queue, however long it is: logins without end would keep them out.
        """
        while many and self._wake_next():
            many -= 1
        self._tell()
        while self.free and self._wake_next():
            pass

    def on_exit(self, process: Process, end: Exit) -> None:
        """A spawner's children go with it, and those that wait hear that there is none, or are for the next one."""
        del end
        if process.kind == "spawner":
            self._processes.orphaned(process.name)
            self.go_on()

    def _forget(self, process: Process) -> None:
        """It is to be ended before the spawner was told of it."""
        self._waiting.pop(process.name)[1].close()
        process.call_off = None
        self._never(process)
