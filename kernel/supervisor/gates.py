"""Supply gates with seats for the listeners they fork, one for each connection (isolation = "connection").

This is the kernel's side of actors/listener/gate.py. A seat is the channel of a listener that the
gate will fork; the listener's first messages are already in it. The kernel sends a gate several seats ahead,
so that no client waits for the kernel. A gate without seats accepts no connections, so the number of seats
bounds the listeners between fork and Hello.
"""

from collections.abc import Callable

from popkernel.kernel.decisions.actions import Action
from popkernel.kernel.decisions.leases import Core
from popkernel.kernel.operator.log_quota import ActorLines
from popkernel.kernel.operator.status import session_over
from popkernel.kernel.operator.tracing import Taps
from popkernel.kernel.processes import Exit, Process, Processes
from popkernel.kernel.runtime.loop import Loop
from popkernel.kernel.supervisor.descriptor_room import Room
from popkernel.proto import messages as m
from popkernel.proto.log_levels import DEBUG, WARNING
from popkernel.proto.trace.session_names import GENERATION, listener_name

__all__ = ["Gates"]

_AGAIN_SECONDS = 0.5  # until the next try to make a seat, if there was no room
_AHEAD = 32  # free seats of a gate


class Gates:
    """Keep the seats of all gates. The name and session of a seat's listener are never used twice."""

    def __init__(
        self,
        loop: Loop,
        processes: Processes,
        core: Core,
        lines: ActorLines,
        taps: Taps,
        room: Room,
        gates: int,
        do: Callable[[list[Action]], None],
        wire: Callable[[Process], None],
    ) -> None:
        """`gates`: number of gates configured. `wire`: joins a listener with auth."""
        self._loop = loop
        self._processes = processes
        self._core = core
        self._lines = lines
        self._taps = taps
        self._room = room
        self._gates = gates
        self._do = do
        self._wire = wire
        self._generation = 0
        self._last: dict[Process, int] = {}  # the session of each gate's last seat

    def opens(self, gate: Process) -> None:
        """Send a gate its first seats, once it and auth serve. A second call does nothing."""
        if gate not in self._last:
            self._generation += 1
            self._last[gate] = self._generation * GENERATION
            for _ in range(self._ahead()):
                self._seat(gate)

    def _ahead(self) -> int:
        """Return the number of free seats for a gate: each holds a descriptor, so a low limit means fewer."""
        return max(2, min(_AHEAD, self._room.limit // 16 // self._gates))

    def taken(self, listener: Process) -> None:
        """Replace a seat whose listener has sent Hello or has ended before it."""
        gate = self._processes.get(listener.parent)
        if gate is not None:
            self._seat(gate)

    def _seat(self, gate: Process) -> None:
        if gate not in self._last or gate.state == "stopping" or not self._processes.has(gate):
            return
        if self._room.left() <= 0:
            self._loop.later(_AGAIN_SECONDS, lambda: self._seat(gate))
            return
        self._last[gate] += 1
        session = self._last[gate]
        try:
            process, its = self._processes.enrol(listener_name(session), gate.name)
        except OSError:
            self._loop.later(_AGAIN_SECONDS, lambda: self._seat(gate))
            return
        process.session, process.state = session, "ahead"
        self._taps.started(process)
        self._wire(process)
        try:
            gate.channel.send(m.GateSeat(session), [its.fileno()])
        except OSError:
            self._loop.later(
                _AGAIN_SECONDS, lambda: self._processes.exited(m.ProcessExited(process.name, 1, 0))
            )
        its.close()

    def login(self, listener: Process, *, begun: bool) -> None:
        """Tell the gate that its client waits for a login's answer, or has got it and is not logged in."""
        self._processes.send(listener.parent, m.GateSeatLogin(listener.session, begun))

    def seat_taken(self, gate: Process, message: m.GateSeatTaken, fds: list[int]) -> None:
        """Note the address of a listener's client: what the listener says of it counts no more."""
        del fds
        listener = self._processes.get(listener_name(message.session))
        if listener is not None and listener.parent == gate.name:
            listener.address = message.address

    def connection_ended(self, gate: Process, message: m.ConnectionEnded) -> None:
        """Log a connection that a gate cut off, and expect its listener's end."""
        listener = self._processes.get(listener_name(message.session))
        if listener is not None and listener.parent == gate.name:
            listener.state = "stopping" if listener.hello is not None else listener.state
            self._lines.event(
                gate.name, DEBUG, "session.over", session_over(gate.name, message._replace(user=""))
            )

    def on_exit(self, process: Process, end: Exit) -> None:
        """Remove the listeners of an ended gate (PR_SET_PDEATHSIG), or end an ended listener's session."""
        if process.kind == "gate":
            self._last.pop(process, None)
            self._processes.orphaned(process.name)
        elif process.session:
            if end.status and not end.expected:
                self._lines.end(
                    process.log_owner, WARNING, "process.ended", process=process.name, how=end.how
                )
            self._end_session(process)

    def _end_session(self, listener: Process) -> None:
        """End the listener's one session, even if it sent ConnectionEnded: then this changes nothing."""
        self._do(
            self._core.ended(
                listener.name,
                m.ConnectionEnded(listener.session, "", "", "its listener is gone", 0, 0, 0, 0, 0, 0, 0),
            )
        )
        if listener.hello is None:
            self.taken(listener)
