"""Many actors' frames as one story: in order, each message once, each answer beside its question. No terminal and no clock here.

A message is seen twice where both its ends are watched: the receiver's "in" tells it; the sender's "out" stands in where that does
not come. An answer is what the topology table says answers; its question is the oldest of that session that still waits.
"""

import heapq
from collections import OrderedDict, deque
from collections.abc import Iterator
from typing import Any, NamedTuple

from popkernel.proto.topology import EDGES, kind_of
from popkernel.proto.trace.recording import Frame

__all__ = ["Scene", "Story"]

HOLD = 60_000_000  # nanoseconds a frame waits for earlier ones of other actors
_REMEMBERED = 2000  # messages told by their sender's "out", and questions that wait
_ANSWERS = {(e.source, e.target): e.answers for e in EDGES if e.answers}
_ONE_AT_A_TIME = frozenset({"Login", "Awaiting"})  # a session has one of these under way, and may never hear of an earlier one
_KEYS = ("request", "delivery", "session")


class Scene(NamedTuple):
    """A frame of the story. `question` and `took` (nanoseconds) where it answers one."""

    frame: Frame
    question: str = ""
    took: int = 0


class _Question(NamedTuple):
    name: str
    time: int
    answers: tuple[str, ...]
    last: int  # the number of the last message that is asked for, 0 where that is not how it is answered


class Story:
    """Put frames in with `add`, take what is ready out with `tell`."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, Frame]] = []
        self._count = 0
        self._ins: OrderedDict[Any, int] = OrderedDict()  # messages that wait in the heap as "in"
        self._outs: OrderedDict[Any, int] = OrderedDict()  # messages already told by their "out"
        self._questions: dict[Any, deque[_Question]] = {}
        self._latest = 0

    def add(self, frame: Frame) -> None:
        """A frame as it came."""
        time = frame.time or self._latest
        self._latest = max(self._latest, time)
        if frame.way == "in":
            key = _key(frame)
            self._ins[key] = self._ins.get(key, 0) + 1
        self._count += 1
        heapq.heappush(self._heap, (time, self._count, frame))

    def tell(self, now: int | None = None) -> Iterator[Scene]:
        """All that is older than the time to wait, `now` being the monotonic clock in nanoseconds; all there is, for None."""
        while self._heap and (now is None or self._heap[0][0] + HOLD <= now):
            frame = heapq.heappop(self._heap)[2]
            if self._is_told(frame):
                continue
            if frame.way == "note":
                yield Scene(frame)
            else:
                yield self._answered(frame)

    def _is_told(self, frame: Frame) -> bool:
        """Whether the other end's frame tells this message."""
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

    def _answered(self, frame: Frame) -> Scene:
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
            last = fields.get("first", 0) + fields.get("many", 0) - 1 if frame.name == "Retrieve" else fields.get("number", 0)
            queue.append(_Question(frame.name, frame.time, expected, last))
            if len(self._questions) > _REMEMBERED:
                del self._questions[next(iter(self._questions))]
        return scene


def _is_last(frame: Frame, last: int) -> bool:
    """Whether nothing more answers that question."""
    fields = frame.fields
    if frame.name == "Mail" and last:
        parts = fields.get("parts", [])
        return any(parts[i] >= last and parts[i + 3] == 1 for i in range(0, len(parts) - 3, 4))
    if frame.name == "Missing" and last:
        return bool(fields.get("number", last) >= last)
    if frame.name == "Accepted":
        return True
    return bool(fields.get("last", True))


def _key(frame: Frame) -> Any:
    return frame.source, frame.target, frame.name, repr(frame.fields)


def _take(counts: "OrderedDict[Any, int]", key: Any) -> bool:
    """One less of it; False where there was none."""
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
