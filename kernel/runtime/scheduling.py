"""Set how busy processors are shared between this service's processes and others, sched(7)."""

import contextlib
import os
import struct
import sys

from popkernel.kernel.sandbox.libc import syscall

__all__ = ["favour", "processors", "unhurried"]

_SETATTR = {"x86_64": 314, "aarch64": 274}  # sched_setattr(2)
_BATCH = 3
_SLICE = 10_000_000  # nanoseconds; Linux gives some 3 ms by itself
# struct sched_attr: size, policy, flags, nice, priority, runtime, deadline, period
_ATTR = struct.Struct("=IIQiIQQQ")


def processors() -> int:
    """Return the number of processors that this process may run on; all, if the system does not tell."""
    with contextlib.suppress(OSError, AttributeError):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def unhurried() -> None:
    """Let this process and its children preempt no other, and run in longer slices (Linux; slices: 6.12).

    On busy processors, requests that arrive meanwhile are then handled together, which takes less work. On an
    idle one nothing waits longer.
    """
    number = _SETATTR.get(os.uname().machine) if sys.platform == "linux" else None
    with contextlib.suppress(OSError):  # a container may forbid these calls: then the default stays
        # another policy is the operator's choice (CPUSchedulingPolicy=)
        if number is not None and os.sched_getscheduler(0) == os.SCHED_OTHER:
            nice = os.getpriority(os.PRIO_PROCESS, 0)
            syscall(number, 0, _ATTR.pack(_ATTR.size, _BATCH, 0, nice, 0, _SLICE, 0, 0), 0)


def favour(nice: int) -> None:
    """Ask for a larger share of busy processors: `nice` from -1 to -20, setpriority(2); 0: nothing changes.

    Threads started later inherit it. Nothing changes either without root's rights, or if the operator has
    made the service nicer than others (nice(1), a unit's Nice=).
    """
    with contextlib.suppress(OSError):
        if nice < os.getpriority(os.PRIO_PROCESS, 0) <= 0:
            os.setpriority(os.PRIO_PROCESS, 0, nice)
