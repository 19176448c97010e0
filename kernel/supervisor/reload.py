"""Reload files: start new actors that read them, and put these in the place of the old ones.

The serving actors read no file again, so a bad file changes nothing. A reload begins in init (a SIGHUP,
`popkernel reload`, a changed file): its child reads the configuration and the user table, and init sends
ReloadInputs or ReloadInputsFailed. Then the kernel checks the table, and new actors read the other files.
The result goes to init, which keeps the new configuration or returns to the old one, and to the caller.

Actors whose inputs did not change stay: their settings, their user, and the content of the files that they
read (kernel/init/contents.py). So a new user replaces no listener, and a renewed certificate no auth. A
maildir actor stays if its user's row and its settings are the same. The spawner stays if its settings and the
directories above the maildirs are; an old one ends after its last child.

A new auth takes over from the old one what that remembers of logins (actors/auth/hand_over.py), before it
gets its first login: on a channel of which the kernel keeps no end.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any

from popkernel.kernel.config.keys import Config
from popkernel.kernel.config.user_table import exit_code, read_descriptor, roots_of, users_of
from popkernel.kernel.decisions.actions import Action
from popkernel.kernel.decisions.leases import Core
from popkernel.kernel.processes import Exit, Process, Processes
from popkernel.kernel.runtime.actor import TEMPFAIL
from popkernel.kernel.runtime.channel import pair
from popkernel.kernel.runtime.deadlines import Deadline
from popkernel.kernel.runtime.log import Log
from popkernel.kernel.runtime.loop import Loop
from popkernel.kernel.supervisor.liveness import Liveness
from popkernel.kernel.supervisor.singletons import Singletons
from popkernel.kernel.supervisor.spawner_succession import Succession
from popkernel.kernel.supervisor.spawning import Spawning
from popkernel.proto import messages as m
from popkernel.proto.files.tables import MailUser
from popkernel.proto.log_levels import DEBUG, ERROR, NOTICE, WARNING
from popkernel.proto.topology import edge

__all__ = ["Asker", "Reload", "Reloads"]

# for init to read the configuration, or to report that it could not
_ASK_SECONDS = edge("kernel", "init").deadline * 3 // 2
# for a new auth to take over: more than it waits for the old one
_TAKE_OVER_SECONDS = edge("kernel", "auth").deadline
_AUTH_SECONDS = 5  # for a replaced auth to answer its last requests
_LOOK_SECONDS = 3.0  # the answer waits so long for faults of mailboxes; the log has them in any case
_MOST_WARNINGS = 100  # in one answer
_LAST_SECOND = 253402300799  # of the year 9999
_PASSWORDS = ("passwords_added", "passwords_removed", "passwords_changed")


class Asker:
    """Answer the caller of a reload, if there is one, once init has checked the mailboxes of the new table.

    The answer holds the new actors' warnings in the words of `popkernel check`, for example of a certificate
    that no client accepts.
    """

    def __init__(
        self, loop: Loop, log: Log, answer: Callable[[dict[str, Any]], None] | None, later: list[str]
    ) -> None:
        """`later`: changed keys that only a new start applies."""
        self._loop = loop
        self._log = log
        self._answer = answer
        self._later = later
        self._warnings: list[str] = []
        self._mailboxes: list[str] = []
        self._said: dict[str, Any] = {}

    def refuse(self, code: int, error: str) -> None:
        """Answer that nothing has changed, and why. `code`: the command's exit code, sysexits(3)."""
        self._give({"ok": False, "error": error, "code": code})

    def succeeded(self, said: dict[str, Any]) -> None:
        """Note what the reload did, for the answer."""
        self._said = said

    def wait(self) -> None:
        """Answer when the mailboxes have been checked, or after `_LOOK_SECONDS`."""
        if self._answer is not None:
            self._loop.later(_LOOK_SECONDS, self.done)

    def warned(self, line: str) -> None:
        """Take a warning of a new actor, once: several listeners send the same."""
        if self._answer is not None and line not in self._warnings and len(self._warnings) < _MOST_WARNINGS:
            self._warnings.append(line)

    def mailbox_fault(self, after: str, line: str) -> None:
        """Log a mailbox fault that init found, and keep it for the answer. `after`: "start" or "reload"."""
        self._log(WARNING, "mailbox.fault", fault=line)
        if after == "reload":
            self._mailboxes.append(line)

    def mailboxes_checked(self, after: str) -> None:
        """Init has checked all mailboxes: the answer is complete."""
        self._log(DEBUG, "mailboxes.checked")
        if after == "reload":
            self.done()

    def done(self) -> None:
        """Answer that the reload succeeded; only the first call does anything."""
        lists = {"next_start": self._later, "warnings": self._warnings, "mailboxes": self._mailboxes}
        self._give({"ok": True, **self._said, **lists})

    def _give(self, said: dict[str, Any]) -> None:
        answer, self._answer = self._answer, None
        if answer is not None:
            answer(said)


class Reload:
    """Start the new actors beside the old ones, which serve until all the new have sent Hello."""

    def __init__(
        self,
        loop: Loop,
        processes: Processes,
        singletons: Singletons,
        users: dict[str, MailUser],
        changes: m.ReloadInputs,
        roots: list[bytes] | None,
        swap: Callable[["Reload"], None],
        over: Callable[[str, int], None],
        lost: Callable[[str, str], None],
    ) -> None:
        """Begin nothing yet.

        Args:
            loop: of the kernel.
            processes: the registry.
            singletons: to start the new actors.
            users: the new table.
            changes: what else has changed.
            roots: for a new spawner; None if the one in force stays.
            swap: called once all new actors serve.
            over: called once at the end, with "" and 0, or with an error text and its code (sysexits(3)).
            lost: called with the new auth's name and the reason if it can take nothing over.
        """
        self._loop = loop
        self._processes = processes
        self._singletons = singletons
        self.users = users
        self.changes = changes
        self.roots = roots
        self._swap = swap
        self.over = over
        self._lost = lost
        self.names: list[str] = []
        self._new: list[Process] = []  # those of these names
        self.taken: m.LoginMemoryTaken | None = None
        self._ready: set[str] = set()
        self._taking = ""  # the new auth while it takes over
        self._late: Deadline | None = None

    def begin(self) -> None:
        """Start the new actors: those whose inputs changed, and those that do not serve."""
        singletons, changes = self._singletons, self.changes
        try:
            self.names = singletons.launch(
                self.roots,
                auth=changes.auth or not singletons.serves_all(singletons.auth),
                listeners=changes.listeners or not singletons.serves_all(*singletons.listeners),
            )
        except OSError as error:
            self.fail(f"no room for new actors: {error.strerror}", TEMPFAIL)
            return
        self._new = [self._processes[name] for name in self.names]
        for process in self._new:
            process.on_hello = lambda process=process: self._hello(process)
            process.on_failed = self.fail
        if not self.names:
            self._done()

    def _hello(self, process: Process) -> None:
        self._ready.add(process.name)
        process.on_hello = None
        if len(self._ready) == len(self.names):
            self._take_over()

    def _one_gone(self) -> bool:
        """Return whether a new actor has ended, which will give the reload up.

        Its last messages are read after it has left the registry.
        """
        return not all(map(self._processes.has, self._new))

    def _take_over(self) -> None:
        """Join a new auth with the old one, which hands over what it remembers of logins."""
        if self._one_gone():
            return
        new = next((process for process in self._new if process.kind == "auth"), None)
        old = self._processes.get(self._singletons.auth)
        if new is None:
            self._done()
            return
        if old is None or old.state != "serving":
            self._lost(new.name, "the auth before it does not serve")
            self._done()
            return
        try:
            ends = pair()
            with ends[0], ends[1]:
                old.channel.send(m.SuccessorChannel(new.name), [ends[0].fileno()])
                new.channel.send(m.PredecessorChannel(old.name), [ends[1].fileno()])
        except OSError as error:
            self._lost(new.name, f"no room for a channel: {error.strerror}")
            self._done()
            return
        # the new one may complain of the old one, and not the other way round (misbehaviour.py)
        old.last_peer, new.last_peer = new.name, ""
        self._taking = new.name
        self._late = Deadline(self._loop, _TAKE_OVER_SECONDS, lambda: self._silent(new.name))

    def _silent(self, name: str) -> None:
        self._lost(name, f"it has not answered within {_TAKE_OVER_SECONDS} s")
        self._done()

    def memory_taken(self, name: str, message: m.LoginMemoryTaken) -> None:
        """Go on: the new auth has taken over. A message that nobody waits for has no effect."""
        if name == self._taking:
            self.taken = message if message.complete else None
            self._done()

    def _done(self) -> None:
        if not self._one_gone():
            self._forget()
            self._swap(self)

    def _forget(self) -> None:
        """Wait for nothing more."""
        self._taking = ""
        if self._late is not None:
            self._late.cancel()
        for process in self._new:  # also of one that has ended: it may say why, and its end is reported too
            process.on_hello = process.on_failed = None

    def fail(self, why: str, code: int) -> None:
        """Give the reload up, and kill all new actors: one of them can't serve."""
        self._forget()
        self._singletons.give_up(self.names)
        self.over(why, code)


class Reloads:
    """Carry out one reload at a time, from the request to the answer."""

    def __init__(
        self,
        loop: Loop,
        processes: Processes,
        core: Core,
        log: Log,
        liveness: Liveness,
        singletons: Singletons,
        succession: Succession,
        spawning: Spawning,
        config: Config,
        do: Callable[[list[Action]], None],
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
        # the caller of a reload that init has not yet begun
        self._asked: Callable[[dict[str, Any]], None] | None = None
        self._now: Reload | None = None  # the reload under way
        # the last reload, under way or over, and its caller
        self._begun: tuple[Reload, Asker] | None = None
        self._last = Asker(loop, log, None, [])  # the caller of the last reload; nobody after a start
        # by actor in force: what it warned of at its start
        self._doubts: dict[str, list[str]] = {}
        # files of the certificates in force, and the end of each, in seconds since 1970
        self.certificates: list[tuple[str, int]] = []

    def ask(self, answer: Callable[[dict[str, Any]], None]) -> None:
        """Ask init for a reload, for `popkernel reload`."""
        phase = self._processes.phase
        if self._now is not None or self._asked is not None or phase != "running":
            now = phase if phase != "running" else "reloading"
            Asker(self._loop, self._log, answer, []).refuse(
                TEMPFAIL, f"not now: the service is {now}; try again"
            )
            return
        self._asked = answer
        self._processes.send_init(m.ReloadRequest())
        Deadline(self._loop, _ASK_SECONDS, lambda: self._unanswered(answer))

    def _unanswered(self, answer: Callable[[dict[str, Any]], None]) -> None:
        if self._asked is answer:
            self._asked = None
            text = f"init has not read the configuration within {_ASK_SECONDS} s"
            self._log(ERROR, "reload.failed", error=text)
            Asker(self._loop, self._log, answer, []).refuse(TEMPFAIL, text)

    def mailbox_fault(self, after: str, line: str) -> None:
        """Pass on a mailbox fault that init found."""
        self._last.mailbox_fault(after, line)

    def mailboxes_checked(self, after: str) -> None:
        """Pass on that init has checked all mailboxes."""
        self._last.mailboxes_checked(after)

    def unread(self, code: int, error: str) -> None:
        """Refuse a reload whose configuration or user table init could not read."""
        self._refuse(self._asker(), error, code)

    def reread(self, changes: m.ReloadInputs, table: int) -> None:
        """Begin a reload. `table`: descriptor of the user table."""
        later = changes.later
        asker = self._asker(later.split(", ") if later else [])
        try:
            data = read_descriptor(table)
            if later:
                self._log(WARNING, "reload.postponed", keys=later)
            if self._now is not None or self._processes.phase != "running":
                now = self._processes.phase if self._now is None else "reloading"
                self._over(asker, f"not now: the service is {now}; try again", TEMPFAIL)
                return
            users = users_of(data, self._config.user_table, self._config.subdir)
        except (OSError, MemoryError) as error:
            why = error.strerror if isinstance(error, OSError) else "no memory"
            self._over(asker, f"the user table could not be taken: {why}", TEMPFAIL)
            return
        except ValueError as error:
            self._over(asker, str(error), exit_code(error))
            return
        roots = roots_of(users)
        self._now = Reload(
            self._loop,
            self._processes,
            self._singletons,
            users,
            changes,
            roots
            if changes.spawner or self._succession.due or roots != roots_of(dict(self._core.users))
            else None,
            self._swap,
            lambda error, code: self._ended(asker, error, code),
            lambda name, why: self._log(WARNING, "auth.memory_lost", process=name, why=why),
        )
        self._begun = self._now, asker
        self._now.begin()

    def lost(self, limit: int) -> None:
        """Refuse a reload whose user table had no room for its descriptor. `limit`: RLIMIT_NOFILE."""
        self._over(
            self._asker(),
            f"no room for the user table's descriptor: {limit} may be open (RLIMIT_NOFILE)",
            TEMPFAIL,
        )

    def _swap(self, reload: Reload) -> None:
        """Put the new actors in force in one turn of the loop; open sessions keep their old actors."""
        singletons, processes = self._singletons, self._processes
        before, counts = singletons.in_force(), _compared(self._core.users, reload.users)
        self._core.users = reload.users
        singletons.put_in_force(reload.names)
        old = [processes[n] for n in before if n in processes and n not in singletons.in_force()]
        if reload.roots is not None:
            self._succession.give_way()
            self._spawning.go_on()
        for process in old:
            process.state = "draining"
        if singletons.auth in reload.names:
            # joins the draining listeners too: some of their clients may not have logged in yet
            singletons.wire(processes[singletons.auth])
        else:
            for name in reload.names:
                singletons.wire(processes[name])
        for process in old:
            if process.kind == singletons.door:
                process.channel.send(m.ListenerDrain())
            elif process.kind == "spawner":
                self._succession.leaves(process)
            else:
                process.channel.send(m.ActorStop(_AUTH_SECONDS))
                self._liveness.leaves(process, _AUTH_SECONDS)
        processes.send(singletons.mda, m.RecipientsChanged())
        changes = reload.changes
        self._do(self._core.retire_all() if changes.mail else self._core.retire_changed(changes.users))
        self._keep_doubts(reload)
        self._say_done(reload, counts)
        reload.over("", 0)

    def _keep_doubts(self, reload: Reload) -> None:
        """Tell the caller again what the actors that stay warned of at their start; forget the others'."""
        self._doubts = {
            name: lines for name, lines in self._doubts.items() if name in self._singletons.in_force()
        }
        if self._begun is not None:
            for name, lines in self._doubts.items():
                if name not in reload.names:
                    for line in lines:
                        self._begun[1].warned(line)

    def _say_done(self, reload: Reload, counts: dict[str, int]) -> None:
        """Log what the reload did, and note it for the caller."""
        changes, taken = reload.changes, reload.taken
        self.certificates = list(zip(changes.certificates, changes.ends, strict=False))
        certificates = [
            {"path": path, "ends": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(min(end, _LAST_SECOND)))}
            for path, end in self.certificates
        ]
        passwords = {} if taken is None else dict(zip(_PASSWORDS, taken[3:], strict=True))
        said = {"users": len(reload.users), **counts, **passwords, "replaced": reload.names}
        if self._begun is not None:
            self._begun[1].succeeded({**said, "certificates": certificates})
        texts = {
            "certificates": ", ".join(f"{one['path']} until {one['ends'][:10]}" for one in certificates),
            "replaced": ", ".join(reload.names),
            "later": changes.later,
        }
        self._log(NOTICE, "reload.done", **(said | texts))

    def stop(self) -> None:
        """Give up a reload under way: the service stops."""
        if self._now is not None:
            self._now.fail("the service is stopping", TEMPFAIL)

    def _asker(self, later: list[str] | None = None) -> Asker:
        asked, self._asked = self._asked, None
        return Asker(self._loop, self._log, asked, later or [])

    def memory_taken(self, process: Process, message: m.LoginMemoryTaken, fds: list[int]) -> None:
        """Go on with the reload for which that auth has taken over."""
        del fds
        if self._now is not None:
            self._now.memory_taken(process.name, message)

    def warned(self, name: str, event: str, line: str) -> None:
        """Pass an actor's warning on to the caller, if a reload started that actor."""
        if event.endswith(".doubt"):
            lines = self._doubts.setdefault(name, [])
            if line not in lines and len(lines) < _MOST_WARNINGS:
                lines.append(line)
        if self._begun is not None and name in self._begun[0].names:
            self._begun[1].warned(line)

    def on_exit(self, process: Process, end: Exit) -> None:
        """Forget what an actor that ended warned of."""
        del end
        self._doubts.pop(process.name, None)

    def _ended(self, asker: Asker, error: str, code: int) -> None:
        self._now = None
        self._over(asker, error, code)

    def _over(self, asker: Asker, error: str, code: int) -> None:
        """Report the result to init, then to the caller. `error`: why nothing has changed, "" for success."""
        self._processes.send_init(m.ReloadDone(good=not error))
        if error:
            self._refuse(asker, error, code)
            return
        self._last.done()
        self._last = asker
        asker.wait()

    def _refuse(self, asker: Asker, error: str, code: int) -> None:
        self._log(ERROR, "reload.failed", error=error)
        asker.refuse(code, error)


def _compared(before: Mapping[str, MailUser], after: Mapping[str, MailUser]) -> dict[str, int]:
    """Return how many users a table has more and less than the one before, and how many rows differ."""
    both = before.keys() & after.keys()
    return {
        "added": len(after) - len(both),
        "removed": len(before) - len(both),
        "changed": sum(before[user] != after[user] for user in both),
    }
