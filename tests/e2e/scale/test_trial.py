"""Delay and end the trial of an actor: the service is ready without it, and counts with its result later."""

import os
import signal
import time

import pytest

from tests.support.faults.patched import patched
from tests.support.processes import running
from tests.support.service import serve
from tests.support.waiting import wait_for

ASSUMED = 2_500_000  # octets an actor, until the trial has ended
LATE = """
def patch():
    import os, time
    from popkernel.actors.maildir import trial
    run = trial._Trial.run
    def late(self):
        while not os.path.exists({go!r}):
            time.sleep(0.01)
        return run(self)
    trial._Trial.run = late
"""


@pytest.fixture
def go(tmp_path):
    """Name the file that the trial waits for."""
    return tmp_path / "go"


@pytest.fixture
def service(tmp_path, go):
    with serve(command=patched(tmp_path, LATE.format(go=str(go))), verbose=1, users=("alice",)) as running:
        yield running
        go.touch()  # or the stop would wait for it


def trial_of(service):
    """Return its number: it has its name soon after the service is ready, then its child for a moment."""
    return wait_for(
        lambda: [pid for pid in service.pids() if name_of(pid) == "trial"], until=lambda pids: len(pids) == 1
    )[0]


def name_of(pid):
    try:
        with open(f"/proc/{pid}/comm") as file:
            return file.read().strip()
    except OSError:
        return ""


def test_the_service_is_ready_and_serves_before_the_trial_has_ended(service, go):
    assert trial_of(service)
    client = service.pop3("alice")
    warm = service.status()["warm"]
    assert warm["memory_actor"] == ASSUMED and "warm actors: " not in service.read_log()
    client.quit()
    go.touch()
    service.wait_log(" popkernel: warm actors: about ")
    assert 500_000 < service.status()["warm"]["memory_actor"] != ASSUMED
    wait_for(service.pids, until=lambda pids: "trial" not in map(name_of, pids))
    assert not [name for name in os.listdir(service.config.run_dir) if name.startswith("rehearsal")]


def test_the_trial_is_locked_in_as_the_spawner_is(service):
    spawner = service.actor("spawner")["pid"]
    trial = trial_of(service)
    wait_for(lambda: restrictions(trial) == restrictions(spawner))


def restrictions(pid):
    with open(f"/proc/{pid}/status") as file:
        return [line for line in file if line.startswith(("CapBnd:", "CapEff:", "NoNewPrivs:", "Seccomp:"))]


def stop_the_actor_on_trial(service, go):
    """Stop its process, and return the number."""
    actor = wait_for(lambda: [p for p in service.pids() if name_of(p) == "maildir.trial"])[0]
    os.kill(actor, signal.SIGSTOP)
    go.touch()
    return actor


def test_a_stop_does_not_wait_for_an_actor_on_trial_that_hangs(service, go):
    hung = stop_the_actor_on_trial(service, go)
    started = time.monotonic()
    assert service.stop() == 0
    assert time.monotonic() - started < 4 and not running([hung])
    assert not os.path.exists(service.config.run_dir)


def test_a_trial_ends_with_its_spawner(service, go):
    hung = stop_the_actor_on_trial(service, go)
    os.kill(service.actor("spawner")["pid"], signal.SIGKILL)
    wait_for(lambda: not running([hung]), seconds=4)
    service.wait_log("spawner ended: signal SIGKILL")  # a login waits for the next one from now on
    assert service.pop3("alice").retr(1)


def test_a_maildir_actor_has_no_descriptor_of_the_trial(service):
    service.keep(service.pop3("alice"))
    directory = f"/proc/{service.actor('maildir.alice')['pid']}/fd"
    kinds = [os.readlink(f"{directory}/{fd}").partition(":")[0] for fd in os.listdir(directory)]
    assert "socket" in kinds and "pipe" not in kinds


def test_a_trial_that_is_killed_leaves_what_was_assumed(service):
    os.kill(trial_of(service), signal.SIGKILL)
    service.wait_log(" popkernel: warm actors: about ")
    assert service.status()["warm"]["memory_actor"] == ASSUMED
    assert service.pop3("alice").retr(1)


def test_a_trial_that_hangs_is_killed(tmp_path, go):
    """It would outlive the spawner, which may signal only what it forked in its sandbox."""
    at_once = (
        LATE.format(go=str(go))
        + "    from popkernel.kernel.spawner import main\n    main._TRIAL_SECONDS = 1\n"
    )
    with serve(command=patched(tmp_path, at_once), verbose=1, users=("alice",)) as service:
        trial = trial_of(service)
        service.wait_log(" popkernel: warm actors: about ")
        assert service.status()["warm"]["memory_actor"] == ASSUMED
        wait_for(lambda: name_of(trial), until=lambda name: name != "trial")
