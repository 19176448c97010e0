"""Test the descriptors that maildir actors hand over for parked sessions: watched, closed or forgotten."""

import errno
import os
import socket

import pytest
from popkernel.kernel.decisions import leases
from popkernel.kernel.decisions.actions import Forget
from popkernel.kernel.runtime.loop import Loop
from popkernel.kernel.supervisor.parking import Parking
from popkernel.proto import messages as m
from popkernel.proto.files.tables import MailUser

from tests.support.messages import login_started


def make(now=0.0, **settings):
    """Hold alice's session 1, opened at that time."""
    kernel = leases.Core({"alice": MailUser(1000, 1000, "/m/alice")}, leases.Settings(**settings))
    kernel.awaits("listener.0", login_started(1))
    kernel.granted(m.LoginGranted("listener.0", 1, "alice"), now)
    done = []
    made = Parking(
        Loop(),
        kernel,
        lambda actions: [
            done.append(e) or (made.forget(e.user) if type(e) is Forget else None) for e in actions
        ],
        lambda: made.free,
    )
    made.kernel, made.done, made.free = kernel, done, True
    return made


@pytest.fixture
def parking():
    return make()


def is_open(fd):
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def test_a_file_is_no_session(parking):
    fd = os.open(__file__, os.O_RDONLY)
    parking.park("maildir.alice", m.SessionParked(1, b"x", 0), fd)
    assert parking.done == [Forget("alice")]
    assert not is_open(fd) and not len(parking) and not parking.kernel.leases


def test_a_descriptor_of_another_session_is_closed(parking):
    fd = os.dup(0)
    parking.park("maildir.alice", m.SessionParked(2, b"x", 0), fd)
    assert not is_open(fd) and not len(parking)
    assert parking.kernel.leases and parking.done == []


def test_a_socket_is_waited_for(parking):
    one, other = socket.socketpair()
    with other:
        parking.park("maildir.alice", m.SessionParked(1, b"x", 0), one.detach())
        assert len(parking) == 1 and parking.done == []
        second = os.dup(0)
        parking.park("maildir.alice", m.SessionParked(1, b"x", 0), second)
        assert not is_open(second)
        parking.forget("alice")
        assert other.recv(1) == b""


def test_a_session_may_be_parked_once_it_has_been_silent_and_again_only_after_it_was_woken():
    parked = m.SessionParked(1, b"s", 0)

    def too_soon(there, now, message=parked):
        there._loop.now = now
        return there.too_soon("maildir.alice", message)

    there = make(100.0, park_seconds=30)
    assert [too_soon(there, now) for now in (100.0, 114.9, 129.9)] == [True, True, False]
    assert not too_soon(there, 100.0, m.SessionParked(2, b"s", 0)), (
        "not a session of that actor: nothing is parked"
    )
    there.kernel.parked("maildir.alice", parked, 130.0)
    assert not too_soon(there, 130.0), "a repeated message parks nothing either"
    there.kernel.woken("alice", 131.0)
    assert [too_soon(there, now) for now in (131.0, 145.9, 160.9)] == [True, True, False]
    assert too_soon(make(park_seconds=0), 1e9)
    crowded = make(park_seconds=30, crowd=0)
    assert [too_soon(crowded, now) for now in (0.4, 0.99)] == [True, False]


@pytest.fixture
def one_that_closes_badly(tmp_path, monkeypatch):
    """A file of a FUSE file system may answer close(2) with an error."""
    bad = os.open(tmp_path, os.O_RDONLY)
    close, closed = os.close, []

    def closing(fd):
        close(fd)
        if fd == bad:
            closed.append(fd)
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "close", closing)
    yield bad
    assert closed == [bad]


def test_a_parked_session_without_a_holder(one_that_closes_badly):
    done = []
    parking = Parking(Loop(), leases.Core({}, leases.Settings()), done.extend, lambda: True)
    parking.park("maildir.alice", m.SessionParked(1, b"", 0), one_that_closes_badly)
    assert not len(parking)


def test_a_session_that_is_forgotten(one_that_closes_badly):
    parking = Parking(Loop(), leases.Core({}, leases.Settings()), lambda actions: None, lambda: True)
    parking._fds["alice"] = one_that_closes_badly
    parking.forget("alice")
    assert not len(parking)
