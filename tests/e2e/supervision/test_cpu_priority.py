"""Test scheduling of a running service, as seen in /proc and by sched(7)'s calls."""

import os
import sys

import pytest
from popkernel.kernel.runtime.scheduling import processors

from tests.support.pop3 import RawPop3
from tests.support.processes import pid_of
from tests.support.service import POPKERNEL, serve

_CAP_SYS_NICE = 23  # capabilities(7)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="SCHED_BATCH is Linux's")


def may():
    """Return whether this process, and so a service it starts, has CAP_SYS_NICE; containers often drop it."""
    with open("/proc/self/status") as file:
        effective = next(int(line.split()[1], 16) for line in file if line.startswith("CapEff:"))
    return bool(effective >> _CAP_SYS_NICE & 1)


def niceness(service, actor):
    """Return the niceness of each of its threads."""
    pid = pid_of(service, actor)
    return {os.getpriority(os.PRIO_PROCESS, int(thread)) for thread in os.listdir(f"/proc/{pid}/task")}


def mine():
    return os.getpriority(os.PRIO_PROCESS, 0)


def slice_of(pid):
    """Return nanoseconds; None if the system does not show it, or takes no other."""
    if tuple(map(int, os.uname().release.split(".")[:2])) < (6, 12) or not os.path.exists("/proc/self/sched"):
        return None
    with open(f"/proc/{pid}/sched") as file:
        return next((int(line.split()[-1]) for line in file if line.startswith("se.slice")), None)


@pytest.mark.skipif(
    sys.platform == "linux" and os.sched_getscheduler(0) != os.SCHED_OTHER,
    reason="this process has another scheduling policy, which stays",
)
def test_scheduling_without_preemption_and_with_a_larger_share_for_the_listener():
    with serve() as service, RawPop3(service) as client:
        assert client.login().startswith(b"+OK")
        pids = service.pids()
        assert {os.sched_getscheduler(pid) for pid in pids} == {os.SCHED_BATCH}
        assert {slice_of(pid) for pid in pids} in ({10_000_000}, {None})
        more = may() and processors() > 1 and -15 < mine() <= 0
        assert niceness(service, "listener.0") == {-15 if more else mine()}
        for actor in ("kernel", "auth", "spawner", "maildir.alice"):
            assert niceness(service, actor) == {mine()}, actor
        assert client.ask(b"QUIT").startswith(b"+OK")


@pytest.mark.skipif(sys.platform == "linux" and not may(), reason="needs CAP_SYS_NICE")
@pytest.mark.skipif(processors() > 64, reason="more processors than there can be listeners")
@pytest.mark.parametrize(
    "settings", [{"listener_nice": 0}, {"listeners": min(64, processors())}, {"isolation": "connection"}]
)
def test_no_larger_share_if_turned_off_or_with_too_many_listeners(settings):
    with serve(**settings) as service, RawPop3(service) as client:
        assert client.login().startswith(b"+OK")
        assert {os.getpriority(os.PRIO_PROCESS, pid) for pid in service.pids()} == {mine()}
        assert client.ask(b"QUIT").startswith(b"+OK")


@pytest.mark.parametrize("command", [["nice", "-n", "5"], ["chrt", "--idle", "0"]])
def test_the_operator_s_scheduling_stays(command):
    with serve(command=[*command, *POPKERNEL]) as service, RawPop3(service) as client:
        assert client.login().startswith(b"+OK")
        pids = service.pids()
        if command[0] == "nice":
            assert {os.getpriority(os.PRIO_PROCESS, pid) for pid in pids} == {min(19, mine() + 5)}
        assert {os.sched_getscheduler(pid) for pid in pids} == {
            os.SCHED_BATCH if command[0] == "nice" else os.SCHED_IDLE
        }
        assert client.ask(b"QUIT").startswith(b"+OK")
