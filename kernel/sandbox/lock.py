"""pledge and unveil for every actor, whatever the system: the only file of this package that others import.

The order in a child, forked from a process with a single thread:

    set_limits(); drop_ids(); unveil(paths); [start threads]; [keep_capabilities(names)]; report_broken(report); pledge(program)

The program is compiled beforehand, once for each actor, by a process that is still free. On Linux unveil() is Landlock
and pledge() is seccomp; on OpenBSD they are the calls of these names. Unveil directories rather than files that are
replaced by renaming: Landlock holds on to what was there when the path was opened. A symbolic link as a path is
followed then; links inside unveiled directories lead nowhere else.
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
    "SandboxError",
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
_PLEDGE = "pledge's unix and inet let kernel, listener, gate and mda make, bind and connect sockets of their own: Linux refuses it"
_STATES = (b"Seccomp:", b"Seccomp_filters:", b"NoNewPrivs:")


def missing() -> list[str]:
    """What this system lacks to enforce the cage, each with its mend; [] when all is there. Ask before lock-in."""
    if SYSTEM == "OpenBSD":
        return openbsd.missing()
    if SYSTEM == "Linux":
        return seccomp.missing() + landlock.missing()
    return [f"{SYSTEM} has neither Landlock and seccomp nor pledge and unveil: use Linux, OpenBSD, or --insecure-no-sandbox"]


def weaknesses() -> list[str]:
    """What this system leaves open though the cage holds; for status. Ask before lock-in."""
    if SYSTEM == "OpenBSD":
        return [_PLEDGE]
    return landlock.weaknesses() if SYSTEM == "Linux" else []


def compile_promises(promises: str, *, threads: bool = False, nested: bool = False, sockets: bool = False) -> bytes:
    """The program for pledge(). Costs about 1 ms and some imports: done beforehand, in another process, and kept.

    Args:
        promises: names of pledge(2) separated by blanks. "" leaves nothing but to exit.
        threads: there are threads when pledge() comes. None may be started later, but by who is `nested`. Not told apart on OpenBSD.
        nested: this process's children lock themselves in further; a child can never get back what is missing here.
            Not told apart on OpenBSD. Such a process may set its own SIGSYS handler: it must not be one to distrust.
        sockets: unix and inet mean sockets of its own too: to make, bind and connect. Without it they mean what was handed over.
            Not told apart on OpenBSD, see weaknesses().

    Raises:
        ValueError: an unknown promise.
        SandboxError: no system call table for this processor.
    """
    if SYSTEM == "OpenBSD":
        return " ".join(names.split(promises)).encode()
    return seccomp.compile_program(promises, machine=seccomp.machine(), threads=threads, nested=nested, sockets=sockets)


def drop_ids(uid: int, gid: int) -> None:
    """Becomes `uid` and `gid` for good, with no other group: setgroups, setresgid, setresuid.

    Whoever is not root can only be who they are: then this does nothing.

    Raises:
        SandboxError: not root and another id is wanted, the system refuses, or the old id could be had back.
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
            f"cannot become uid {uid}, gid {gid}: {error.strerror}; root needs CAP_SETUID and CAP_SETGID (in a container too)"
        ) from None
    if (os.getresuid(), os.getresgid(), os.getgroups()) != ((uid,) * 3, (gid,) * 3, [gid]) or _can_return(uid):
        raise SandboxError(f"became uid {uid}, gid {gid}, but not for good: no capability may outlive setresuid")


def bound_capabilities(names: str) -> None:
    """Let no program that this process starts, or becomes, have other capabilities than these. Linux, and as far as it may say so."""
    if SYSTEM == "Linux":
        capabilities.bound(names)


def keep_capabilities(names: str) -> None:
    """Of root's powers, keep these: names of capabilities(7) in small letters, separated by blanks. Linux only.

    Whoever becomes another user by drop_ids() has none any more; this is for who stays root.

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
    """Hard and soft limits of this process; one that is lower already stays lower.

    Args:
        nofile: descriptors, RLIMIT_NOFILE.
        memory: octets of address space, RLIMIT_AS; None leaves it.
        fsize: octets of the largest file written, RLIMIT_FSIZE; None leaves it.
        core: octets of a core dump, RLIMIT_CORE; 0 keeps secrets out of files.

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
    """From now on no file but these, no signal to others, and on Linux no TCP unless `network`. Sets no_new_privs.

    Binds this thread and those it starts later, so it comes before any other thread. Descriptors that are open stay so.

    Args:
        paths: (path, letters): "r" reads files and lists directories, "w" writes files that are there, "c" makes,
            renames, links and removes files, directories and unix sockets, "x" executes. A directory stands for all
            below it. No paths: no file at all.
        network: leave bind and connect of TCP to the promises alone.

    Raises:
        SandboxError: the system cannot do it, or a path is not there.
        ValueError: a letter that is none of r, w, x, c.
    """
    for path, letters in paths:
        if not set(letters) <= set("rwxc"):
            raise ValueError(f"permissions {letters!r} for {os.fsdecode(path)}: the letters are r, w, x and c")
    if SYSTEM == "OpenBSD":
        openbsd.unveil(paths)
        return
    if SYSTEM != "Linux":
        raise SandboxError(missing()[0])
    seccomp.no_new_privs()
    landlock.unveil(paths, network=network)


def rehearse(paths: Sequence[tuple[str | bytes, str]]) -> None:
    """What a child does to lock itself in, but for what binds: a warm image that has done it needs not do it anew in each child.

    For root, it lets go of the supplementary groups, as the image's own drop_ids() will.

    Raises:
        SandboxError: as unveil() and drop_ids() do.
    """
    hard = [resource.getrlimit(getattr(resource, name, resource.RLIMIT_NOFILE))[1] for name in ("RLIMIT_NOFILE", "RLIMIT_AS")]
    set_limits(nofile=hard[0], memory=hard[1])
    drop_ids(os.getuid(), os.getgid())
    if SYSTEM == "Linux":
        landlock.rehearse(paths)


def pledge(program: bytes, *, all_threads: bool = False) -> None:
    """Keeps to what compile_promises() made, for good.

    Args:
        program: what compile_promises() returned on this machine.
        all_threads: also the threads that run already (Linux binds one thread and those it starts; OpenBSD always all).

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
    """Has `report(call, promise)` called when this process breaks a promise; it then ends with exit status 159.

    To be set before pledge(). `promise` is the one that would have been needed, "none" if none gives it. `report` may
    use what the promises give and import nothing. On OpenBSD the system logs and kills by SIGABRT, and nothing is called.
    """
    if SYSTEM == "Linux":
        seccomp.report_broken(report)


def describe() -> dict[str, object]:
    """For status: system, Landlock's ABI, weaknesses, and the state of this process's threads. Ask before lock-in."""
    linux = SYSTEM == "Linux"
    return {
        "system": SYSTEM,
        "landlock": landlock.abi() if linux else 0,
        "weaknesses": weaknesses(),
        "threads": thread_states(os.getpid()) if linux else {},
    }


def thread_states(pid: int) -> dict[int, dict[str, int]]:
    """Seccomp, Seccomp_filters and NoNewPrivs of each thread of process `pid`, by thread id, from /proc. Linux only."""
    states: dict[int, dict[str, int]] = {}
    for thread in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{thread}/status", "rb") as file:
            rows = (line.split() for line in file)
            states[int(thread)] = {row[0][:-1].decode(): int(row[1]) for row in rows if row and row[0] in _STATES}
    return states
