"""Find, kill, stop and wait for a service's processes, and read their memory."""

import contextlib
import os
import signal

from tests.support.waiting import wait_for


def pid_of(service, name):
    """Return an actor's process id; the actor must exist."""
    row = wait_for(lambda: service.actor(name))
    assert row["pid"] > 1, row
    return row["pid"]


def tree(pid):
    """Return a process and all its descendants."""
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
    """Stop these processes while the context is active."""
    for pid in pids:
        stop_process(pid)
    try:
        yield
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                continue_process(pid)


def gone(pid):
    """Return whether a process no longer exists; a zombie still does."""
    return not os.path.exists(f"/proc/{pid}")


def running(pids):
    """Return those processes that run; zombies do not."""
    alive = []
    for pid in pids:
        with contextlib.suppress(OSError), open(f"/proc/{pid}/stat") as file:
            if file.read().rpartition(")")[2].split()[0] not in "ZX":
                alive.append(pid)
    return alive


def wait_all_ended(pids):
    wait_for(lambda: not running(pids), seconds=10)


def rss(pid):
    """Return resident memory, in octets."""
    with open(f"/proc/{pid}/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmRSS:"))


def peak(pid):
    """Return peak resident memory, in octets."""
    with open(f"/proc/{pid}/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM:"))
