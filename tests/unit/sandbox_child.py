"""Run a function in a forked, locked-in child; report how it ended and what it printed."""

import ctypes
import errno
import faulthandler
import os

from popkernel.kernel.sandbox import lock, syscalls
from popkernel.kernel.sandbox.libc import library

SIGSYS = 31
BROKEN = 128 + SIGSYS
MACHINE = os.uname().machine
NUMBERS = syscalls.numbers(MACHINE) if MACHINE in syscalls.ARCHITECTURES else {}


class Ending:
    """Hold a child's ending.

    `status`: exit status, or minus the signal. `said`: repr of the result or exception, and reports, a line
    each.
    """

    def __init__(self, status, said):
        self.status, self.said = status, said

    def __repr__(self):
        return f"status {self.status}, said {self.said!r}"

    def __eq__(self, other):
        return (self.status, self.said) == other


def forked(body):
    """Fork a child that runs body(say) and nothing else; return its Ending."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reading)
            faulthandler.disable()  # pytest's handler: a child that aborts on purpose needs no traceback

            def say(text):
                os.write(writing, f"{text}\n".encode())

            try:
                say(repr(body(say)))
            except BaseException as error:
                say(repr(error))
        finally:
            os._exit(0)
    os.close(writing)
    said = b""
    while piece := os.read(reading, 65536):
        said += piece
    os.close(reading)
    _, status = os.waitpid(child, 0)
    return Ending(os.waitstatus_to_exitcode(status), said.decode().splitlines())


def sandboxed(
    body,
    promises="stdio",
    *,
    paths=None,
    before=None,
    reports=True,
    network=False,
    threads=False,
    nested=False,
    sockets=False,
):
    """Run body(), or body(before()), after unveil(paths) if any are given and pledge(promises)."""
    program = lock.compile_promises(promises, threads=threads, nested=nested, sockets=sockets)

    def run(say):
        prepared = () if before is None else (before(),)
        if paths is not None:
            lock.unveil(paths, network=network)
        if reports:
            lock.report_broken(lambda call, promise: say(f"broken: {call} needs {promise}"))
        lock.pledge(program)
        return body(*prepared)

    return forked(run)


def call(name, *arguments):
    """Make a system call by number; raises OSError as Python's own calls do."""
    wide = [ctypes.c_long(value) if isinstance(value, int) else value for value in arguments]
    answer = library().syscall(ctypes.c_long(NUMBERS.get(name, name)), *wide)
    if answer < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return answer


def refused(number=errno.EACCES):
    """Return the Ending of a child whose call failed softly."""
    return (0, [repr(OSError(number, os.strerror(number)))])


def broken(name, promise):
    return (BROKEN, [f"broken: {name} needs {promise}"])
