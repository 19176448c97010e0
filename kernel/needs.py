"""What the system must let the service do, found out before anything is made: other ids, descriptors, memory. For start and `check`."""

import contextlib
import errno
import os
import resource
from collections.abc import Mapping
from typing import NamedTuple

from popkernel.kernel.child import do_and_leave
from popkernel.kernel.config import Config
from popkernel.kernel.exits import EXITS
from popkernel.kernel.room import problem as room_problem
from popkernel.kernel.rundir import StartError
from popkernel.kernel.sandbox import lock as sandbox
from popkernel.proto.tables import Finding
from popkernel.proto.topology import ACTORS, KIB, MIB

__all__ = ["Needs", "give_up_powers", "needs", "require", "require_cage"]

_MEMORY = 64 * MIB  # octets of address space, of each process, with no session
_OSERR, _NOPERM, _TEMPFAIL = (EXITS[name].code for name in ("oserr", "noperm", "tempfail"))


class Needs(NamedTuple):
    """What is missing."""

    errors: list[tuple[Finding, int]]
    """What keeps the service from starting, and the exit code; sysexits(3)."""
    warnings: list[Finding]
    """What it can do without."""


def needs(config: Config, ids: Mapping[str, tuple[int, int]]) -> Needs:
    """Say what is missing; `ids`: uid and gid of the actors."""
    found = Needs([], [])
    _look_at_descriptors(config, found)
    _look_at_memory(found)
    if os.geteuid() == 0:
        try:
            said = _tried(ids)
        except OSError as error:
            found.errors.append((Finding("root", 0, f"no room for a process: {error.strerror}", "try again"), _TEMPFAIL))
            return found
        if said:
            what, _, mend = said.partition("; ")
            found.errors.append((Finding("root", 0, what, mend), _NOPERM))
    return found


def require(config: Config, ids: Mapping[str, tuple[int, int]]) -> list[Finding]:
    """Warnings; StartError for the first of what keeps the service from starting."""
    found = needs(config, ids)
    for finding, code in found.errors:
        raise StartError(code, str(finding))
    return found.warnings


def require_cage(config: Config) -> None:
    """StartError where actors can't be locked in here, and the configuration insists on it."""
    lacks = sandbox.missing()
    if lacks and not config.insecure_no_sandbox:
        raise StartError(_OSERR, "actors can't be locked in here: " + "; ".join(lacks))


def give_up_powers() -> None:
    """What no process of ours needs of root's capabilities, none has from here on; StartError where the system refuses that."""
    capabilities = next(row.capabilities for row in ACTORS if row.name == "init")
    try:
        sandbox.bound_capabilities(capabilities)
        sandbox.keep_capabilities(capabilities)
    except sandbox.SandboxError as error:
        raise StartError(_OSERR, str(error)) from None


def _look_at_descriptors(config: Config, found: Needs) -> None:
    little = room_problem(config)
    if little:
        what, _, mend = little.partition("; ")
        found.errors.append((Finding("limits", 0, what, mend), _OSERR))


def _look_at_memory(found: Needs) -> None:
    hard = resource.getrlimit(resource.RLIMIT_AS)[1] if hasattr(resource, "RLIMIT_AS") else resource.RLIM_INFINITY
    most, name = max((row.memory, row.name) for row in ACTORS)
    if hard == resource.RLIM_INFINITY or hard >= most:
        return
    mend = "raise it: ulimit -Hv unlimited, or LimitAS= of the unit"
    if hard < _MEMORY:
        what = f"each process may have {hard // KIB} KiB of address space (RLIMIT_AS), and needs {_MEMORY // KIB} without one session"
        found.errors.append((Finding("limits", 0, what, mend), _OSERR))
    else:
        what = f"each process may have {hard // MIB} MiB of address space (RLIMIT_AS); with many sessions {name} uses {most // MIB}"
        found.warnings.append(Finding("limits", 0, what, mend))


def _tried(ids: Mapping[str, tuple[int, int]]) -> str:
    """What keeps root from becoming them, found out by a child that tries: capabilities and namespaces have many ways to forbid it."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        do_and_leave(lambda: os.write(writing, _try(ids).encode()) and 0, 1)
    os.close(writing)
    with open(reading, "rb") as pipe:
        said = pipe.read()
    os.waitpid(pid, 0)
    return said.decode()


def _try(ids: Mapping[str, tuple[int, int]]) -> str:
    for actor, (uid, gid) in ids.items():
        said = _become(actor, uid, gid)
        if said:
            return said
    return ""


def _become(actor: str, uid: int, gid: int) -> str:
    """Become it and return: the saved ids stay root's."""
    capability = "CAP_SETGID"
    try:
        os.setgroups([gid])
        os.setresgid(gid, gid, -1)
        capability = "CAP_SETUID"
        os.setresuid(uid, uid, -1)
        os.setresuid(0, 0, -1)
        os.setresgid(0, 0, -1)
    except OSError as error:
        mend = "or start as an ordinary user, for that user's own mail"
        if error.errno == errno.EINVAL or _denies_groups():
            return f"cannot become {actor}_user, {uid}:{gid}: this user namespace does not allow it; map these ids, {mend}"
        give = "give it (CapabilityBoundingSet= of the unit, --cap-add of the container)"
        return f"lacks {capability}, to become {actor}_user; {give}, {mend}"
    return ""


def _denies_groups() -> bool:
    """Whether this is a user namespace made without root, user_namespaces(7)."""
    with contextlib.suppress(OSError), open("/proc/self/setgroups", "rb") as file:
        return file.read(4) == b"deny"
    return False
