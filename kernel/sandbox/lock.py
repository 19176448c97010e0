"""Restrict a process, on every system: limits, ids, unveil and pledge. The interface of this package.

The order in a child, forked from a process with a single thread:

    set_limits(); drop_ids(); unveil(paths); [start threads]; [keep_capabilities(names)];
    report_broken(report); pledge(program)

A process that is not yet restricted compiles the program beforehand, once for each actor. On Linux unveil()
is Landlock and pledge() is seccomp; on OpenBSD they are the calls of these names. Unveil directories rather
than files that are replaced by renaming: Landlock keeps to the inode that the path named when it was opened.
A path that is a symbolic link is followed then; links inside unveiled directories open nothing outside of
them.
"""

from __future__ import annotations

import os
import resource

from popkernel.kernel.sandbox import capabilities, landlock, names, openbsd, seccomp
from popkernel.kernel.sandbox.libc import SandboxError

TYPE_CHECKING = False  # importing typing would cost each actor more than all of this package
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = [
    "bound_capabilities",
    "compile_promises",
    "describe",
    "drop_ids",
    "keep_capabilities",
    "missing",
    "pledge",
    "rehearse",
    "report_broken",
    "set_limits",
    "thread_states",
    "unveil",
    "weaknesses",
]

SYSTEM = os.uname().sysname
_PLEDGE = (
    "pledge's unix and inet let kernel, listener, gate and mda make, bind and connect sockets of their own: "
    "Linux refuses it"
)
_STATES = (b"Seccomp:", b"Seccomp_filters:", b"NoNewPrivs:")


def missing() -> list[str]:
    """Return what this system lacks to enforce the sandbox, each text with its mend.

    To be called before unveil() and pledge().
    """
    if SYSTEM == "OpenBSD":
        return openbsd.missing()
    if SYSTEM == "Linux":
        return seccomp.missing() + landlock.missing()
    mend = "use Linux, OpenBSD, or --insecure-no-sandbox"
    return [f"{SYSTEM} has neither Landlock and seccomp nor pledge and unveil: {mend}"]


def weaknesses() -> list[str]:
    """Return what this system's sandbox leaves open. To be called before unveil() and pledge()."""
    if SYSTEM == "OpenBSD":
        return [_PLEDGE]
    return landlock.weaknesses() if SYSTEM == "Linux" else []


def compile_promises(
    promises: str, *, threads: bool = False, nested: bool = False, sockets: bool = False
) -> bytes:
    """Compile the program for pledge().

    Takes about 1 ms and some imports: so it is done beforehand, in another process, and kept. OpenBSD's
    program is the promises alone: it does not tell `threads`, `nested` and `sockets` apart, see weaknesses().

    Args:
        promises: names of pledge(2) separated by blanks. "" allows nothing but to exit.
        threads: the process has threads when it calls pledge(). Without `nested` it can start none later.
        nested: children of the process restrict themselves further. No child gets back what is missing here.
            Such a process may set its own SIGSYS handler, so it must be a trusted one.
        sockets: the promises unix and inet also allow making, binding and connecting sockets. Without it they
            allow the use of sockets that were handed over.

    Raises:
        ValueError: an unknown promise.
        SandboxError: no system call table for this processor.
    """
    if SYSTEM == "OpenBSD":
        return " ".join(names.split(promises)).encode()
    return seccomp.compile_program(
        promises, machine=seccomp.machine(), threads=threads, nested=nested, sockets=sockets
    )


def drop_ids(uid: int, gid: int) -> None:
    """Become `uid` and `gid` for good, with no other group: setgroups, setresgid, setresuid.

    Does nothing if the process is not root and has these ids already.

    Raises:
        SandboxError: not root and another id is wanted, the system refuses, or the process can be root again.
    """
    if os.geteuid() != 0:
        if (uid, gid) != (os.getuid(), os.getgid()) or (uid, gid) != (os.geteuid(), os.getegid()):
            raise SandboxError(f"cannot become uid {uid}, gid {gid} as uid {os.geteuid()}: start as root")
        return
    try:
        os.setgroups([gid])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
    except OSError as error:
        raise SandboxError(
            f"cannot become uid {uid}, gid {gid}: {error.strerror}; root needs CAP_SETUID and CAP_SETGID "
            "(in a container too)"
        ) from None
    if (os.getresuid(), os.getresgid(), os.getgroups()) != ((uid,) * 3, (gid,) * 3, [gid]) or _can_return(
        uid
    ):
        raise SandboxError(
            f"became uid {uid}, gid {gid}, but not for good: no capability may outlive setresuid"
        )


def bound_capabilities(names: str) -> None:
    """Let no program that this process starts or executes have other capabilities than these.

    Linux only, and only where the process has CAP_SETPCAP. Names as for keep_capabilities().
    """
    if SYSTEM == "Linux":
        capabilities.bound(names)


def keep_capabilities(names: str) -> None:
    """Give up all of root's capabilities but these.

    `names` are those of capabilities(7) in small letters, separated by blanks. For a process that stays root:
    one that became another user by drop_ids() has none left. Linux only.

    Raises:
        SandboxError: the system refuses.
    """
    if SYSTEM == "Linux":
        capabilities.keep(names)


def _can_return(uid: int) -> bool:
    if uid == 0:
        return False
    try:
        os.setresuid(-1, 0, -1)
    except PermissionError:
        return False
    return True


def set_limits(*, nofile: int, memory: int | None, fsize: int | None = None, core: int = 0) -> None:
    """Set hard and soft limits of this process. A hard limit that is lower already stays.

    Args:
        nofile: descriptors, RLIMIT_NOFILE.
        memory: octets of address space, RLIMIT_AS; None leaves it.
        fsize: octets of the largest file written, RLIMIT_FSIZE; None leaves it.
        core: octets of a core dump, RLIMIT_CORE; 0, so that no secret gets into a file.

    Raises:
        SandboxError: the system refuses.
    """
    wanted = {"RLIMIT_NOFILE": nofile, "RLIMIT_AS": memory, "RLIMIT_FSIZE": fsize, "RLIMIT_CORE": core}
    for name, value in wanted.items():
        if value is None:
            continue
        if not hasattr(resource, name):
            continue  # OpenBSD has no RLIMIT_AS; its login classes bound memory
        kind = getattr(resource, name)
        hard = resource.getrlimit(kind)[1]
        limit = value if hard == resource.RLIM_INFINITY else min(value, hard)
        try:
            resource.setrlimit(kind, (limit, limit))
        except (OSError, ValueError) as error:
            raise SandboxError(f"cannot set {name} to {limit}: {error}") from None


def unveil(paths: Sequence[tuple[str | bytes, str]], *, network: bool = False) -> None:
    """Allow no files but these, no signals to other processes, and on Linux no TCP unless `network`.

    Restricts this thread and those that it starts later, so it is called before any other thread is started.
    Open descriptors stay open. Sets no_new_privs on Linux.

    Args:
        paths: (path, letters). "r" reads files and lists directories; "w" writes files that exist; "c" makes,
            renames, links and removes files, directories and unix sockets; "x" executes. A directory stands
            for all below it. No paths: no file at all.
        network: leave bind and connect of TCP to the promises alone.

    Raises:
        SandboxError: the system cannot do it, or a path does not exist.
        ValueError: a letter that is none of r, w, x, c.
    """
    for path, letters in paths:
        if not set(letters) <= set("rwxc"):
            raise ValueError(
                f"permissions {letters!r} for {os.fsdecode(path)}: the letters are r, w, x and c"
            )
    if SYSTEM == "OpenBSD":
        openbsd.unveil(paths)
        return
    if SYSTEM != "Linux":
        raise SandboxError(missing()[0])
    seccomp.no_new_privs()
    landlock.unveil(paths, network=network)


def rehearse(paths: Sequence[tuple[str | bytes, str]]) -> None:
    """Run the code that restricts a child, but restrict nothing, so that a warm image has run it.

    Root gives up its supplementary groups, as the image's own drop_ids() does later; soft limits rise to the
    hard ones.

    Raises:
        SandboxError: as unveil() and drop_ids() do.
    """
    hard = [
        resource.getrlimit(getattr(resource, name, resource.RLIMIT_NOFILE))[1]
        for name in ("RLIMIT_NOFILE", "RLIMIT_AS")
    ]
    set_limits(nofile=hard[0], memory=hard[1])
    drop_ids(os.getuid(), os.getgid())
    if SYSTEM == "Linux":
        landlock.rehearse(paths)


def pledge(program: bytes, *, all_threads: bool = False) -> None:
    """Restrict this process to the promises of `program`, for good.

    Args:
        program: what compile_promises() returned on this machine.
        all_threads: restrict threads that run already too. Without it Linux restricts this thread and those
            that it starts later. OpenBSD always restricts all.

    Raises:
        SandboxError: the system refuses.
    """
    if SYSTEM == "OpenBSD":
        openbsd.pledge(program)
        return
    if SYSTEM != "Linux":
        raise SandboxError(missing()[0])
    seccomp.load(program, all_threads=all_threads)


def report_broken(report: Callable[[str, str], None]) -> None:
    """Have `report(call, promise)` called when this process breaks a promise.

    The process then ends with exit status 159. To be called before pledge(). `promise` is the one that the
    call needs, "none" if no promise allows it. `report` may do what the promises allow, and must import
    nothing. On OpenBSD the system logs the call and kills the process by SIGABRT, and `report` is not called.
    """
    if SYSTEM == "Linux":
        seccomp.report_broken(report)


def describe() -> dict[str, object]:
    """Return, for status, the system, Landlock's ABI, weaknesses, and the states of this process's threads.

    To be called before unveil() and pledge().
    """
    linux = SYSTEM == "Linux"
    return {
        "system": SYSTEM,
        "landlock": landlock.abi() if linux else 0,
        "weaknesses": weaknesses(),
        "threads": thread_states(os.getpid()) if linux else {},
    }


def thread_states(pid: int) -> dict[int, dict[str, int]]:
    """Return Seccomp, Seccomp_filters and NoNewPrivs of each thread of process `pid`, by thread id (proc(5)).

    Linux only.
    """
    states: dict[int, dict[str, int]] = {}
    for thread in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{thread}/status", "rb") as file:
            rows = (line.split() for line in file)
            states[int(thread)] = {
                row[0][:-1].decode(): int(row[1]) for row in rows if row and row[0] in _STATES
            }
    return states
