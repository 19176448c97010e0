"""What is compared, what is left out of it, and that no more than that is."""

import pytest
from popkernel.kernel.operator.viewers import Wish
from popkernel.kernel.replay.comparison import Result, compare, recorded_of, rewritten, signs_of_life
from popkernel.kernel.replay.harness import Said
from popkernel.proto.trace.recording import Frame
from popkernel.proto.trace.redaction import cut

MINE, OTHER = (1 << 40) + 1, (1 << 40) + 2


def frame(way, name, peer="kernel", *, turn=1, session=0, octets=0, **fields):
    return Frame(turn, turn, "maildir.alice", way, peer, name, session, octets, fields)


def said(name, peer="kernel", /, *, session=0, octets=0, **fields):
    return Said(peer, name, session, fields, octets, 0, 1)


def differences(frames, now):
    return [d.title for d in compare("maildir.alice", frames, now, skipped=set(), cut_off=False)]


COUNTERS = {"messages_in": 5, "messages_out": 5, "sessions": 1}


def test_counters_that_nobody_asked_for_are_a_matter_of_time():
    frames = [
        frame("out", "Counters", **COUNTERS), frame("in", "Report"), frame("out", "Counters", **COUNTERS), frame("out", "Counters", **COUNTERS),
        frame("out", "Log", level=4, text="x"), frame("in", "Report", turn=2),
    ]
    assert signs_of_life(frames) == {0, 3}
    assert differences(frames, [said("Counters", **COUNTERS), said("Log", level=4, text="x")]) == []


def test_counters_that_were_asked_for_are_compared():
    frames = [frame("out", "Counters", **COUNTERS), frame("in", "Report"), frame("out", "Counters", **COUNTERS), frame("in", "Report", turn=2)]
    assert differences(frames, [said("Counters", **{**COUNTERS, "sessions": 0})]) == ["Counters to kernel"]
    assert differences(frames, []) == ["Counters to kernel is not said any more"]
    assert differences(frames, [said("Counters", **COUNTERS)] * 2) == ["Counters to kernel is said, and was not"]


def test_an_update_keeps_signs_of_life():
    frames = [frame("out", "Counters", **COUNTERS), frame("out", "Log", level=4, text="before")]
    result = Result("maildir.alice", frames, [said("Log", level=4, text="now")], [], [], 2)
    assert [(f.name, f.fields.get("text")) for f in rewritten(result, set())] == [("Counters", None), ("Log", "now")]


def test_what_was_too_large_for_a_frame_is_compared_by_its_size():
    large = [frame("out", "Reply", "client", session=MINE, octets=500_000)._replace(fields=cut(500_123)), frame("in", "Report", turn=2)]
    assert differences(large, [said("Reply", "client", session=MINE, octets=500_000, said=[b"x"])]) == []
    assert differences(large, [said("Reply", "client", session=MINE, octets=499_999, said=[b"x"])]) == ["Reply to client"]
    assert differences(large, []) == ["Reply to client is not said any more"]


@pytest.mark.parametrize(("wish", "one", "there"), [
    ({}, said("Log", text="x"), True),
    ({"user": "alice"}, said("Log", text="x"), False),
    ({"user": "alice"}, said("Late", name="maildir.alice"), True),
    ({"user": "alice"}, said("Late", name="auth"), False),
    ({"user": "alice"}, said("Awaiting", session=MINE), True),
    ({"user": "alice"}, said("Awaiting", session=OTHER), False),
    ({"user": "alice"}, said("LoginFailed", session=OTHER, user="alice"), True),
    ({"session": MINE}, said("Awaiting", session=MINE), True),
    ({"session": MINE}, said("Log", text="x"), False),
], ids=str)
def test_what_a_recording_of_some_would_have(wish, one, there):
    """By the very functions that decide what is recorded."""
    assert recorded_of(Wish(wish), "listener.0", {MINE}, one) is there
