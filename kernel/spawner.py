"""The spawner: the kernel's hand. A warm image from which maildir actors are forked; it makes no other process, and knows nothing.

It holds no ZeroMQ context and no thread (we speak ZMTP ourselves), so that a fork of it is sound. A child drops everything of it but
its own channel before it becomes an actor. `gc.freeze` keeps the collector from touching, and so copying, the shared pages (brood.py).
"""

import os
import time
from importlib import import_module
from typing import NoReturn

from popkernel.kernel.actor import SOFTWARE, TEMPFAIL, Actor, Boot, become
from popkernel.kernel.brood import Brood
from popkernel.kernel.channel import Message, adopt
from popkernel.kernel.child import do_and_leave
from popkernel.kernel.memory import keep_memory
from popkernel.kernel.sandbox import lock as sandbox
from popkernel.kernel.title import set_title
from popkernel.proto import messages as m
from popkernel.proto.topology import actor as row_of

_COMPLAINTS = 10.0  # seconds between two lines for the log


class Spawner(Actor):
    """Forks on Spawn, tells of every end."""

    def __init__(self, boot: Boot) -> None:
        super().__init__(boot)
        self.module = import_module(row_of("maildir").module)  # the warm image
        row = row_of("maildir")
        self.program, self.helper = (
            (sandbox.compile_promises(promises) if boot.sandboxed else None) for promises in (row.promises, row.helper)
        )
        self.children = Brood(self.loop, self._exited, self._done)
        self.handlers |= {m.Spawn: self._spawn, m.Kill: self._kill}
        self.asked: list[tuple[m.Spawn, int]] = []  # in this turn of the loop, each with its channel
        self.complained = -_COMPLAINTS
        self.leaving = False

    def begin(self) -> None:
        """Lock in, say hello, serve."""
        unrehearsed = self._rehearse()
        roots = [root for root in self.boot.config["roots"] if os.path.isdir(root)]
        self.lock([(root, "rwc") for root in roots])
        keep_memory(1 << 20)  # children inherit it
        self.children.begin()
        self.connect()
        if unrehearsed:
            self.log(4, f"{self.boot.name}: maildir actors start more slowly, they could not be rehearsed: {unrehearsed}")
        self.run()

    def _rehearse(self) -> str:
        """What was in the way, "" for nothing: it saves time, and no more than that may depend on room in the run directory."""
        try:
            import_module(f"{self.module.__package__}.warm").rehearse(self.boot.config["run_dir"], sandboxed=self.boot.sandboxed)
        except OSError as error:
            return error.strerror or str(error)
        return ""

    def sessions(self) -> int:
        """Children."""
        return len(self.children)

    def _spawn(self, message: m.Spawn, fds: list[int]) -> None:
        if not self.asked:
            self.loop.soon(self._fork)
        self.asked.append((message, fds[0]))

    def _fork(self) -> None:
        """All asked for in this turn, one right after the other: what this process writes to in between, it copies anew each time."""
        while self.asked:
            message, fd = self.asked.pop(0)
            try:
                pid = self.children.fork(message.name, message.uid)
            except OSError as error:
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
        if self.kernel is not None:
            self.kernel.close()  # and what of it has come in part
            self.kernel = None
        for _, other in self.asked:  # it is somebody else's
            os.close(other)
        quota = self.boot.config["quotas"].get(message.name.removeprefix("maildir."), self.boot.config["quota"])
        config = {
            "maildir": message.maildir, "verbose": self.verbose, "hostname": self.boot.config["hostname"], "quota": quota,
            "quota_temporary": self.boot.config["quota_temporary"], **self.boot.config["mail"],
            "die_with_parent": self.children.die_with_parent,
        }
        boot = Boot(
            message.name, adopt(fd), message.uid, message.gid, config,
            sandboxed=self.boot.sandboxed, program=self.program, helper=self.helper,
        )
        set_title(message.name)
        become(boot, self.module.main)

    def _kill(self, message: m.Kill, fds: list[int]) -> None:
        del fds
        if any(asked.name == message.name for asked, _ in self.asked):
            self._fork()
        self.children.kill(message.name)

    def _exited(self, name: str, pid: int, status: int) -> None:
        self.tell(m.Exited(name, pid, status))

    def stop(self, seconds: int) -> None:
        """Go when the last child has gone, or be done with it."""
        self.leaving = True
        self.loop.later(max(0.1, float(seconds)), self.end)
        self._done()

    def _done(self) -> None:
        if self.leaving and not self.children and not self.asked:
            self.end()


def main(boot: Boot) -> None:
    """Become the spawner."""
    time.tzset()  # reads its file now
    Spawner(boot).begin()
