"""Test actors/listener/gate.py: clients of one turn get listeners forked one right after the other."""

import os
import socket
from collections import deque
from types import SimpleNamespace

import pytest
from popkernel.actors.listener import gate as gate_module
from popkernel.actors.listener.gate import Client, Gate
from popkernel.kernel.replay.loop import ReplayLoop
from popkernel.proto.access.fairness import Fair


class Loop(ReplayLoop):
    """Run what is put off for 0 s in the next turn, as the real loop does."""

    def __init__(self):
        super().__init__()
        self.put_off = []

    def later(self, seconds, call, session=0):
        return super().later(seconds, call, session) if seconds else self.put_off.append(call)


@pytest.fixture
def gate(monkeypatch):
    made = object.__new__(Gate)
    made.loop, made.did, made.logged = Loop(), [], []
    made.clients, made.seated, made.seats, made.seating, made.unseated = {}, {}, deque(), False, Fair()
    made.socks = []
    made.open, made.login_seconds, made.forks = True, 60, 100
    limits = SimpleNamespace(bounds=SimpleNamespace(prefix_v6=64))
    made.admission = SimpleNamespace(
        limits=limits, shake=lambda number, host: made.did.append(f"shakes {number}") or True
    )
    made.children = SimpleNamespace(fork=lambda name: fork(made, name))
    made.kernel = SimpleNamespace(
        send_all=lambda said: made.did.extend(f"tells {one.session} {one.address}" for one in said)
    )
    made.log = lambda level, event, **fields: made.logged.append(event)
    made.acceptor = SimpleNamespace(complain=lambda event, why: made.logged.append(event))
    made._forget = lambda client: (made.clients.pop(client.number, None), made.unseated.remove(client.number))
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
    """Run the next turn of the loop, without a new connection."""
    calls, gate.loop.put_off = gate.loop.put_off, []
    for call in calls:
        call()
    gate.loop.settle()


def come(gate, many, host="192.0.2.1"):
    for number in range(len(gate.clients) + 1, len(gate.clients) + many + 1):
        gate.socks += socket.socketpair()
        gate.clients[number] = Client(number, gate.socks[-1], host, 7, tls=True, refused="", came=0.0)
        gate._ask_for_seat(gate.clients[number])


def seats(gate, *sessions):
    for session in sessions:
        gate._seat(SimpleNamespace(session=session), [1000 + session])


def test_forks_of_one_turn_follow_one_another(gate):
    """Between two forks the gate must write little.

    What it writes it copies anew after each fork: 190 pages a connection instead of 130.
    """
    seats(gate, 1, 2, 3)
    come(gate, 3)
    assert not gate.did
    gate.loop.settle()
    assert gate.did == [
        "shakes 1",
        "shakes 2",
        "shakes 3",
        *(f"tells {session} 192.0.2.1:7" for session in (1, 2, 3)),
        "forks listener.0.1",
        "forks listener.0.2",
        "forks listener.0.3",
        "closes 1001",
        "closes 1002",
        "closes 1003",
    ]
    assert {session: client.number for session, client in gate.seated.items()} == {1: 1, 2: 2, 3: 3}
    assert all(client.sock is None for client in gate.clients.values())


def test_a_lost_client_takes_no_seat(gate):
    seats(gate, 1, 2)
    come(gate, 3)
    gate._cut(gate.clients[2], "connection lost")
    gate.loop.settle()
    assert [client.number for client in gate.seated.values()] == [1, 3] and not gate.unseated


def test_a_client_that_makes_room_returns_its_seat(gate):
    seats(gate, 1, 2)
    come(gate, 2)
    gate.admission.shake = lambda number, host: (
        number == 1 or gate._cut(gate.clients[1], "made room for another handshake") is None
    )
    gate.loop.settle()
    assert {session: client.number for session, client in gate.seated.items()} == {2: 2} and list(
        gate.seats
    ) == [(1, 1001)]


def test_clients_without_a_seat_are_served_in_turn(gate):
    come(gate, 4)
    gate.loop.settle()
    assert not gate.did and gate.unseated
    seats(gate, 1, 2)
    gate.loop.settle()
    assert [client.number for client in gate.seated.values()] == [1, 2] and gate.unseated
    seats(gate, 3, 4, 5)
    gate.loop.settle()
    assert [client.number for client in gate.seated.values()] == [1, 2, 3, 4] and list(gate.seats) == [
        (5, 1005)
    ]


def test_no_room_for_a_process(gate):
    seats(gate, 1, 2)
    come(gate, 2)
    gate.forks = 1
    gate.loop.settle()
    assert (
        [client.number for client in gate.seated.values()] == [1]
        and list(gate.seats) == [(2, 1002)]
        and list(gate.clients) == [1]
    )
    assert gate.logged[0] == "listener.not_forked"


def test_a_turn_has_few_forks_and_the_next_one_is_not_for_the_crowd_alone(gate):
    """A long turn lets a flood fill the system's queue, and later clients wait for seconds."""
    seats(gate, *range(1, 41))
    come(gate, 30)
    gate.loop.settle()
    assert len(gate.seated) == gate_module._FORKS
    come(gate, 30)
    come(gate, 1, "192.0.2.2")
    turn(gate)
    turn(gate)
    assert (
        61 in {client.number for client in gate.seated.values()}
        and len(gate.seated) == 3 * gate_module._FORKS
    )
    while gate.seats:
        turn(gate)
    assert len(gate.seated) == 40 and len(gate.unseated) == 21
