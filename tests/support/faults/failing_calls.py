"""A service whose system calls fail on demand: the Nth of them in init, kernel, spawner or gate, as for want of something.

As a program: `failing_calls.py ARGUMENTS` is `popkernel ARGUMENTS` with that built in. `Faults` is the other end, for the test: it asks for a
fault, and is told which call failed. The two share a small file, mapped into memory, so that it costs no system call to look, and works
in processes that can open no file any more. docs/scarcity.md says what is to happen where.
"""

import errno
import fcntl
import mmap
import os
import socket
import struct
import sys
from typing import NamedTuple

HERE = os.path.dirname(os.path.abspath(__file__))
COMMAND = [sys.executable, os.path.abspath(__file__)]
FILE = "SCARCE"  # in the environment: path of the file that is shared
PROCESSES = ("init", "kernel", "spawner", "gate", "child")  # child: forked by init to read or to look
_SLOT = struct.Struct("=ii56s")  # calls that go well before one fails, plus one (0: none fails); its errno (0: of POINTS); its name

# What can fail for want of something, and how: (where it is looked up, its name, the errno of the fault). All that one of these processes
# calls after its start belongs here; tests/unit/test_scarcity.py compares.
POINTS = (
    (os, "fork", errno.EAGAIN), (os, "pipe", errno.EMFILE), (os, "kill", errno.EPERM), (os, "open", errno.EMFILE), (os, "stat", errno.EIO),
    (os, "read", errno.EIO), (os, "write", errno.ENOSPC), (os, "dup", errno.EMFILE), (os, "memfd_create", errno.ENOMEM),
    (os, "mkdir", errno.EROFS), (os, "ftruncate", errno.ENOSPC), (os, "pwrite", errno.ENOSPC), (os, "execve", errno.ENOMEM),
    (fcntl, "fcntl", errno.EPERM), (fcntl, "flock", errno.ENOLCK), (socket, "socketpair", errno.EMFILE),
    (socket.socket, "accept", errno.EMFILE), (socket.socket, "sendmsg", errno.ENOMEM), (socket.socket, "recvmsg_into", errno.ENOMEM),
    (socket.socket, "bind", errno.EADDRINUSE), (socket.socket, "listen", errno.EADDRINUSE), (socket.socket, "setsockopt", errno.ENOBUFS),
)


class Fault(NamedTuple):
    """What failed."""

    call: str
    left: int
    """Calls that were still to go well; 0 where it has failed."""


class Faults:
    """The test's end. `path` is made; pass it on as SCARCE."""

    def __init__(self, path):
        self.path = str(path)
        with open(path, "wb") as file:
            file.truncate(_SLOT.size * len(PROCESSES))
        with open(path, "r+b") as file:
            self.memory = mmap.mmap(file.fileno(), 0)

    def ask(self, process, number, error=0):
        """Have the call of that number, from now on and counted from 1, fail there; with `error`, or as POINTS has it."""
        _SLOT.pack_into(self.memory, _SLOT.size * PROCESSES.index(process), number, error, b"")

    def told(self, process):
        """Which call failed, "" for none yet."""
        left, _, name = _SLOT.unpack_from(self.memory, _SLOT.size * PROCESSES.index(process))
        return Fault(name.rstrip(b"\0").decode(), left)


class _Here:
    """In the service: who this process is, and what is asked of it."""

    slot = -1
    memory = None

    @classmethod
    def become(cls, process):
        cls.slot = PROCESSES.index(process) * _SLOT.size if process else -1

    @classmethod
    def due(cls, name):
        """The errno to fail with now, 0 to go on, -1 for the one of the table."""
        if cls.slot < 0:
            return 0
        left, error, said = _SLOT.unpack_from(cls.memory, cls.slot)
        if not left or said.strip(b"\0"):
            return 0
        left -= 1
        _SLOT.pack_into(cls.memory, cls.slot, left, error, b"" if left else name.encode())
        return 0 if left else error or -1


def _failing(place, name, usual):
    function = getattr(place, name)

    def call(*arguments, **named):
        error = _Here.due(name)
        if error:
            number = usual if error < 0 else error
            raise OSError(number, os.strerror(number))
        return function(*arguments, **named)

    setattr(place, name, call)


def patch(process):
    """Make the calls of this process fail when asked; what it forks is somebody else, until it says who."""
    if not hasattr(socket.socket, "_scarce"):
        socket.socket._scarce = True
        with open(os.environ[FILE], "r+b") as file:
            _Here.memory = mmap.mmap(file.fileno(), 0)
        for place, name, usual in POINTS:
            if hasattr(place, name):
                _failing(place, name, usual)
        os.register_at_fork(after_in_child=lambda: _Here.become("child" if _Here.slot == 0 else ""))
    _Here.become(process)


def inside():
    """In a singleton's fresh interpreter, before it becomes that."""
    from popkernel.kernel.runtime import singleton_boot

    name = sys.argv[1].partition("~")[0].partition(".")[0]
    if name in PROCESSES:
        patch(name)
    singleton_boot.main()


def main():
    from popkernel.cli.main import main as popkernel
    from popkernel.kernel.init import main as init
    from popkernel.kernel.supervisor.main import Supervisor

    path = os.environ[FILE]
    init.BOOT = ["-c", f"import os, sys; sys.path.insert(0, {HERE!r}); os.environ[{FILE!r}] = {path!r}; import failing_calls; failing_calls.inside()"]
    begin = Supervisor.begin

    def beginning(self):
        _Here.become("kernel")
        begin(self)

    run = init.run

    def running(*arguments):  # what was before is Python's own: imports
        _Here.become("init")
        return run(*arguments)

    Supervisor.begin = beginning
    init.run = running
    patch("")
    return popkernel(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
