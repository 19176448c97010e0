"""How busy processors are shared out among our processes and with others, sched(7)."""

import contextlib
import os
import struct
import sys

from popkernel.kernel.sandbox.libc import syscall

__all__ = ["favour", "processors", "unhurried"]

_SETATTR = {"x86_64": 314, "aarch64": 274}  # sched_setattr(2)
_BATCH = 3
_SLICE = 10_000_000  # nanoseconds; Linux gives some 3 ms by itself
_ATTR = struct.Struct("=IIQiIQQQ")  # struct sched_attr: size, policy, flags, nice, priority, runtime, deadline, period


def processors() -> int:
    """How many of them this process may run on; all there are where the system does not say."""
    with contextlib.suppress(OSError, AttributeError):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def unhurried() -> None:
    """Have this process, and all it starts, interrupt no other to run, and be interrupted less; Linux, the latter from 6.12 on.

    Where all processors are busy, what comes meanwhile is then seen to together, which is less work. Where one is idle nobody waits.
    """
    number = _SETATTR.get(os.uname().machine) if sys.platform == "linux" else None
    with contextlib.suppress(OSError):  # a container may have none of these calls: then as any other process
        if number is not None and os.sched_getscheduler(0) == os.SCHED_OTHER:  # else it is the operator's choice (CPUSchedulingPolicy)
            nice = os.getpriority(os.PRIO_PROCESS, 0)
            syscall(number, 0, _ATTR.pack(_ATTR.size, _BATCH, 0, nice, 0, _SLICE, 0, 0), 0)


def favour(nice: int) -> None:
    """Ask for a larger share of a processor that others want as well: `nice` from -1 to -20, setpriority(2); 0 asks for nothing.

    Threads started later inherit it. Only root is given a larger share; for others it stays as it is, and where the operator has made
    the service nicer than others (nice(1), a unit's Nice).
    """
    with contextlib.suppress(OSError):
        if nice < os.getpriority(os.PRIO_PROCESS, 0) <= 0:
            os.setpriority(os.PRIO_PROCESS, 0, nice)
