"""Maildir actors and mail on its way in: what they tell, taken to kernel/decisions, and what follows from their end."""

from collections.abc import Callable

from popkernel.kernel.decisions.deliveries import Deliveries
from popkernel.kernel.decisions.leases import Core, Effect
from popkernel.kernel.decisions.log_quota import ActorLines
from popkernel.kernel.processes import Exit, Process, Processes
from popkernel.kernel.runtime.channel import Message
from popkernel.kernel.runtime.log import WARNING
from popkernel.kernel.runtime.loop import Loop, Timer
from popkernel.kernel.supervisor.descriptor_room import Room
from popkernel.kernel.supervisor.liveness import Liveness
from popkernel.kernel.supervisor.parking import Parking
from popkernel.proto import messages as m

__all__ = ["Maildirs"]


class Maildirs:
    """What the kernel makes of Closed, Parked, Moved, Busy and Leaving, and of the mda's Recipient."""

    def __init__(
        self, loop: Loop, processes: Processes, core: Core, deliveries: Deliveries, lines: ActorLines, room: Room, liveness: Liveness,
        parking: Parking, do: Callable[[list[Effect], str], None],
    ) -> None:
        """`do`: with whose share of the log a line of theirs is, "" for nobody's."""
        self._loop = loop
        self._processes = processes
        self._core = core
        self._deliveries = deliveries
        self._lines = lines
        self._room = room
        self._liveness = liveness
        self._parking = parking
        self._do = do
        self._sweeper: Timer | None = None

    # -- told
    def closed(self, process: Process, message: m.Closed, fds: list[int]) -> None:
        """It has done with a session."""
        del fds
        self._do(self._core.closed(process.name, message, self._loop.now), process.name)
        self._schedule_sweep()

    def recipient(self, process: Process, message: m.Recipient, fds: list[int]) -> None:
        """An mda asks whose maildrop an address is."""
        del fds
        self._room.look()
        self._do(self._deliveries.recipient(process.name, message, self._loop.now), "")
        self._schedule_sweep()

    def leaving(self, process: Process, message: m.Leaving, fds: list[int]) -> None:
        """It goes of its own will."""
        del message, fds
        if process.kind == "maildir.{user}":
            self._core.ending(process.name)
            self._liveness.goes(process.name)

    def busy(self, process: Process, message: m.Busy, fds: list[int]) -> None:
        """It was told to go, and stays."""
        del message, fds
        process.goes = 0.0
        self._do(self._deliveries.busy(process.name, self._loop.now), "")
        self._schedule_sweep()

    def parked(self, process: Process, message: m.Parked, fds: list[int]) -> None:
        """It hands a session over that is silent."""
        if self._parking.too_soon(process.name, message):
            self._processes.violates(process, "a session parked that was not silent for so long", fds)
            return
        self._room.look()
        self._parking.park(process.name, message, fds[0])
        self._schedule_sweep()

    def moved(self, process: Process, message: m.Moved, fds: list[int]) -> None:
        """It is to go, and the session waits for that."""
        self._parking.park(process.name, message, fds[0])
        self._processes.kill_if_it_stays(process)

    def lost(self, process: Process, message: Message) -> None:
        """A session was handed over, and there is no room for its channel: it ends, and so does its actor, which has it no more."""
        self._room.full(process.name.removeprefix("maildir."))
        if isinstance(message, m.Parked | m.Moved):
            self._do(self._core.closed(process.name, m.Closed(message.session, 0, 0), self._loop.now), "")

    # -- ended
    def channel_ended(self, process: Process) -> None:
        """Its process is about to: nothing new for it."""
        if process.kind == "maildir.{user}":
            self._core.ending(process.name)

    def on_exit(self, process: Process, end: Exit) -> None:
        """Its lease is free, and who waited for its end gets a new one; who waited for an mda's answers does not any more."""
        if process.kind == "maildir.{user}":
            if end.status:
                self._lines.end(process.name, WARNING, f"{process.name} ended: {end.how}")
            self.gone(process.name)
        elif process.kind == "mda":
            self._deliveries.mda_gone(process.name)

    def gone(self, name: str) -> None:
        """A maildir actor is no more, or never was."""
        self._room.look()
        self._do(self._core.maildir_gone(name, self._loop.now), "")
        self._do(self._deliveries.maildir_gone(name, self._loop.now), "")

    # -- idle
    def _schedule_sweep(self) -> None:
        if self._sweeper is None:
            due = self._core.next_sweep()
            if due is not None:
                self._sweeper = self._loop.later(max(0.5, due - self._loop.now), self._sweep)

    def _sweep(self) -> None:
        self._sweeper = None
        self._do(self._core.sweep(self._loop.now), "")
        self._schedule_sweep()
