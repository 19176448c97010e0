"""Run the demo on a terminal, as a newcomer does: its first lines, and the commands that it prints."""

import contextlib
import os
import pty
import re
import shlex
import shutil
import signal
import subprocess
import sys

import pytest

from tests.support.ports import free_ports
from tests.support.service import POPKERNEL
from tests.support.waiting import wait_for

BEGIN = """
import fcntl, os, resource, signal, sys, termios
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # ours may have come to ignore it
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 1024))
os.execv(sys.argv[1], sys.argv[1:])
"""
# Stand for make(1) as the terminal's program: it alone gets the SIGHUP, and waits for its child.
AS_MAKE = """
import subprocess
signal.signal(signal.SIGHUP, lambda *_: None)
subprocess.call(sys.argv[1:])
"""


class Demo:
    """Run `popkernel demo` at a terminal of its own."""

    def __init__(self, path=None, begin=BEGIN):
        self.ports = free_ports()
        self.master, slave = pty.openpty()
        self.said = ""
        environment = {**os.environ, "TERM": "dumb", **({"PATH": path} if path else {})}
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-c",
                begin,
                *POPKERNEL,
                "demo",
                "--tls-port",
                str(self.ports[0]),
                "--stls-port",
                str(self.ports[1]),
            ],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            env=environment,
        )
        os.close(slave)
        try:
            self.until("Ctrl-C ends it.\r\n")
        except BaseException:
            self.close()
            raise
        self.directory = re.search(r" in (/\S+)", self.said)[1]

    def until(self, text):
        while text not in self.said:
            self.said += os.read(self.master, 4096).decode()

    def hang_up(self):
        if self.master >= 0:
            os.close(self.master)
            self.master = -1

    def close(self):
        self.hang_up()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(20)
        self.process.kill()
        self.process.wait()

    def group(self):
        """Return the running processes of its session."""
        found = []
        for pid in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError), open(f"/proc/{pid}/stat") as file:
                words = file.read().rpartition(")")[2].split()
                if words[3] == str(self.process.pid) and words[0] not in "ZX":
                    found.append(pid)
        return found


@pytest.fixture
def demo():
    running = Demo()
    yield running
    running.close()


def test_demo_ends_when_its_terminal_closes(demo):
    assert len(demo.group()) > 5
    demo.hang_up()
    demo.process.wait(20)
    wait_for(demo.group, until=lambda pids: not pids)
    assert not os.path.exists(demo.directory)


def test_demo_ends_when_the_terminal_of_its_make_closes():
    demo = Demo(begin=BEGIN.replace(BEGIN.splitlines(keepends=True)[-1], AS_MAKE))
    try:
        demo.hang_up()
        demo.process.wait(20)
        wait_for(demo.group, until=lambda pids: not pids)
        assert not os.path.exists(demo.directory)
    finally:
        demo.close()


def test_demo_ends_at_ctrl_c(demo):
    os.write(demo.master, b"\3")
    assert demo.process.wait(20) == 0
    assert not os.path.exists(demo.directory)


def test_demo_prints_only_what_a_newcomer_may_act_on(demo):
    """Also with a low limit of descriptors; "ready" comes before the commands."""
    first, second, *lines = demo.said.splitlines()
    assert first.startswith("A site of three users (alice, bob, carol; password: secret) in /")
    assert " popkernel: ready: " in second
    assert lines[0] == "Read it from another terminal:"
    assert all(line.startswith(("  ", "(")) for line in lines[1:-1]), lines


def test_every_printed_line_works(demo):
    if not shutil.which("curl"):
        pytest.skip("needs the package curl")
    lines = [line.partition(" # ")[0] for line in demo.said.splitlines() if line.startswith("  curl ")]
    assert len(lines) == 4
    for line in lines:
        done = subprocess.run(shlex.split(line), capture_output=True, timeout=30, check=False)
        assert done.returncode == 0 and done.stdout, (line, done)


@pytest.mark.parametrize("curl", ["no", "one that knows no POP3"])
def test_without_curl_demo_prints_a_line_for_python(tmp_path, curl):
    if curl != "no":
        (tmp_path / "curl").write_text("#!/bin/sh\necho curl 8.0\necho Protocols: file http https\n")
        (tmp_path / "curl").chmod(0o755)
    demo = Demo(path=str(tmp_path))
    try:
        assert not re.search(r"^ *curl", demo.said, re.M)
        line = next(line for line in demo.said.splitlines() if "poplib" in line)
        done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, timeout=30, check=True)
        assert "\n1 216\n" in f"\n{done.stdout}" and "Subject: Welcome" in done.stdout
        assert demo.process.poll() is None
        os.kill(demo.process.pid, signal.SIGTERM)
        assert demo.process.wait(20) == 0
    finally:
        demo.close()


def test_a_reload_applies_the_demo_s_configuration_file(demo):
    with open(f"{demo.directory}/popkernel.toml", "a") as file:
        file.write('most_errors = 3\nwarm_memory = "6M"\n')
    command = [*POPKERNEL, "reload", "--run-dir", f"{demo.directory}/run"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert "replaced: listener.0~2\n" in result.stdout
    assert "only from the next start on: warm_memory" in result.stdout
