"""Check that the system allows what the service needs: calls, ids, descriptors, memory.

For start and `check`. These checks come before the service makes anything.
"""

import contextlib
import errno
import fcntl
import os
import resource
import select
import socket
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from popkernel.kernel.config.keys import Config
from popkernel.kernel.config.loading import ConfigError
from popkernel.kernel.decisions.leases import Core
from popkernel.kernel.init.ids import mta_ids
from popkernel.kernel.init.run_directory import StartError
from popkernel.kernel.resources.memory_limits import Limits, in_units, limits, most_warm, rounded
from popkernel.kernel.runtime.child_process import do_and_leave
from popkernel.kernel.runtime.exit_codes import EXITS, WANT
from popkernel.kernel.sandbox import lock as sandbox
from popkernel.kernel.sandbox.libc import SandboxError
from popkernel.kernel.supervisor.descriptor_room import problem as room_problem
from popkernel.proto.files.tables import Finding
from popkernel.proto.topology import ACTORS, KIB, MIB

__all__ = ["Needs", "give_up_powers", "needs", "require", "require_cage"]

_MEMORY = 64 * MIB  # octets of address space that a process without sessions needs
_DATA = 32 * MIB  # octets of private memory of these, RLIMIT_DATA
_FILE = MIB  # octets that a table or a popcache may need
_ALLOW = "allow it (SystemCallFilter= of the unit, the container's seccomp profile)"
_OSERR, _NOPERM, _TEMPFAIL = (EXITS[name].code for name in ("oserr", "noperm", "tempfail"))


class Needs(NamedTuple):
    """What the system lacks."""

    errors: list[tuple[Finding, int]]
    """What prevents a start, each with the exit code of sysexits(3)."""
    warnings: list[Finding]
    """What the service can run without."""


def needs(config: Config, ids: Mapping[str, tuple[int, int]]) -> Needs:
    """Return what the system lacks; `ids` are uid and gid by actor."""
    found = Needs([], [])
    if not _check_calls([("prlimit64", lambda: resource.getrlimit(resource.RLIMIT_NOFILE))], found):
        return found
    _check_descriptors(config, found)
    if found.errors or not _check_calls(_calls(), found):
        return found
    _check_memory(found)
    _check_data_and_files(config, found)
    found.warnings.extend(_check_warm(config, limits()))
    root = os.geteuid() == 0
    try:
        problem = _test_in_child(ids, _mta_gids(config)) if root else _test_in_child({}, ())
    except OSError as error:
        found.errors.append(_refused("fork", error))
        return found
    if problem:
        code, _, text = problem.partition(" ")
        what, _, mend = text.partition("; ")
        found.errors.append((Finding("root" if root else "calls", 0, what, mend), int(code)))
    return found


def require(config: Config, ids: Mapping[str, tuple[int, int]]) -> list[Finding]:
    """Return the warnings.

    Raises:
        StartError: the first of what prevents a start.
    """
    found = needs(config, ids)
    for finding, code in found.errors:
        raise StartError(code, str(finding))
    return found.warnings


def require_cage(config: Config) -> None:
    """Check that the sandbox works here, unless the configuration does without it.

    Raises:
        StartError: it does not.
    """
    lacks = sandbox.missing()
    if lacks and not config.insecure_no_sandbox:
        raise StartError(_OSERR, "actors can't be locked in here: " + "; ".join(lacks))


def give_up_powers() -> None:
    """Give up those of root's capabilities that no process of the service needs.

    Raises:
        StartError: the system refuses.
    """
    capabilities = next(row.capabilities for row in ACTORS if row.name == "init")
    try:
        sandbox.bound_capabilities(capabilities)
        sandbox.keep_capabilities(capabilities)
    except SandboxError as error:
        raise StartError(_OSERR, f"{'root' if os.geteuid() == 0 else 'calls'}: {error}; {_ALLOW}") from None


def _calls() -> Iterable[tuple[str, Callable[[], object]]]:
    """Yield system calls that every process needs and a container's or the unit's profile may forbid."""
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


def _check_calls(calls: Iterable[tuple[str, Callable[[], object]]], found: Needs) -> bool:
    """Make the calls, and return whether there is no error so far."""
    for name, call in calls:
        try:
            call()
        except OSError as error:
            found.errors.append(_refused(name, error))
    return not found.errors


def _refused(name: str, error: OSError) -> tuple[Finding, int]:
    if error.errno in WANT:
        return Finding(
            "calls", 0, f"{name}(2): {error.strerror}", "see what the system is short of, and try again"
        ), _TEMPFAIL
    return Finding("calls", 0, f"{name}(2) is refused: {error.strerror}", _ALLOW), _OSERR


def _check_descriptors(config: Config, found: Needs) -> None:
    shortage = room_problem(config)
    if shortage:
        what, _, mend = shortage.partition("; ")
        found.errors.append((Finding("limits", 0, what, mend), _OSERR))


def _check_memory(found: Needs) -> None:
    hard = (
        resource.getrlimit(resource.RLIMIT_AS)[1]
        if hasattr(resource, "RLIMIT_AS")
        else resource.RLIM_INFINITY
    )
    most, name = max((row.memory, row.name) for row in ACTORS)
    if hard == resource.RLIM_INFINITY or hard >= most:
        return
    mend = "raise it: ulimit -Hv unlimited, or LimitAS= of the unit"
    if hard < _MEMORY:
        what = (
            f"each process may have {hard // KIB} KiB of address space (RLIMIT_AS), "
            f"and needs {_MEMORY // KIB} without one session"
        )
        found.errors.append((Finding("limits", 0, what, mend), _OSERR))
    else:
        what = (
            f"each process may have {hard // MIB} MiB of address space (RLIMIT_AS); "
            f"with many sessions {name} uses {most // MIB}"
        )
        found.warnings.append(Finding("limits", 0, what, mend))


def _check_data_and_files(config: Config, found: Needs) -> None:
    """Check RLIMIT_DATA and RLIMIT_FSIZE: the soft limits, which no process of the service raises."""
    data, file = (resource.getrlimit(which)[0] for which in (resource.RLIMIT_DATA, resource.RLIMIT_FSIZE))
    if data != resource.RLIM_INFINITY and data < _DATA:
        what = (
            f"each process may have {data // KIB} KiB of data (RLIMIT_DATA), "
            f"and needs {_DATA // KIB} without one session"
        )
        found.errors.append(
            (Finding("limits", 0, what, "raise it: ulimit -d unlimited, or LimitDATA= of the unit"), _OSERR)
        )
    mend = "raise it: ulimit -f unlimited, or LimitFSIZE= of the unit"
    if file == resource.RLIM_INFINITY:
        return
    what = f"each file may have {file // KIB} KiB (RLIMIT_FSIZE)"
    if file < _FILE:
        found.errors.append(
            (
                Finding(
                    "limits", 0, f"{what}, and {_FILE // KIB} are the least for tables and mailboxes", mend
                ),
                _OSERR,
            )
        )
    elif config.lmtp and file < config.message_octets:
        what = f"{what}: a message over that, of message_octets = {config.message_octets}, cannot be taken"
        found.warnings.append(Finding("limits", 0, what, f"{mend}, or lower message_octets"))


def _check_warm(config: Config, there: Limits) -> Iterable[Finding]:
    """Yield what keeps the memory of warm_memory from being used, if somebody set it.

    The default follows the limits by itself.
    """
    if not config.warm_memory:
        return
    wanted = int(config.warm_memory)
    for limit, what, mend in (
        (there.group, "the limit of its control group", "raise the limit (MemoryMax= of the unit)"),
        (there.machine, "the machine's memory", "add memory"),
    ):
        if limit is not None and wanted > limit:
            said = f"warm_memory = {in_units(wanted)} is more than {what}, {in_units(limit)}"
            yield Finding("limits", 0, said, f"lower warm_memory, or {mend}")
            break
    actors, room = wanted // Core.actor_octets, most_warm(there)
    if there.processes is not None and actors > room:
        said = (
            f"warm_memory = {in_units(wanted)} holds about {rounded(actors)} idle maildir actors,"
            f" and the limit of {there.processes} processes leaves room for {room}"
        )
        mend = "raise it (TasksMax= of the unit, pids.max of the control group, ulimit -u, kernel.pid_max)"
        yield Finding("limits", 0, said, f"{mend}, or lower warm_memory")


def _mta_gids(config: Config) -> list[int]:
    """Return the groups of the sockets for mail servers."""
    with contextlib.suppress(ConfigError):  # reported elsewhere
        return sorted({gid for _, gid in mta_ids(config)}) if config.lmtp else []
    return []


def _test_in_child(ids: Mapping[str, tuple[int, int]], gids: Iterable[int]) -> str:
    """Return the exit code, a blank, and what prevents becoming these users; "" for nothing.

    A child tries it: capabilities and namespaces can forbid it in many ways.
    """
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        do_and_leave(lambda: os.write(writing, _test_ids(ids, gids, writing).encode()) and 0, 1)
    os.close(writing)
    with open(reading, "rb") as pipe:
        answer = pipe.read()
    os.waitpid(pid, 0)
    return answer.decode()


def _test_ids(ids: Mapping[str, tuple[int, int]], gids: Iterable[int], pipe: int) -> str:
    try:
        give_up_powers()
    except StartError as error:
        return f"{error.status} {str(error).partition(': ')[2]}"
    for gid in gids:
        try:
            os.fchown(pipe, -1, gid)
        except PermissionError:
            give = "give it (CapabilityBoundingSet= of the unit, --cap-add of the container)"
            what = f"lacks CAP_CHOWN, to give a socket to group {gid} of mta_users"
            return f"{_NOPERM} {what}; {give}, or leave mta_users out"
        except OSError:  # pipes have no group on this system
            break
    for actor, (uid, gid) in ids.items():
        problem = _become(actor, uid, gid)
        if problem:
            return f"{_NOPERM} {problem}"
    return ""


def _become(actor: str, uid: int, gid: int) -> str:
    """Become an actor's user, and root again by the saved ids. Return what prevents it, "" for nothing."""
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
            what = f"cannot become {actor}_user, {uid}:{gid}: this user namespace does not allow it"
            return f"{what}; map these ids, {mend}"
        give = "give it (CapabilityBoundingSet= of the unit, --cap-add of the container)"
        return f"lacks {capability}, to become {actor}_user; {give}, {mend}"
    return ""


def _denies_groups() -> bool:
    """Return whether this is a user namespace made without root; user_namespaces(7)."""
    with contextlib.suppress(OSError), open("/proc/self/setgroups", "rb") as file:
        return file.read(4) == b"deny"
    return False
