"""The stage's clock: timers are called when the recording has it, not when their time has come."""

import pytest
from popkernel.kernel.loop import Loop
from popkernel.kernel.stage import StageLoop


@pytest.fixture
def stage():
    loop, called = StageLoop(), []
    loop.advance(100.0)
    loop.later(1.0, lambda: called.append(("one", loop.now)))
    loop.later(2.0, lambda: called.append(("two", loop.now)))
    return loop, called


def test_what_came_first_comes_first(stage):
    loop, called = stage
    loop.follow(101.0004)  # octets that were read in the millisecond in which the timer fell due
    assert called == []
    loop.fire(101.0012)
    assert called == [("one", 101.0012)]


def test_a_timer_whose_making_is_known_a_little_too_late(stage):
    loop, called = stage
    loop.fire(100.998)
    assert called == [("one", 100.998)]
    loop.fire(101.5)  # that of a timer that was made before the recording began
    assert len(called) == 1


def test_all_that_fell_due_in_a_turn_and_none_that_was_cancelled(stage):
    loop, called = stage
    loop.later(0.5, lambda: called.append("never")).cancel()
    loop.fire(103.0)
    assert called == [("one", 103.0), ("two", 103.0)]


def test_one_that_only_this_program_has_is_called_late(stage):
    loop, called = stage
    loop.follow(101.9)
    assert called == []
    loop.follow(102.5)
    assert [name for name, _ in called] == ["one"]
    assert loop.now == 102.5


def test_the_loop_tells_of_each_turn_with_a_timer_and_of_none_that_was_cancelled():
    loop, told = Loop(), []
    loop.on_timer = lambda: told.append("timer")
    loop.later(0, lambda: told.append("called"))
    loop.later(0, lambda: told.append("never")).cancel()
    loop.turn()
    assert told == ["timer", "called"]
