"""Run a Debian 13 in an overlay over the one that tests/debian13.sh makes, with systemd or without.

Its processes are in namespaces of their own: mounts, processes, names, IPC, control groups, with systemd the
network too. What a test changes in it is gone afterwards.
"""

import contextlib
import os
import signal
import subprocess
import tempfile
import textwrap
import time

BASE = os.environ.get("POPKERNEL_DEBIAN13", "/var/tmp/popkernel-debian13")
_ENVIRONMENT = {
    "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "TERM": "dumb",
    "DEBIAN_FRONTEND": "noninteractive",
}
# $1: the root directory. /proc/sys and /sys are the machine's: they are read-only, as in systemd-nspawn(1).
_BOOT = r"""
mount --make-rprivate / && cd "$1" || exit 71
mount -t proc proc proc && mount --bind proc/sys proc/sys && mount -o remount,bind,ro proc/sys || exit 71
mount -t tmpfs -o mode=755 tmpfs dev && mount -t tmpfs -o mode=755 tmpfs run || exit 71
mount -t tmpfs tmpfs tmp || exit 71
for name in null zero full random urandom tty; do
    touch dev/$name && mount --bind /dev/$name dev/$name || exit 71
done
mkdir dev/pts dev/shm && mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts || exit 71
ln -s pts/ptmx dev/ptmx && ln -s /proc/self/fd dev/fd || exit 71
mount -t sysfs -o ro sysfs sys && mount -t tmpfs tmpfs sys/fs/cgroup || exit 71
mount -t cgroup2 cgroup2 sys/fs/cgroup || exit 71
ip link set lo up 2>/dev/null
exec env -i container=popkernel-test PATH=/usr/sbin:/usr/bin \
    chroot . /lib/systemd/systemd systemd.unit=multi-user.target
"""
_ENTER = """
mount --make-rprivate / && cd "$1" && shift || exit 71
mount -t proc proc proc && mount --rbind /dev dev && mount -t sysfs sysfs sys || exit 71
mount -t tmpfs tmpfs run || exit 71
exec chroot . "$@"
"""


class DebianSystem:
    """A root directory that is an overlay; `with` removes it."""

    def __init__(self):
        # not below /tmp: an overlay cannot be the upper directory of another
        self._place = tempfile.TemporaryDirectory(prefix="pk", dir="/var/tmp")
        self.root = f"{self._place.name}/root"
        self._systemd = None
        self._group = ""

    def __enter__(self):
        for name in ("upper", "work", "root"):
            os.mkdir(f"{self._place.name}/{name}")
        layers = f"lowerdir={BASE},upperdir={self._place.name}/upper,workdir={self._place.name}/work"
        subprocess.run(["mount", "-t", "overlay", "-o", layers, "overlay", self.root], check=True)
        return self

    def __exit__(self, *_):
        self.halt()
        subprocess.run(["umount", "-l", self.root], check=True)
        self._place.cleanup()

    def path(self, path):
        """Return where a path of that system is in this one."""
        return self.root + path

    def write(self, path, text):
        """Write a file of that system, with the directories above it."""
        os.makedirs(os.path.dirname(self.path(path)), exist_ok=True)
        with open(self.path(path), "w") as file:
            file.write(textwrap.dedent(text))

    def read(self, path):
        """Return the text of a file of that system."""
        with open(self.path(path)) as file:
            return file.read()

    def run(self, script, *, check=True, timeout=300):
        """Run a shell script in it, beside systemd if that runs; return the ended process with its output.

        Without systemd it has this machine's network.
        """
        inner = ["sh", "-euc", textwrap.dedent(script)]
        if self._systemd is not None:
            namespaces = ["-t", str(self._pid()), "-m", "-p", "-u", "-i", "-n", "-C"]
            command = ["nsenter", *namespaces, "chroot", self.root, *inner]
        else:
            namespaces = ["--mount", "--pid", "--fork", "--kill-child=SIGKILL"]
            command = ["unshare", *namespaces, "sh", "-c", _ENTER, "sh", self.root, *inner]
        ended = subprocess.run(
            command,
            env={**_ENVIRONMENT, **{k: v for k, v in os.environ.items() if k.lower().endswith("_proxy")}},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            check=False,
        )
        if check and ended.returncode:
            raise AssertionError(f"exit code {ended.returncode} of:{script}\n{ended.stdout[-6000:]}")
        return ended

    def boot(self, seconds=60):
        """Start systemd in it; return whether it got as far as its target."""
        self._group = _make_group()
        command = ["unshare", "--mount", "--pid", "--uts", "--ipc", "--cgroup", "--net", "--fork"]
        self._systemd = subprocess.Popen(
            [*command, "--kill-child=SIGKILL", "sh", "-c", _BOOT, "sh", self.root],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=self._prepare,
        )
        until = time.monotonic() + seconds
        while time.monotonic() < until and self._systemd.poll() is None:
            with contextlib.suppress(OSError, IndexError, ValueError):
                said = self.run("systemctl is-system-running", check=False, timeout=20).stdout.strip()
                if said in ("running", "degraded"):
                    return True
            time.sleep(0.2)
        self.halt()
        return False

    def halt(self):
        """End systemd and all that it started."""
        if self._systemd is None:
            return
        self._systemd.send_signal(signal.SIGKILL)
        self._systemd.wait()
        self._systemd = None
        if self._group:
            _remove_group(self._group)

    def _prepare(self):
        os.setpriority(os.PRIO_PROCESS, 0, 0)  # services' own settings of it are tested
        if self._group:
            with open(f"{self._group}/cgroup.procs", "w") as file:
                file.write(str(os.getpid()))

    def _pid(self):
        """Return the process number of systemd, the child of unshare(1)."""
        pid = self._systemd.pid
        with open(f"/proc/{pid}/task/{pid}/children") as file:
            return int(file.read().split()[0])


def _make_group():
    """Make a control group (version 2) for the system; "" if there is none."""
    with open("/proc/self/mountinfo") as file:
        tops = [line.split()[4] for line in file if " - cgroup2 " in line]
    for top in tops:
        with contextlib.suppress(OSError):
            path = f"{top}/popkernel-test-{os.getpid()}"
            os.mkdir(path)
            return path
    return ""


def _remove_group(path):
    until = time.monotonic() + 10
    for folder, _, _ in os.walk(path, topdown=False):
        while time.monotonic() < until:
            try:
                os.rmdir(folder)
                break
            except OSError:  # its processes are about to end
                time.sleep(0.05)
