"""The watchdog of the listener: a call that computes without end loses its connection; what only waits, or is another call, does not."""

import socket
import time

import pytest
from popkernel.actors.listener.tls_watchdog import Watchdog


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


def test_a_call_that_computes_too_long_finds_the_end_of_its_connection(pair):
    dog = Watchdog()
    dog.call = (pair[0],)
    dog.look()
    compute(0.08)
    dog.look()
    assert dog.stopped == 1
    assert pair[0].recv(1) == b""
    assert pair[1].recv(1) == b""


def test_a_call_that_gets_little_of_the_processor_between_two_looks(pair):
    """Only what it computed since the last look was counted: on a busy machine such a call never ended."""
    dog = Watchdog()
    dog.call = (pair[0],)
    dog.look()
    compute(0.03)
    dog.look()
    assert not dog.stopped
    compute(0.03)
    dog.look()
    assert dog.stopped == 1
    assert pair[1].recv(1) == b""
    dog.look()
    assert dog.stopped == 1, "once for what it computed"


def test_many_short_calls_of_one_client_are_none_of_its_business(pair):
    dog = Watchdog()
    for _ in range(3):
        dog.call = (pair[0],)
        dog.look()
        compute(0.08)
        dog.call = None
    assert not dog.stopped


def test_a_call_that_waits_for_the_processor_is_nobodys_fault(pair):
    dog = Watchdog()
    dog.call = (pair[0],)
    dog.look()
    started = time.monotonic()
    while time.monotonic() < started + 0.15:
        time.sleep(0.01)
    dog.look()
    assert not dog.stopped


def test_it_looks_less_often_where_nothing_is_done(pair):
    dog = Watchdog()
    dog.look()
    assert not dog.look()
    compute(0.005)
    assert dog.look()
    dog.call = (pair[0],)
    assert dog.look()


def test_it_watches_from_a_thread_of_its_own(pair):
    dog = Watchdog()
    dog.start()
    dog.call = (pair[0],)
    started = time.monotonic()
    while not dog.stopped and time.monotonic() < started + 10:
        compute(0.05)
    assert dog.stopped
