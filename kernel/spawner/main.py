"""The spawner: the kernel's hand. A warm image from which maildir actors are forked; it makes no other process, and knows nothing.

It holds no ZeroMQ context and no thread (we speak ZMTP ourselves), so that a fork of it is sound. A child drops everything of it but
its own channel before it becomes an actor. `gc.freeze` keeps the collector from touching, and so copying, the shared pages (children.py).
"""

import contextlib
import os
import stat
import time
from importlib import import_module
from typing import NoReturn

from popkernel.kernel.runtime.actor import SOFTWARE, TEMPFAIL, Actor, Boot, become
from popkernel.kernel.runtime.channel import Message, adopt
from popkernel.kernel.runtime.child_process import do_and_leave
from popkernel.kernel.runtime.memory import keep_memory
from popkernel.kernel.runtime.process_title import set_title
from popkernel.kernel.sandbox import lock as sandbox
from popkernel.kernel.sandbox.libc import SandboxError
from popkernel.kernel.spawner.children import Brood
from popkernel.proto import messages as m
from popkernel.proto.topology import actor as row_of

_COMPLAINTS = 10.0  # seconds between two lines for the log
_ANOTHER = 1  # what a child that only looks at a directory ends with, where that is not the one that is held


class Spawner(Actor):
    """Forks on Spawn, tells of every end."""

    def __init__(self, boot: Boot) -> None:
        super().__init__(boot)
        self.module = import_module(row_of("maildir").module)  # the warm image
        self.program = sandbox.compile_promises(row_of("maildir").promises) if boot.sandboxed else None
        self.children = Brood(self.loop, self._exited, self._done)
        self.handlers |= {m.Spawn: self._spawn, m.Kill: self._kill}
        self.settings_of_all = {  # made once: a child that made it would touch each key, wherever it lies
            **boot.config["mail"], "maildir": b"", "die_with_parent": self.children.die_with_parent,
        }
        self.asked: list[tuple[m.Spawn, int]] = []  # in this turn of the loop, each with its channel
        self.complained = -_COMPLAINTS
        self.leaving = False
        self.held: dict[bytes, tuple[int, int] | None] = {}  # directories above maildirs that the cage holds; None: was not there
        self.under: dict[str, tuple[bytes, int, int]] = {}  # child -> the one that its maildir lies under, uid, gid
        self.looking: dict[str, bytes] = {}  # child that only looks -> at which

    def begin(self) -> None:
        """Lock in, say hello, serve."""
        unrehearsed = self._rehearse()
        for root in self.boot.config["roots"]:
            with contextlib.suppress(PermissionError):  # an NFS server that does not know root: nothing to compare with
                self.held[root] = _identity(root)
        self.lock([(root, "rwc") for root, there in self.held.items() if there])
        keep_memory(1 << 20)  # children inherit it
        self.children.begin()
        self.connect()
        if unrehearsed:
            self.log(4, f"{self.boot.name}: maildir actors start more slowly, they could not be rehearsed: {unrehearsed}")
        self.run()

    def _rehearse(self) -> str:
        """What was in the way, "" for nothing: it saves time, and no more than that may depend on room in the run directory."""
        try:
            rehearsal = import_module(f"{self.module.__package__}.rehearsal")
            rehearsal.rehearse(self.boot.config["run_dir"], self.settings_of_all, sandboxed=self.boot.sandboxed)
        except OSError as error:
            return error.strerror or str(error)
        return ""

    def sessions(self) -> int:
        """Children."""
        return len(self.children)

    def _spawn(self, message: m.Spawn, fds: list[int]) -> None:
        if not self.asked:
            self.loop.soon(self._fork)
        self.under[message.name] = self._above(message.maildir), message.uid, message.gid
        self.asked.append((message, fds[0]))

    def _fork(self) -> None:
        """All asked for in this turn, one right after the other: what this process writes to in between, it copies anew each time."""
        while self.asked:
            message, fd = self.asked.pop(0)
            try:
                pid = self.children.fork(message.name, message.uid)
            except OSError as error:
                del self.under[message.name]
                self._cannot(message.name, error)
                pid = -1
            if pid == 0:
                do_and_leave(lambda: self._become(message, fd), SOFTWARE)  # noqa: B023  it runs now
            os.close(fd)
        self._done()  # where a stop came with them and none could be forked, no child's end will ask

    def _cannot(self, name: str, error: OSError) -> None:
        """No room for one more process: who wanted it hears so, and those that are there go on."""
        if self.loop.now - self.complained >= _COMPLAINTS:
            self.complained = self.loop.now
            self.log(3, f"no more maildir actors can be forked: {error.strerror}")
        self.tell(m.Exited(name, os.getpid(), TEMPFAIL << 8))

    def lost(self, message: Message) -> None:
        """No room for the channel of one that is asked for: as no room for a process."""
        super().lost(message)
        if isinstance(message, m.Spawn):
            self.tell(m.Exited(message.name, os.getpid(), TEMPFAIL << 8))

    def _become(self, message: m.Spawn, fd: int) -> NoReturn:
        """In the child: let go of all that was the spawner's, then be the actor."""
        self._let_go()
        if self._is_another(*self.under[message.name]):
            os._exit(TEMPFAIL)
        self.settings_of_all["maildir"] = message.maildir
        quota = self.boot.config["quotas"].get(message.name.removeprefix("maildir."))
        if quota is not None:
            self.settings_of_all["quota"] = quota
        boot = Boot(
            message.name, adopt(fd), message.uid, message.gid, self.settings_of_all,
            sandboxed=self.boot.sandboxed, program=self.program,
        )
        set_title(message.name)
        become(boot, self.module.main)

    def _let_go(self) -> None:
        if self.kernel is not None:
            self.kernel.close()  # and what of it has come in part
            self.kernel = None
        for _, other in self.asked:  # it is somebody else's
            os.close(other)

    # -- the directories above
    def _above(self, maildir: bytes) -> bytes:
        """The held directory that a maildir lies under; `/` where there is none."""
        root = os.path.dirname(maildir)
        while root not in self.held and root != os.path.dirname(root):
            root = os.path.dirname(root)
        return root

    def _is_another(self, root: bytes, uid: int, gid: int) -> bool:
        """In a child: become its user, who may see what root may not; whether a directory is there, and not the one that is held.

        Never in the spawner: its file system may hang.
        """
        if not self.boot.sandboxed or root not in self.held:
            return False
        try:  # noqa: SIM105  three functions fewer in each child: their pages would be its own (docs/performance.md)
            sandbox.drop_ids(uid, gid)
        except SandboxError:  # whoever becomes an actor tries again, and says so
            pass
        self.children.die_with_parent()
        try:
            there = os.stat(root)
        except OSError:
            return False
        return stat.S_ISDIR(there.st_mode) and (there.st_dev, there.st_ino) != self.held[root]

    def _look(self, root: bytes, uid: int, gid: int) -> None:
        """Have a child look that becomes no actor: what an actor's process ends with is that user's to choose."""
        if root in self.looking.values() or self.leaving or not self.boot.sandboxed:
            return
        name = f"look.{uid}.{len(self.looking)}"
        try:
            pid = self.children.fork(name, uid)
        except OSError:
            return
        if pid == 0:
            do_and_leave(lambda: self._leave_word(root, uid, gid), SOFTWARE)
        self.looking[name] = root

    def _leave_word(self, root: bytes, uid: int, gid: int) -> NoReturn:
        self._let_go()
        os._exit(_ANOTHER if self._is_another(root, uid, gid) else 0)

    def _kill(self, message: m.Kill, fds: list[int]) -> None:
        del fds
        if any(asked.name == message.name for asked, _ in self.asked):
            self._fork()
        self.children.kill(message.name)

    def _exited(self, name: str, pid: int, status: int) -> None:
        if name in self.looking:
            root = self.looking.pop(name)
            if status == _ANOTHER << 8:
                self.tell(m.Displaced(root))
            return
        above = self.under.pop(name)
        self.tell(m.Exited(name, pid, status))
        if status == TEMPFAIL << 8:
            self._look(*above)

    def stop(self, seconds: int) -> None:
        """Go when the last child has gone, or be done with it."""
        self.leaving = True
        self.loop.later(max(0.1, float(seconds)), self.end)
        self._done()

    def _done(self) -> None:
        if self.leaving and not self.children and not self.asked:
            self.end()


def _identity(path: bytes) -> tuple[int, int] | None:
    """Device and inode of a directory, None where there is none. PermissionError where it can't be seen."""
    try:
        there = os.stat(path)
    except PermissionError:
        raise
    except OSError:
        return None
    return (there.st_dev, there.st_ino) if stat.S_ISDIR(there.st_mode) else None


def main(boot: Boot) -> None:
    """Become the spawner."""
    time.tzset()  # reads its file now
    Spawner(boot).begin()
