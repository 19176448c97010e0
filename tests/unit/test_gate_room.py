"""Test gates under a descriptor limit: each gate gets a bound if a start finds room."""

from types import SimpleNamespace

import pytest
from popkernel.actors.listener.admission import Admission
from popkernel.actors.listener.limits import Bounds, Limits
from popkernel.kernel.config.keys import Config
from popkernel.kernel.decisions import gate_room
from popkernel.kernel.supervisor import descriptor_room


@pytest.mark.parametrize("gates", [1, 2, 3, 16, 17, 52, 64])
def test_a_limit_that_is_enough_leaves_each_gate_a_session(monkeypatch, gates):
    """A share of 0 would mean no bound, as with 222 descriptors and 60 gates."""
    config = Config(listeners=gates, isolation="connection")
    monkeypatch.setattr(descriptor_room, "hard_limit", lambda _: limit)
    limit = descriptor_room._needed(config)
    assert descriptor_room.problem(config) == ""
    assert gate_room.sessions(limit, gates) >= 1
    assert gates * gate_room.sessions(limit, gates) >= 16
    finding, _ = descriptor_room.too_few(config)
    assert f"leaves room for {gates * gate_room.sessions(limit, gates)} sessions" in finding.what
    limit -= 1
    assert f"the limit of {limit} descriptors" in descriptor_room.problem(config)


@pytest.mark.parametrize("many", [1, 16, 100])
@pytest.mark.parametrize("gates", [1, 2, 7, 64])
def test_the_least_limit_is_exact(many, gates):
    least = gate_room.least(many, gates)
    assert gates * gate_room.sessions(least, gates) >= many
    assert gate_room.sessions(least - 1, gates) < -(-many // gates)


@pytest.mark.parametrize("left", [-24, 0, 1, 5])
def test_no_room_never_means_no_bound(left):
    admission = Admission.__new__(Admission)
    admission.most, admission.limits = 100, Limits(Bounds(sessions=100))
    admission._actor = SimpleNamespace(log=lambda *_, **__: None, boot=SimpleNamespace(name="gate.0"))
    admission.fit(128, left)
    assert admission.most == admission.limits.bounds.sessions == max(1, left)
