"""Test replay's comparison: what it compares and what it leaves out."""

import pytest
from popkernel.kernel.operator.viewers import TraceFilter
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


def test_unrequested_counters_are_not_compared():
    frames = [
        frame("out", "Counters", **COUNTERS),
        frame("in", "CountersRequest"),
        frame("out", "Counters", **COUNTERS),
        frame("out", "Counters", **COUNTERS),
        frame("out", "LogEvent", level=4, event="x"),
        frame("in", "CountersRequest", turn=2),
    ]
    assert signs_of_life(frames) == {0, 3}
    assert differences(frames, [said("Counters", **COUNTERS), said("LogEvent", level=4, event="x")]) == []


def test_requested_counters_are_compared():
    frames = [
        frame("out", "Counters", **COUNTERS),
        frame("in", "CountersRequest"),
        frame("out", "Counters", **COUNTERS),
        frame("in", "CountersRequest", turn=2),
    ]
    assert differences(frames, [said("Counters", **{**COUNTERS, "sessions": 0})]) == ["Counters to kernel"]
    assert differences(frames, []) == ["Counters to kernel is no longer sent"]
    assert differences(frames, [said("Counters", **COUNTERS)] * 2) == [
        "Counters to kernel is sent, but was not recorded"
    ]


def test_an_update_keeps_signs_of_life():
    frames = [frame("out", "Counters", **COUNTERS), frame("out", "LogEvent", level=4, event="before")]
    result = Result("maildir.alice", frames, [said("LogEvent", level=4, event="now")], [], [], 2)
    assert [(f.name, f.fields.get("event")) for f in rewritten(result, set())] == [
        ("Counters", None),
        ("LogEvent", "now"),
    ]


def test_large_contents_are_compared_by_size():
    large = [
        frame("out", "Reply", "client", session=MINE, octets=500_000)._replace(fields=cut(500_123)),
        frame("in", "CountersRequest", turn=2),
    ]
    assert differences(large, [said("Reply", "client", session=MINE, octets=500_000, said=[b"x"])]) == []
    assert differences(large, [said("Reply", "client", session=MINE, octets=499_999, said=[b"x"])]) == [
        "Reply to client"
    ]
    assert differences(large, []) == ["Reply to client is no longer sent"]


@pytest.mark.parametrize(
    ("wish", "one", "there"),
    [
        ({}, said("LogEvent", text="x"), True),
        ({"user": "alice"}, said("LogEvent", text="x"), False),
        ({"user": "alice"}, said("PeerTimeout", name="maildir.alice"), True),
        ({"user": "alice"}, said("PeerTimeout", name="auth"), False),
        ({"user": "alice"}, said("LoginStarted", session=MINE), True),
        ({"user": "alice"}, said("LoginStarted", session=OTHER), False),
        ({"user": "alice"}, said("LoginFailed", session=OTHER, user="alice"), True),
        ({"session": MINE}, said("LoginStarted", session=MINE), True),
        ({"session": MINE}, said("LogEvent", text="x"), False),
    ],
    ids=str,
)
def test_filters_leave_out_what_recordings_leave_out(wish, one, there):
    """Uses the functions that decide what is recorded."""
    assert recorded_of(TraceFilter(wish), "listener.0", {MINE}, one) is there
