"""kernel/runtime/deadlines.py: a kernel that says nothing hangs; the time in which init itself did not run is nobody's fault."""

from popkernel.kernel.replay.harness import StageLoop
from popkernel.kernel.runtime.deadlines import Deadline, Patience
from popkernel.proto.topology import edge

SECONDS = edge("init", "kernel").deadline


def world():
    loop, asked, named = StageLoop(), [], []
    patience = Patience(loop, lambda: asked.append(loop.now), lambda: True, named.append)
    patience.begin()
    return loop, asked, named, patience


def test_silent():
    loop, asked, named, patience = world()
    patience.begin()
    assert asked == [0.0], "asking twice is asking once"
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


def test_init_itself_did_not_run():
    """A machine that was paused during a reload had the kernel ended by the first timer after it."""
    loop, _, named, patience = world()
    loop.advance(1000.0, late=True)
    assert not named
    loop.advance(1000.0 + SECONDS - 0.1)
    assert not named, "what was late counts for nothing"
    patience.answered()
    loop.advance(1000.0 + SECONDS + 0.1)
    assert not named


def test_a_deadline_passes_all_the_same():
    loop, called = StageLoop(), []
    Deadline(loop, 8, lambda: called.append(loop.now))
    Deadline(loop, 8, lambda: called.append("cancelled")).cancel()
    loop.advance(3.0)
    loop.advance(100.0, late=True)
    loop.advance(200.0, late=True)
    assert not called
    loop.advance(210.0)
    assert called == [206.0]
