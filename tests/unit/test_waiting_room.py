"""Test connections that wait for a place, with sockets that are none."""

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from popkernel.actors.listener.admission import WAITS, Admission, WaitingRoom
from popkernel.actors.listener.limits import TOO_MANY
from popkernel.kernel.config.keys import Config, actor_settings
from popkernel.kernel.replay.loop import ReplayLoop
from popkernel.proto import messages as m

A, B = "192.0.2.1", "192.0.2.2"


class Listener:
    """A listener with `sessions` places, and room for `most` connections that wait."""

    def __init__(self, sessions=3, most=4):
        self.loop = ReplayLoop()
        self.told, self.admitted, self.refused, self.closed, self.sessions = [], [], [], [], {}
        config = {**actor_settings(Config(), "listener"), "max_sessions": sessions}
        actor = SimpleNamespace(
            loop=self.loop,
            boot=SimpleNamespace(config=config),
            send=self.told.append,
            log=lambda *_, **__: None,
        )
        self.admission = Admission(actor, self.drop)
        self.room = WaitingRoom(actor, self.admission, self.admit)
        self.room.most = most
        self.number = 0

    def come(self, host):
        """Let a client connect; return "admitted", "waits" or "refused"."""
        self.number += 1
        number = self.number
        sock = SimpleNamespace(number=number, close=lambda: self.closed.append(number))
        why = self.admission.come(host)
        if why == WAITS:
            self.room.wait(sock, host, 1, True)
            return "waits"
        self.admit(sock, host, 1, True, why)
        return "refused" if why else "admitted"

    def admit(self, sock, host, port, tls, why):
        assert port == 1 and tls and why in ("", TOO_MANY)
        (self.refused if why else self.admitted).append(sock.number)
        if not why:
            self.sessions[sock.number] = host
            self.admission.limits.waits(sock.number, host, self.loop.now)

    def asks(self, number):
        """Let a client's login wait for auth."""
        self.admission.limits.serve(number)

    def go(self, number):
        host = self.sessions.pop(number)
        self.admission.limits.entered(number)
        self.admission.gone(host)

    def drop(self, number, why):
        self.go(number)


@pytest.fixture
def full():
    """Return a listener whose places are all taken by logins of one address that wait for auth."""
    listener = Listener()
    for number in (1, 2, 3):
        assert listener.come(A) == "admitted"
        listener.asks(number)
    return listener


def test_a_connection_waits_while_all_places_are_taken_by_clients_that_wait(full):
    assert [full.come(A), full.come(A), full.come(B)] == ["waits"] * 3
    full.go(1)
    assert full.admitted[3:] == [4]
    full.go(2), full.go(3)
    assert full.admitted[3:] == [4, 5, 6] and not len(full.room) and not full.refused
    assert not full.told


def test_a_client_that_has_its_answer_makes_room_again(full):
    full.admission.limits.waits(2, A, 0.0)
    assert full.come(A) == "admitted" and 2 not in full.sessions


def test_none_waits_if_all_have_logged_in(full):
    assert full.come(A) == "waits"
    for number in (1, 2, 3):
        full.admission.limits.entered(number)
    full.loop.advance(1.1)
    assert full.refused == [4] and not len(full.room)
    assert full.come(A) == "refused"
    full.loop.advance(2.2)
    assert full.told == [m.PlacesRefused("max_sessions", 2)]


def test_the_latest_of_the_address_with_most_gives_up_its_waiting_place(full):
    assert [full.come(A) for _ in range(4)] == ["waits"] * 4  # 4 to 7
    assert full.come(A) == "refused"
    assert full.come(B) == "waits" and full.refused == [8, 7]
    for number in (1, 2, 3):
        full.go(number)
    assert full.admitted[3:] == [4, 5, 6]


def test_a_connection_waits_a_minute(full):
    assert full.come(A) == "waits"
    full.loop.advance(59.0)
    assert full.come(B) == "waits" and full.refused == []
    full.loop.advance(61.1)
    assert full.refused == [4] and len(full.room) == 1


def test_waiting_connections_are_closed_with_the_listener(full):
    full.come(A), full.come(B)
    full.room.close()
    assert full.closed == [4, 5] and not len(full.room)
    full.loop.advance(100.0)
    assert full.refused == []


STEPS = st.tuples(
    st.sampled_from(["come", "asks", "go", "enter", "wait"]),
    st.sampled_from([A, B, "192.0.2.3"]),
    st.integers(0, 9),
)


@given(st.lists(STEPS, max_size=60))
def test_each_connection_is_admitted_refused_or_waits_once(steps):
    listener = Listener()
    for what, host, which in steps:
        there = sorted(listener.sessions)
        if what == "come":
            listener.come(host)
        elif what == "wait":
            listener.loop.advance(listener.loop.now + which)
        elif there:
            number = there[which % len(there)]
            if what == "asks":
                listener.asks(number)
            elif what == "enter":
                listener.admission.limits.entered(number)
            else:
                listener.go(number)
        assert len(listener.sessions) == listener.admission.limits.sessions <= 3
        assert len(listener.room) <= 4
        assert len(listener.admitted) + len(listener.refused) + len(listener.room) == listener.number
        assert len({*listener.admitted, *listener.refused}) == len(listener.admitted) + len(listener.refused)
        assert not len(listener.room) or len(listener.sessions) == 3  # none waits while there is a place
