"""Start a server under measurement in a control group, read its resources, and end it by process id.

Processor time is the group's (cgroup v2 or v1, as root), which counts ended processes too; elsewhere it is
summed from /proc, where an ended process counts once its parent has waited for it. Memory is Pss, which
divides shared pages between processes.
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
    """Report that a server did not start or cannot be measured."""


def cgroup_roots(mounts):
    """Return where control groups that count processor time can be made.

    Parses the text of /proc/mounts; (kind, directory), best first.
    """
    rows = [line.split() for line in mounts.splitlines()]
    two = [("v2", row[1]) for row in rows if len(row) > 3 and row[2] == "cgroup2"]
    return two + [
        ("v1", row[1])
        for row in rows
        if len(row) > 3 and row[2] == "cgroup" and "cpuacct" in row[3].split(",")
    ]


class Group:
    """Hold a control group for one server.

    `kind` is "v2", "v1", or "" where none can be made.
    """

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
        """Move the calling process into the group, between fork and exec."""
        if self.path:
            with open(os.path.join(self.path, "cgroup.procs"), "w") as file:
                file.write("0")

    def seconds(self):
        """Return processor seconds of all processes that ever ran in the group; None without a group."""
        if self.kind == "v2":
            with open(os.path.join(self.path, "cpu.stat")) as file:
                return int(dict(line.split() for line in file)["usage_usec"]) / 1e6
        if self.kind == "v1":
            with open(os.path.join(self.path, "cpuacct.usage")) as file:
                return int(file.read()) / 1e9
        return None

    def pids(self):
        """Return the group's process ids."""
        if not self.path:
            return []
        with open(os.path.join(self.path, "cgroup.procs")) as file:
            return [int(line) for line in file]

    def remove(self):
        """Remove the group once it is empty."""
        for _ in range(100):
            if not self.path or not os.path.exists(self.path):
                return
            with contextlib.suppress(OSError):
                os.rmdir(self.path)
                return
            time.sleep(0.05)


def cpu_of(pids):
    """Return processor seconds of processes and of the children they waited for."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError), open(f"/proc/{pid}/stat") as file:
            total += sum(map(int, file.read().rpartition(")")[2].split()[11:15]))
    return total / _HZ


def pss_of(pids):
    """Return octets of memory, shared pages divided; ServerError if the system does not show them."""
    total = 0
    for pid in pids:
        try:
            with open(f"/proc/{pid}/smaps_rollup") as file:
                total += sum(int(line.split()[1]) for line in file if line.startswith("Pss:")) * 1024
        except (FileNotFoundError, ProcessLookupError):
            continue
        except OSError as error:
            raise ServerError(
                f"memory of process {pid}: {error.strerror}; run the benchmark as root"
            ) from None
    return total


class Server:
    """Hold a started server; its `with` block ends it.

    `tls` and `plain` are its ports, `took` the seconds until it was ready.
    """

    name = ""
    tls = plain = 0

    def launch(self, argv, log, ready, seconds=60.0):
        """Start the server with its output in a file; wait until `ready()`.

        Raises ServerError with the end of that file otherwise.
        """
        self.group = Group(self.name)
        began = time.monotonic()
        with open(log, "wb") as said:
            self.process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                preexec_fn=self.group.enter,
                start_new_session=True,
            )
        try:
            while not ready():
                if self.process.poll() is not None or time.monotonic() - began > seconds:
                    with open(log, errors="replace") as said:
                        raise ServerError(
                            f"{self.name} did not start (exit code {self.process.poll()}): "
                            f"{said.read()[-1500:]}"
                        )
                time.sleep(0.002)
        except BaseException:
            self.stop()
            raise
        self.took = time.monotonic() - began

    def pids(self):
        """Return every running process of the server."""
        return self.group.pids() or tree(self.process.pid)

    def cpu(self):
        """Return processor seconds so far, ended processes included."""
        seconds = self.group.seconds()
        return cpu_of(tree(self.process.pid)) if seconds is None else seconds

    def memory(self):
        """Return octets of memory of all its processes."""
        return pss_of(self.pids())

    def stop(self):
        """Send SIGTERM, and after a while SIGKILL to the processes that remain."""
        left = self.pids()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(30)
        # Without a group only a master that has not ended tells which processes are still its own: the ids
        # may belong to others by now.
        left = self.group.pids() if self.group.path else left if self.process.poll() is None else []
        until = time.monotonic() + 60
        # ten thousand processes take a while to exit, at the expense of the next measurement
        while left:
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
