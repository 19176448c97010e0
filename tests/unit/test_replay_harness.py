"""Test the replay harness's clock: timers and turns follow the recording, not the time."""

import pytest
from popkernel.kernel.replay.harness import Harness
from popkernel.kernel.replay.loop import ReplayLoop
from popkernel.kernel.runtime.loop import Loop
from popkernel.proto.trace.recording import Frame

MINE, OTHER = 1 << 40, 2 << 40


@pytest.fixture
def recorded():
    loop, called = ReplayLoop(), []
    loop.turns = True
    loop.advance(100.0)
    loop.later(1.0, lambda: called.append(("one", loop.now)), MINE)
    loop.later(2.0, lambda: called.append(("two", loop.now)), MINE)
    return loop, called


def test_events_keep_their_order(recorded):
    loop, called = recorded
    loop.follow(101.0004)  # octets read in the millisecond in which the timer was due
    assert called == []
    loop.fire(101.0012, MINE)
    assert called == [("one", 101.0012)]


def test_a_timer_made_at_an_unknown_moment(recorded):
    loop, called = recorded
    loop.fire(100.998, MINE)
    assert called == [("one", 100.998)]
    loop.fire(101.5, MINE)  # a timer made before the recording began
    assert len(called) == 1


def test_another_sessions_timer_calls_none_of_this_one(recorded):
    loop, called = recorded
    loop.later(1.0, lambda: called.append(("other", loop.now)), OTHER)
    loop.fire(101.5, OTHER)
    loop.end()
    assert called == [("other", 101.5)]
    loop.fire(101.6, 0)  # a timer of no session
    loop.end()
    assert len(called) == 1


def test_due_timers_of_a_turn_run_and_cancelled_ones_do_not(recorded):
    loop, called = recorded
    loop.later(0.5, lambda: called.append("never"), MINE).cancel()
    loop.fire(103.0, MINE)
    loop.end()
    assert called == [("one", 103.0), ("two", 103.0)]


def test_a_new_timer_of_this_program_runs_late(recorded):
    loop, called = recorded
    loop.follow(100.9)
    loop.end()
    loop.follow(102.5)
    assert called == []  # the first turn for a long time would call it here
    loop.end()
    loop.follow(102.6)
    assert [name for name, _ in called] == ["one"]
    assert loop.now == 102.6


def test_timers_of_older_recordings_belong_to_any_session():
    loop, called = ReplayLoop(), []
    loop.advance(100.0)
    loop.later(1.0, lambda: called.append("one"), MINE)
    loop.later(2.0, lambda: called.append("two"))
    loop.fire_all(101.0)
    assert called == ["one"]
    loop.fire_all(103.0)
    assert called == ["one", "two"]


def test_the_loop_reports_a_timer_s_session():
    loop, told = Loop(), []
    loop.on_timer = told.append
    loop.later(0, lambda: told.append("called"), MINE)
    loop.later(0, lambda: told.append("never"), OTHER).cancel()
    loop.turn()
    assert told == [MINE, "called"]


def test_the_loop_reports_a_turn_s_end():
    loop, seen = Loop(), []
    loop.soon(lambda: (seen.append(loop.ending), loop.soon(lambda: seen.append(loop.ending))))
    loop.later(0, lambda: seen.append(loop.ending))
    assert not loop.ending
    loop.turn()
    assert seen == [False, True, True]
    assert not loop.ending


def frame(turn, name="Typed", *, ending=False):
    return Frame(
        turn, turn, "mda", "in", "client", name, 1, 0, {"timers": True, "turns": True}, ending=ending
    )


def test_messages_of_one_turn_leave_together():
    """What is put off to a turn's end sees all messages of that turn and none of the next."""
    harness, batch, batches = Harness(payload=False), [], []
    for played in harness.play([frame(1), frame(1), frame(2), frame(2, ending=True), frame(3)]):
        if not batch:
            harness.loop.soon(lambda: (batches.append([*batch]), batch.clear()))
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
def test_last_messages_are_compared_at_an_end_only(behind, until):
    harness = Harness(payload=False, user="alice")
    harness.left([frame(1), *behind])
    assert harness.until == until


def test_output_has_the_recorded_turn():
    harness, turn = Harness(payload=False), 8464719874301
    assert int(turn / 1e9 * 1e9) != turn  # seconds are not exact
    harness.loop.now = turn / 1e9
    harness.notes("kernel", "Ended", 1, {})
    assert harness.said[0].turn == turn


@pytest.mark.parametrize(("timer", "called"), [(2_001_000_000, True), (1_994_000_000, False)])
def test_a_timer_made_in_a_long_turn_runs_in_time(timer, called):
    """The timer was made at some moment between two frames, 50 ms apart: 1 s later is 2 to 2.05 s."""
    first = frame(1_000_000_000, "SessionOpen")
    second = frame(1_000_000_000, "MaildropReady")._replace(time=1_050_000_000, way="out")
    harness, seen = Harness(payload=False), []
    for played in harness.play([first, second, frame(timer, "Timer")._replace(way="note", session=0)]):
        if played.name == "SessionOpen":
            harness.loop.later(1.0, lambda: seen.append(harness.loop.now))
    assert seen == ([timer / 1e9] if called else [])
