"""Make a control group with a limit, where root can."""

import contextlib
import os

import pytest
from popkernel.kernel.resources.memory_limits import limits

from tests.support.waiting import wait_for


class Group:
    """A control group of its own; `limit` sets a limit, `enter` moves processes into it."""

    def __init__(self, path, version):
        self.path, self.version = path, version

    def limit(self, kind, value):
        name = {"pids": "pids.max", "memory": "memory.max" if self.version == 2 else "memory.limit_in_bytes"}
        self._write(name[kind], str(value))

    def enter(self, *pids):
        for pid in pids:
            self._write("cgroup.procs", str(pid))

    def _write(self, name, text):
        with open(os.path.join(self.path, name), "w") as file:
            file.write(text)


@contextlib.contextmanager
def control_group(kind):
    """Make a group with the controller `kind` below this process's own; skip the test where that fails."""
    if os.geteuid() != 0:
        pytest.skip("needs root to make a control group")
    for version, top in _tops(kind):
        path = os.path.join(top, f"popkernel-test-{os.getpid()}")
        try:
            os.mkdir(path)
        except OSError:
            continue
        if os.path.exists(os.path.join(path, "pids.max" if kind == "pids" else "cgroup.procs")):
            break
        os.rmdir(path)
    else:
        pytest.skip(f"no control group with the controller {kind} can be made here")
    try:
        yield Group(path, version)
    finally:
        wait_for(lambda: _removed(path))


def _tops(kind):
    with open("/proc/self/mountinfo") as file:
        for line in file:
            mount, _, system = line.partition(" - ")
            what = system.split()
            if what[0] == "cgroup" and kind in what[2].split(","):
                yield 1, mount.split()[4]
            elif what[0] == "cgroup2":
                top = mount.split()[4]
                with open(f"{top}/cgroup.subtree_control") as control:
                    if kind in control.read().split():
                        yield 2, top


def _removed(path):
    try:
        os.rmdir(path)
    except OSError:  # its processes are about to end
        return False
    return True


def pressure_is_measured():
    """Return whether the system measures memory pressure."""
    return os.path.exists("/proc/pressure/memory") and limits().machine is not None
