"""Let warm actors go: for want of processes, and while memory is short."""

import contextlib
import mmap
import os
import random
import signal
import sys
import tempfile

import pytest

from tests.support.control_groups import control_group, pressure_is_measured
from tests.support.pop3 import login_answer
from tests.support.service import serve
from tests.support.waiting import wait_for

USERS = ("alice", "bob", "carol", "dora")


def warm(service):
    return sorted(
        a["name"].partition(".")[2] for a in service.status()["actors"] if a["name"].startswith("maildir.")
    )


def test_without_room_for_a_process_the_longest_unused_go():
    """One login fails; for the next one there is room."""
    with control_group("pids") as group, serve(users=USERS, mail=()) as service:
        # init and the actors: a process that is about to end would leave its place to one more
        many = 1 + len(service.status()["actors"])
        group.enter(*wait_for(service.pids, until=lambda pids: len(pids) == many))
        with open(os.path.join(group.path, "pids.current")) as file:
            group.limit("pids", int(file.read()) + 3)
        for user in USERS[:3]:
            assert login_answer(service, user).startswith(b"+OK")
        assert warm(service) == ["alice", "bob", "carol"]
        assert login_answer(service, "dora").startswith(b"-ERR [SYS/TEMP]")
        wait_for(lambda: warm(service) == ["carol"])
        assert login_answer(service, "dora").startswith(b"+OK")
        assert warm(service) == ["carol", "dora"]


def test_half_of_the_processes_may_be_warm_actors():
    command = ["sh", "-c", 'echo $$ > "$0/cgroup.procs" && exec "$@"']
    with control_group("pids") as group:
        group.limit("pids", 100)
        started = [*command, group.path, sys.executable, "-m", "popkernel"]
        with serve(users=USERS, mail=(), command=started, warm_memory="1T") as service:
            assert service.status()["warm"]["holds"] == 50
            assert "the limit of 100 processes leaves room for 50; raise it" in service.read_log()


def press(group, directory):
    """Read a file at random that does not fit into the group's memory, without end."""
    group.enter(os.getpid())
    with tempfile.TemporaryFile(dir=directory) as file:
        for _ in range(96):
            file.write(os.urandom(1 << 20))
        file.flush()
        os.fsync(file.fileno())
        with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
            while True:
                mapped[random.randrange(len(mapped))]


@contextlib.contextmanager
def pressure(group, directory, many):
    pids = []
    try:
        for _ in range(many):
            pid = os.fork()
            if pid == 0:
                try:
                    press(group, directory)
                finally:
                    os._exit(1)
            pids.append(pid)
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


@pytest.mark.soak
@pytest.mark.skipif(not pressure_is_measured(), reason="this system measures no memory pressure (PSI)")
def test_while_memory_is_short_the_longest_unused_go():
    """A real shortage, in a control group beside the service. It slows down the whole machine."""
    with control_group("memory") as group, serve(users=USERS, mail=()) as service:
        group.limit("memory", 24 << 20)
        for user in USERS:
            assert login_answer(service, user).startswith(b"+OK")
        with pressure(group, "/var/tmp", 3):
            service.wait_log("memory is short: 2 warm actors let go, 2 left", seconds=40)
            wait_for(lambda: warm(service) == [], seconds=40)
        assert service.read_log().count("memory is short") <= 3
        assert login_answer(service, "alice").startswith(b"+OK")
