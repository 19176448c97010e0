"""Queue maildir actors that are to be forked, and have the spawner fork a limited number at a time.

The spawner reads its channel in order, and a fork takes milliseconds. If it got all requests at once, as when
ten thousand parked sessions wake together, it would reach the CountersRequest behind them too late, and be
killed as hung.
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

# ActorSpawn messages after which the spawner is asked for its counters: its answer confirms all before
_BATCH = 128
# unconfirmed ActorSpawn messages: one or two seconds of forks, and enough that the spawner is never idle
_MOST = 2 * _BATCH


class Spawning:
    """Keep the queue, and count the spawner's unconfirmed requests.

    `len()`: descriptors held for actors in the queue.
    """

    def __init__(
        self,
        loop: Loop,
        processes: Processes,
        taps: Taps,
        room: Room,
        liveness: Liveness,
        singletons: Singletons,
        wake_next: Callable[[], bool],
        never: Callable[[str], None],
    ) -> None:
        """`wake_next`: wakes a parked session that waits for its turn; returns whether there was one.

        `never`: called with the name of an actor for whose channel there was no room.
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
        self._spawner: Process | None = None  # the one that the next three counts are of
        self._unconfirmed = 0  # requests sent and not confirmed
        self._since = 0  # requests sent since the last CountersRequest
        # of each unanswered CountersRequest: its number, and how many requests it confirms
        self._asked: deque[tuple[int, int]] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def free(self) -> bool:
        """Return whether the next actor need not wait."""
        return self._in_force() is not None and not self._waiting and self._unconfirmed < _MOST

    def _in_force(self) -> Process | None:
        spawner = self._processes.get(self._singletons.spawner)
        if spawner is not self._spawner:
            self._spawner, self._unconfirmed, self._since = spawner, 0, 0
            self._asked.clear()
        return spawner

    def spawn(self, name: str, row: MailUser) -> None:
        """Have an actor forked, at once or in its turn."""
        try:
            process, its = self._processes.enrol(name, "")
        except OSError:
            self._room.full(name.removeprefix("maildir."))
            self._loop.soon(lambda: self._never_enrolled(name))
            return
        process.ids = (row.uid, row.gid)
        process.cancel_fork = lambda: self._forget(process)
        self._taps.started(process)
        self._waiting[name] = process, its, row
        self._send_requests()

    def _send_requests(self) -> None:
        spawner = self._in_force()
        while self._waiting and (spawner is None or self._unconfirmed < _MOST):
            name = next(iter(self._waiting))
            process, its, row = self._waiting.pop(name)
            with its:
                self._send_spawn(process, its, row, spawner)

    def _send_spawn(
        self, process: Process, its: socket.socket, row: MailUser, spawner: Process | None
    ) -> None:
        process.parent, process.cancel_fork = self._singletons.spawner, None
        self._liveness.forked(process)
        try:
            if spawner is None:  # it died, and the next has not been started yet
                raise BlockingIOError
            spawner.channel.send(
                m.ActorSpawn(process.name, row.uid, row.gid, os.fsencode(row.maildir)), [its.fileno()]
            )
        except OSError:  # no parent would ever report this actor's end
            self._report_unforked(process)
            return
        self._unconfirmed += 1
        self._since += 1
        if self._since == _BATCH:
            self._asked.append((spawner.ask(), self._since))
            self._since = 0

    def _report_unforked(self, process: Process) -> None:
        """Report the end of an actor that will never be forked."""
        self._loop.soon(lambda: self._over(process))

    def _over(self, process: Process) -> None:
        if self._processes.has(process):
            self._processes.exited(m.ProcessExited(process.name, 1, int(signal.SIGKILL)))

    def counters(self, process: Process) -> None:
        """Take an actor's answer; the spawner's confirms requests."""
        if process is self._spawner:
            many = 0
            while self._asked and self._asked[0][0] <= process.counters_answered:
                many += self._asked.popleft()[1]
            self._unconfirmed -= many
            self.go_on(many)

    def go_on(self, many: int = 0) -> None:
        """Send further requests, as there may be room again.

        Up to `many` parked sessions join the queue however long it is: else endless logins would keep them
        out.
        """
        while many and self._wake_next():
            many -= 1
        self._send_requests()
        while self.free and self._wake_next():
            pass

    def on_exit(self, process: Process, end: Exit) -> None:
        """Remove the children of a spawner that ended; the queue goes to the next one."""
        del end
        if process.kind == "spawner":
            self._processes.orphaned(process.name)
            self.go_on()

    def _forget(self, process: Process) -> None:
        """Remove an actor from the queue that is to be killed before its fork."""
        self._waiting.pop(process.name)[1].close()
        process.cancel_fork = None
        self._report_unforked(process)
