"""A reload is a replacement: who serves needs no file, and a bad file changes nothing.

It begins with init, whoever asks (a SIGHUP, `popkernel reload`, a file that has changed): a child of init's reads the configuration and the
user table, and init says Reread or Unread. Then the kernel judges the table, and has new actors read the rest. What comes of it is told to
init, which keeps the new configuration or goes back, and to whoever asked.
"""

from collections.abc import Callable
from typing import Any

from popkernel.kernel.config.keys import Config
from popkernel.kernel.config.user_table import code_of, handed_over, judge, roots_of
from popkernel.kernel.decisions.leases import Core, Effect
from popkernel.kernel.processes import Processes
from popkernel.kernel.runtime.actor import TEMPFAIL
from popkernel.kernel.runtime.deadlines import Deadline
from popkernel.kernel.runtime.log import DEBUG, ERROR, NOTICE, WARNING, Log
from popkernel.kernel.runtime.loop import Loop
from popkernel.kernel.supervisor.liveness import Liveness
from popkernel.kernel.supervisor.singletons import Singletons
from popkernel.kernel.supervisor.spawner_succession import LAST_CHILD_SECONDS, Succession
from popkernel.kernel.supervisor.spawning import Spawning
from popkernel.proto import messages as m
from popkernel.proto.files.tables import MailUser
from popkernel.proto.topology import edge

__all__ = ["Asker", "Reload", "Reloads"]

_ASK_SECONDS = edge("kernel", "init").deadline * 3 // 2  # for init to read the configuration, or to say that it could not
_AUTH_SECONDS = 5  # that an auth has for what it was asked before another took its place
_LOOK_SECONDS = 3.0  # how long an answer waits for what is wrong with mailboxes; the log has it in any case
_MOST_WARNINGS = 100  # of new actors in one answer


class Asker:
    """Whoever asked for a reload, if anyone did: told how it went, once init has looked at the mailboxes of the new table.

    It is also told what new actors warn of, in the words of `popkernel check`: a certificate that no client takes, for example.
    """

    def __init__(self, loop: Loop, log: Log, answer: Callable[[dict[str, Any]], None] | None, later: list[str]) -> None:
        """`later`: changed keys that count from the next start on."""
        self._loop = loop
        self._log = log
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
            self._loop.later(_LOOK_SECONDS, self.done)

    def warned(self, line: str) -> None:
        """One of the new actors warns of what it has read; several listeners say the same."""
        if self._answer is not None and line not in self._warnings and len(self._warnings) < _MOST_WARNINGS:
            self._warnings.append(line)

    def looked(self, why: str, line: str) -> None:
        """Init has found a broken mailbox, or, where there is no `line`, has finished. `why`: after a start or a reload."""
        self._log(*((WARNING, line) if line else (DEBUG, "mailboxes looked at")))
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

    def __init__(
        self, processes: Processes, singletons: Singletons, users: dict[str, MailUser], swap: Callable[["Reload"], None],
        over: Callable[[str, int], None],
    ) -> None:
        """`swap`: to be called once all serve. `over`: to be called once, with "" and 0, or with what was wrong and its code."""
        self._processes = processes
        self._singletons = singletons
        self.users = users
        self._swap = swap
        self.over = over
        self.names: list[str] = []
        self._ready: set[str] = set()

    def begin(self) -> None:
        """Start the new ones."""
        try:
            self.names = self._singletons.launch(roots_of(self.users))
        except OSError as error:
            self.fail(f"no room for new actors: {error.strerror}", TEMPFAIL)
            return
        for name in self.names:
            process = self._processes[name]
            process.on_hello = lambda name=name: self._hello(name)
            process.on_failed = self.fail

    def _hello(self, name: str) -> None:
        self._ready.add(name)
        if len(self._ready) == len(self.names):
            for process in (self._processes[each] for each in self.names):
                process.on_hello = process.on_failed = None
            self._swap(self)

    def fail(self, why: str, code: int) -> None:
        """One of the new can't serve: all the new go, the old never noticed."""
        self._singletons.give_up(self.names)
        self.over(why, code)


class Reloads:
    """One reload at a time, from the question to the answer."""

    def __init__(
        self, loop: Loop, processes: Processes, core: Core, log: Log, liveness: Liveness, singletons: Singletons, succession: Succession,
        spawning: Spawning, config: Config, do: Callable[[list[Effect]], None],
    ) -> None:
        self._loop = loop
        self._processes = processes
        self._core = core
        self._log = log
        self._liveness = liveness
        self._singletons = singletons
        self._succession = succession
        self._spawning = spawning
        self._config = config
        self._do = do
        self._asked: Callable[[dict[str, Any]], None] | None = None  # who asked for one that init has not yet begun
        self._now: Reload | None = None  # the one under way
        self._begun: tuple[Reload, Asker] | None = None  # the last one, under way or over, and who asked for it
        self._last = Asker(loop, log, None, [])  # of the last reload, or of the start

    def ask(self, answer: Callable[[dict[str, Any]], None]) -> None:
        """`popkernel reload`."""
        phase = self._processes.phase
        if self._now is not None or self._asked is not None or phase != "running":
            now = phase if phase != "running" else "reloading"
            Asker(self._loop, self._log, answer, []).refuse(TEMPFAIL, f"not now: the service is {now}; try again")
            return
        self._asked = answer
        self._processes.tell_init(m.Signal("HUP"))
        Deadline(self._loop, _ASK_SECONDS, lambda: self._unanswered(answer))

    def _unanswered(self, answer: Callable[[dict[str, Any]], None]) -> None:
        if self._asked is answer:
            self._asked = None
            text = f"init has not read the configuration within {_ASK_SECONDS} s"
            self._log(ERROR, f"not reloaded, what is in force stays: {text}")
            Asker(self._loop, self._log, answer, []).refuse(TEMPFAIL, text)

    def looked(self, rest: str) -> None:
        """Init's word on what is wrong with a mailbox, or that this was all."""
        self._last.looked(*rest.partition(" ")[::2])

    def unread(self, code: int, error: str) -> None:
        """Init could not read what a reload begins with."""
        self._refuse(self._asker(), error, code)

    def reread(self, later: str, table: int) -> None:
        """Replace auth and listeners by new ones that read the new files; the user table comes as a descriptor."""
        asker = self._asker(later.split(", ") if later else [])
        try:
            data = handed_over(table)
            if later:
                self._log(WARNING, f"changed in the configuration, in force only after the next start: {later}")
            if self._now is not None or self._processes.phase != "running":
                now = self._processes.phase if self._now is None else "reloading"
                self._over(asker, f"not now: the service is {now}; try again", TEMPFAIL)
                return
            users = judge(data, self._config.user_table, self._config.subdir)
        except (OSError, MemoryError) as error:
            why = error.strerror if isinstance(error, OSError) else "no memory"
            self._over(asker, f"the user table could not be taken: {why}", TEMPFAIL)
            return
        except ValueError as error:
            self._over(asker, str(error), code_of(error))
            return
        self._now = Reload(self._processes, self._singletons, users, self._swap, lambda error, code: self._ended(asker, error, code))
        self._begun = self._now, asker
        self._now.begin()

    def lost(self, limit: int) -> None:
        """The user table came, and there was no room for its descriptor; `limit`: of so many."""
        self._over(self._asker(), f"no room for the user table's descriptor: {limit} may be open (RLIMIT_NOFILE)", TEMPFAIL)

    def _swap(self, reload: Reload) -> None:
        """The new take over in one turn of the loop; old sessions go on with whom they have."""
        singletons, there = self._singletons, self._processes
        old = [there[name] for name in singletons.in_force() if name in there]
        self._core.users = reload.users
        singletons.put_in_force(reload.names)
        self._succession.give_way()
        self._spawning.go_on()
        for process in old:
            process.state = "draining"
        singletons.wire(there[singletons.auth])  # joins the draining listeners too: they may have clients at their password
        for process in old:
            if process.kind == singletons.door:
                process.channel.send(m.Drain())
            else:
                process.channel.send(m.Stop(LAST_CHILD_SECONDS if process.kind == "spawner" else _AUTH_SECONDS))
                if process.kind == "auth":
                    self._liveness.leaves(process, _AUTH_SECONDS)
        there.send(singletons.mda, m.Anew())
        self._do(self._core.retire_all())
        reload.over("", 0)
        self._log(NOTICE, f"reloaded: {len(reload.users)} user{'s' * (len(reload.users) != 1)}")

    def stop(self) -> None:
        """The service ends: who was to take over goes."""
        if self._now is not None:
            self._now.fail("the service is stopping", TEMPFAIL)

    def _asker(self, later: list[str] | None = None) -> Asker:
        asked, self._asked = self._asked, None
        return Asker(self._loop, self._log, asked, later or [])

    def warned(self, name: str, line: str) -> None:
        """An actor has something for the log; if it is a new one, for who asked too."""
        if self._begun is not None and name in self._begun[0].names:
            self._begun[1].warned(line)

    def _ended(self, asker: Asker, error: str, code: int) -> None:
        self._now = None
        self._over(asker, error, code)

    def _over(self, asker: Asker, error: str, code: int) -> None:
        """It went well, or nothing has changed because of `error`; init is told first, then whoever asked."""
        self._processes.tell_init(m.Signal("NOT" if error else "DONE"))
        if error:
            self._refuse(asker, error, code)
            return
        self._last.done()
        self._last = asker
        asker.wait()

    def _refuse(self, asker: Asker, error: str, code: int) -> None:
        self._log(ERROR, f"not reloaded, what is in force stays: {error}")
        asker.refuse(code, error)
