"""Whose word ends whom: actors that say of a peer that it broke the rules, or that it does not answer.

A singleton's word about a peer of its ends that peer. Who accuses other singletons again and again is ended with them: one of the two
lies, and could end the service by the other's restarts. The word of a maildir actor, which runs as a mail user, counts once several
users' actors say the same within a short time: else one user's compromised process could end everyone's listener. That a peer does
not answer is looked into before anything is done: who answers a Report is alive.
"""

from typing import TYPE_CHECKING

from popkernel.kernel.processes import Process
from popkernel.kernel.runtime.log import ERROR, printable
from popkernel.proto import messages as m
from popkernel.proto.topology import EDGES

if TYPE_CHECKING:
    from popkernel.kernel.supervisor.main import Supervisor

__all__ = ["Blame"]

_ACCUSERS = 3  # maildir actors of different users that must accuse a singleton before it is believed
_ACCUSED_SECONDS = 60.0  # within which they must
_ACCUSATIONS = 4  # of singletons that are believed of one singleton within that time; fewer than restart_intensity


class Blame:
    """What the kernel makes of Refused and Late."""

    def __init__(self, supervisor: "Supervisor") -> None:
        self._supervisor = supervisor

    def refused(self, accuser: Process, message: m.Refused, fds: list[int]) -> None:
        """An actor says that a peer of its broke the rules."""
        del fds
        s = self._supervisor
        s.refused += 1
        text = f"{accuser.name} refused a message on {printable(message.edge)}: {printable(message.reason)}"
        s.actor_line(accuser.name, ERROR, text, "kernel")
        s.taps.note("Refused", message.peer, reason=message.reason, by=accuser.name)
        accused = self._accused(accuser, message.peer)
        if accused is None or accused.condemned or not self._believed(accuser, accused):
            return
        condemned = [accused]
        if "maildir.{user}" not in (accuser.kind, accused.kind) and self._again_and_again(accuser):
            s.log_line(ERROR, f"{accuser.name} accuses others again and again; ended")
            accuser.channel.close()  # nothing more of it
            condemned.append(accuser)
        for process in condemned:
            process.condemned = True
            s.kill(process)

    def _again_and_again(self, accuser: Process) -> bool:
        now = self._supervisor.loop.now
        accuser.accusations = [*(when for when in accuser.accusations if when > now - _ACCUSED_SECONDS), now]
        return len(accuser.accusations) > _ACCUSATIONS

    def _believed(self, accuser: Process, accused: Process) -> bool:
        if accuser.kind != "maildir.{user}" or accused.session:  # a listener of that user's session alone: it ends nobody else's
            return True
        now = self._supervisor.loop.now
        recent = {name: when for name, when in accused.accusers.items() if when > now - _ACCUSED_SECONDS}
        accused.accusers = {**recent, accuser.name: now}
        return len(accused.accusers) >= _ACCUSERS

    def late(self, accuser: Process, message: m.Late, fds: list[int]) -> None:
        """An actor says that a peer of its does not answer: see whether it is alive (kernel/supervisor/hung_actors.py)."""
        del fds
        accused = self._accused(accuser, message.peer)
        if accused is not None:
            self._supervisor.hung.suspect(accused)

    def _accused(self, accuser: Process, name: str) -> Process | None:
        """Whom an actor may accuse: one that speaks to it by the table; a maildir actor only the listener of its session."""
        s = self._supervisor
        if accuser.kind == "maildir.{user}":
            if name == "listener":
                maildir = s.core.maildirs.get(accuser.name.removeprefix("maildir."))
                name = maildir.key.listener if maildir is not None and maildir.key is not None else ""
            elif not name.startswith("mda"):
                return None
        if accuser.kind == "mda" and s.deliveries.holders.get(name.removeprefix("maildir.")) != accuser.name:
            return None  # it has no channel to that one
        accused = s.processes.get(name)
        if accused is not None and accuser.kind == "listener" and accused.kind == "maildir.{user}" and not self._met(accuser, accused):
            return None
        if accused is None or not any((e.source, e.target) == (accused.kind, accuser.kind) for e in EDGES):
            return None
        return accused

    def _met(self, listener: Process, maildir: Process) -> bool:
        """Whether a session of that listener's is there, or was the last: its end may be known before what ended it."""
        lease = self._supervisor.core.leases.get(maildir.name.removeprefix("maildir."))
        return listener.name == (maildir.met if lease is None else lease.listener)
