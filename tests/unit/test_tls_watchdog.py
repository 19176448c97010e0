"""Test the listener's watchdog: an endless computation of OpenSSL loses its connection; waiting does not."""

import socket
import time

import pytest
from popkernel.actors.listener.tls_watchdog import Watchdog

from tests.support.waiting import wait_for


@pytest.fixture
def pair():
    ours, theirs = socket.socketpair()
    theirs.settimeout(5)
    with ours, theirs:
        yield ours, theirs


def compute(seconds):
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        pass


def ends_a_long_call(watchdog, sock):
    watchdog.call = (sock,)
    started = time.monotonic()
    while not watchdog.stopped and time.monotonic() < started + 10:
        compute(0.05)
    assert watchdog.stopped


def resting(watchdog):
    wait_for(lambda: watchdog.asleep, every=0.3)  # polling often would keep this thread from being idle


def test_a_call_that_computes_too_long_finds_the_end_of_its_connection(pair):
    watchdog = Watchdog(["a connection"])
    watchdog.call = (pair[0],)
    watchdog.check()
    compute(0.08)
    watchdog.check()
    assert watchdog.stopped == 1
    assert pair[0].recv(1) == b""
    assert pair[1].recv(1) == b""


def test_a_slow_call_between_two_checks(pair):
    """On a busy machine such a call must still end: all that it computed counts, over several checks."""
    watchdog = Watchdog(["a connection"])
    watchdog.call = (pair[0],)
    watchdog.check()
    compute(0.03)
    watchdog.check()
    assert not watchdog.stopped
    compute(0.03)
    watchdog.check()
    assert watchdog.stopped == 1
    assert pair[1].recv(1) == b""
    watchdog.check()
    assert watchdog.stopped == 1, "once for one computation"


def test_many_short_calls_are_allowed(pair):
    watchdog = Watchdog(["a connection"])
    for _ in range(3):
        watchdog.call = (pair[0],)
        watchdog.check()
        compute(0.08)
        watchdog.call = None
    assert not watchdog.stopped


def test_waiting_for_the_processor_does_not_count(pair):
    watchdog = Watchdog(["a connection"])
    watchdog.call = (pair[0],)
    watchdog.check()
    started = time.monotonic()
    while time.monotonic() < started + 0.15:
        time.sleep(0.01)
    watchdog.check()
    assert not watchdog.stopped


def test_an_idle_watchdog_checks_less_often(pair):
    watchdog = Watchdog(["a connection"])
    watchdog.check()
    assert not watchdog.check()
    compute(0.005)
    assert watchdog.check()
    watchdog.call = (pair[0],)
    assert watchdog.check()


def test_the_watchdog_has_its_own_thread(pair):
    watchdog = Watchdog(["a connection"])
    watchdog.start()
    ends_a_long_call(watchdog, pair[0])


def test_without_connections_it_sleeps_until_one_comes(pair):
    connections = []
    watchdog = Watchdog(connections)
    watchdog.start()
    resting(watchdog)
    connections.append("a connection")
    watchdog.wake()
    ends_a_long_call(watchdog, pair[0])
    watchdog.call = None
    connections.clear()
    resting(watchdog)
