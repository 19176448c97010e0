"""Merge the frames of many actors into one story: in order, each message once, answers with their questions.

Needs no terminal and no clock.

If both ends of a message are traced, it comes twice: the receiver's "in" is shown, or the sender's "out" if
no "in" comes. The topology table says which messages answer which; an answer belongs to the session's oldest
open question.
"""

import heapq
from collections import OrderedDict, deque
from collections.abc import Iterator
from typing import Any, NamedTuple

from popkernel.proto.topology import EDGES, kind_of
from popkernel.proto.trace.recording import Frame

__all__ = ["Scene", "Story"]

# Nanoseconds that a frame waits for earlier ones of other actors. They count from its arrival: on a busy
# machine it may be older than that when it comes, and the earlier ones come a moment after it.
HOLD = 60_000_000
_REMEMBERED = 2000  # messages shown by their "out", and open questions
_ANSWERS = {(e.source, e.target): e.answers for e in EDGES if e.answers}
# A session has at most one of these open, and may never see an answer to an earlier one.
_ONE_AT_A_TIME = frozenset({"LoginRequest", "LoginStarted"})
_KEYS = ("request", "delivery", "session")


class Scene(NamedTuple):
    """A frame of the story. `question` and `took` (nanoseconds): the message it answers, and the delay."""

    frame: Frame
    question: str = ""
    took: int = 0


class _Question(NamedTuple):
    name: str
    time: int
    answers: tuple[str, ...]
    last: int  # number of the last mail message asked for; 0 if the answers do not count them


class Story:
    """Sort and match frames: put them in by `add`, take scenes out by `ready`."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, int, Frame]] = []  # its time, its number, when it came
        self._count = 0
        self._ins: OrderedDict[Any, int] = OrderedDict()  # messages in the heap as "in"
        self._outs: OrderedDict[Any, int] = OrderedDict()  # messages already shown by their "out"
        self._questions: dict[Any, deque[_Question]] = {}
        self._latest = 0

    def add(self, frame: Frame, now: int) -> None:
        """Add a frame that came at `now`, as of `ready`."""
        time = frame.time or self._latest
        self._latest = max(self._latest, time)
        if frame.way == "in":
            key = _key(frame)
            self._ins[key] = self._ins.get(key, 0) + 1
        self._count += 1
        heapq.heappush(self._heap, (time, self._count, now, frame))

    def ready(self, now: int | None = None) -> Iterator[Scene]:
        """Yield the scenes that need wait no longer at `now` (monotonic clock, nanoseconds); all for None."""
        while self._heap and (now is None or self._heap[0][2] + HOLD <= now):
            frame = heapq.heappop(self._heap)[3]
            if self._is_double(frame):
                continue
            if frame.way == "note":
                yield Scene(frame)
            else:
                yield self._matched(frame)

    def _is_double(self, frame: Frame) -> bool:
        """Say whether the frame of the other end shows this message."""
        if frame.way == "in":
            key = _key(frame)
            _take(self._ins, key)
            return _take(self._outs, key)
        if frame.way == "out" and frame.twin:
            key = _key(frame)
            if key in self._ins:
                return True
            self._outs[key] = self._outs.get(key, 0) + 1
            if len(self._outs) > _REMEMBERED:
                self._outs.popitem(last=False)
        return False

    def _matched(self, frame: Frame) -> Scene:
        """Make the scene, with the question that it answers; remember a new question."""
        source, target = _row(frame.source), _row(frame.target)
        about = next((frame.fields[k] for k in _KEYS if k in frame.fields), frame.session)
        waiting = self._questions.get((frame.target, frame.source, about))
        scene = Scene(frame)
        if waiting and frame.name in waiting[0].answers:
            scene = Scene(frame, waiting[0].name, frame.time - waiting[0].time)
            if _is_last(frame, waiting[0].last):
                waiting.popleft()
                if not waiting:
                    del self._questions[(frame.target, frame.source, about)]
        expected = _ANSWERS.get((source, target), {}).get(frame.name)
        if expected:
            queue = self._questions.setdefault((frame.source, frame.target, about), deque(maxlen=_REMEMBERED))
            if frame.name in _ONE_AT_A_TIME:
                queue.clear()
            fields = frame.fields
            last = (
                fields.get("first", 0) + fields.get("many", 0) - 1
                if frame.name == "Retrieve"
                else fields.get("number", 0)
            )
            queue.append(_Question(frame.name, frame.time, expected, last))
            if len(self._questions) > _REMEMBERED:
                del self._questions[next(iter(self._questions))]
        return scene


def _is_last(frame: Frame, last: int) -> bool:
    """Say whether this is the last answer to the question."""
    fields = frame.fields
    if frame.name == "MailContent" and last:
        parts = fields.get("parts", [])
        return any(parts[i] >= last and parts[i + 3] == 1 for i in range(0, len(parts) - 3, 4))
    if frame.name == "MessageMissing" and last:
        return bool(fields.get("number", last) >= last)
    if frame.name == "DeliveryAccepted":
        return True
    return bool(fields.get("last", True))


def _key(frame: Frame) -> Any:
    return frame.source, frame.target, frame.name, repr(frame.fields)


def _take(counts: "OrderedDict[Any, int]", key: Any) -> bool:
    """Decrease a count; False if there is none."""
    if key not in counts:
        return False
    counts[key] -= 1
    if not counts[key]:
        del counts[key]
    return True


def _row(name: str) -> str:
    try:
        return kind_of(name)
    except KeyError:
        return name
