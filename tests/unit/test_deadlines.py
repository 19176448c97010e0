"""Test kernel/runtime/deadlines.py: a silent kernel hangs, but time in which init did not run is no fault."""

from popkernel.kernel.replay.loop import ReplayLoop
from popkernel.kernel.runtime.deadlines import Deadline, Patience
from popkernel.proto.topology import edge

SECONDS = edge("init", "kernel").deadline


def world():
    loop, asked, named = ReplayLoop(), [], []
    patience = Patience(loop, lambda: asked.append(loop.now), lambda: True, named.append)
    patience.begin()
    return loop, asked, named, patience


def test_silent():
    loop, asked, named, patience = world()
    patience.begin()
    assert asked == [0.0], "a second request counts as the first"
    loop.advance(SECONDS - 0.1)
    assert not named
    loop.advance(SECONDS + 0.1)
    assert named == [f"is not alive: it has not answered for {SECONDS} s"]


def test_alive():
    loop, asked, named, patience = world()
    for n in range(3):
        loop.advance((1.5 * n + 0.5) * SECONDS)
        patience.answered()
        loop.advance((1.5 * n + 1.5) * SECONDS)
    assert not named
    assert len(asked) == 4


def test_a_pause_of_init_is_not_counted():
    """After a machine was paused, the first timer must not end the kernel."""
    loop, _, named, patience = world()
    loop.advance(1000.0, late=True)
    assert not named
    loop.advance(1000.0 + SECONDS - 0.1)
    assert not named, "a late answer does not count"
    patience.answered()
    loop.advance(1000.0 + SECONDS + 0.1)
    assert not named


def test_a_deadline_passes_all_the_same():
    loop, called = ReplayLoop(), []
    Deadline(loop, 8, lambda: called.append(loop.now))
    Deadline(loop, 8, lambda: called.append("cancelled")).cancel()
    loop.advance(3.0)
    loop.advance(100.0, late=True)
    loop.advance(200.0, late=True)
    assert not called
    loop.advance(210.0)
    assert called == [206.0]
