"""Processes of a service: find one, kill it, stop it, wait for its end; the memory it has."""

import contextlib
import os
import signal

from tests.support.waiting import wait_for


def pid_of(service, name):
    """The process of an actor, which must be there."""
    row = wait_for(lambda: service.actor(name))
    assert row["pid"] > 1, row
    return row["pid"]


def tree(pid):
    """A process and all below it."""
    found, todo = [], [pid]
    while todo:
        pid = todo.pop()
        found.append(pid)
        with contextlib.suppress(OSError):
            for task in os.listdir(f"/proc/{pid}/task"):
                with open(f"/proc/{pid}/task/{task}/children") as file:
                    todo += map(int, file.read().split())
    return found


def kill(pid):
    os.kill(pid, signal.SIGKILL)


def stop_process(pid):
    os.kill(pid, signal.SIGSTOP)


def continue_process(pid):
    os.kill(pid, signal.SIGCONT)


@contextlib.contextmanager
def stopped(*pids):
    """These processes do nothing meanwhile."""
    for pid in pids:
        stop_process(pid)
    try:
        yield
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                continue_process(pid)


def gone(pid):
    """Not there any more; who is dead and not waited for still is."""
    return not os.path.exists(f"/proc/{pid}")


def running(pids):
    """Those that still run; a dead one that nobody has waited for runs no more."""
    alive = []
    for pid in pids:
        with contextlib.suppress(OSError), open(f"/proc/{pid}/stat") as file:
            if file.read().rpartition(")")[2].split()[0] not in "ZX":
                alive.append(pid)
    return alive


def all_gone(pids):
    wait_for(lambda: not running(pids), seconds=10)


def rss(pid):
    """Resident memory, octets."""
    with open(f"/proc/{pid}/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmRSS:"))


def peak(pid):
    """The most it ever was, octets."""
    with open(f"/proc/{pid}/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM:"))
