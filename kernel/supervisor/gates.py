"""Gates, and the listeners they fork, one for each connection (isolation = "connection"). The kernel's side of actors/listener/gate.py.

A gate is sent *seats* ahead: the channels of the listeners that it will fork, each with what its listener is to read first already in it.
So the kernel makes and names every channel, as it does for everybody; a gate without seats takes no more connections, so that what is
under way is bounded here; and no client waits for the kernel.
"""

from collections.abc import Callable

from popkernel.kernel.decisions.leases import Core, Effect
from popkernel.kernel.decisions.log_quota import ActorLines
from popkernel.kernel.operator.status import session_over
from popkernel.kernel.operator.tracing import Taps
from popkernel.kernel.processes import Exit, Process, Processes
from popkernel.kernel.runtime.log import DEBUG, WARNING
from popkernel.kernel.runtime.loop import Loop
from popkernel.kernel.supervisor.descriptor_room import Room
from popkernel.proto import messages as m
from popkernel.proto.trace.session_names import GENERATION, listener_name

__all__ = ["Gates"]

_AGAIN_SECONDS = 0.5  # until a seat is tried again for which there was no room
_AHEAD = 32  # seats a gate has that are not taken: as many listeners may be between fork and hello


class Gates:
    """All gates. A listener's name and session are given once, and to no other after it."""

    def __init__(
        self, loop: Loop, processes: Processes, core: Core, lines: ActorLines, taps: Taps, room: Room, gates: int,
        do: Callable[[list[Effect]], None], wire: Callable[[Process], None],
    ) -> None:
        """`gates`: how many are configured. `wire`: joins a listener with auth."""
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
        """It serves, and so does auth. Saying so twice is saying it once."""
        if gate not in self._last:
            self._generation += 1
            self._last[gate] = self._generation * GENERATION
            for _ in range(self._ahead()):
                self._seat(gate)

    def _ahead(self) -> int:
        """Seats are descriptors: fewer where there are few."""
        return max(2, min(_AHEAD, self._room.limit // 16 // self._gates))

    def taken(self, listener: Process) -> None:
        """A seat's listener has said hello, or never will: its gate gets another."""
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
            gate.channel.send(m.Seat(session), [its.fileno()])
        except OSError:
            self._loop.later(_AGAIN_SECONDS, lambda: self._processes.gone(m.Exited(process.name, 1, 0)))
        its.close()

    def ended(self, gate: Process, message: m.Ended) -> None:
        """A gate has cut a client of its own off: its listener's end is no surprise."""
        listener = self._processes.get(listener_name(message.session))
        if listener is not None and listener.parent == gate.name:
            listener.state = "stopping" if listener.hello is not None else listener.state
            self._lines.event(gate.name, DEBUG, "session over", session_over(message._replace(user="")))

    def on_exit(self, process: Process, end: Exit) -> None:
        """A gate's listeners go with it: the system ends them (PR_SET_PDEATHSIG). The one session of such a listener ends with it."""
        if process.kind == "gate":
            self._last.pop(process, None)
            self._processes.orphaned(process.name)
        elif process.session:
            if end.status and not end.expected:
                self._lines.end(process.whose, WARNING, f"{process.name} ended: {end.how}")
            self._over(process)

    def _over(self, listener: Process) -> None:
        """Whether it has said so or not: all sessions need not be looked through."""
        self._do(self._core.ended(listener.name, m.Ended(listener.session, "", "", "its listener is gone", 0, 0, 0, 0, 0, 0, 0)))
        if listener.hello is None:
            self.taken(listener)
