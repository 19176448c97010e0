"""A reload is a replacement: who serves needs no file, and a bad file changes nothing.

It begins with init, whoever asks (a SIGHUP, `popkernel reload`, a file that has changed): a child of init's reads the configuration and the
user table, and init says Reread or Unread. Then the kernel judges the table, and has new actors read the rest. What comes of it is told to
init, which keeps the new configuration or goes back, and to whoever asked.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from popkernel.kernel.config.user_table import code_of, handed_over, judge, roots_of
from popkernel.kernel.runtime.actor import TEMPFAIL
from popkernel.kernel.runtime.deadlines import Deadline
from popkernel.kernel.runtime.log import DEBUG, ERROR, NOTICE, WARNING
from popkernel.kernel.supervisor.spawner_succession import LAST_CHILD_SECONDS
from popkernel.proto import messages as m
from popkernel.proto.files.tables import MailUser
from popkernel.proto.topology import edge

if TYPE_CHECKING:
    from popkernel.kernel.supervisor.main import Supervisor

__all__ = ["Asker", "Reload", "Reloads"]

_ASK_SECONDS = edge("kernel", "init").deadline * 3 // 2  # for init to read the configuration, or to say that it could not
_AUTH_SECONDS = 5  # that an auth has for what it was asked before another took its place
_LOOK_SECONDS = 3.0  # how long an answer waits for what is wrong with mailboxes; the log has it in any case
_MOST_WARNINGS = 100  # of new actors in one answer


class Asker:
    """Whoever asked for a reload, if anyone did: told how it went, once init has looked at the mailboxes of the new table.

    It is also told what new actors warn of, in the words of `popkernel check`: a certificate that no client takes, for example.
    """

    def __init__(self, supervisor: "Supervisor", answer: Callable[[dict[str, Any]], None] | None, later: list[str]) -> None:
        """`later`: changed keys that count from the next start on."""
        self._supervisor = supervisor
        self._answer = answer
        self._later = later
        self._warnings: list[str] = []
        self._mailboxes: list[str] = []

    def refuse(self, code: int, error: str) -> None:
        """Nothing has changed, and why; `code` is what the command ends with, sysexits(3)."""
        self._give({"ok": False, "error": error, "code": code})

    def wait(self) -> None:
        """It is done; the answer follows when the mailboxes have been looked at, or when that takes long."""
        if self._answer is not None:
            self._supervisor.loop.later(_LOOK_SECONDS, self.done)

    def warned(self, line: str) -> None:
        """One of the new actors warns of what it has read; several listeners say the same."""
        if self._answer is not None and line not in self._warnings and len(self._warnings) < _MOST_WARNINGS:
            self._warnings.append(line)

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
        self._give({"ok": True, "next_start": self._later, "warnings": self._warnings, "mailboxes": self._mailboxes})

    def _give(self, said: dict[str, Any]) -> None:
        answer, self._answer = self._answer, None
        if answer is not None:
            answer(said)


class Reload:
    """A reload under way: new actors beside the old ones, which go on until the new have all said hello."""

    def __init__(self, supervisor: "Supervisor", users: dict[str, MailUser], over: Callable[[str, int], None]) -> None:
        """`over`: to be called once, with "" and 0, or with what was wrong and its code."""
        self.supervisor = supervisor
        self.users = users
        self.over = over
        self.names: list[str] = []
        self.ready: set[str] = set()

    def begin(self) -> None:
        """Start the new ones."""
        s = self.supervisor
        try:
            self.names = s.singletons.launch(roots_of(self.users))
        except OSError as error:
            self.fail(f"no room for new actors: {error.strerror}", TEMPFAIL)
            return
        for name in self.names:
            s.processes[name].on_hello = lambda name=name: self._hello(name)

    def _hello(self, name: str) -> None:
        self.ready.add(name)
        if len(self.ready) == len(self.names):
            self._swap()

    def _swap(self) -> None:
        """The new take over in one turn of the loop; old sessions go on with whom they have."""
        s = self.supervisor
        old = [s.processes[name] for name in s.singletons.in_force() if name in s.processes]
        s.core.users = self.users
        s.singletons.put_in_force(self.names)
        s.heir.give_way()
        s.spawning.go_on()
        for name in self.names:
            s.processes[name].on_hello = None
        for process in old:
            process.state = "draining"
        s.singletons.wire(s.processes[s.singletons.auth])  # joins the draining listeners too: they may have clients at their password
        for process in old:
            if process.kind == s.singletons.door:
                process.channel.send(m.Drain())
            else:
                process.channel.send(m.Stop(LAST_CHILD_SECONDS if process.kind == "spawner" else _AUTH_SECONDS))
                if process.kind == "auth":
                    s.pulse.leaves(process, _AUTH_SECONDS)
        s.send(s.singletons.mda, m.Anew())
        s.do(s.core.retire_all())
        self.over("", 0)
        s.log_line(NOTICE, f"reloaded: {len(self.users)} user{'s' * (len(self.users) != 1)}")

    def fail(self, why: str, code: int) -> None:
        """One of the new can't serve: all the new go, the old never noticed."""
        s = self.supervisor
        s.singletons.give_up(self.names)
        self.over(why, code)


class Reloads:
    """One reload at a time, from the question to the answer."""

    def __init__(self, supervisor: "Supervisor") -> None:
        self._kernel = supervisor
        self._asked: Callable[[dict[str, Any]], None] | None = None  # who asked for one that init has not yet begun
        self._now: Reload | None = None  # the one under way
        self._begun: tuple[Reload, Asker] | None = None  # the last one, under way or over, and who asked for it
        self._last = Asker(supervisor, None, [])  # of the last reload, or of the start

    def ask(self, answer: Callable[[dict[str, Any]], None]) -> None:
        """`popkernel reload`."""
        k = self._kernel
        if self._now is not None or self._asked is not None or k.state != "running":
            now = k.state if k.state != "running" else "reloading"
            Asker(k, answer, []).refuse(TEMPFAIL, f"not now: the service is {now}; try again")
            return
        self._asked = answer
        k.tell_init(m.Signal("HUP"))
        Deadline(k.loop, _ASK_SECONDS, lambda: self._unanswered(answer))

    def _unanswered(self, answer: Callable[[dict[str, Any]], None]) -> None:
        if self._asked is answer:
            self._asked = None
            text = f"init has not read the configuration within {_ASK_SECONDS} s"
            self._kernel.log_line(ERROR, f"not reloaded, what is in force stays: {text}")
            Asker(self._kernel, answer, []).refuse(TEMPFAIL, text)

    def looked(self, rest: str) -> None:
        """Init's word on what is wrong with a mailbox, or that this was all."""
        self._last.looked(*rest.partition(" ")[::2])

    def unread(self, code: int, error: str) -> None:
        """Init could not read what a reload begins with."""
        self._refuse(self._asker(), error, code)

    def reread(self, later: str, table: int) -> None:
        """Replace auth and listeners by new ones that read the new files; the user table comes as a descriptor."""
        k = self._kernel
        asker = self._asker(later.split(", ") if later else [])
        try:
            data = handed_over(table)
            if later:
                k.log_line(WARNING, f"changed in the configuration, in force only after the next start: {later}")
            if self._now is not None or k.state != "running":
                now = k.state if self._now is None else "reloading"
                self._over(asker, f"not now: the service is {now}; try again", TEMPFAIL)
                return
            users = judge(data, k.config.user_table, k.config.subdir)
        except (OSError, MemoryError) as error:
            why = error.strerror if isinstance(error, OSError) else "no memory"
            self._over(asker, f"the user table could not be taken: {why}", TEMPFAIL)
            return
        except ValueError as error:
            self._over(asker, str(error), code_of(error))
            return
        self._now = Reload(k, users, lambda error, code: self._ended(asker, error, code))
        self._begun = self._now, asker
        self._now.begin()

    def lost(self) -> None:
        """The user table came, and there was no room for its descriptor."""
        limit = self._kernel.nofile
        self._over(self._asker(), f"no room for the user table's descriptor: {limit} may be open (RLIMIT_NOFILE)", TEMPFAIL)

    def stop(self) -> None:
        """The service ends: who was to take over goes."""
        if self._now is not None:
            self._now.fail("the service is stopping", TEMPFAIL)

    def _asker(self, later: list[str] | None = None) -> Asker:
        asked, self._asked = self._asked, None
        return Asker(self._kernel, asked, later or [])

    def concerned(self, name: str) -> Reload | None:
        """The reload under way, if that is one of the new actors of it."""
        return self._now if self._now is not None and name in self._now.names else None

    def warned(self, name: str, line: str) -> None:
        """An actor has something for the log; if it is a new one, for who asked too."""
        if self._begun is not None and name in self._begun[0].names:
            self._begun[1].warned(line)

    def _ended(self, asker: Asker, error: str, code: int) -> None:
        self._now = None
        self._over(asker, error, code)

    def _over(self, asker: Asker, error: str, code: int) -> None:
        """It went well, or nothing has changed because of `error`; init is told first, then whoever asked."""
        self._kernel.tell_init(m.Signal("NOT" if error else "DONE"))
        if error:
            self._refuse(asker, error, code)
            return
        self._last.done()
        self._last = asker
        asker.wait()

    def _refuse(self, asker: Asker, error: str, code: int) -> None:
        self._kernel.log_line(ERROR, f"not reloaded, what is in force stays: {error}")
        asker.refuse(code, error)
