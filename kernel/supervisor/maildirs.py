"""Handle what maildir actors and mdas send, and the ends of both: pass them to kernel/decisions."""

from collections.abc import Callable

from popkernel.kernel.decisions.actions import Action
from popkernel.kernel.decisions.deliveries import Deliveries
from popkernel.kernel.decisions.leases import Core
from popkernel.kernel.operator.history import History
from popkernel.kernel.operator.log_quota import ActorLines
from popkernel.kernel.processes import Exit, Process, Processes
from popkernel.kernel.runtime.actor import TEMPFAIL
from popkernel.kernel.runtime.channel import Message
from popkernel.kernel.runtime.loop import Loop, Timer
from popkernel.kernel.supervisor.descriptor_room import Room
from popkernel.kernel.supervisor.liveness import Liveness
from popkernel.kernel.supervisor.parking import Parking
from popkernel.proto import messages as m
from popkernel.proto.log_levels import WARNING
from popkernel.proto.trace.session_names import session_name

__all__ = ["Maildirs"]


class Maildirs:
    """Handle SessionClosed, SessionParked, SessionMoved, RetireRefused, ActorLeaving, and RecipientLookup."""

    def __init__(
        self,
        loop: Loop,
        processes: Processes,
        core: Core,
        deliveries: Deliveries,
        lines: ActorLines,
        room: Room,
        liveness: Liveness,
        parking: Parking,
        history: History,
        do: Callable[[list[Action], str], None],
    ) -> None:
        """`do`: see `Execution.do`."""
        self._loop = loop
        self._processes = processes
        self._core = core
        self._deliveries = deliveries
        self._lines = lines
        self._room = room
        self._liveness = liveness
        self._parking = parking
        self._history = history
        self._do = do
        self._sweeper: Timer | None = None

    # -- messages
    def session_closed(self, process: Process, message: m.SessionClosed, fds: list[int]) -> None:
        """Free the lease of a session that its maildir actor has finished."""
        del fds
        user = process.name.removeprefix("maildir.")
        maildir = self._core.maildirs.get(user)
        # once for each session: the actor may be hostile, and the history is everybody's
        if message.uidls and maildir is not None and maildir.key and maildir.key.session == message.session:
            self._history.messages(user, session_name(message.session), message.uidls)
        self._do(self._core.closed(process.name, message, self._loop.now), process.name)
        self._schedule_sweep()

    def recipient_lookup(self, process: Process, message: m.RecipientLookup, fds: list[int]) -> None:
        """Find the maildrop of an address for an mda."""
        del fds
        self._room.update()
        self._do(self._deliveries.recipient(process.name, message, self._loop.now), "")
        self._schedule_sweep()

    def actor_leaving(self, process: Process, message: m.ActorLeaving, fds: list[int]) -> None:
        """Give no new session to a maildir actor that ends by its own decision."""
        del message, fds
        if process.kind == "maildir.{user}":
            self._core.ending(process.name)
            self._liveness.goes(process.name)

    def retire_refused(self, process: Process, message: m.RetireRefused, fds: list[int]) -> None:
        """Use a maildir actor again that was told to retire and is busy."""
        del message, fds
        process.leaves_by = 0.0
        self._do(self._deliveries.busy(process.name, self._loop.now), "")
        self._schedule_sweep()

    def session_parked(self, process: Process, message: m.SessionParked, fds: list[int]) -> None:
        """Take over the channel of a silent session."""
        if self._parking.too_soon(process.name, message):
            self._processes.violates(process, "a session parked that was not silent for so long", fds)
            return
        self._room.update()
        self._parking.park(process.name, message, fds[0])
        self._schedule_sweep()

    def session_moved(self, process: Process, message: m.SessionMoved, fds: list[int]) -> None:
        """Take over a session whose actor must end, for that user's next actor."""
        self._parking.park(process.name, message, fds[0])
        self._processes.kill_if_it_stays(process)

    def lost(self, process: Process, message: Message) -> None:
        """End a session that was handed over, if there was no room for its channel's descriptor here."""
        self._room.full(process.name.removeprefix("maildir."))
        if isinstance(message, m.SessionParked | m.SessionMoved):
            self._do(
                self._core.closed(
                    process.name, m.SessionClosed(message.session, 0, 0, 0, []), self._loop.now
                ),
                "",
            )

    # -- ends
    def channel_ended(self, process: Process) -> None:
        """Give nothing new to an actor whose channel has ended: its process is about to end."""
        if process.kind == "maildir.{user}":
            self._core.ending(process.name)

    def on_exit(self, process: Process, end: Exit) -> None:
        """Free the lease of an ended maildir actor, and start the next if one is wanted; forget an mda."""
        if process.kind == "maildir.{user}":
            if process.hello is None and end.status == TEMPFAIL << 8:  # perhaps no room for its process
                self._do(self._core.let_go(2), "")
            if end.status:
                self._lines.end(process.name, WARNING, "process.ended", process=process.name, how=end.how)
            self.exited(process.name)
        elif process.kind == "mda":
            self._deliveries.mda_gone(process.name)

    def exited(self, name: str) -> None:
        """Tell the decisions that a maildir actor has ended, or could not be made."""
        self._room.update()
        self._do(self._core.maildir_gone(name, self._loop.now), "")
        self._do(self._deliveries.maildir_gone(name, self._loop.now), "")

    # -- idle actors
    def _schedule_sweep(self) -> None:
        due = self._core.next_sweep()
        if due is None:
            return
        if self._sweeper is not None:
            # an actor of old settings that refused to retire is due sooner than all others
            if due > self._sweeper.due - 1.0:
                return
            self._sweeper.cancel()
        self._sweeper = self._loop.later(max(0.5, due - self._loop.now), self._sweep)

    def _sweep(self) -> None:
        self._sweeper = None
        self._do(self._core.sweep(self._loop.now), "")
        self._schedule_sweep()
