"""Fork maildir actors from a warm image, as the kernel orders.

The spawner has no threads and no ZeroMQ context (channels speak ZMTP by popkernel's own code), so forking it
is sound. A child closes all of it but its own channel before it becomes an actor. `gc.freeze` keeps the
collector from writing to the shared pages, which would copy them (children.py).
"""

import contextlib
import os
import signal
import stat
import time
from importlib import import_module
from typing import NoReturn

from popkernel.kernel.runtime.actor import SOFTWARE, TEMPFAIL, Actor, Boot, become
from popkernel.kernel.runtime.channel import Message
from popkernel.kernel.runtime.child_process import do_and_leave, fork_and_tell, told
from popkernel.kernel.runtime.memory import keep_memory, note_inherited
from popkernel.kernel.runtime.process_title import set_title
from popkernel.kernel.sandbox import lock as sandbox
from popkernel.kernel.sandbox.libc import SandboxError
from popkernel.kernel.spawner.children import Children
from popkernel.proto import messages as m
from popkernel.proto.log_levels import ERROR, WARNING
from popkernel.proto.topology import actor as row_of

_LOG_SECONDS = 10.0  # between two lines in the log
_TRIAL = "trial"  # name of the child that measures an actor
_TRIAL_NICE = 10  # setpriority(2): about a tenth of a busy processor
_TRIAL_SECONDS = 20  # until it is killed, in case its files hang
_DISPLACED = 1  # exit status of a child that found another directory than the one that the sandbox holds


class Spawner(Actor):
    """Fork a maildir actor on ActorSpawn, and report every child's end."""

    def __init__(self, boot: Boot) -> None:
        super().__init__(boot)
        self.module = import_module(row_of("maildir").module)  # the warm image
        self.program = sandbox.compile_promises(row_of("maildir").promises) if boot.sandboxed else None
        self.children = Children(self.loop, self._exited, self._done)
        self.handlers |= {m.ActorSpawn: self._spawn, m.ProcessKill: self._kill}
        self.settings_of_all = {  # made once: making it in a child would copy a page for each key
            **boot.config["mail"],
            "maildir": b"",
            "die_with_parent": self.children.die_with_parent,
        }
        self.requested: list[tuple[m.ActorSpawn, int]] = []  # in this turn of the loop, each with its channel
        self.logged = -_LOG_SECONDS  # when "cannot be forked" was logged last, in the loop's time
        self.leaving = False
        # device and inode of the directories above maildirs that the sandbox holds; None: did not exist
        self.held: dict[bytes, tuple[int, int] | None] = {}
        # by child: the held directory that its maildir lies under, uid, gid
        self.under: dict[str, tuple[bytes, int, int]] = {}
        self.comparing: dict[str, bytes] = {}  # by child that only compares a held directory: which one
        self.trial = -1  # pipe from the child that measures an actor, while it runs

    def begin(self) -> None:
        """Enter the sandbox, say hello, serve."""
        self.children.prepare()
        unrehearsed = self._rehearse()
        for root in self.boot.config["roots"]:
            # root may not see it, on NFS: there is nothing to compare with
            with contextlib.suppress(PermissionError):
                self.held[root] = _identity(root)
        keep_memory(1 << 20)  # children inherit it
        self.children.tried()
        self.children.begin()
        if not unrehearsed:
            self._begin_trial()
        self.lock([(root, "rwc") for root, identity in self.held.items() if identity])
        self.connect()
        self.children.report(self.boot.name, self.log)
        missing = sum(not identity for identity in self.held.values())
        if missing:
            self.send(m.RootsMissing(missing))
        if unrehearsed:
            self.log(WARNING, "spawner.unrehearsed", error=unrehearsed)
        if self.trial < 0:
            self.send(m.ImageTried(0, 0))
        self.run()

    def _rehearse(self) -> str:
        """Rehearse an actor's life in the image (docs/architecture.md, "The warm image").

        Return why it failed, "" if it did not. Failing costs time only: a full run directory stops no
        service.
        """
        try:
            rehearsal = import_module(f"{self.module.__package__}.rehearsal")
            rehearsal.rehearse(
                self.boot.config["run_dir"], self.settings_of_all, sandboxed=self.boot.sandboxed
            )
        except OSError as error:
            return error.strerror or str(error)
        return ""

    # -- the trial of an actor (actors/maildir/trial.py)
    def _begin_trial(self) -> None:
        """Fork a child that measures an actor's memory, which this process could not do in its sandbox.

        Nothing waits for it, so it gives way to all that does.
        """
        with contextlib.suppress(OSError):  # no room: no trial
            pid, self.trial = fork_and_tell(self._try)
            self.children.add(_TRIAL, pid)

    def _try(self, writing: int) -> None:
        # Landlock keeps this process's end from having it killed (signals, ABI 6): it must end by itself.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(_TRIAL_SECONDS)
        os.nice(_TRIAL_NICE)
        set_title(_TRIAL)
        trial = import_module(f"{self.module.__package__}.trial")

        directory = self.boot.config["run_dir"]

        def lock() -> None:
            # Landlock lets it read the memory of its own child, which restricts itself further, and no other
            self.lock([(directory, "rwc"), ("/proc", "r")])

        def fork(maildir: bytes, fd: int, others: tuple[int, ...]) -> int:
            pid = os.fork()
            if pid == 0:
                do_and_leave(
                    lambda: self._become_trial(trial.NAME, maildir, fd, (*others, writing)), SOFTWARE
                )
            return pid

        octets, peak = trial.measure(directory, lock, fork, writing)
        os.write(writing, b"%d %d" % (octets, peak))

    def _become_trial(self, name: str, maildir: bytes, fd: int, others: tuple[int, ...]) -> NoReturn:
        """In the trial's child: become an actor under this process's ids."""
        for other in others:
            os.close(other)
        self.settings_of_all["maildir"] = maildir
        self._become_actor(name, fd, os.getuid(), os.getgid())

    def _trial_ended(self) -> None:
        if self.trial < 0:  # a stop came first
            return
        result = told(self.trial) or b"0 0"
        os.close(self.trial)
        self.trial = -1
        octets, peak = map(int, result.split())
        self.send(m.ImageTried(octets, peak))

    def sessions(self) -> int:
        """Return the number of actors."""
        return len(self.children) - (self.trial >= 0)

    def _spawn(self, message: m.ActorSpawn, fds: list[int]) -> None:
        if not self.requested:
            self.loop.soon(self._fork)
        self.under[message.name] = self._above(message.maildir), message.uid, message.gid
        self.requested.append((message, fds[0]))

    def _fork(self) -> None:
        """Fork all actors requested in this turn, one right after the other.

        Between two forks this process copies each page that it writes to.
        """
        while self.requested:
            message, fd = self.requested.pop(0)
            try:
                pid = self.children.fork(message.name, message.uid)
            except OSError as error:
                del self.under[message.name]
                self._cannot(message.name, error)
                pid = -1
            if pid == 0:
                do_and_leave(lambda: self._become(message, fd), SOFTWARE)  # noqa: B023  it runs now
            os.close(fd)
        self._done()  # if a stop came in the same turn and no fork succeeded, no child's end calls it

    def _cannot(self, name: str, error: OSError) -> None:
        """Report to the kernel that there is no room for another process. Existing ones go on."""
        if self.loop.now - self.logged >= _LOG_SECONDS:
            self.logged = self.loop.now
            self.log(ERROR, "spawner.fork_failed", error=error.strerror or "")
        self.send(m.ProcessExited(name, os.getpid(), TEMPFAIL << 8))

    def lost(self, message: Message) -> None:
        """Report an actor whose channel's descriptor had no room, as one that could not be forked."""
        super().lost(message)
        if isinstance(message, m.ActorSpawn):
            self.send(m.ProcessExited(message.name, os.getpid(), TEMPFAIL << 8))

    def _become(self, message: m.ActorSpawn, fd: int) -> NoReturn:
        """In the child: close all that is the spawner's, and become the actor."""
        self._close_inherited()
        if self._displaced(*self.under[message.name]):
            os._exit(TEMPFAIL)
        self.settings_of_all["maildir"] = message.maildir
        quota = self.boot.config["quotas"].get(message.name.removeprefix("maildir."))
        if quota is not None:
            self.settings_of_all["quota"] = quota
        self._become_actor(message.name, fd, message.uid, message.gid)

    def _become_actor(self, name: str, fd: int, uid: int, gid: int) -> NoReturn:
        note_inherited()
        boot = Boot(
            name,
            fd,
            uid,
            gid,
            self.settings_of_all,
            sandboxed=self.boot.sandboxed,
            program=self.program,
        )
        set_title(name)
        become(boot, self.module.main)

    def _close_inherited(self) -> None:
        if self.kernel is not None:
            self.kernel.close()  # drops a message that came in part, too
            self.kernel = None
        if self.trial >= 0:
            os.close(self.trial)
        for _, other in self.requested:  # channels of its siblings
            os.close(other)

    # -- directories above maildirs
    def _above(self, maildir: bytes) -> bytes:
        """Return the held directory that a maildir lies under; `/` if there is none."""
        root = os.path.dirname(maildir)
        while root not in self.held and root != os.path.dirname(root):
            root = os.path.dirname(root)
        return root

    def _displaced(self, root: bytes, uid: int, gid: int) -> bool:
        """In a child: return whether `root` names another directory than the one that the sandbox holds.

        Becomes the child's user first, who may see directories that root may not. Never called in the
        spawner: the file system may hang.
        """
        if not self.boot.sandboxed or root not in self.held:
            return False
        # no context manager: its three functions would cost each child pages (docs/performance.md)
        try:  # noqa: SIM105
            sandbox.drop_ids(uid, gid)
        except SandboxError:  # become() tries again, and reports it
            pass
        self.children.die_with_parent()
        try:
            found = os.stat(root)
        except OSError:
            return False
        return stat.S_ISDIR(found.st_mode) and (found.st_dev, found.st_ino) != self.held[root]

    def _compare(self, root: bytes, uid: int, gid: int) -> None:
        """Fork a child that compares `root` and ends: an actor's user can choose the actor's exit status."""
        if root in self.comparing.values() or self.leaving or not self.boot.sandboxed:
            return
        name = f"compare.{uid}.{len(self.comparing)}"
        try:
            pid = self.children.fork(name, uid)
        except OSError:
            return
        if pid == 0:
            do_and_leave(lambda: self._exit_compared(root, uid, gid), SOFTWARE)
        self.comparing[name] = root

    def _exit_compared(self, root: bytes, uid: int, gid: int) -> NoReturn:
        self._close_inherited()
        os._exit(_DISPLACED if self._displaced(root, uid, gid) else 0)

    def _kill(self, message: m.ProcessKill, fds: list[int]) -> None:
        del fds
        if any(request.name == message.name for request, _ in self.requested):
            self._fork()
        self.children.kill(message.name)

    def _exited(self, name: str, pid: int, status: int) -> None:
        if name == _TRIAL:
            self._trial_ended()
            return
        if name in self.comparing:
            root = self.comparing.pop(name)
            if status == _DISPLACED << 8:
                self.send(m.RootDisplaced(root))
            return
        above = self.under.pop(name)
        self.send(m.ProcessExited(name, pid, status))
        if status == TEMPFAIL << 8:
            self._compare(*above)

    def stop(self, seconds: int) -> None:
        """End with the last child, or after so many seconds."""
        self.leaving = True
        if self.trial >= 0:
            os.close(self.trial)  # the trial sees it, and ends
            self.trial = -1
        self.loop.later(max(0.1, float(seconds)), self.end)
        self._done()

    def _done(self) -> None:
        if self.leaving and not self.children and not self.requested:
            self.end()


def _identity(path: bytes) -> tuple[int, int] | None:
    """Return device and inode of a directory, None if there is none.

    Raises:
        PermissionError: this process may not see it.
    """
    try:
        found = os.stat(path)
    except PermissionError:
        raise
    except OSError:
        return None
    return (found.st_dev, found.st_ino) if stat.S_ISDIR(found.st_mode) else None


def main(boot: Boot) -> None:
    """Run the spawner."""
    time.tzset()  # reads the time zone's file, which the sandbox hides later
    Spawner(boot).begin()
