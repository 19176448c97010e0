"""Check that docs/scarcity.md has exactly the system calls that can fail for lack of a resource.

It covers init, kernel, spawner and gate.
"""

import ast
import os
import re

import pytest

from tests.support.faults.failing_calls import POINTS

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
FILES = {  # by section of the document; a file used by two processes stands under the one it was written for
    "init": (
        "cli/common/serving.py",
        "kernel/init/binding.py",
        "kernel/runtime/child_process.py",
        "kernel/init/main.py",
        "kernel/init/sockets.py",
        "kernel/init/mailbox_check.py",
        "kernel/init/requirements.py",
        "kernel/init/service_manager.py",
        "kernel/init/pass_phrase.py",
        "kernel/init/inputs.py",
        "kernel/config/regular_files.py",
        "kernel/init/run_directory.py",
        "kernel/runtime/signals.py",
        "kernel/init/singleton_start.py",
        "kernel/config/user_table.py",
        "kernel/init/file_watching.py",
    ),
    "kernel": (
        "kernel/runtime/channel.py",
        "kernel/runtime/loop.py",
        "kernel/operator/control.py",
        "kernel/runtime/log.py",
        "kernel/runtime/system_log.py",
        "kernel/resources/memory_limits.py",
        "kernel/resources/memory_pressure.py",
    ),
    "spawner": ("kernel/spawner/children.py", "kernel/spawner/main.py", "kernel/runtime/actor.py"),
    "gate": ("actors/listener/acceptor.py", "actors/listener/gate.py", "actors/listener/single_listener.py"),
}
NONE = {"self.connect", "super().connect"}  # an actor's method, not a system call
# System calls that can fail for lack of a resource, as the code writes them: functions with their module,
# methods with a dot only. Excluded: calls that take no resource (getpid, close, umask) and those that fail
# only for wrong arguments.
WANT = {
    *(
        f"os.{name}"
        for name in (
            "fork",
            "pipe",
            "kill",
            "open",
            "stat",
            "lstat",
            "read",
            "write",
            "pread",
            "pwrite",
            "dup",
            "dup2",
            "memfd_create",
            "mkdir",
            "rmdir",
            "unlink",
            "rename",
            "link",
            "listdir",
            "ftruncate",
            "fsync",
            "execve",
            "chown",
            "chmod",
            "fchown",
            "fchmod",
            "posix_spawn",
        )
    ),
    "fcntl.fcntl",
    "fcntl.flock",
    "socket.socketpair",
    "socket.socket",
    "socket.getaddrinfo",
    "select.epoll",
    "select.poll",
    "selectors.DefaultSelector",
    "open",
    *(
        f".{name}"
        for name in (
            "sendmsg",
            "recvmsg_into",
            "recv_into",
            "accept",
            "bind",
            "listen",
            "setsockopt",
            "connect",
            "sendall",
        )
    ),
}


def rows(section):
    """Return (file, call) of each row."""
    with open(f"{ROOT}/docs/scarcity.md") as file:
        text = file.read()
    part = re.search(rf"^## {section}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)[1]
    found = re.findall(r"^\| `([^`]+\.py)` \| `([^`]+)` \| ([^|]+) \| ([^|]+) \|$", part, re.MULTILINE)
    assert len(found) == part.count("\n| `"), "a malformed row"
    assert all(fails.strip() and then.strip() for _, _, fails, then in found)
    return [(path, call) for path, call, _, _ in found]


def calls(path):
    """Return the calls of WANT that a file makes."""
    with open(f"{ROOT}/{path}", "rb") as file:
        tree = ast.parse(file.read(), path)
    written = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)} - NONE
    return {name if name in WANT else "." + name.rpartition(".")[2] for name in written} & WANT


@pytest.mark.parametrize("section", FILES)
def test_each_call_that_can_fail_for_lack_has_its_row(section):
    said = rows(section)
    assert len(said) == len(set(said)), "a row twice"
    assert {(path, call) for path in FILES[section] for call in calls(path)} == set(said)


def test_each_injected_fault_is_a_listed_call():
    points = {
        f".{name}" if isinstance(place, type) else f"{place.__name__}.{name}" for place, name, _ in POINTS
    }
    assert points <= WANT, points - WANT
