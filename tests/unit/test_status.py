"""Test the kernel's report of sessions whose listener died."""

import pytest
from popkernel.kernel.decisions.leases import Key
from popkernel.kernel.operator.status import sessions_lost


@pytest.mark.parametrize(("many", "lines"), [(0, 0), (100, 100), (101, 101), (5000, 101)])
def test_a_hundred_are_named_and_the_others_counted(many, lines):
    opened = {Key("listener.0", (1 << 40) + n): (f"user{n}", 10.0) for n in range(many)}
    other = Key("listener.1", (2 << 40) + 1)
    opened[other] = ("other's", 10.0)
    keys = [key for key in opened if key != other]
    said = list(sessions_lost(opened, [*keys, Key("listener.0", 5)], 12.5))
    assert len(said) == lines
    if many:
        assert said[0] == {"session": "1.0", "why": "listener", "user": "user0", "ms": 2500}
    if many > 100:
        assert said[-1] == {"why": "listener", "more": many - 100}
    assert list(opened) == [other]
    assert list(sessions_lost(opened, keys, 13.0)) == []
