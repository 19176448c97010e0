"""docs/scarcity.md has a row for each system call of init, kernel, spawner and gate that can fail for want of something, and no other."""

import ast
import os
import re

import pytest

from tests.e2e.scarce import POINTS

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
FILES = {  # by section of the document; a file that two processes run in stands where it was written for
    "init": (
        "cli/start.py", "kernel/binding.py", "kernel/child.py", "kernel/init.py", "kernel/listening.py", "kernel/look.py",
        "kernel/needs.py", "kernel/notify.py", "kernel/passphrase.py", "kernel/reading.py", "kernel/regular.py", "kernel/rundir.py",
        "kernel/signals.py", "kernel/starting.py", "kernel/usertable.py", "kernel/watching.py",
    ),
    "kernel": ("kernel/channel.py", "kernel/loop.py", "kernel/control.py", "kernel/log.py", "kernel/systemlog.py"),
    "spawner": ("kernel/brood.py", "kernel/spawner.py", "kernel/actor.py"),
    "gate": ("actors/listener/door.py", "actors/listener/gate.py", "actors/listener/lone.py"),
}
NONE = {"self.connect", "super().connect"}  # an actor's own, and no system call
# System calls that can fail for want of something, as the code writes them: functions with their module, methods with a dot only.
# Not: what takes nothing anew (getpid, close, umask), and what fails only where its argument is wrong.
WANT = {
    *(f"os.{name}" for name in (
        "fork", "pipe", "kill", "open", "stat", "lstat", "read", "write", "pread", "pwrite", "dup", "dup2", "memfd_create", "mkdir", "rmdir",
        "unlink", "rename", "link", "listdir", "ftruncate", "fsync", "execve", "chown", "chmod", "fchown", "fchmod", "posix_spawn",
    )),
    "fcntl.fcntl", "fcntl.flock", "socket.socketpair", "socket.socket", "socket.getaddrinfo", "select.epoll", "select.poll", "open",
    *(f".{name}" for name in ("sendmsg", "recvmsg_into", "recv_into", "accept", "bind", "listen", "setsockopt", "connect", "sendall")),
}


def rows(section):
    """(file, call) of each row."""
    with open(f"{ROOT}/docs/scarcity.md") as file:
        text = file.read()
    part = re.search(rf"^## {section}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)[1]
    found = re.findall(r"^\| `([^`]+\.py)` \| `([^`]+)` \| ([^|]+) \| ([^|]+) \|$", part, re.MULTILINE)
    assert len(found) == part.count("\n| `"), "a row that is none"
    assert all(fails.strip() and then.strip() for _, _, fails, then in found)
    return [(path, call) for path, call, _, _ in found]


def calls(path):
    """Of WANT, those that a file makes."""
    with open(f"{ROOT}/{path}", "rb") as file:
        tree = ast.parse(file.read(), path)
    written = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)} - NONE
    return {name if name in WANT else "." + name.rpartition(".")[2] for name in written} & WANT


@pytest.mark.parametrize("section", FILES)
def test_each_call_that_can_fail_for_want_has_its_row(section):
    said = rows(section)
    assert len(said) == len(set(said)), "a row twice"
    assert {(path, call) for path in FILES[section] for call in calls(path)} == set(said)


def test_each_point_of_the_walk_is_a_call_of_these():
    points = {f".{name}" if isinstance(place, type) else f"{place.__name__}.{name}" for place, name, _ in POINTS}
    assert points <= WANT, points - WANT
