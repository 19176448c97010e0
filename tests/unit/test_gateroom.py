"""Room of a gate by the limit of descriptors: where a start says that there is some, each gate has a bound."""

import pytest
from popkernel.actors.listener.door import Door
from popkernel.actors.listener.limits import Bounds, Limits
from popkernel.kernel import gateroom, room
from popkernel.kernel.config import Config


@pytest.mark.parametrize("gates", [1, 2, 3, 16, 17, 52, 64])
def test_a_limit_that_is_enough_leaves_each_gate_a_session(monkeypatch, gates):
    """With 222 descriptors and 60 gates the share of each was 0, which was no bound."""
    config = Config(listeners=gates, isolation="connection")
    monkeypatch.setattr(room, "hard_limit", lambda _: limit)
    limit = room._needed(config)
    assert room.problem(config) == ""
    assert gateroom.sessions(limit, gates) >= 1
    assert gates * gateroom.sessions(limit, gates) >= 16
    finding, _ = room.too_few(config)
    assert f"leaves room for {gates * gateroom.sessions(limit, gates)} sessions" in finding.what
    limit -= 1
    assert f"the limit of {limit} descriptors" in room.problem(config)


@pytest.mark.parametrize("many", [1, 16, 100])
@pytest.mark.parametrize("gates", [1, 2, 7, 64])
def test_the_least_limit_is_the_least(many, gates):
    least = gateroom.least(many, gates)
    assert gates * gateroom.sessions(least, gates) >= many
    assert gateroom.sessions(least - 1, gates) < -(-many // gates)


@pytest.mark.parametrize("left", [-24, 0, 1, 5])
def test_no_room_is_no_bound_never(left):
    door = Door.__new__(Door)
    door.most, door.log = 100, lambda *_: None
    door.boot = type("Boot", (), {"name": "gate.0"})
    door.limits = Limits(Bounds(sessions=100))
    door._fit(128, left)
    assert door.most == door.limits.bounds.sessions == max(1, left)
