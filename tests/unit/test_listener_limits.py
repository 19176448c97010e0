"""Test a listener's limits: each is named in its refusal, counts return to zero, memory is bounded."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from popkernel.actors.listener import limits as module
from popkernel.actors.listener.limits import Bounds, Limits, group

A, B = "192.0.2.1", "192.0.2.2"


def test_sessions_in_all_and_by_address():
    limits = Limits(Bounds(sessions=3, sessions_address=2))
    assert [limits.come(A, 0), limits.come(A, 0)] == ["", ""]
    assert limits.come(A, 0) == "too many connections from your address"
    assert limits.come(B, 0) == ""
    assert limits.come("192.0.2.3", 0) == "too many connections, try again later"
    limits.gone(A)
    assert limits.come(A, 0) == ""
    for address in (A, A, B):
        limits.gone(address)
    assert limits.sessions == 0
    assert not limits._addresses


def test_an_uncounted_session_cannot_end():
    limits = Limits(Bounds())
    with pytest.raises(KeyError):
        limits.gone(A)
    assert limits.sessions == 0


@pytest.mark.parametrize(
    ("one", "other", "prefix", "same"),
    [
        ("2001:db8:0:1::5", "2001:db8:0:1:ffff::9", 64, True),
        ("2001:db8:0:1::5", "2001:db8:0:2::5", 64, False),
        ("2001:db8:0:1::5", "2001:db8:0:2::5", 48, True),
        ("2001:db8::1", "2001:db8::2", 128, False),
        ("::ffff:192.0.2.1", "192.0.2.1", 64, True),
        ("192.0.2.1", "192.0.2.2", 64, False),
        ("fe80::1%eth0", "fe80::2%eth0", 64, True),
        ("fe80::1%eth0", "fe80::1%eth1", 64, False),
        ("2001:DB8::1", "2001:db8:0::1", 128, True),
    ],
)
def test_ipv6_is_counted_by_network(one, other, prefix, same):
    assert (group(one, prefix) == group(other, prefix)) is same


def test_connections_a_minute():
    limits = Limits(Bounds(per_minute=6))
    said = [limits.come(A, 100.0) for _ in range(8)]
    assert said == [""] * 6 + ["too many connections a minute from your address, try again later"] * 2
    assert limits.come(B, 100.0) == ""
    assert limits.come(A, 109.9)
    assert limits.come(A, 110.0) == ""  # one every ten seconds
    assert limits.come(A, 110.0)
    assert [limits.come(A, 1000.0) for _ in range(7)].count("") == 6


def test_the_rates_of_many_addresses_are_forgotten_in_time(monkeypatch):
    monkeypatch.setattr(module, "_MOST_BUCKETS", 100)
    limits = Limits(Bounds(sessions=0, per_minute=1))
    for n in range(500):
        assert limits.come(f"10.0.{n // 256}.{n % 256}", 0.0) == ""
    assert len(limits._buckets) == 100
    assert limits.come("10.0.1.243", 1.0)  # the latest are remembered
    for n in range(150):
        assert limits.come(f"10.1.0.{n}", 61.0) == ""
    assert len(limits._buckets) == 100
    assert limits.come("10.2.0.1", 200.0) == ""
    assert limits.come("10.2.0.2", 200.0) == ""
    assert len(limits._buckets) == 98  # each new one removes two old ones


def test_handshakes():
    limits = Limits(Bounds(handshakes=1))
    assert limits.shake(1, A) == ""
    assert limits.shake(1, A) == ""
    assert limits.shake(2, B) == "too many TLS handshakes at once, try again"
    assert limits.spare_handshake() == 1
    limits.shaken(1)
    limits.shaken(1)
    assert limits.spare_handshake() is None
    assert limits.shake(2, B) == ""


def test_the_address_with_most_handshakes_gives_up_its_oldest_at_once():
    limits = Limits(Bounds(handshakes=1000))
    honest = [0, 500, 999]
    assert not any(limits.shake(n, B if n in honest else A) for n in range(1000))
    for n in range(1000, 10_800):
        assert limits.shake(n, A)
        room = limits.spare_handshake()
        assert room not in honest and room == next(
            k for k in sorted(limits._shaking._keys) if k not in honest
        )
        limits.shaken(room)
        assert limits.shake(n, A) == ""


def test_handshakes_of_the_address_with_most_of_them_wait_in_turn():
    """They take no place of one another, unless one has had its time."""
    limits = Limits(Bounds(handshakes=3))
    for n in range(3):
        assert not limits.shake(n, A, 1.0)
    for n in (3, 4):
        assert limits.shake(n, A, 1.0) and limits.spare_handshake(A) is None
        limits.wait_to_shake(n, A)
        limits.wait_to_shake(n, A)
    assert limits.spare_handshake(B) == 0  # for another address, one of them makes room at once
    limits.wait_to_shake(5, B)
    assert limits.waiting_handshakes() == 3 and limits.next_handshake(1.0) is None
    assert limits.slow_handshakes(2.9) == [] and limits.slow_handshakes(3.0) == [(n, A) for n in range(3)]
    limits.shaken(1)
    assert limits.next_handshake(3.0) == 3 and limits.next_handshake(3.0) is None
    limits.shaken(4)  # it waited, and its client is gone
    assert limits.slow_handshakes(3.0) == [(0, A)]  # one waits
    limits.shaken(0)
    assert limits.next_handshake(3.0) == 5 and not limits.shake(5, B, 3.0)
    for n in (2, 3, 5):
        limits.shaken(n)
    assert not limits._shaking and not limits._shaking_since and not limits._unshaken


def test_a_client_that_waits_for_the_server_makes_no_room():
    limits = Limits(Bounds(sessions=10))
    for n in range(10):
        limits.waits(n, A, 0.0)
        limits.serve(n)
    assert limits.spare(99.0) is None and len(limits.served) == 10
    limits.waits(3, A, 99.0)  # its login failed
    assert limits.spare(99.0) == 3
    for n in range(10):
        limits.entered(n)
    assert not limits.served and not limits._early and not limits._since


def test_a_flood_from_everywhere_makes_room_in_its_order():
    limits = Limits(Bounds(handshakes=100))
    for n in range(1000):
        if limits.shake(n, f"10.0.{n // 250}.{n % 250}"):
            assert limits.spare_handshake() == n - 100
            limits.shaken(n - 100)
            assert not limits.shake(n, f"10.0.{n // 250}.{n % 250}")


def test_an_office_that_holds_more_than_each_address_of_a_flood_makes_no_room_for_it():
    limits = Limits(Bounds(sessions=1020))
    for n in range(1000):
        limits.waits(n, f"10.0.0.{n % 100}", 0.0)  # ten each
    for n in range(1000, 1020):
        limits.waits(n, A, 1.0)
    for n in range(100):
        assert limits.spare(1.0) == n
        limits.entered(n)
        limits.waits(2000 + n, f"10.0.0.{n % 100}", 2.0)


def test_a_slow_client_makes_no_room_for_a_flood_of_one_address():
    limits = Limits(Bounds(handshakes=100))
    for n in range(5):
        limits.shake(n, f"192.0.2.{n}")
    for n in range(5, 100):
        limits.shake(n, A + "0")
    for n in range(5, 1000):
        assert limits.spare_handshake() == n
        limits.shaken(n)
        limits.shake(n + 95, A + "0")


def test_a_client_before_login_makes_room_at_once_if_there_are_many():
    limits = Limits(Bounds(sessions=100, sessions_address=40))
    for n in range(100):
        limits.come(A if n < 40 else B if n < 70 else f"10.0.0.{n}", 0.0)
        limits.waits(n, A if n < 40 else B if n < 70 else f"10.0.0.{n}", 0.0)
    assert limits.spare(0.0) == limits.spare_of(A, 0.0) == 0
    assert limits.spare_of(B, 0.0) == 40
    for n in range(37):
        limits.entered(n)
    assert limits.spare(0.0) == 40
    assert limits.spare_of(A, 1.9) is None  # three of 40: they would drive one another out
    assert limits.spare_of(A, 2.0) == 37
    assert limits.spare_of("10.9.9.9", 9.0) is None


def test_if_nearly_all_are_logged_in_others_have_two_seconds():
    limits = Limits(Bounds(sessions=40))
    for session, now in ((1, 0.0), (2, 1.0), (3, 2.0)):
        limits.come(A, now)
        limits.waits(session, A, now)
    limits.entered(1)
    assert limits.spare(2.9) is None
    assert limits.spare(3.0) == 2
    limits.entered(2)
    assert limits.spare(3.9) is None
    assert limits.spare(4.0) == 3
    limits.entered(3)
    assert limits.spare(99.0) is None


def test_logins_wait_in_order_and_none_is_refused():
    limits = Limits(Bounds(logins=2))
    assert [limits.login(n, f"u{n}", A) for n in range(2)] == ["", ""]
    assert [limits.login(n, f"u{n}", A) for n in range(2, 10_000)] == [None] * 9998
    for n in range(10, 10_000):
        assert limits.logged_in(n) is None
    assert limits.logged_in(5) is None  # its client left while it waited
    assert limits.logged_in(99) is None
    assert [limits.logged_in(n) for n in (1, 0, 2)] == [2, 3, 4]
    assert limits.logged_in(2) is None  # again: it is over already
    for n in (3, 4, 6, 7, 8, 9):
        limits.logged_in(n)
    assert not limits._begun
    assert not limits._queue
    assert not limits._users


def test_waiting_logins_are_served_by_address():
    """At most ten logins of one address in a row, so that neither a large office nor others wait too long."""
    limits = Limits(Bounds(logins=2))
    assert [limits.login(n, f"u{n}", A) for n in range(30)] == ["", "", *[None] * 28]
    assert limits.login(40, "bob", B) is None
    order = [limits.logged_in(n) for n in range(12)]
    assert order == [*range(2, 12), 40, 12]
    assert limits.logged_in(40) == 13
    assert [session for session, *_ in limits.logins()] == [12, 13, *range(14, 30)]


def test_a_replay_keeps_the_order_of_waiting_logins():
    limits, again = Limits(Bounds(logins=1)), Limits(Bounds(logins=1))
    for n in range(20):
        limits.login(n, f"u{n}", f"10.0.0.{n * n % 2}")
    for n in range(20, 40):
        limits.logged_in(next(iter(limits._begun)))
        limits.login(n, f"u{n}", f"10.0.0.{n * n % 7}")
    limits.logged_in(25)
    for session, user, host in limits.logins():
        again.login(session, user, host)
    again.turn = limits.turn
    while limits._begun:
        now = next(iter(limits._begun))
        assert limits.logged_in(now) == again.logged_in(now)
    assert not again._begun and not again._queue


def test_logins_of_one_user():
    limits = Limits(Bounds(logins=1, logins_user=2))
    assert limits.login(1, "alice", A) == ""
    assert limits.login(2, "alice", A) is None
    assert limits.login(3, "alice", A) == "too many logins of this user from your address at once, try again"
    assert limits.login(33, "alice", B) is None
    assert limits.logged_in(33) is None
    assert limits.login(4, "bob", A) is None
    assert limits.logged_in(1) == 2
    assert limits.login(5, "alice", A) is None


def test_zero_is_no_bound():
    limits = Limits(Bounds(sessions=0))
    assert not any(limits.come(A, 0.0) for _ in range(1000))
    assert not any(limits.shake(n, A) for n in range(1000))
    assert not any(limits.login(n, "alice", A) for n in range(1000))


def test_several_listeners_share():
    assert Bounds(10000, 100, 56, 5, 0, 1, 7).share(4) == Bounds(2500, 25, 56, 2, 0, 1, 2)
    told = {
        "max_sessions": 5000,
        "max_sessions_address": 101,
        "ipv6_prefix": 64,
        "max_handshakes": 0,
        "max_logins": 3,
        "max_logins_user": 10,
        "connects_per_minute": 1,
        "listeners": 2,
    }
    assert Bounds.of(told) == Bounds(5000, 51, 64, 0, 2, 5, 1)
    assert Bounds(10000, 100).share(1) == Bounds(10000, 100)


class Whole(RuleBasedStateMachine):
    """Check the counts after any order of arrivals and departures."""

    def __init__(self):
        super().__init__()
        self.limits = Limits(
            Bounds(sessions=6, sessions_address=3, handshakes=2, logins=2, logins_user=2, per_minute=5)
        )
        self.now = 0.0
        self.there = []
        self.begun, self.waiting = {}, []
        self.first = None
        self.next = 0

    @rule(host=st.sampled_from([A, B, "2001:db8::1", "2001:db8::2"]), later=st.floats(0, 30))
    def come(self, host, later):
        self.now += later
        if not self.limits.come(host, self.now):
            self.there.append(host)

    @precondition(lambda self: self.there)
    @rule(data=st.data())
    def gone(self, data):
        self.limits.gone(self.there.pop(data.draw(st.integers(0, len(self.there) - 1))))

    @rule(user=st.sampled_from(["alice", "bob", "carol", "dave"]))
    def login(self, user):
        self.next += 1
        said = self.limits.login(self.next, user, A)
        if said == "":
            self.begun[self.next] = user
        elif said is None:
            self.waiting.append((self.next, user))

    @precondition(lambda self: self.begun or self.waiting)
    @rule(data=st.data())
    def logged_in(self, data):
        session = data.draw(st.sampled_from([*self.begun, *(w[0] for w in self.waiting)]))
        following = self.limits.logged_in(session)
        if session not in self.begun:
            assert following is None
            self.waiting = [w for w in self.waiting if w[0] != session]
            return
        del self.begun[session]
        assert (following is None) == (not self.waiting) and following == self.first
        if following is not None:
            one = next(w for w in self.waiting if w[0] == following)
            assert one == next(w for w in self.waiting if w[1] == one[1])  # the first of its user
            self.waiting.remove(one)
            self.begun.update([one])

    @invariant()
    def counted(self):
        limits = self.limits
        assert limits.sessions == len(self.there) == sum(limits._addresses.values()) <= 6
        assert all(0 < n <= 3 for n in limits._addresses.values())
        assert limits._begun == {n: (u, A) for n, u in self.begun.items()}
        turns = limits._queue.in_turn()
        assert sorted(turns) == [(n, (u, A)) for n, u in self.waiting]
        self.first = turns[0][0] if turns else None
        users = [user for _, (user, _) in turns]
        assert len(set(users[: len(set(users))])) == len(set(users))  # first one login of each user
        users = [*self.begun.values(), *(w[1] for w in self.waiting)]
        assert limits._users == {(u, A): users.count(u) for u in users}
        assert all(n <= 2 for n in limits._users.values())


TestWhole = Whole.TestCase
TestWhole.settings = settings(max_examples=50, stateful_step_count=30)


@given(st.one_of(st.ip_addresses().map(str)), st.integers(1, 128))
def test_every_address_belongs_to_one_group(host, prefix):
    assert len(group(host, prefix)) < 64
