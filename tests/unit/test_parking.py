"""Descriptors that a maildir actor hands to the kernel with a session to be parked: what they are is the actor's choice."""

import errno
import os

import pytest
from popkernel.kernel import core
from popkernel.kernel.loop import Loop
from popkernel.kernel.parking import Parking
from popkernel.proto import messages as m


@pytest.fixture
def one_that_closes_badly(tmp_path, monkeypatch):
    """A file of a file system in user space may answer close(2) with an error."""
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


SETTINGS = core.Settings(warm_seconds=1, warm_max=1, park_seconds=1, crowd=1, restart_intensity=1, restart_seconds=1, login_delay=0)


def test_a_session_that_nobody_has(one_that_closes_badly):
    done = []
    parking = Parking(Loop(), core.Core({}, SETTINGS), done.extend)
    parking.park("maildir.alice", m.Parked(1, b""), one_that_closes_badly)
    assert not len(parking)


def test_a_session_that_is_forgotten(one_that_closes_badly):
    parking = Parking(Loop(), core.Core({}, SETTINGS), lambda effects: None)
    parking._fds["alice"] = one_that_closes_badly
    parking.forget("alice")
    assert not len(parking)
