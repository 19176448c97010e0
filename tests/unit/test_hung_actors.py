"""Test kernel/supervisor/hung_actors.py: an actor that does not answer is named, once."""

import pytest
from popkernel.kernel.replay.loop import ReplayLoop
from popkernel.kernel.supervisor.hung_actors import HungActors
from popkernel.proto import messages as m
from popkernel.proto.topology import edge

from tests.support.registry import Registry


def world():
    loop, named = ReplayLoop(), []
    process = Registry(loop).comes("maildir.alice")
    return (
        loop,
        named,
        process,
        HungActors(loop, lambda process, seconds: named.append((process.name, seconds))),
    )


SECONDS = edge("kernel", "maildir.{user}").deadline


def test_silent():
    loop, named, process, hung = world()
    hung.suspect(process)
    hung.suspect(process)
    assert list(process.channel.said) == [m.CountersRequest()], "a second request counts as the first"
    loop.advance(SECONDS - 0.1)
    assert not named
    loop.advance(SECONDS + 0.1)
    assert named == [("maildir.alice", SECONDS)]


@pytest.mark.parametrize("counters", [m.Counters(1, 2, 0), m.Counters(0, 0, 0)])
def test_alive(counters):
    loop, named, process, hung = world()
    process.counters = m.Counters(0, 0, 0)
    hung.suspect(process)
    process.counters = counters
    loop.advance(SECONDS + 1)
    assert not named
    hung.suspect(process)
    assert len(process.channel.said) == 2, "a later suspicion is a new one"
    loop.advance(2 * SECONDS + 2)
    assert len(named) == 1


def test_a_starting_actor_has_longer():
    loop, named, process, hung = world()
    process.hello = None
    hung.suspect(process)
    loop.advance(SECONDS + 1)
    assert not named
    loop.advance(SECONDS + 21)
    assert named


def test_seconds_of_ones_own():
    loop, named, process, hung = world()
    process.hello = None
    hung.suspect(process, 4)
    loop.advance(4.1)
    assert named == [("maildir.alice", 4)]


def test_a_pause_of_the_kernel_is_not_counted():
    """After a machine was paused, the first timer must not end everybody."""
    loop, named, process, hung = world()
    hung.suspect(process)
    loop.advance(1000.0, late=True)
    assert not named
    loop.advance(1000.0 + SECONDS / 2 + 0.1)
    assert not named, "a late answer does not count"
    loop.advance(1000.0 + SECONDS + 0.1)
    assert named
