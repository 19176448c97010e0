"""A reload is a replacement: who serves needs no file, and a bad file changes nothing."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from popkernel.kernel.log import DEBUG, ERROR, NOTICE, WARNING
from popkernel.kernel.usertable import roots_of
from popkernel.proto import messages as m
from popkernel.proto.tables import MailUser

if TYPE_CHECKING:
    from popkernel.kernel.supervisor import Supervisor

__all__ = ["Asker", "Reload"]

_LOOK_SECONDS = 3.0  # how long an answer waits for what is wrong with mailboxes; the log has it in any case


class Asker:
    """Whoever asked for a reload, if anyone did: told how it went, once init has looked at the mailboxes of the new table."""

    def __init__(self, supervisor: "Supervisor", answer: Callable[[dict[str, Any]], None] | None, later: list[str]) -> None:
        """`later`: changed keys that count from the next start on."""
        self._supervisor = supervisor
        self._answer = answer
        self._later = later
        self._mailboxes: list[str] = []

    def refuse(self, code: int, error: str) -> None:
        """Nothing has changed, and why; `code` is what the command ends with, sysexits(3)."""
        self._give({"ok": False, "error": error, "code": code})

    def wait(self) -> None:
        """It is done; the answer follows when the mailboxes have been looked at, or when that takes long."""
        if self._answer is not None:
            self._supervisor.loop.later(_LOOK_SECONDS, self.done)

    def looked(self, why: str, line: str) -> None:
        """Init has found a broken mailbox, or, where there is no `line`, has finished. `why`: after a start or a reload."""
        log = self._supervisor.log_line
        log(*((WARNING, line) if line else (DEBUG, "mailboxes looked at")))
        if why == "reload" and line:
            self._mailboxes.append(line)
        elif why == "reload":
            self.done()

    def done(self) -> None:
        """Say so, once."""
        self._give({"ok": True, "next_start": self._later, "mailboxes": self._mailboxes})

    def _give(self, said: dict[str, Any]) -> None:
        answer, self._answer = self._answer, None
        if answer is not None:
            answer(said)


class Reload:
    """A reload under way: new actors beside the old ones, which go on until the new have all said hello."""

    def __init__(self, supervisor: "Supervisor", users: dict[str, MailUser], asker: Asker) -> None:
        self.supervisor = supervisor
        self.users = users
        self.asker = asker
        self.names: list[str] = []
        self.ready: set[str] = set()

    def begin(self) -> None:
        """Start the new ones."""
        s = self.supervisor
        self.names = [s.launch("spawner", roots_of(self.users)), s.launch("auth")]
        self.names += [s.launch(s.door, number=n) for n in range(s.config.listeners)]
        for name in self.names:
            s.processes[name].on_hello = lambda name=name: self._hello(name)

    def _hello(self, name: str) -> None:
        self.ready.add(name)
        if len(self.ready) == len(self.names):
            self._swap()

    def _swap(self) -> None:
        """The new take over in one turn of the loop; old sessions go on with whom they have."""
        s = self.supervisor
        old = [s.processes[n] for n in (s.spawner, s.auth, *s.listeners) if n in s.processes]
        s.core.users = self.users
        s.spawner, s.auth = self.names[0], self.names[1]
        s.listeners = self.names[2:]
        for name in self.names:
            s.processes[name].on_hello = None
        for process in old:
            process.state = "draining"
        s.wire(s.processes[s.auth])  # joins the draining listeners too: they may have clients at their password
        for process in old:
            if process.kind == s.door:
                process.channel.send(m.Drain())
            else:
                process.channel.send(m.Stop(86400 if process.kind == "spawner" else 5))
        s.send(s.mda, m.Anew())
        s.do(s.core.retire_all())
        self._finish()
        s.log_line(NOTICE, f"reloaded: {len(self.users)} users")

    def fail(self, why: str, code: int) -> None:
        """One of the new can't serve: all the new go, the old never noticed."""
        s = self.supervisor
        for name in self.names:
            process = s.processes.get(name)
            if process is not None:
                process.state = "stopping"
                s.kill(process)
        s.log_line(ERROR, f"not reloaded, what is in force stays: {why}")
        self._finish(why, code)

    def _finish(self, error: str = "", code: int = 0) -> None:
        self.supervisor.reload = None
        self.supervisor.reloaded(self.asker, error, code)
