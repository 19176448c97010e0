"""Test actors/mda/limits.py: neither one user nor TCP clients can keep the mail server out."""

import random

import pytest
from popkernel.actors.mda.limits import TCP, Limits


def many(limits, uid):
    """Return how many connections that uid gets."""
    count = 0
    while not limits.take(uid):
        count += 1
    return count


def test_one_user():
    limits = Limits(20, 5, [0])
    assert many(limits, 1000) == 5
    assert many(limits, 1001) == 5
    assert many(limits, 1002) == 0, "half is for users"
    assert many(limits, TCP) == 5, "a quarter is left"
    assert many(limits, 0) == 5
    limits.leave(1000)
    assert limits.take(1002) == ""


def test_tcp_has_half():
    limits = Limits(20, 20, [0])
    assert many(limits, TCP) == 10
    assert many(limits, 1000) == 5
    assert many(limits, 0) == 5
    assert many(Limits(20, 20, [0]), 0) == 20


@pytest.mark.parametrize("most", [1, 2, 3, 4, 7])
def test_few(most):
    assert many(Limits(most, 50, [0]), 1000) == (most + 1) // 2
    assert many(Limits(most, 50, [0]), 0) == most


def test_whatever_comes_and_goes():
    dice = random.Random(1)
    limits, held = Limits(16, 3, [0, 7]), []
    for _ in range(5000):
        if held and dice.random() < 0.45:
            limits.leave(held.pop(dice.randrange(len(held))))
        else:
            uid = dice.choice([0, 7, TCP, 1, 2, 3, 4, 5, 6])
            if not limits.take(uid):
                held.append(uid)
        counts = {uid: held.count(uid) for uid in set(held)}
        assert len(held) <= 16
        assert all(counts.get(uid, 0) <= 3 for uid in range(1, 7))
        assert counts.get(TCP, 0) <= 8
        assert sum(counts.get(uid, 0) for uid in range(1, 7)) <= 8
        assert sum(counts.get(uid, 0) for uid in (TCP, *range(1, 7))) <= 12
    for uid in held:
        limits.leave(uid)
    assert (limits.untrusted, +limits.held) == (0, {})
