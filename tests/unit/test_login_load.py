"""Test what the kernel makes of the reports about load: the status, and lines of the log."""

from types import SimpleNamespace

import pytest
from popkernel.actors.listener.limits import KEYS
from popkernel.kernel.config.keys import key_of
from popkernel.kernel.operator.login_load import BOUNDS, LoginLoads
from popkernel.kernel.replay.loop import ReplayLoop
from popkernel.proto import messages as m


class Kernel:
    def __init__(self):
        self.loop = ReplayLoop()
        self.loop.now = 100.0
        self.lines, self.violations = [], []
        processes = SimpleNamespace(violates=lambda process, why, fds: self.violations.append((process, why)))
        self.loads = LoginLoads(self.loop, processes, lambda level, event, **fields: self.log(event, fields))

    def log(self, event, fields):
        self.lines.append((round(self.loop.now, 1), event, fields))

    def report(self, waiting=0, oldest=0, checks=0, hits=0, misses=0, penalised=0):
        self.loads.login_load(None, m.LoginLoad(waiting, oldest, checks, hits, misses, penalised), [])

    def refused(self, bound, clients=1):
        self.loads.places_refused("listener.0", m.PlacesRefused(bound, clients), [])

    def at(self, seconds):
        self.loop.advance(100.0 + seconds)


@pytest.fixture
def kernel():
    return Kernel()


def test_short_waits_are_not_logged(kernel):
    kernel.report(waiting=5, oldest=900)
    kernel.at(100)
    assert kernel.lines == []
    assert kernel.loads.status() == {
        "waiting": 5, "oldest": 0.9, "checks": None, "cache_hits": None, "penalised": 0, "refused": {}
    }  # fmt: skip


def test_a_long_wait_is_logged_at_once_then_each_ten_seconds_and_when_it_is_over(kernel):
    kernel.report(waiting=400, oldest=1100, checks=10, misses=410)
    kernel.at(0.1)
    assert kernel.lines == [(100.0, "load.high", {"waiting": 400, "oldest": 1.1})]
    kernel.at(6)
    kernel.report(waiting=300, oldest=7000, checks=190, hits=20, misses=490)
    kernel.at(9)
    assert len(kernel.lines) == 1
    kernel.at(10.1)
    assert kernel.lines[1:] == [(110.0, "load.high", {"waiting": 300, "oldest": 7.0, "checks": 30.0})]
    assert kernel.loads.status()["cache_hits"] == 0.2
    kernel.report()
    kernel.at(20.1)
    assert kernel.lines[2:] == [(120.0, "load.over", {"seconds": 20, "longest": 7.0})]
    kernel.at(100)
    assert len(kernel.lines) == 3  # nothing runs any more
    kernel.report(waiting=1, oldest=1500)
    kernel.at(100.1)
    assert [event for _, event, _ in kernel.lines[3:]] == ["load.high"]


def test_refused_clients_are_logged_by_bound_at_most_each_ten_seconds(kernel):
    kernel.refused("max_sessions", 3)
    kernel.at(0.1)
    kernel.refused("max_sessions", 2), kernel.refused("max_handshakes", 7)
    kernel.at(30)
    assert kernel.lines == [
        (100.0, "load.high", {"waiting": 0, "oldest": 0.0, "refused": "3 by max_sessions"}),
        (
            110.0,
            "load.high",
            {"waiting": 0, "oldest": 0.0, "refused": "7 by max_handshakes, 2 by max_sessions"},
        ),
        (120.0, "load.over", {"seconds": 20, "longest": 0.0}),
    ]
    assert kernel.loads.status()["refused"] == {"max_handshakes": 7, "max_sessions": 5}


def test_lines_are_ten_seconds_apart_though_it_is_over_in_between(kernel):
    kernel.refused("max_sessions")
    kernel.at(10.1)
    assert [event for _, event, _ in kernel.lines] == ["load.high", "load.over"]
    kernel.refused("max_sessions")
    kernel.at(30)
    times = [at for at, event, _ in kernel.lines if event == "load.high"]
    assert times[0] == 100.0 and times[1] - times[0] >= 10


def test_refused_guesses_are_counted_and_are_no_load(kernel):
    kernel.refused("penalty_seconds", 50)
    kernel.at(30)
    assert kernel.lines == [] and kernel.loads.status()["refused"] == {"penalty_seconds": 50}


def test_another_auth_begins_to_count_anew(kernel):
    kernel.report(checks=1000, hits=10, misses=1000)
    kernel.at(10)
    kernel.report(checks=1100, hits=60, misses=1050)
    assert (kernel.loads.status()["checks"], kernel.loads.status()["cache_hits"]) == (10.0, 0.5)
    kernel.report(checks=5, misses=5)
    assert (kernel.loads.status()["checks"], kernel.loads.status()["cache_hits"]) == (None, None)
    kernel.at(20)
    kernel.report(checks=105, misses=105)
    assert kernel.loads.status()["checks"] == 10.0


def test_an_actor_cannot_invent_bounds(kernel):
    """Their counts would fill the kernel's memory."""
    kernel.refused("anything")
    assert kernel.violations == [("listener.0", "PlacesRefused.bound: no such bound")]
    assert kernel.loads.status()["refused"] == {}


def test_each_bound_is_a_configuration_key():
    assert all(key_of(bound) for bound in BOUNDS)
    assert set(KEYS.values()) <= BOUNDS
