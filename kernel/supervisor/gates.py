"""Gates, and the listeners they fork, one for each connection (isolation = "connection"). The kernel's side of actors/listener/gate.py.

A gate is sent *seats* ahead: the channels of the listeners that it will fork, each with what its listener is to read first already in it.
So the kernel makes and names every channel, as it does for everybody; a gate without seats takes no more connections, so that what is
under way is bounded here; and no client waits for the kernel.
"""

from typing import TYPE_CHECKING

from popkernel.kernel.operator.status import session_over
from popkernel.kernel.processes import Process
from popkernel.kernel.runtime.log import DEBUG
from popkernel.proto import messages as m
from popkernel.proto.trace.session_names import GENERATION, listener_name

if TYPE_CHECKING:
    from popkernel.kernel.supervisor.main import Supervisor

__all__ = ["Gates"]

_AGAIN_SECONDS = 0.5  # until a seat is tried again for which there was no room
_AHEAD = 32  # seats a gate has that are not taken: as many listeners may be between fork and hello


class Gates:
    """All gates. A listener's name and session are given once, and to no other after it."""

    def __init__(self, supervisor: "Supervisor") -> None:
        self._kernel = supervisor
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
        k = self._kernel
        return max(2, min(_AHEAD, k.room.limit // 16 // k.config.listeners))

    def taken(self, listener: Process) -> None:
        """A seat's listener has said hello, or never will: its gate gets another."""
        gate = self._kernel.processes.get(listener.parent)
        if gate in self._last and gate.state != "stopping":
            self._seat(gate)

    def _seat(self, gate: Process) -> None:
        k = self._kernel
        if gate not in self._last or gate.state == "stopping" or k.processes.get(gate.name) is not gate:
            return
        if k.room.left() <= 0:
            k.loop.later(_AGAIN_SECONDS, lambda: self._seat(gate))
            return
        self._last[gate] += 1
        session = self._last[gate]
        try:
            process, its = k.enrol(listener_name(session), gate.name)
        except OSError:
            k.loop.later(_AGAIN_SECONDS, lambda: self._seat(gate))
            return
        process.session, process.state = session, "ahead"
        k.taps.started(process)
        k.singletons.wire(process)
        try:
            gate.channel.send(m.Seat(session), [its.fileno()])
        except OSError:
            k.loop.later(_AGAIN_SECONDS, lambda: k.gone(m.Exited(process.name, 1, 0)))
        its.close()

    def entered(self, listener: Process) -> None:
        """It has its user's maildrop: no more one of those who make room for others."""
        self._kernel.send(listener.parent, m.Entered(listener.session))

    def ended(self, gate: Process, message: m.Ended) -> None:
        """A gate has cut a client of its own off: its listener's end is no surprise."""
        listener = self._kernel.processes.get(listener_name(message.session))
        if listener is not None and listener.parent == gate.name:
            listener.state = "stopping" if listener.hello is not None else listener.state
            self._kernel.actor_line.event(gate.name, DEBUG, "session over", session_over(message._replace(user="")))

    def over(self, listener: Process) -> None:
        """Its process is no more, and its one session neither, whether it has said so or not: all sessions need not be looked through."""
        k = self._kernel
        k.do(k.core.ended(listener.name, m.Ended(listener.session, "", "", "its listener is gone", 0, 0, 0, 0, 0, 0, 0)))
        if listener.hello is None:
            self.taken(listener)

    def gone(self, gate: Process) -> None:
        """A gate is no more, and its listeners with it: the system ends them (PR_SET_PDEATHSIG)."""
        self._last.pop(gate, None)
