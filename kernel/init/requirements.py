"""What the system must let the service do, found out before anything is made: other ids, descriptors, memory. For start and `check`."""

import contextlib
import errno
import fcntl
import os
import resource
import select
import socket
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from popkernel.kernel.config.keys import Config, ConfigError
from popkernel.kernel.init.ids import mta_ids
from popkernel.kernel.init.run_directory import StartError
from popkernel.kernel.runtime.child_process import do_and_leave
from popkernel.kernel.runtime.exit_codes import EXITS, WANT
from popkernel.kernel.sandbox import lock as sandbox
from popkernel.kernel.supervisor.descriptor_room import problem as room_problem
from popkernel.proto.files.tables import Finding
from popkernel.proto.topology import ACTORS, KIB, MIB

__all__ = ["Needs", "give_up_powers", "needs", "require", "require_cage"]

_MEMORY = 64 * MIB  # octets of address space, of each process, with no session
_DATA = 32 * MIB  # of that, octets that are the process's own: RLIMIT_DATA
_FILE = MIB  # octets of a file: a table, a popcache
_ALLOW = "allow it (SystemCallFilter= of the unit, the container's seccomp profile)"
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
    if not _look_at_calls([("prlimit64", lambda: resource.getrlimit(resource.RLIMIT_NOFILE))], found):
        return found
    _look_at_descriptors(config, found)
    if found.errors or not _look_at_calls(_calls(), found):
        return found
    _look_at_memory(found)
    _look_at_data_and_files(config, found)
    root = os.geteuid() == 0
    try:
        said = _tried(ids, _mta_gids(config)) if root else _tried({}, ())
    except OSError as error:
        found.errors.append(_refused("fork", error))
        return found
    if said:
        code, _, said = said.partition(" ")
        what, _, mend = said.partition("; ")
        found.errors.append((Finding("root" if root else "calls", 0, what, mend), int(code)))
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
        raise StartError(_OSERR, f"{'root' if os.geteuid() == 0 else 'calls'}: {error}; {_ALLOW}") from None


def _calls() -> Iterable[tuple[str, Callable[[], object]]]:
    """What every process of ours does, and a profile of a container or of the unit may forbid."""
    yield "socketpair", _pair
    if hasattr(select, "epoll"):
        yield "epoll_create1", lambda: select.epoll().close()
    if hasattr(os, "getrandom"):
        yield "getrandom", lambda: os.getrandom(1)
    yield "flock", _lock


def _pair() -> None:
    for end in socket.socketpair(socket.AF_UNIX):
        end.close()


def _lock() -> None:
    ends = os.pipe()
    try:
        fcntl.flock(ends[0], fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        for end in ends:
            os.close(end)


def _look_at_calls(calls: Iterable[tuple[str, Callable[[], object]]], found: Needs) -> bool:
    """Whether all are allowed."""
    for name, call in calls:
        try:
            call()
        except OSError as error:
            found.errors.append(_refused(name, error))
    return not found.errors


def _refused(name: str, error: OSError) -> tuple[Finding, int]:
    if error.errno in WANT:
        return Finding("calls", 0, f"{name}(2): {error.strerror}", "see what the system is short of, and try again"), _TEMPFAIL
    return Finding("calls", 0, f"{name}(2) is refused: {error.strerror}", _ALLOW), _OSERR


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


def _look_at_data_and_files(config: Config, found: Needs) -> None:
    """The limits that hold are the soft ones: nobody here raises them."""
    data, file = (resource.getrlimit(which)[0] for which in (resource.RLIMIT_DATA, resource.RLIMIT_FSIZE))
    if data != resource.RLIM_INFINITY and data < _DATA:
        what = f"each process may have {data // KIB} KiB of data (RLIMIT_DATA), and needs {_DATA // KIB} without one session"
        found.errors.append((Finding("limits", 0, what, "raise it: ulimit -d unlimited, or LimitDATA= of the unit"), _OSERR))
    mend = "raise it: ulimit -f unlimited, or LimitFSIZE= of the unit"
    if file == resource.RLIM_INFINITY:
        return
    what = f"each file may have {file // KIB} KiB (RLIMIT_FSIZE)"
    if file < _FILE:
        found.errors.append((Finding("limits", 0, f"{what}, and {_FILE // KIB} are the least for tables and mailboxes", mend), _OSERR))
    elif config.lmtp and file < config.message_octets:
        what = f"{what}: a message over that, of message_octets = {config.message_octets}, cannot be taken"
        found.warnings.append(Finding("limits", 0, what, f"{mend}, or lower message_octets"))


def _mta_gids(config: Config) -> list[int]:
    """Groups that sockets for mail servers are given to."""
    with contextlib.suppress(ConfigError):  # which is said elsewhere
        return sorted({gid for _, gid in mta_ids(config)}) if config.lmtp else []
    return []


def _tried(ids: Mapping[str, tuple[int, int]], gids: Iterable[int]) -> str:
    """The exit code, and what keeps root from becoming them; "" for nothing.

    Found out by a child that tries: capabilities and namespaces have many ways to forbid it.
    """
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        do_and_leave(lambda: os.write(writing, _try(ids, gids, writing).encode()) and 0, 1)
    os.close(writing)
    with open(reading, "rb") as pipe:
        said = pipe.read()
    os.waitpid(pid, 0)
    return said.decode()


def _try(ids: Mapping[str, tuple[int, int]], gids: Iterable[int], pipe: int) -> str:
    try:
        give_up_powers()
    except StartError as error:
        return f"{error.status} {str(error).partition(': ')[2]}"
    for gid in gids:
        try:
            os.fchown(pipe, -1, gid)
        except PermissionError:
            give = "give it (CapabilityBoundingSet= of the unit, --cap-add of the container), or leave mta_users out"
            return f"{_NOPERM} lacks CAP_CHOWN, to give a socket to group {gid} of mta_users; {give}"
        except OSError:  # what has no group on this system
            break
    for actor, (uid, gid) in ids.items():
        said = _become(actor, uid, gid)
        if said:
            return f"{_NOPERM} {said}"
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
