"""Run a service in which the Nth system call of a process fails as if a resource were short.

`failing_calls.py ARGUMENTS` runs `popkernel ARGUMENTS` with this built in, for init, kernel, spawner and
gate. The test uses `Faults` to request a fault and to read which call failed. Both sides map one small file
into memory: reading it needs no system call and works in processes that can no longer open files.
docs/scarcity.md lists what must happen after each fault.
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
FILE = "SCARCE"  # environment variable: path of the shared file
PROCESSES = ("init", "kernel", "spawner", "gate", "child")  # child: forked by init to read or check files
# calls that succeed before one fails, plus 1 (0: none fails); its errno (0: the one in POINTS); its name
_SLOT = struct.Struct("=ii56s")

# Calls that can fail for lack of a resource: (object, name, errno of the fault). Every such call that these
# processes make after their start belongs here; tests/unit/test_scarcity.py compares.
POINTS = (
    (os, "fork", errno.EAGAIN),
    (os, "pipe", errno.EMFILE),
    (os, "kill", errno.EPERM),
    (os, "open", errno.EMFILE),
    (os, "stat", errno.EIO),
    (os, "read", errno.EIO),
    (os, "write", errno.ENOSPC),
    (os, "dup", errno.EMFILE),
    (os, "memfd_create", errno.ENOMEM),
    (os, "mkdir", errno.EROFS),
    (os, "ftruncate", errno.ENOSPC),
    (os, "pwrite", errno.ENOSPC),
    (os, "execve", errno.ENOMEM),
    (fcntl, "fcntl", errno.EPERM),
    (fcntl, "flock", errno.ENOLCK),
    (socket, "socketpair", errno.EMFILE),
    (socket.socket, "accept", errno.EMFILE),
    (socket.socket, "sendmsg", errno.ENOMEM),
    (socket.socket, "recvmsg_into", errno.ENOMEM),
    (socket.socket, "bind", errno.EADDRINUSE),
    (socket.socket, "listen", errno.EADDRINUSE),
    (socket.socket, "setsockopt", errno.ENOBUFS),
)


class Fault(NamedTuple):
    """Say which call failed."""

    call: str
    left: int
    """Calls that were still to go well; 0 where it has failed."""


class Faults:
    """Control faults from the test.

    The file `path` is created; pass it to the service as SCARCE.
    """

    def __init__(self, path):
        self.path = str(path)
        with open(path, "wb") as file:
            file.truncate(_SLOT.size * len(PROCESSES))
        with open(path, "r+b") as file:
            self.memory = mmap.mmap(file.fileno(), 0)

    def ask(self, process, number, error=0):
        """Make call `number` of a process fail, counted from 1 and from now.

        `error` is the errno; 0 takes the one in POINTS.
        """
        _SLOT.pack_into(self.memory, _SLOT.size * PROCESSES.index(process), number, error, b"")

    def failed(self, process):
        """Return the call that failed; "" if none has yet."""
        left, _, name = _SLOT.unpack_from(self.memory, _SLOT.size * PROCESSES.index(process))
        return Fault(name.rstrip(b"\0").decode(), left)


class _RequestedFault:
    """Hold this process's name and the fault requested of it, inside the service."""

    slot = -1
    memory = None

    @classmethod
    def become(cls, process):
        cls.slot = PROCESSES.index(process) * _SLOT.size if process else -1

    @classmethod
    def due(cls, name):
        """Return the errno to fail with: 0 for none, -1 for the one in POINTS."""
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
        error = _RequestedFault.due(name)
        if error:
            number = usual if error < 0 else error
            raise OSError(number, os.strerror(number))
        return function(*arguments, **named)

    setattr(place, name, call)


def patch(process):
    """Make this process's calls fail on request.

    A forked child is not affected until it names itself.
    """
    if not hasattr(socket.socket, "_scarce"):
        socket.socket._scarce = True
        with open(os.environ[FILE], "r+b") as file:
            _RequestedFault.memory = mmap.mmap(file.fileno(), 0)
        for place, name, usual in POINTS:
            if hasattr(place, name):
                _failing(place, name, usual)
        os.register_at_fork(
            after_in_child=lambda: _RequestedFault.become("child" if _RequestedFault.slot == 0 else "")
        )
    _RequestedFault.become(process)


def inside():
    """Patch a singleton's fresh interpreter before it becomes an actor."""
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
    init.BOOT = [
        "-c",
        (
            f"import os, sys; sys.path.insert(0, {HERE!r}); os.environ[{FILE!r}] = {path!r}; import "
            f"failing_calls; failing_calls.inside()"
        ),
    ]
    begin = Supervisor.begin

    def beginning(self):
        _RequestedFault.become("kernel")
        begin(self)

    run = init.run

    def running(*arguments):  # earlier calls are Python's own imports
        _RequestedFault.become("init")
        return run(*arguments)

    Supervisor.begin = beginning
    init.run = running
    patch("")
    return popkernel(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
