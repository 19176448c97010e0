"""Load a seccomp filter made from promises, and report broken promises from SIGSYS; seccomp(2). Linux only.

compile_program() imports the tables, so it is for a process that is not yet restricted. A forked child calls
load() and report_broken().
"""

from __future__ import annotations

import ctypes
import os
import struct

from popkernel.kernel.sandbox import names, syscalls
from popkernel.kernel.sandbox.libc import SandboxError, checked, library, syscall

TYPE_CHECKING = False  # importing typing would cost each actor more than all of this package
if TYPE_CHECKING:
    from collections.abc import Callable

_PR_SET_NO_NEW_PRIVS, _PR_GET_NO_NEW_PRIVS = 38, 39
_SET_MODE_FILTER, _GET_ACTION_AVAIL = 1, 2
_FLAG_TSYNC = 1
_CALL = {"x86_64": 317, "aarch64": 277}  # seccomp(2); not from the table, since each child needs it
_SIGSYS, _SYS_SECCOMP = 31, 1
_SA_SIGINFO, _SA_RESETHAND = 4, -0x80000000  # the highest bit of an int
_EXIT = 128 + _SIGSYS


_MACHINE = os.uname().machine


def machine() -> str:
    """Return the processor's name, as of uname(2).

    Raises:
        SandboxError: no filter can be made for this processor.
    """
    name = _MACHINE
    if name not in _CALL:
        raise SandboxError(
            f"no system call table for processor {name}: use x86_64 or aarch64 with a 64-bit Python, or "
            "--insecure-no-sandbox"
        )
    return name


def missing() -> list[str]:
    """Return what this system lacks to run the filters, each text with its mend."""
    try:
        number = _CALL[machine()]
    except SandboxError as error:
        return [str(error)]
    if library().prctl(_PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) < 0:
        why = os.strerror(ctypes.get_errno())
        return [f"prctl(2) is refused ({why}): in a container allow prctl(2), or use --insecure-no-sandbox"]
    for action in (0x80000000, 0x00030000):  # KILL_PROCESS (Linux 4.14), TRAP
        answer, code = syscall(number, _GET_ACTION_AVAIL, 0, struct.pack("=I", action))
        if answer < 0:
            return [
                (
                    f"seccomp filters are not there ({os.strerror(code)}): Linux 4.14 or newer with "
                    "CONFIG_SECCOMP_FILTER is needed; in a container allow seccomp(2), or use "
                    "--insecure-no-sandbox"
                )
            ]
    return []


def no_new_privs() -> None:
    """Forbid gaining privileges by execve(2), for good; prctl(2). Landlock and seccomp require it."""
    checked(library().prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl(PR_SET_NO_NEW_PRIVS)")


def load(program: bytes, *, all_threads: bool) -> None:
    """Load the filter `program` for this thread and those that it starts later; with `all_threads`, for all.

    Raises:
        SandboxError: the system refuses, or another thread has a filter of its own.
    """
    no_new_privs()
    octets = ctypes.c_char_p(program)
    address = ctypes.cast(octets, ctypes.c_void_p).value
    described = struct.pack("HP", len(program) // 8, address)  # struct sock_fprog, padding and all
    answer, code = syscall(_CALL[_MACHINE], _SET_MODE_FILTER, _FLAG_TSYNC if all_threads else 0, described)
    if answer > 0:
        raise SandboxError(
            f"thread {answer} has a filter of its own: pledge all threads before any of them narrows itself"
        )
    checked(answer, "seccomp(SECCOMP_SET_MODE_FILTER)", code)


_Handler = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
_report: Callable[[str, str], None] | None = None


# The refused call itself raises SIGSYS, in its own thread, never between two instructions of the interpreter.
# So Python may run here, unlike in the handler of another signal. ctypes takes the GIL if the thread had
# released it. A second SIGSYS, raised here, finds the signal blocked: Linux then kills the process.
def _broken(_signal: int, info: int, _context: int) -> None:
    try:
        _, place, code = struct.unpack_from("=iii", ctypes.string_at(info, 12))
        number, architecture = struct.unpack_from("=iI", ctypes.string_at(info + 24, 8))
        if _report is not None:
            if code == _SYS_SECCOMP:
                _report(syscalls.name_of(number, architecture), names.at(place))
            else:
                _report("SIGSYS sent by a process", names.NONE)
    finally:
        os._exit(_EXIT)


# Made here and not in the child: it must live as long as the process, and pledge() forbids mapping machine
# code.
_handler = _Handler(_broken)

# struct sigaction of glibc and musl (not the kernel's), on both processors: handler, mask (all signals),
# flags, restorer. SA_RESETHAND: hostile code in an actor may replace os._exit(); the next broken promise then
# kills.
_ACTION = struct.pack(
    "P128siP", ctypes.cast(_handler, ctypes.c_void_p).value, b"\xff" * 128, _SA_SIGINFO | _SA_RESETHAND, 0
)


def report_broken(report: Callable[[str, str], None]) -> None:
    """Have `report(call, promise)` called when this process breaks a promise; see lock.report_broken()."""
    global _report
    _report = report
    checked(library().sigaction(_SIGSYS, _ACTION, None), "sigaction(SIGSYS)")


def compile_program(
    promises: str,
    *,
    machine: str,
    threads: bool = False,
    nested: bool = False,
    sockets: bool = False,
) -> bytes:
    """Return a struct sock_filter[] for `promises` on `machine`; see lock.compile_promises()."""
    from popkernel.kernel.sandbox import compiler

    return compiler.compile_program(
        names.split(promises), machine, threads=threads, nested=nested, sockets=sockets
    )
