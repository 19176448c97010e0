"""A server under measurement, whichever it is: started in a group of its own, watched, and ended by process id.

Processor time is the group's (cgroup v2 or v1, as root), which counts processes that have come and gone; elsewhere it is summed
from /proc, where a process that ended counts once its parent has waited for it. Memory is Pss, which shares out what processes
share.
"""

import contextlib
import itertools
import os
import signal
import subprocess
import time

from tests.support.processes import tree

_HZ = os.sysconf("SC_CLK_TCK")
_numbers = itertools.count()


class ServerError(RuntimeError):
    """It did not start, or cannot be measured."""


def cgroup_roots(mounts):
    """Where groups can be made that count processor time, best first: (kind, directory), from the text of /proc/mounts."""
    rows = [line.split() for line in mounts.splitlines()]
    two = [("v2", row[1]) for row in rows if len(row) > 3 and row[2] == "cgroup2"]
    return two + [("v1", row[1]) for row in rows if len(row) > 3 and row[2] == "cgroup" and "cpuacct" in row[3].split(",")]


class Group:
    """A control group for one server; `kind` is "v2", "v1", or "" where none can be made."""

    def __init__(self, name):
        self.kind = self.path = ""
        if os.geteuid() != 0:
            return
        with open("/proc/mounts") as file:
            roots = cgroup_roots(file.read())
        for kind, root in roots:
            path = os.path.join(root, f"popkernel-bench-{os.getpid()}-{name}-{next(_numbers)}")
            with contextlib.suppress(OSError):
                os.mkdir(path)
                if os.path.exists(os.path.join(path, "cpu.stat" if kind == "v2" else "cpuacct.usage")):
                    self.kind, self.path = kind, path
                    return
                os.rmdir(path)

    def enter(self):
        """Put the calling process in (between fork and exec)."""
        if self.path:
            with open(os.path.join(self.path, "cgroup.procs"), "w") as file:
                file.write("0")

    def seconds(self):
        """Processor seconds of all that ever ran in it; None without a group."""
        if self.kind == "v2":
            with open(os.path.join(self.path, "cpu.stat")) as file:
                return int(dict(line.split() for line in file)["usage_usec"]) / 1e6
        if self.kind == "v1":
            with open(os.path.join(self.path, "cpuacct.usage")) as file:
                return int(file.read()) / 1e9
        return None

    def pids(self):
        """Who is in it."""
        if not self.path:
            return []
        with open(os.path.join(self.path, "cgroup.procs")) as file:
            return [int(line) for line in file]

    def remove(self):
        """Take the group away, once it is empty."""
        for _ in range(100):
            if not self.path or not os.path.exists(self.path):
                return
            with contextlib.suppress(OSError):
                os.rmdir(self.path)
                return
            time.sleep(0.05)


def cpu_of(pids):
    """Processor seconds of processes and of the children they have waited for."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError), open(f"/proc/{pid}/stat") as file:
            total += sum(map(int, file.read().rpartition(")")[2].split()[11:15]))
    return total / _HZ


def pss_of(pids):
    """Octets of memory, shared pages shared out; ServerError where the system does not show them to this user."""
    total = 0
    for pid in pids:
        try:
            with open(f"/proc/{pid}/smaps_rollup") as file:
                total += sum(int(line.split()[1]) for line in file if line.startswith("Pss:")) * 1024
        except (FileNotFoundError, ProcessLookupError):
            continue
        except OSError as error:
            raise ServerError(f"memory of process {pid}: {error.strerror}; run the benchmark as root") from None
    return total


class Server:
    """A started server; `tls` and `plain` are its ports, `took` the seconds until it was ready. Ends with its `with` block."""

    name = ""
    tls = plain = 0

    def launch(self, argv, log, ready, seconds=60.0):
        """Start it, what it says going to a file; wait until `ready()`. ServerError with the log's end where it does not."""
        self.group = Group(self.name)
        began = time.monotonic()
        with open(log, "wb") as said:
            self.process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=said, stderr=said, preexec_fn=self.group.enter, start_new_session=True,
            )
        try:
            while not ready():
                if self.process.poll() is not None or time.monotonic() - began > seconds:
                    with open(log, errors="replace") as said:
                        raise ServerError(f"{self.name} did not start (exit code {self.process.poll()}): {said.read()[-1500:]}")
                time.sleep(0.002)
        except BaseException:
            self.stop()
            raise
        self.took = time.monotonic() - began

    def pids(self):
        """Every process of it that runs."""
        return self.group.pids() or tree(self.process.pid)

    def cpu(self):
        """Processor seconds so far, of processes that have ended too."""
        seconds = self.group.seconds()
        return cpu_of(tree(self.process.pid)) if seconds is None else seconds

    def memory(self):
        """Octets of all its processes."""
        return pss_of(self.pids())

    def stop(self):
        """SIGTERM, and after a while SIGKILL to whoever of its processes is left."""
        left = self.pids()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(30)
        # Without a group only a master that would not end tells which processes are still its own: ids of others may have been
        # given to somebody else by now.
        left = self.group.pids() if self.group.path else left if self.process.poll() is None else []
        until = time.monotonic() + 60
        while left:  # ten thousand processes take a while to go, and whoever is measured next would pay for it
            for pid in reversed(left):
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.1)
            left = self.group.pids() if time.monotonic() < until else []
        self.process.wait(30)
        self.group.remove()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()
