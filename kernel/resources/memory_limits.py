"""Find how much memory and how many processes this process may have: the machine's, and its control groups'.

Reads /proc and the file systems of control groups (cgroups(7), versions 1 and 2). What is not there, cannot
be read or has odd contents is no limit.
"""

import os
import resource
from collections.abc import Iterator
from typing import NamedTuple

from popkernel.kernel.config.keys import Config

__all__ = ["Limits", "budget", "in_units", "limits", "most_warm", "rounded"]

_SHARE = 10  # the default budget is so much of the memory, as a divisor
_UNLIMITED = 1 << 60  # octets; version 1 writes a number near 2**63 for no limit


class Limits(NamedTuple):
    """Octets and numbers; None if there is no limit or it is not known."""

    machine: int | None
    """The machine's memory."""
    group: int | None
    """The lowest limit of memory of this process's control groups."""
    processes: int | None
    """How many processes there may be: on the machine, of the control groups, of the user if not root."""
    groups: tuple[str, ...]
    """Directories of its control groups, the innermost first, that may have files about pressure."""

    @property
    def memory(self) -> int | None:
        """Return the lower limit of memory."""
        known = [limit for limit in (self.machine, self.group) if limit is not None]
        return min(known, default=None)


def budget(config: Config, found: Limits) -> int:
    """Return the octets that idle maildir actors may take: of warm_memory, or a tenth of the memory."""
    if config.warm_memory:
        return min(int(config.warm_memory), _UNLIMITED)
    return (found.memory or 1 << 30) // _SHARE


def most_warm(found: Limits) -> int:
    """Return how many idle actors there may be: half of the processes, so that others can be started."""
    return (found.processes or 1 << 30) // 2


def in_units(octets: int) -> str:
    """Return octets for people: "2.4 GiB"."""
    if octets < 1 << 20:
        return f"{octets >> 10} KiB"
    return f"{octets / (1 << 30):.1f} GiB" if octets >= 1 << 30 else f"{octets / (1 << 20):.0f} MiB"


def rounded(number: int) -> int:
    """Return a number with three digits that count."""
    return round(number, min(0, 3 - len(str(number))))


def limits(proc: str = "/proc") -> Limits:
    """Read all limits. `proc`: where proc(5) is; tests have their own."""
    memory: list[int] = []
    processes = _numbers(f"{proc}/sys/kernel/pid_max") + _numbers(f"{proc}/sys/kernel/threads-max")
    groups: list[str] = []
    for kinds, inner, top in _groups(proc):
        for at in _upwards(inner, top):
            if kinds & {"", "memory"}:
                groups.append(at)
                memory += _numbers(f"{at}/memory.max", f"{at}/memory.limit_in_bytes")
            if kinds & {"", "pids"}:
                processes += _numbers(f"{at}/pids.max")
    if os.geteuid() != 0 and hasattr(resource, "RLIMIT_NPROC"):
        soft = resource.getrlimit(resource.RLIMIT_NPROC)[0]
        processes += [soft] if soft != resource.RLIM_INFINITY else []
    return Limits(_machine(proc), min(memory, default=None), min(processes, default=None), tuple(groups))


def _machine(proc: str) -> int | None:
    for line in _lines(f"{proc}/meminfo"):
        name, _, rest = line.partition(":")
        number = rest.split()[:1]
        if name == "MemTotal" and number and _is_number(number[0]):
            return int(number[0]) * 1024
    return None


def _groups(proc: str) -> Iterator[tuple[set[str], str, str]]:
    """Yield the controllers, this process's directory and the highest visible one of each hierarchy.

    Version 2 has one hierarchy, with "" for its controllers.
    """
    paths: dict[str, str] = {}
    for line in _lines(f"{proc}/self/cgroup"):
        parts = line.rstrip("\n").split(":", 2)
        if len(parts) == 3:
            paths.update(dict.fromkeys(parts[1].split(","), parts[2]))
    for line in _lines(f"{proc}/self/mountinfo"):
        mount, _, system = line.rstrip("\n").partition(" - ")
        mounted, what = mount.split(" "), system.split(" ")
        if len(mounted) < 5 or len(what) < 3 or what[0] not in ("cgroup", "cgroup2"):
            continue
        kinds = {""} if what[0] == "cgroup2" else {"memory", "pids"} & set(what[2].split(","))
        path = next((paths[kind] for kind in kinds if kind in paths), None)
        if path is None:
            continue
        root, top = mounted[3], mounted[4]
        inside = path.removeprefix(root) if root != "/" and path.startswith(root) else path
        at = os.path.normpath(f"{top}/{inside}")
        # in a namespace of control groups the path may lead above what is mounted here
        yield kinds, at if f"{at}/".startswith(f"{top}/") and os.path.isdir(at) else top, top


def _upwards(inner: str, top: str) -> Iterator[str]:
    yield inner
    while inner != top:
        inner = os.path.dirname(inner)
        yield inner


def _numbers(*paths: str) -> list[int]:
    found = [line.strip() for path in paths for line in _lines(path)[:1]]
    return [int(text) for text in found if _is_number(text) and int(text) < _UNLIMITED]


def _is_number(text: str) -> bool:
    return text.isdecimal() and len(text) <= 20


def _lines(path: str) -> list[str]:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.readlines()
    except OSError:
        return []
