"""actors/listener/gate.py: who asks for a listener in one turn of the loop gets it then, forked one right after the other."""

import os
import socket
from collections import deque
from types import SimpleNamespace

import pytest
from popkernel.actors.listener import gate as gate_module
from popkernel.actors.listener.gate import Gate, Guest
from popkernel.kernel.replay.harness import StageLoop
from popkernel.proto.access.fairness import Fair


class Loop(StageLoop):
    """What is put off for no time waits for the next turn, as there."""

    def __init__(self):
        super().__init__()
        self.put_off = []

    def later(self, seconds, call, session=0):
        return super().later(seconds, call, session) if seconds else self.put_off.append(call)


@pytest.fixture
def gate(monkeypatch):
    made = object.__new__(Gate)
    made.loop, made.did, made.told = Loop(), [], []
    made.guests, made.seated, made.seats, made.seating, made.unseated = {}, {}, deque(), False, Fair()
    made.socks = []
    made.open, made.login_seconds, made.forks = True, 60, 100
    limits = SimpleNamespace(bounds=SimpleNamespace(prefix_v6=64))
    made.admission = SimpleNamespace(limits=limits, shake=lambda number, host: made.did.append(f"shakes {number}") or True)
    made.children = SimpleNamespace(fork=lambda name: fork(made, name))
    made.log = lambda *words: made.told.append(words[-1])
    made.acceptor = SimpleNamespace(complain=made.told.append)
    made._forget = lambda guest: (made.guests.pop(guest.number, None), made.unseated.remove(guest.number))
    made._done = lambda: None
    monkeypatch.setattr(gate_module.os, "close", lambda fd: made.did.append(f"closes {fd}"))
    yield made
    monkeypatch.undo()
    for sock in made.socks:
        sock.close()


def fork(gate, name):
    if not gate.forks:
        raise OSError(11, os.strerror(11))
    gate.forks -= 1
    gate.did.append(f"forks {name}")
    return 7


def turn(gate):
    """The next turn of the loop, in which no connection comes."""
    calls, gate.loop.put_off = gate.loop.put_off, []
    for call in calls:
        call()
    gate.loop.settle()


def come(gate, many, host="192.0.2.1"):
    for number in range(len(gate.guests) + 1, len(gate.guests) + many + 1):
        gate.socks += socket.socketpair()
        gate.guests[number] = Guest(number, gate.socks[-1], host, 7, tls=True, refused="", came=0.0)
        gate._ask_for_seat(gate.guests[number])


def seats(gate, *sessions):
    for session in sessions:
        gate._seat(SimpleNamespace(session=session), [1000 + session])


def test_forks_of_one_turn_follow_one_another(gate):
    """What the gate writes to between two of them it copies anew after each: 190 pages a connection were 130 then."""
    seats(gate, 1, 2, 3)
    come(gate, 3)
    assert not gate.did
    gate.loop.settle()
    assert gate.did == [
        "shakes 1", "shakes 2", "shakes 3", "forks listener.0.1", "forks listener.0.2", "forks listener.0.3", "closes 1001", "closes 1002", "closes 1003",
    ]
    assert {session: guest.number for session, guest in gate.seated.items()} == {1: 1, 2: 2, 3: 3}
    assert all(guest.sock is None for guest in gate.guests.values())


def test_who_has_gone_meanwhile_takes_no_seat(gate):
    seats(gate, 1, 2)
    come(gate, 3)
    gate._cut(gate.guests[2], "connection lost")
    gate.loop.settle()
    assert [guest.number for guest in gate.seated.values()] == [1, 3] and not gate.unseated


def test_one_that_makes_room_for_one_behind_it_gives_its_seat_back(gate):
    seats(gate, 1, 2)
    come(gate, 2)
    gate.admission.shake = lambda number, host: number == 1 or gate._cut(gate.guests[1], "made room for another handshake") is None
    gate.loop.settle()
    assert {session: guest.number for session, guest in gate.seated.items()} == {2: 2} and list(gate.seats) == [(1, 1001)]


def test_those_without_a_seat_have_theirs_in_turn(gate):
    come(gate, 4)
    gate.loop.settle()
    assert not gate.did and gate.unseated
    seats(gate, 1, 2)
    gate.loop.settle()
    assert [guest.number for guest in gate.seated.values()] == [1, 2] and gate.unseated
    seats(gate, 3, 4, 5)
    gate.loop.settle()
    assert [guest.number for guest in gate.seated.values()] == [1, 2, 3, 4] and list(gate.seats) == [(5, 1005)]


def test_no_room_for_a_process(gate):
    seats(gate, 1, 2)
    come(gate, 2)
    gate.forks = 1
    gate.loop.settle()
    assert [guest.number for guest in gate.seated.values()] == [1] and list(gate.seats) == [(2, 1002)] and list(gate.guests) == [1]
    assert gate.told[0].startswith("no more listeners can be forked")


def test_a_turn_has_few_forks_and_the_next_one_is_not_for_the_crowd_alone(gate):
    """A turn that forked for all whom it took was so long that a flood filled the system's queue, and who came behind it waited for seconds."""
    seats(gate, *range(1, 41))
    come(gate, 30)
    gate.loop.settle()
    assert len(gate.seated) == gate_module._FORKS
    come(gate, 30)
    come(gate, 1, "192.0.2.2")
    turn(gate)
    turn(gate)
    assert 61 in {guest.number for guest in gate.seated.values()} and len(gate.seated) == 3 * gate_module._FORKS
    while gate.seats:
        turn(gate)
    assert len(gate.seated) == 40 and len(gate.unseated) == 21
