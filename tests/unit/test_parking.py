"""What maildir actors hand over in the place of a session's channel: closed, waited for or forgotten; nothing stays open. No service."""

import os
import socket

import pytest
from popkernel.kernel import core
from popkernel.kernel.loop import Loop
from popkernel.kernel.parking import Parking
from popkernel.proto import messages as m
from popkernel.proto.tables import MailUser


@pytest.fixture
def parking():
    kernel = core.Core({"alice": MailUser(1000, 1000, "/m/alice")}, core.Settings())
    kernel.awaits("listener.0", m.Awaiting(1))
    kernel.granted(m.Granted("listener.0", 1, "alice"), 0.0)
    done = []
    made = Parking(Loop(), kernel, lambda effects: [done.append(e) or (made.forget(e.user) if type(e) is core.Forget else None) for e in effects])
    made.kernel, made.done = kernel, done
    return made


def is_open(fd):
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def test_a_file_is_no_session(parking):
    fd = os.open(__file__, os.O_RDONLY)
    parking.park("maildir.alice", m.Parked(1, b"x"), fd)
    assert parking.done == [core.Forget("alice")]
    assert not is_open(fd) and not len(parking) and not parking.kernel.leases


def test_another_session_is_nobodys(parking):
    fd = os.dup(0)
    parking.park("maildir.alice", m.Parked(2, b"x"), fd)
    assert not is_open(fd) and not len(parking)
    assert parking.kernel.leases and parking.done == []


def test_a_socket_is_waited_for(parking):
    one, other = socket.socketpair()
    with other:
        parking.park("maildir.alice", m.Parked(1, b"x"), one.detach())
        assert len(parking) == 1 and parking.done == []
        second = os.dup(0)
        parking.park("maildir.alice", m.Parked(1, b"x"), second)
        assert not is_open(second)
        parking.forget("alice")
        assert other.recv(1) == b""
