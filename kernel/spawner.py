"""The spawner: the kernel's hand. A warm image from which maildir actors are forked; it makes no other process, and knows nothing.

It holds no ZeroMQ context and no thread (we speak ZMTP ourselves), so that a fork of it is sound. A child drops everything of it but
its own channel before it becomes an actor. `gc.freeze` keeps the collector from touching, and so copying, the shared pages.
"""

import contextlib
import ctypes
import gc
import os
import signal
import sys
import time
from importlib import import_module
from typing import NoReturn

from popkernel.kernel.actor import Actor, Boot
from popkernel.kernel.channel import adopt
from popkernel.kernel.loop import READ
from popkernel.kernel.memory import keep_memory
from popkernel.kernel.sandbox import lock as sandbox
from popkernel.kernel.title import set_title
from popkernel.proto import messages as m
from popkernel.proto.topology import actor as row_of

_PR_SET_PDEATHSIG = 1  # prctl(2)


class Spawner(Actor):
    """Forks on Spawn, tells of every end."""

    def __init__(self, boot: Boot) -> None:
        super().__init__(boot)
        self.module = import_module(row_of("maildir").module)  # the warm image
        row = row_of("maildir")
        self.program = sandbox.compile_promises(row.promises) if boot.sandboxed else None
        self.children: dict[int, str] = {}  # pid -> name
        self.pids: dict[str, int] = {}
        self.handlers |= {m.Spawn: self._spawn, m.Kill: self._kill}
        self.libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
        self.leaving = False

    def begin(self) -> None:
        """Lock in, say hello, serve."""
        import_module(f"{self.module.__package__}.warm").rehearse(self.boot.config["run_dir"])
        roots = [root for root in self.boot.config["roots"] if os.path.isdir(root)]
        self.lock([(root, "rwc") for root in roots])
        woken, wake = os.pipe()
        os.set_blocking(woken, False)
        os.set_blocking(wake, False)
        self.woken, self.wake = woken, wake
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        self.loop.add(woken, self._reap, READ)
        keep_memory(1 << 20)  # children inherit it
        gc.collect()
        gc.freeze()
        gc.disable()  # nothing here makes cycles, and a collection in a child would copy what is shared
        self.connect()
        self.run()

    def sessions(self) -> int:
        """Children."""
        return len(self.children)

    def _spawn(self, message: m.Spawn, fds: list[int]) -> None:
        pid = os.fork()
        if pid == 0:
            try:
                self._become(message, fds[0])
            except BaseException:
                sys.excepthook(*sys.exc_info())
                raise
            finally:
                os._exit(70)
        os.close(fds[0])
        self.children[pid] = message.name
        self.pids[message.name] = pid

    def _become(self, message: m.Spawn, fd: int) -> NoReturn:
        """In the child: let go of all that was the spawner's, then be the actor."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        if self.kernel is not None:
            self.kernel.sock.close()
            self.kernel = None
        os.close(self.woken)
        os.close(self.wake)
        quota = self.boot.config["quotas"].get(message.name.removeprefix("maildir."), self.boot.config["quota"])
        config = {
            "maildir": message.maildir, "verbose": self.verbose, "hostname": self.boot.config["hostname"], "quota": quota,
            "quota_temporary": self.boot.config["quota_temporary"], **self.boot.config["mail"],
            "die_with_parent": self._die_with_parent,
        }
        boot = Boot(
            message.name, adopt(fd), message.uid, message.gid, config,
            sandboxed=self.boot.sandboxed, program=self.program,
        )
        set_title(message.name)
        self.module.main(boot)
        os._exit(70)

    def _die_with_parent(self) -> None:
        """SIGKILL when the spawner goes; to be asked for anew after a change of ids, which forgets it (prctl(2))."""
        if self.libc is not None:
            self.libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)

    def _kill(self, message: m.Kill, fds: list[int]) -> None:
        """It is our child and not yet reaped, so its number is nobody else's."""
        del fds
        pid = self.pids.get(message.name)
        if pid is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)

    def _reap(self, events: int) -> None:
        del events
        with contextlib.suppress(BlockingIOError):
            os.read(self.woken, 4096)
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            name = self.children.pop(pid, "")
            if name:
                self.pids.pop(name, None)
                self.tell(m.Exited(name, pid, status & 0xFFFF))
        self._done()

    def stop(self, seconds: int) -> None:
        """Go when the last child has gone, or be done with it."""
        self.leaving = True
        self.loop.later(max(0.1, float(seconds)), self.end)
        self._done()

    def _done(self) -> None:
        if self.leaving and not self.children:
            self.end()


def main(boot: Boot) -> None:
    """Become the spawner."""
    time.tzset()  # reads its file now
    Spawner(boot).begin()
