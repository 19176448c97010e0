"""The stage's clock: timers are called when the recording has it, not when their time has come; a turn's end is where it was."""

import pytest
from popkernel.kernel.replay.harness import Stage, StageLoop
from popkernel.kernel.runtime.loop import Loop
from popkernel.proto.trace.recording import Frame

MINE, OTHER = 1 << 40, 2 << 40


@pytest.fixture
def stage():
    loop, called = StageLoop(), []
    loop.turns = True
    loop.advance(100.0)
    loop.later(1.0, lambda: called.append(("one", loop.now)), MINE)
    loop.later(2.0, lambda: called.append(("two", loop.now)), MINE)
    return loop, called


def test_what_came_first_comes_first(stage):
    loop, called = stage
    loop.follow(101.0004)  # octets that were read in the millisecond in which the timer fell due
    assert called == []
    loop.fire(101.0012, MINE)
    assert called == [("one", 101.0012)]


def test_a_timer_whose_making_is_known_a_little_too_late(stage):
    loop, called = stage
    loop.fire(100.998, MINE)
    assert called == [("one", 100.998)]
    loop.fire(101.5, MINE)  # that of a timer that was made before the recording began
    assert len(called) == 1


def test_another_sessions_timer_calls_none_of_this_one(stage):
    loop, called = stage
    loop.later(1.0, lambda: called.append(("other", loop.now)), OTHER)
    loop.fire(101.5, OTHER)
    loop.end()
    assert called == [("other", 101.5)]
    loop.fire(101.6, 0)  # nobody's
    loop.end()
    assert len(called) == 1


def test_all_of_its_that_fell_due_in_a_turn_and_none_that_was_cancelled(stage):
    loop, called = stage
    loop.later(0.5, lambda: called.append("never"), MINE).cancel()
    loop.fire(103.0, MINE)
    loop.end()
    assert called == [("one", 103.0), ("two", 103.0)]


def test_one_that_only_this_program_has_is_called_late(stage):
    loop, called = stage
    loop.follow(100.9)
    loop.end()
    loop.follow(102.5)
    assert called == []  # the first turn of the loop for long: it would be called in this one
    loop.end()
    loop.follow(102.6)
    assert [name for name, _ in called] == ["one"]
    assert loop.now == 102.6


def test_of_an_older_recording_a_timer_is_anybodys():
    loop, called = StageLoop(), []
    loop.advance(100.0)
    loop.later(1.0, lambda: called.append("one"), MINE)
    loop.later(2.0, lambda: called.append("two"))
    loop.fire_all(101.0)
    assert called == ["one"]
    loop.fire_all(103.0)
    assert called == ["one", "two"]


def test_the_loop_tells_whose_a_timer_is_and_of_none_that_was_cancelled():
    loop, told = Loop(), []
    loop.on_timer = told.append
    loop.later(0, lambda: told.append("called"), MINE)
    loop.later(0, lambda: told.append("never"), OTHER).cancel()
    loop.turn()
    assert told == [MINE, "called"]


def test_the_loop_tells_of_a_turns_end():
    loop, seen = Loop(), []
    loop.soon(lambda: (seen.append(loop.ending), loop.soon(lambda: seen.append(loop.ending))))
    loop.later(0, lambda: seen.append(loop.ending))
    assert not loop.ending
    loop.turn()
    assert seen == [False, True, True]
    assert not loop.ending


def frame(turn, name="Typed", *, ending=False):
    return Frame(turn, turn, "mda", "in", "client", name, 1, 0, {"timers": True, "turns": True}, ending=ending)


def test_what_came_in_one_turn_goes_out_as_one():
    """Messages of a turn travel together: what is put off until its end sees all that came in it, and nothing that came behind."""
    stage, batch, batches = Stage(payload=False), [], []
    for played in stage.play([frame(1), frame(1), frame(2), frame(2, ending=True), frame(3)]):
        if not batch:
            stage.loop.soon(lambda: (batches.append([*batch]), batch.clear()))
        batch.append((played.turn, played.ending))
    assert batches == [[(1, False), (1, False)], [(2, False)], [(2, True)], [(3, False)]]


def said(turn, way="out", name="Ended"):
    return frame(turn, name)._replace(way=way)


@pytest.mark.parametrize(
    ("behind", "until"),
    [
        ([said(1, name="Reply"), said(1)], 0),  # all of it
        ([said(1), said(2)], 1),  # it went on
        ([said(1), said(1, "in", "Typed"), said(1)], 1),
        ([said(1), said(1, "note", "Timer"), said(1)], 1),
        ([said(2, "in", "Typed")], 0),
    ],
)
def test_what_an_actor_says_as_it_ends_is_judged_and_not_what_one_says_that_stays(behind, until):
    stage = Stage(payload=False, user="alice")
    stage.left([frame(1), *behind])
    assert stage.until == until


def test_what_is_said_is_said_in_the_turn_that_was_recorded():
    stage, turn = Stage(payload=False), 8464719874301
    assert int(turn / 1e9 * 1e9) != turn  # seconds are not exact
    stage.loop.now = turn / 1e9
    stage.notes("kernel", "Ended", 1, {})
    assert stage.said[0].turn == turn


@pytest.mark.parametrize(("timer", "called"), [(2_001_000_000, True), (1_994_000_000, False)])
def test_a_timer_is_called_where_its_maker_took_long_over_what_came_behind_it(timer, called):
    """When it was made lies anywhere between two frames, 50 ms here: a timer of 1 s ends between 2 and 2.05 s, and not before."""
    first = frame(1_000_000_000, "Open")
    second = frame(1_000_000_000, "Ready")._replace(time=1_050_000_000, way="out")
    stage, seen = Stage(payload=False), []
    for played in stage.play([first, second, frame(timer, "Timer")._replace(way="note", session=0)]):
        if played.name == "Open":
            stage.loop.later(1.0, lambda: seen.append(stage.loop.now))
    assert seen == ([timer / 1e9] if called else [])
