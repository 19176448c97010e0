"""Simulate addresses and users on a test clock: guesses are delayed, honest logins are not."""

import random

import pytest
from popkernel.actors.auth import guessing
from popkernel.actors.auth.guessing import Guard

MOST = 15
HOME, OFFICE, EVIL = "192.0.2.7:1000", "198.51.100.1:2000", "203.0.113.9:3000"


class World:
    """Run a guard on a clock; attempts are checked as soon as they may be."""

    def __init__(self, most=MOST):
        self.guard = Guard(most)
        self.now = 1000.0
        self.looked = 0

    def attempt(self, user, address, *, good=False):
        """Return the seconds from the attempt to its reply; None if it was refused."""
        came = self.now
        wait = self.guard.admit(user, address, came)
        if wait > self.guard.most:
            return None
        assert wait >= 0
        self.looked += 1
        self.now += wait
        if good:
            self.guard.succeeded(user, address, self.now)
            return wait
        answered = max(wait, self.guard.failed(user, address, self.now))
        self.now = came + answered
        return answered

    def rest(self, seconds):
        self.now += seconds


@pytest.fixture
def world():
    return World()


def test_mistyping_a_few_times_costs_nothing(world):
    assert [world.attempt("alice", HOME) for _ in range(4)] == [0.0] * 4
    assert world.attempt("alice", HOME, good=True) == 0


def test_repeated_guesses_at_one_user_wait_longer(world):
    waits = [world.attempt("alice", EVIL) for _ in range(12)]
    assert waits == sorted(waits) and waits[4] < 2 and waits[-1] == MOST


def test_many_users_from_one_address_weigh_more(world):
    one, many = World(), World()
    for n in range(9):
        last_of_one = one.attempt("alice", EVIL)
        last_of_many = many.attempt(f"user{n}", EVIL)
    assert last_of_many > 10
    # nine users who failed once at an address delay a tenth user there, one who failed nine times does not
    assert one.attempt("bob", EVIL) == 0.0 < 10 < many.attempt("bob", EVIL)
    assert last_of_one > 5


def test_a_persistent_guesser_gets_a_few_thousand_checks_a_day(world):
    """Hashing alone would let hundreds of thousands through."""
    rng = random.Random(1)
    end = world.now + 86400
    while world.now < end:
        if world.attempt(f"user{rng.randrange(100000)}", EVIL) is None:
            world.rest(1)
    assert world.looked < 6500


def test_hanging_up_and_asking_at_once_again_gains_nothing(world):
    for n in range(10):
        world.attempt(f"user{n}", EVIL)
    looked = 0
    for n in range(10_000):  # within ten seconds, without waiting for a reply
        if world.guard.admit(f"user{n}", EVIL, world.now + n / 1000) <= MOST:
            looked += 1
    assert looked <= 1


def test_a_burst_on_many_connections_ends_with_its_first_failures(world):
    """As in auth, each is asked about again when its turn has come."""
    looked = 0
    for n in range(1000):
        if world.guard.admit(f"user{n}", EVIL, world.now) == 0:
            looked += 1
            world.guard.failed(f"user{n}", EVIL, world.now)
    assert looked == 5
    waits = [world.guard.admit(f"another{n}", EVIL, world.now) for n in range(100)]
    assert len([w for w in waits if w <= MOST]) < 5 and world.guard.most < min(waits[20:])
    world.rest(60)
    assert world.guard.admit("another", EVIL, world.now) > 0


def test_a_refusal_has_the_wait(world):
    for n in range(12):
        world.attempt(f"user{n}", EVIL)
    waits = [world.guard.admit("another", EVIL, world.now) for _ in range(9)]
    assert MOST < waits[-1] <= 2 * MOST and waits[-1] == waits[-2]  # a refusal adds no wait


def test_concurrent_logins_do_not_count(world):
    """A thousand users of an office log in after a restart, all unknown yet; then as many again."""
    for _ in range(2):
        assert {world.guard.admit(f"person{n}", OFFICE, world.now) for n in range(1000)} == {0.0}
    for n in range(1000):
        world.guard.succeeded(f"person{n}", OFFICE, world.now)
    assert world.guard.admit("another", OFFICE, world.now) == 0.0


def test_an_office_of_three_hundred_with_mistyped_passwords(world):
    rng = random.Random(3)
    people = [(n, rng.random() < 0.05) for n in range(300)]
    for n, mistypes in people:
        assert world.guard.admit(f"person{n}", OFFICE, world.now) == 0.0
        (world.guard.failed if mistypes else world.guard.succeeded)(f"person{n}", OFFICE, world.now)


def test_an_office_behind_one_address_does_not_trip(world):
    """Nobody is delayed on a working day of fifty people.

    One password in twenty is mistyped, and a telephone sends an old one every minute.
    """
    rng = random.Random(2)
    waits = []
    minute = 0
    while minute < 480:
        world.rest(60)
        minute += 1
        world.attempt("phone", OFFICE)
        for person in rng.sample(range(50), 5):
            came = world.now
            if rng.random() < 0.05:
                waits.append(world.attempt(f"person{person}", OFFICE))
            waits.append(world.attempt(f"person{person}", OFFICE, good=True))
            world.now = came
    assert None not in waits
    assert sum(w > 0 for w in waits) == 0, max(waits)


def test_a_known_user_is_never_delayed_whoever_else_guesses(world):
    assert world.attempt("alice", OFFICE, good=True) == 0
    for n in range(30):
        world.attempt(f"user{n}", OFFICE)  # another client behind the same address
        world.attempt("alice", f"203.0.113.{n}:1")  # and others guess her password from everywhere
    assert world.attempt("bob", OFFICE, good=True) != 0.0
    assert world.attempt("alice", OFFICE, good=True) == 0.0


def test_trust_is_no_licence_to_guess(world):
    world.attempt("alice", OFFICE, good=True)
    waits = [world.attempt("alice", OFFICE) for _ in range(40)]
    assert waits[-1] == MOST or waits[-1] is None
    assert max(world.guard.admit("alice", OFFICE, world.now) for _ in range(2)) > MOST


def test_trust_ends_after_a_day(world):
    world.attempt("alice", OFFICE, good=True)
    world.rest(86401)
    for n in range(12):
        world.attempt(f"user{n}", OFFICE)
    assert world.attempt("alice", OFFICE, good=True) != 0.0


def test_one_account_of_one_s_own_buys_one_guess_not_a_reset(world):
    waits = []
    for n in range(14):
        world.attempt("mallory", EVIL, good=True)
        waits.append(world.attempt(f"user{n}", EVIL))
    assert waits[4] == 0.0 and waits[-1] == MOST or waits[-1] is None
    assert world.attempt("user99", EVIL) in (MOST, None)


def test_a_botnet_on_one_user_delays_and_never_locks_out(world):
    for n in range(500):
        world.attempt("alice", f"10.0.{n // 250}.{n % 250}:1")
    for n in range(20):  # from a new address, while it goes on
        assert world.guard.admit("alice", f"172.16.0.{n}:1", world.now) == MOST
    assert world.attempt("bob", "172.16.1.1:1") == 0.0


def test_penalties_fade(world):
    for n in range(10):
        world.attempt(f"user{n}", EVIL)
    world.rest(3600)
    assert world.attempt("alice", EVIL) == 0.0


def test_ipv6_by_prefix(world):
    for n in range(12):
        world.attempt(f"user{n}", f"[2001:db8:1:2::{n:x}]:995")
    assert world.attempt("alice", "[2001:db8:1:2:ffff::]:995") == MOST
    assert world.attempt("bob", "[2001:db8:1:3::1]:995") == 0.0
    narrow = Guard(MOST, 128)
    for n in range(12):
        assert narrow.admit(f"user{n}", f"[2001:db8:1:2::{n:x}]:995", 0.0) == 0.0
        assert narrow.failed(f"user{n}", f"[2001:db8:1:2::{n:x}]:995", 0.0) == 0.0


def test_penalties_can_be_turned_off():
    world = World(0)
    assert {world.attempt(f"user{n % 3}", EVIL) for n in range(200)} == {0.0}
    assert len(world.guard) == 0


def test_a_success_forgives_its_own_mistakes_only(world):
    for n in range(7):
        world.attempt(f"user{n}", EVIL)
    world.attempt("alice", EVIL)
    before = world.guard._addresses["203.0.113.9"].fade(world.now)
    world.attempt("alice", EVIL, good=True)
    after = world.guard._addresses["203.0.113.9"].fade(world.now)
    assert 6 < after < before - 0.9 and before < after + 1.1


def test_memory_is_bounded(monkeypatch):
    monkeypatch.setattr(guessing, "_MOST", 100)
    guard = Guard(MOST)
    for n in range(1000):
        guard.admit("x" * 300 + str(n), f"10.0.{n // 250}.{n % 250}:1", n)
        guard.failed("x" * 300 + str(n), f"10.0.{n // 250}.{n % 250}:1", n)
    assert len(guard) == 300
    assert "10.0.3.249" in guard._addresses and "10.0.0.1" not in guard._addresses  # the oldest are dropped


def test_unknown_users_are_treated_as_known_ones(world):
    """The guard does not know which users exist, so its behaviour cannot reveal it."""
    other = World()
    assert [world.attempt("nobody", EVIL) for _ in range(12)] == [
        other.attempt("alice", EVIL) for _ in range(12)
    ]
