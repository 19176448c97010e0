"""Decide whether an actor's complaint gets its peer killed.

PeerRefused, "my peer broke the rules": the complaint of a singleton is believed. A singleton that complains
of other singletons again and again is killed with them: one of the two lies, and could end the service by
the other's restarts. Maildir actors run as mail users, so one user's compromised process could end
everyone's listener: they are believed once actors of several users complain of the same peer within a minute.

PeerTimeout, "my peer does not answer": the kernel asks the peer itself (hung_actors.py).
"""

from popkernel.kernel.decisions.deliveries import Deliveries
from popkernel.kernel.decisions.leases import Core
from popkernel.kernel.operator.log_quota import ActorLines
from popkernel.kernel.operator.tracing import Taps
from popkernel.kernel.processes import Exit, Process, Processes
from popkernel.kernel.runtime.log import Log
from popkernel.kernel.runtime.loop import Loop
from popkernel.kernel.supervisor.hung_actors import HungActors
from popkernel.proto import messages as m
from popkernel.proto.log_levels import ERROR
from popkernel.proto.schema import printable
from popkernel.proto.topology import EDGES

__all__ = ["Misbehaviour"]

_UNKNOWN_CALL = "call unknown: its signals were blocked"
_ACCUSERS = 3  # maildir actors of different users that must accuse a peer before they are believed
_ACCUSED_SECONDS = 60.0  # the time in which they must
# accusations of singletons that one singleton may make in that time; fewer than restart_intensity
_ACCUSATIONS = 4


class Misbehaviour:
    """Handle PeerRefused, PromiseBroken and PeerTimeout, and rules broken on a channel to the kernel."""

    def __init__(
        self,
        loop: Loop,
        processes: Processes,
        core: Core,
        deliveries: Deliveries,
        log: Log,
        lines: ActorLines,
        taps: Taps,
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
        self.refusals = 0  # messages refused since the start
        self.broken = 0  # promises broken since the start

    def rules_broken(self, process: Process, why: str) -> None:
        """Log an actor that broke the rules on its channel to the kernel, or on its tap."""
        self.refusals += 1
        self._lines.end(process.log_owner, ERROR, "process.broke_rules", process=process.name, why=why)
        self._taps.note("Refused", process.name, reason=why, by="kernel")

    def promise_broken(self, process: Process, message: m.PromiseBroken, fds: list[int]) -> None:
        """Take an actor's last message: that it broke a promise."""
        del fds
        self._broken(process, message.call, message.promise)
        self._processes.kill_if_it_stays(process)

    def _broken(self, process: Process, call: str, promise: str) -> None:
        """Log a broken promise. `promise`: "" if the system does not say which."""
        self.broken += 1
        fields = {
            "process": process.name,
            "call": printable(call),
            "promise": promise,
            "then": "ended",
        }
        self._lines.end(process.name, ERROR, "process.broke_promise", **fields)
        self._taps.note("Broke", process.name, call=call, promise=promise)

    def on_exit(self, process: Process, end: Exit) -> None:
        """Log a broken promise that the actor could not report."""
        if end.unreported:
            self._broken(process, _UNKNOWN_CALL, "")

    def peer_refused(self, accuser: Process, message: m.PeerRefused, fds: list[int]) -> None:
        """Handle an actor's complaint that a peer broke the rules."""
        del fds
        self.refusals += 1
        fields = {"process": accuser.name, "edge": printable(message.edge), "why": printable(message.reason)}
        self._lines(accuser.name, ERROR, "peer.refused", **fields)
        self._taps.note("Refused", message.peer, reason=message.reason, by=accuser.name)
        accused = self._accused(accuser, message.peer)
        if accused is None or accused.kill_ordered or not self._believed(accuser, accused):
            return
        ended = [accused]
        if "maildir.{user}" not in (accuser.kind, accused.kind) and self._accuses_too_often(accuser):
            self._log(ERROR, "process.accuses", process=accuser.name)
            accuser.channel.close()  # no more messages from it
            ended.append(accuser)
        for process in ended:
            process.kill_ordered = True
            self._processes.kill(process)

    def _accuses_too_often(self, accuser: Process) -> bool:
        now = self._loop.now
        accuser.accusations = [*(when for when in accuser.accusations if when > now - _ACCUSED_SECONDS), now]
        return len(accuser.accusations) > _ACCUSATIONS

    def _believed(self, accuser: Process, accused: Process) -> bool:
        # a listener that serves that user's session alone: its end harms nobody else
        if accuser.kind != "maildir.{user}" or accused.session:
            return True
        now = self._loop.now
        recent = {name: when for name, when in accused.accusers.items() if when > now - _ACCUSED_SECONDS}
        accused.accusers = {**recent, accuser.name: now}
        return len(accused.accusers) >= _ACCUSERS

    def peer_timeout(self, accuser: Process, message: m.PeerTimeout, fds: list[int]) -> None:
        """Handle an actor's complaint that a peer does not answer: check whether the peer is alive."""
        del fds
        accused = self._accused(accuser, message.peer)
        if accused is not None:
            self._hung.suspect(accused)

    def _accused(self, accuser: Process, name: str) -> Process | None:
        """Return the process that an actor means, None if it may not accuse that one.

        An actor may accuse those that send to it by the topology table. Of maildir actors, an mda may accuse
        those to which it has a channel, a listener those of its sessions. A maildir actor may accuse mdas and
        the listener of its session.
        """
        if accuser.kind == "maildir.{user}":
            if name == "listener":
                maildir = self._core.maildirs.get(accuser.name.removeprefix("maildir."))
                name = maildir.key.listener if maildir is not None and maildir.key is not None else ""
            elif not name.startswith("mda"):
                return None
        if (
            accuser.kind == "mda"
            and self._deliveries.holders.get(name.removeprefix("maildir.")) != accuser.name
        ):
            return None
        accused = self._processes.get(name)
        if (
            accused is not None
            and accuser.kind == "listener"
            and accused.kind == "maildir.{user}"
            and not self._share_session(accuser, accused)
        ):
            return None
        # of two auths the one that takes over may accuse the other, and not the other way round: a hostile
        # one must not keep its successor out
        if accuser.kind == "auth" and accused is not None and accused.kind == "auth":
            return accused if accused.last_peer == accuser.name else None
        if accused is None or not any((e.source, e.target) == (accused.kind, accuser.kind) for e in EDGES):
            return None
        return accused

    def _share_session(self, listener: Process, maildir: Process) -> bool:
        """Return whether the actor's session, or else its last, is of that listener.

        The end of a session may arrive before the complaint about it.
        """
        lease = self._core.leases.get(maildir.name.removeprefix("maildir."))
        return listener.name == (maildir.last_peer if lease is None else lease.listener)
