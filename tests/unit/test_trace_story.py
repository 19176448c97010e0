"""Test the order in which `popkernel trace` shows frames of several actors."""

from popkernel.cli.common.trace_story import HOLD, Story
from popkernel.proto.trace.recording import Frame

MS = 1_000_000


def note(time, name):
    return Frame(time * MS, 0, "listener.0", "note", "", name, 0, 0, {})


def shown(story, now=None):
    return [scene.frame.name for scene in story.ready(now if now is None else now * MS)]


def test_frames_are_shown_in_the_order_of_their_times():
    story = Story()
    for time, name in ((30, "third"), (10, "first"), (20, "second")):
        story.add(note(time, name), 40 * MS)
    assert shown(story, 50) == []
    assert shown(story, 40 + HOLD // MS) == ["first", "second", "third"]


def test_frames_that_all_come_late_are_shown_in_order_too():
    """A kernel that gets no processor for a moment passes on old frames, one actor's after another's."""
    story = Story()
    story.add(note(200, "second"), 900 * MS)
    assert shown(story, 901) == []
    story.add(note(100, "first"), 902 * MS)
    assert shown(story, 902 + HOLD // MS) == ["first", "second"]


def test_at_the_end_nothing_waits():
    story = Story()
    story.add(note(2, "second"), 3 * MS)
    story.add(note(1, "first"), 3 * MS)
    assert shown(story) == ["first", "second"]
