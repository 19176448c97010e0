"""Test fair queues and places by key, for any order of arrivals and departures."""

import time
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st
from popkernel.proto.access.fairness import Fair, FairByOwner, Places

KEYS = st.sampled_from("abc")
STEPS = st.lists(st.tuples(st.sampled_from(["put", "take", "remove"]), KEYS, st.integers(0, 30)), max_size=80)


@given(STEPS)
def test_each_waiting_item_is_taken_once_in_its_key_s_order(steps):
    fair, waiting = Fair(), []
    for number, (what, key, which) in enumerate(steps):
        if what == "put":
            fair.put(key, number, key.upper())
            waiting.append((key, number))
        elif what == "take" and waiting:
            expected = fair.in_turn()
            item, value = fair.take()
            assert (item, value) == expected[0] and fair.in_turn() == expected[1:]
            key = value.lower()
            assert item == next(n for k, n in waiting if k == key)  # the first of its key
            waiting.remove((key, item))
        elif what == "remove":
            gone = waiting.pop(which % len(waiting)) if waiting else (key, -1)
            assert fair.remove(gone[1]) == (gone[0].upper() if gone[1] >= 0 else None)
        assert len(fair) == len(waiting) == len(fair.in_turn())
        spare = fair.spare("a")
        many = Counter(k for k, _ in waiting)
        assert (spare is not None) == (max(many.values(), default=0) > many["a"] + 1)


def test_at_most_ten_of_each_other_key_come_first():
    fair = Fair()
    for n in range(1000):
        fair.put("flood", n, None)
    for n in range(2000, 2015):
        fair.put("office", n, None)
    fair.put("home", 3000, None)
    taken = [fair.take()[0] for _ in range(36)]
    assert taken == [*range(10), *range(2000, 2010), 3000, *range(10, 20), *range(2010, 2015)]


@settings(max_examples=200)
@given(st.lists(st.tuples(st.booleans(), KEYS, st.integers(0, 20)), max_size=100))
def test_the_key_that_holds_most_is_known(steps):
    places, held = Places(), {}
    for comes, key, item in steps:
        if comes:
            places.add(held.get(item, key), item)
            held.setdefault(item, key)
        else:
            places.remove(item)
            held.pop(item, None)
        many = Counter(held.values())
        assert len(places) == len(held) and all(places.many(k) == many[k] for k in "abc")
        assert [places.oldest(k) for k in "abc"] == [
            next((i for i, its in held.items() if its == k), None) for k in "abc"
        ]
        most = max(many.values(), default=0)
        early = [i for i, k in list(held.items())[:16] if 2 * many[k] >= most]
        spare = places.spare()
        assert spare == early[0] if early else spare is None or many[held[spare]] == most


USERS = st.sampled_from(["", "x", "y", "z"])


@given(st.lists(st.tuples(st.booleans(), KEYS, USERS), max_size=80))
def test_users_of_a_key_are_served_in_rounds(steps):
    """No user of a key is served twice while another of it waits."""
    fair, waiting, passed = Fair(), {}, {}  # `passed`: who has been served while each waits
    for number, (comes, key, user) in enumerate(steps):
        if comes:
            fair.put(key, number, (key, user), user)
            waiting[number] = key, user
            passed.setdefault((key, user), set())
        elif waiting:
            item, one = fair.take()
            assert item == min(n for n, other in waiting.items() if other == one)  # in order of arrival
            assert waiting.pop(item) == one
            del passed[one]
            for other in passed:
                assert other[0] != one[0] or one not in passed[other]
                passed[other].add(one)
            if one in waiting.values():
                passed[one] = set()
        oldest = fair.oldest()
        assert (None if oldest is None else oldest[0]) == min(waiting, default=None)


def test_a_user_with_many_items_delays_no_other_of_the_same_key():
    fair = Fair()
    for n in range(1000):
        fair.put("webmail", n, None, "greedy")
    for n in range(2000, 2003):
        fair.put("webmail", n, None, f"user{n}")
    assert [fair.take()[0] for _ in range(6)] == [0, 2000, 2001, 2002, 1, 2]


def test_to_look_for_room_costs_the_same_with_many_keys():
    """Ten thousand logins, each of another address, hung auth for seconds: any further one looked at all."""
    fair = Fair()
    for n in range(10_000):
        fair.put(f"key {n}", n, None)
    began = time.process_time()
    assert all(fair.spare("other") is None for _ in range(10_000))
    assert time.process_time() - began < 1
    fair.put("key 7", -1, None)
    assert fair.spare("other") == -1


OWNERS = st.sampled_from(["o", "p", "q"])
OWNED = st.tuples(st.sampled_from(["put", "take", "remove", "spare"]), OWNERS, KEYS, st.integers(0, 30))


@settings(max_examples=300)
@given(st.lists(OWNED, max_size=80))
def test_owners_are_served_in_rounds(steps):
    """No owner is served twice while another waits, and room is made by the one with most items."""
    fair, waiting, passed = FairByOwner(), {}, {}  # `passed`: who has been served while each waits
    for number, (what, owner, key, which) in enumerate(steps):
        many = Counter(one for one, _ in waiting.values())
        if what == "put":
            fair.put(owner, key, number, (owner, key))
            waiting[number] = owner, key
            passed.setdefault(owner, set())
        elif what == "take" and waiting:
            item, (owner, key) = fair.take()
            assert item == next(n for n, one in waiting.items() if one == (owner, key))
            del waiting[item]
            for other in passed:
                assert other == owner or owner not in passed[other]
                passed[other].add(owner)
        elif what == "remove" and waiting:
            item = list(waiting)[which % len(waiting)]
            assert fair.remove(item) == waiting.pop(item) and fair.remove(item) is None
        elif what == "spare":
            most = max(many.values(), default=0)
            keys = Counter(of for one, of in waiting.values() if one == owner)
            spare = fair.spare(owner, key)
            if most > many[owner] + 1:
                assert many[waiting[spare][0]] == most
            else:
                assert (spare is not None) == (max(keys.values(), default=0) > keys[key] + 1)
                assert spare is None or waiting[spare][0] == owner
        there = {one for one, _ in waiting.values()}
        passed = {one: others if one != owner else set() for one, others in passed.items() if one in there}
        oldest = fair.oldest()
        assert len(fair) == len(waiting)
        assert oldest == (next(iter(waiting.items())) if waiting else None)


def test_an_owner_that_invents_keys_delays_no_other_and_takes_nobody_s_room():
    fair = FairByOwner()
    for n in range(1000):
        fair.put("liar", f"key {n}", n, None)
    for n in range(2000, 2003):
        fair.put("honest", "office", n, None)
    assert fair.spare("honest", "office") in range(1000) and fair.spare("liar", "one more") is None
    assert [fair.take()[0] for _ in range(7)] == [0, 2000, 1, 2001, 2, 2002, 3]
