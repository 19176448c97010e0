"""Kernel, spawner and gate, each call of theirs that can fail for want of something made to fail once: nobody ends, and all goes on.

What is to happen where stands in docs/scarcity.md. One service each; the walk ends behind the last call that the work below makes.
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
    """A service whose actors never stay, so that each login is a cold one; and its faults."""
    kept = []

    def start(**site):
        faults = Faults(tmp_path / "faults")
        service = Service(
            command=COMMAND, env={**os.environ, FILE: faults.path},
            **{"users": ("alice", "bob"), "warm_seconds": 0, "warm_max": 0, "mail": (), "restart_intensity": 1000, "restart_seconds": 1, **site},
        )
        kept.append(service)
        return service, faults

    yield start
    for service in kept:
        service.close()


def work(service):
    """A login, mail, a question; each may be refused."""
    for what in (lambda: service.pop3("bob", timeout=5).quit(), lambda: deliver(service, "bob"), service.status):
        try:
            what()
        except LOST:
            pass


def serves(service):
    """Whether bob, who met the fault, is served again, and alice is."""
    try:
        for user in ("bob", "alice"):
            service.pop3(user, timeout=5).quit()
        return deliver(service, "bob")[:3] == b"250"
    except LOST:
        return False


def pid_of(service, name):
    return service.process.pid if name == "init" else (service.actor(name) or {}).get("pid")


@pytest.mark.parametrize(("process", "site"), [("kernel", {}), ("spawner", {}), ("gate", {"isolation": "connection"})])
def test_no_call_that_fails_for_want_ends_anybody(scarce, process, site):
    service, faults = scarce(**site)
    work(service)
    before = [pid_of(service, name) for name in ("init", "kernel", "spawner", process)]
    wanted = {"sendmsg", "recvmsg_into", {"kernel": "socketpair", "spawner": "fork", "gate": "accept"}[process]}
    failed = collections.Counter()
    number = rounds = 0
    while True:
        number += 1
        faults.ask(process, number)
        work(service)
        call, _ = faults.told(process)
        faults.ask(process, 0)
        if not call:
            rounds += 1
            if wanted <= failed.keys() or rounds == 5:  # which call has which number is not the same each time
                break
            number = 0
            continue
        failed[call] += 1
        wait_for(lambda: serves(service), seconds=20)
        assert [pid_of(service, name) for name in ("init", "kernel", "spawner", process)] == before, (number, call)
    assert wanted <= failed.keys(), failed
    assert "Traceback" not in service.read_log()
    assert service.stop() == 0


def test_a_spawner_that_has_no_room_to_rehearse(scarce):
    """It ended, again and again, and with it the service: a full or read-only run directory was enough."""
    service, faults = scarce()
    for number in (1, 2, 4, 7):
        pid = service.actor("spawner")["pid"]
        faults.ask("spawner", number)
        kill(pid)
        wait_for(lambda: serves(service), seconds=20)
        faults.ask("spawner", 0)
    assert "could not be rehearsed" in service.read_log()
    assert service.stop() == 0
