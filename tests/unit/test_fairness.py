"""Turns and places by key: any order of coming and going."""

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st
from popkernel.proto.access.fairness import Fair, Places

KEYS = st.sampled_from("abc")
STEPS = st.lists(st.tuples(st.sampled_from(["put", "take", "remove"]), KEYS, st.integers(0, 30)), max_size=80)


@given(STEPS)
def test_everybody_who_waits_is_taken_once_and_in_its_key_s_order(steps):
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
            assert item == next(n for k, n in waiting if k == key)  # of its key it came first
            waiting.remove((key, item))
        elif what == "remove":
            gone = waiting.pop(which % len(waiting)) if waiting else (key, -1)
            assert fair.remove(gone[1]) == (gone[0].upper() if gone[1] >= 0 else None)
        assert len(fair) == len(waiting) == len(fair.in_turn())
        spare = fair.spare("a")
        many = Counter(k for k, _ in waiting)
        assert (spare is not None) == (max(many.values(), default=0) > many["a"] + 1)


def test_nobody_waits_for_more_than_ten_of_each_other_key():
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
def test_who_holds_most_is_known(steps):
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
        assert [places.oldest(k) for k in "abc"] == [next((i for i, its in held.items() if its == k), None) for k in "abc"]
        most = max(many.values(), default=0)
        early = [i for i, k in list(held.items())[:16] if 2 * many[k] >= most]
        spare = places.spare()
        assert spare == early[0] if early else spare is None or many[held[spare]] == most
