"""Whose word ends whom: actors that say of a peer that it broke the rules, or that it does not answer.

A singleton's word about a peer of its ends that peer. Who accuses other singletons again and again is ended with them: one of the two
lies, and could end the service by the other's restarts. The word of a maildir actor, which runs as a mail user, counts once several
users' actors say the same within a short time: else one user's compromised process could end everyone's listener. That a peer does
not answer is looked into before anything is done: who answers a Report is alive.
"""

from popkernel.kernel.decisions.deliveries import Deliveries
from popkernel.kernel.decisions.leases import Core
from popkernel.kernel.decisions.log_quota import ActorLines
from popkernel.kernel.operator.tracing import Taps
from popkernel.kernel.processes import Exit, Process, Processes
from popkernel.kernel.runtime.log import ERROR, Log, printable
from popkernel.kernel.runtime.loop import Loop
from popkernel.kernel.supervisor.hung_actors import HungActors
from popkernel.proto import messages as m
from popkernel.proto.topology import EDGES

__all__ = ["Misbehaviour"]

_UNKNOWN_CALL = "call unknown: its signals were blocked"
_ACCUSERS = 3  # maildir actors of different users that must accuse a singleton before it is believed
_ACCUSED_SECONDS = 60.0  # within which they must
_ACCUSATIONS = 4  # of singletons that are believed of one singleton within that time; fewer than restart_intensity


class Misbehaviour:
    """What the kernel makes of Refused, Broke and Late, and of those that break the rules on their channel to it."""

    def __init__(
        self, loop: Loop, processes: Processes, core: Core, deliveries: Deliveries, log: Log, lines: ActorLines, taps: Taps,
        hung: HungActors,
    ) -> None:
        self._loop = loop
        self._processes = processes
        self._core = core
        self._deliveries = deliveries
        self._log = log
        self._lines = lines
        self._taps = taps
        self._hung = hung
        self.refusals = 0  # messages, so far
        self.broken = 0  # promises

    def rules_broken(self, process: Process, why: str) -> None:
        """On its channel to the kernel, or on its tap."""
        self.refusals += 1
        self._lines.end(process.whose, ERROR, f"{process.name} broke the rules on its channel to the kernel: {why}; ended")
        self._taps.note("Refused", process.name, reason=why, by="kernel")

    def promise_broken(self, process: Process, message: m.Broke, fds: list[int]) -> None:
        """It says so itself, as its last word."""
        del fds
        self._broken(process, message.call, message.promise)
        self._processes.kill_if_it_stays(process)

    def _broken(self, process: Process, call: str, promise: str) -> None:
        """`promise`: empty where not even the system says which."""
        self.broken += 1
        why = printable(call) + (f" would need {promise!r}" if promise else "")
        self._lines.end(process.name, ERROR, f"{process.name} broke its promises: {why}; ended")
        self._taps.note("Broke", process.name, call=call, promise=promise)

    def on_exit(self, process: Process, end: Exit) -> None:
        """One that broke a promise may not have been able to say so."""
        if end.silent:
            self._broken(process, _UNKNOWN_CALL, "")

    def refused(self, accuser: Process, message: m.Refused, fds: list[int]) -> None:
        """An actor says that a peer of its broke the rules."""
        del fds
        self.refusals += 1
        text = f"{accuser.name} refused a message on {printable(message.edge)}: {printable(message.reason)}"
        self._lines(accuser.name, ERROR, text, "kernel")
        self._taps.note("Refused", message.peer, reason=message.reason, by=accuser.name)
        accused = self._accused(accuser, message.peer)
        if accused is None or accused.condemned or not self._believed(accuser, accused):
            return
        condemned = [accused]
        if "maildir.{user}" not in (accuser.kind, accused.kind) and self._again_and_again(accuser):
            self._log(ERROR, f"{accuser.name} accuses others again and again; ended")
            accuser.channel.close()  # nothing more of it
            condemned.append(accuser)
        for process in condemned:
            process.condemned = True
            self._processes.kill(process)

    def _again_and_again(self, accuser: Process) -> bool:
        now = self._loop.now
        accuser.accusations = [*(when for when in accuser.accusations if when > now - _ACCUSED_SECONDS), now]
        return len(accuser.accusations) > _ACCUSATIONS

    def _believed(self, accuser: Process, accused: Process) -> bool:
        if accuser.kind != "maildir.{user}" or accused.session:  # a listener of that user's session alone: it ends nobody else's
            return True
        now = self._loop.now
        recent = {name: when for name, when in accused.accusers.items() if when > now - _ACCUSED_SECONDS}
        accused.accusers = {**recent, accuser.name: now}
        return len(accused.accusers) >= _ACCUSERS

    def late(self, accuser: Process, message: m.Late, fds: list[int]) -> None:
        """An actor says that a peer of its does not answer: see whether it is alive (kernel/supervisor/hung_actors.py)."""
        del fds
        accused = self._accused(accuser, message.peer)
        if accused is not None:
            self._hung.suspect(accused)

    def _accused(self, accuser: Process, name: str) -> Process | None:
        """Whom an actor may accuse: one that speaks to it by the table; a maildir actor only the listener of its session."""
        if accuser.kind == "maildir.{user}":
            if name == "listener":
                maildir = self._core.maildirs.get(accuser.name.removeprefix("maildir."))
                name = maildir.key.listener if maildir is not None and maildir.key is not None else ""
            elif not name.startswith("mda"):
                return None
        if accuser.kind == "mda" and self._deliveries.holders.get(name.removeprefix("maildir.")) != accuser.name:
            return None  # it has no channel to that one
        accused = self._processes.get(name)
        if accused is not None and accuser.kind == "listener" and accused.kind == "maildir.{user}" and not self._met(accuser, accused):
            return None
        if accused is None or not any((e.source, e.target) == (accused.kind, accuser.kind) for e in EDGES):
            return None
        return accused

    def _met(self, listener: Process, maildir: Process) -> bool:
        """Whether a session of that listener's is there, or was the last: its end may be known before what ended it."""
        lease = self._core.leases.get(maildir.name.removeprefix("maildir."))
        return listener.name == (maildir.met if lease is None else lease.listener)
