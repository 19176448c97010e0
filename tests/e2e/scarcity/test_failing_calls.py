"""Fail each system call of kernel, spawner and gate once, as for lack of a resource: the service goes on.

docs/scarcity.md says what must happen. One service for each walk, which ends after the last call that the
work below makes.
"""

import collections
import os
import poplib

import pytest

from tests.support.faults.failing_calls import COMMAND, FILE, Faults
from tests.support.lmtp import deliver
from tests.support.processes import kill
from tests.support.service import Service
from tests.support.waiting import wait_for

LOST = (OSError, EOFError, poplib.error_proto, AssertionError)  # what a client may see of it


@pytest.fixture
def scarce(tmp_path):
    """Run a service without warm actors, so that each login is a cold one; return it and its faults."""
    kept = []

    def start(**site):
        faults = Faults(tmp_path / "faults")
        service = Service(
            command=COMMAND,
            env={**os.environ, FILE: faults.path},
            **{
                "users": ("alice", "bob"),
                "warm_seconds": 0,
                "warm_memory": "0",
                "mail": (),
                "restart_intensity": 1000,
                "restart_seconds": 1,
                **site,
            },
        )
        kept.append(service)
        return service, faults

    yield start
    for service in kept:
        service.close()


def work(service):
    """Log in, deliver mail and request the status; each may be refused."""
    for what in (
        lambda: service.pop3("bob", timeout=5).quit(),
        lambda: deliver(service, "bob"),
        service.status,
    ):
        try:
            what()
        except LOST:
            pass


def serves(service):
    """Return whether alice is served, and bob, who met the fault, again."""
    try:
        for user in ("bob", "alice"):
            service.pop3(user, timeout=5).quit()
        return deliver(service, "bob")[:3] == b"250"
    except LOST:
        return False


def pid_of(service, name):
    return service.process.pid if name == "init" else (service.actor(name) or {}).get("pid")


@pytest.mark.parametrize(
    ("process", "site"), [("kernel", {}), ("spawner", {}), ("gate", {"isolation": "connection"})]
)
def test_no_call_that_fails_for_lack_ends_a_process(scarce, process, site):
    service, faults = scarce(**site)
    work(service)
    before = [pid_of(service, name) for name in ("init", "kernel", "spawner", process)]
    wanted = {
        "sendmsg",
        "recvmsg_into",
        {"kernel": "socketpair", "spawner": "fork", "gate": "accept"}[process],
    }
    failed = collections.Counter()
    number = rounds = 0
    while True:
        number += 1
        faults.ask(process, number)
        work(service)
        call, _ = faults.failed(process)
        faults.ask(process, 0)
        if not call:
            rounds += 1
            # the number of a call varies between runs
            if wanted <= failed.keys() or rounds == 5:
                break
            number = 0
            continue
        failed[call] += 1
        wait_for(lambda: serves(service), seconds=20)
        assert [pid_of(service, name) for name in ("init", "kernel", "spawner", process)] == before, (
            number,
            call,
        )
    assert wanted <= failed.keys(), failed
    assert "Traceback" not in service.read_log()
    assert service.stop() == 0


def test_a_spawner_that_has_no_room_to_rehearse(scarce):
    """A full or read-only run directory must not end it."""
    service, faults = scarce()
    for number in (1, 2, 4, 7, 10, 13):  # 3.12 and later make some before that, for immortal objects
        pid = service.actor("spawner")["pid"]
        faults.ask("spawner", number)
        kill(pid)
        wait_for(lambda: serves(service), seconds=20)
        faults.ask("spawner", 0)
    assert "could not be rehearsed" in service.read_log()
    assert service.stop() == 0
