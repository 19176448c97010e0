"""What was recorded, beside what is said now: differences, field by field, with what led up to them. Pure."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from popkernel.kernel.operator.viewers import Wish, about, of_all
from popkernel.kernel.replay.harness import Said
from popkernel.proto.trace.recording import Frame
from popkernel.proto.trace.redaction import is_cut

__all__ = ["Difference", "Result", "compare", "recorded_of", "rewritten", "signs_of_life"]

_CONTEXT = 4  # frames shown before a difference
# What is no function of what was recorded: octets that a client typed hold its password; the others are counted by a process.
_NOT_COMPARED = {"Ended": ("octets_in",), "Counters": ("messages_in", "messages_out")}
_OF_ALL = {"Counters": ("sessions",)}  # not compared either where some sessions could not be played
_NOT_PLAYED = ("Hello",)  # said before the first frame, by the sandbox
_WORDS_OF_WHAT_IS_NOT = ("listener.", "auth")  # whose Log tells of clients that were turned away, and of waiting: neither is played


class Difference(NamedTuple):
    """One difference. `where`: the frame of the recording it stands at; `lines`: what differs; `before`: what led up to it."""

    actor: str
    where: int
    title: str
    lines: list[str]
    before: list[Frame]


class Result(NamedTuple):
    """An actor's replay. `notes`: what could not be replayed, and why."""

    actor: str
    frames: list[Frame]  # of this actor, in order
    said: list[Said]
    differences: list[Difference]
    notes: list[str]
    compared: int
    unjudged: frozenset[int] = frozenset()  # frames that were not compared


def recorded_of(wish: Wish, actor: str, sessions: set[int], one: Said) -> bool:
    """Whether the recording would have it: one of a user or a session has not all that an actor says. `sessions`: those it does have."""
    frame = {"actor": actor, "way": "out", "peer": one.peer, "name": one.name, "session": one.session, "fields": one.fields}
    if not wish.shows(frame):
        return False
    return not wish.user or about(frame) in sessions or wish.names_user(frame) or of_all(frame)


def _is_said(frame: Frame, skipped: set[int]) -> bool:
    judged = frame.name not in _NOT_PLAYED and not _of_what_is_not(frame.actor, frame.name)
    return frame.way == "out" and judged and frame.session not in skipped


def _of_what_is_not(actor: str, name: str) -> bool:
    return name == "Log" and actor.startswith(_WORDS_OF_WHAT_IS_NOT)


def signs_of_life(frames: Sequence[Frame]) -> set[int]:
    """Counters that nobody asked for: an actor says them when something takes it long, and a replay may be quicker."""
    asked, found = 0, set()
    for index, frame in enumerate(frames):
        if frame.way == "in" and frame.name == "Report":
            asked += 1
        elif frame.way == "out" and frame.name == "Counters":
            if not asked:
                found.add(index)
            asked = max(0, asked - 1)
    return found


def compare(actor: str, frames: Sequence[Frame], said: Sequence[Said], *, skipped: set[int], cut_off: bool) -> list[Difference]:
    """Stream by stream (a peer, a session): each recorded "out" beside what is said now.

    What is said beyond the recording's last turn is not held against anybody: the recording may have ended before it.
    """
    recorded: dict[tuple[str, int], list[int]] = {}
    unasked = signs_of_life(frames)
    for index, frame in enumerate(frames):
        if _is_said(frame, skipped) and index not in unasked:
            recorded.setdefault((frame.peer.partition("~")[0], frame.session), []).append(index)
    now: dict[tuple[str, int], list[Said]] = {}
    for one in said:
        if one.session not in skipped and not _of_what_is_not(actor, one.name):
            now.setdefault((one.peer.partition("~")[0], one.session), []).append(one)
    now = _named_alike(recorded, now)
    last = frames[-1].turn if frames else 0
    out: list[Difference] = []
    for stream in [*recorded, *(s for s in now if s not in recorded)]:
        out += _stream(actor, frames, recorded.get(stream, []), now.get(stream, []), last, cut_off=cut_off, partly=bool(skipped))
    return sorted(out, key=lambda d: d.where)


def _named_alike(recorded: dict[tuple[str, int], Any], now: dict[tuple[str, int], list[Said]]) -> dict[tuple[str, int], list[Said]]:
    """A maildir actor calls each listener "listener"; the recording has its name."""
    names = {session: peer for peer, session in recorded if peer.startswith("listener.")}
    return {((names[s], s) if p == "listener" and s in names else (p, s)): v for (p, s), v in now.items()}


def _stream(
    actor: str, frames: Sequence[Frame], indices: list[int], said: list[Said], last: int, *, cut_off: bool, partly: bool,
) -> list[Difference]:
    out: list[Difference] = []
    for index, one in zip(indices, said, strict=False):
        frame = frames[index]
        if frame.name != one.name:
            lines = [f"recorded: {frame.name} {frame.fields}", f"now:      {one.name} {one.fields}"]
            return [*out, Difference(actor, index, f"another message to {frame.peer}", lines, _before(frames, index))]
        if is_cut(frame.fields) >= 0:  # more than a frame of a trace holds: its size says what there is to say
            lines = _fields(frame.name, {"octets": frame.octets}, {"octets": one.octets}, partly=partly)
        else:
            lines = _fields(frame.name, frame.fields, one.fields, partly=partly)
        if lines:
            out.append(Difference(actor, index, f"{frame.name} to {frame.peer}", lines, _before(frames, index)))
    for index in indices[len(said) :]:
        frame = frames[index]
        out.append(
            Difference(
                actor, index, f"{frame.name} to {frame.peer} is not said any more", [f"recorded: {frame.fields}"], _before(frames, index)
            )
        )
    late = (one for one in said[len(indices) :] if one.turn < last and not cut_off)
    out += [
        Difference(
            actor, one.after, f"{one.name} to {one.peer} is said, and was not", [f"now: {one.fields}"], _before(frames, one.after + 1)
        )
        for one in late
    ]
    return out


def _before(frames: Sequence[Frame], index: int) -> list[Frame]:
    return list(frames[max(0, index - _CONTEXT) : index])


def _fields(name: str, recorded: dict[str, Any], now: dict[str, Any], *, partly: bool) -> list[str]:
    ignored = _NOT_COMPARED.get(name, ()) + (_OF_ALL.get(name, ()) if partly else ())
    lines: list[str] = []
    for key in [*recorded, *(k for k in now if k not in recorded)]:
        one, other = recorded.get(key, "(no such field)"), now.get(key, "(no such field)")
        if key in ignored or one == other:
            continue
        lines += [f"{key}: recorded {one!r}", f"{' ' * len(key)}  now      {other!r}"]
    return lines


def rewritten(result: Result, skipped: set[int]) -> list[Frame]:
    """The actor's frames with what it says now in the place of what it said."""
    left = result.unjudged | signs_of_life(result.frames)
    kept = [(index, frame) for index, frame in enumerate(result.frames) if index in left or not _is_said(frame, skipped)]
    names = {f.session: f.peer for f in result.frames if f.way == "out" and f.peer.startswith("listener.")}
    out = [(index, 0, frame) for index, frame in kept]
    for number, one in enumerate(result.said, 1):
        cause = result.frames[min(one.after, len(result.frames) - 1)]
        peer = names.get(one.session, one.peer) if one.peer == "listener" else one.peer
        frame = Frame(
            cause.time + number, max(cause.turn, one.turn), result.actor, "out", peer, one.name, one.session, one.octets, one.fields
        )
        out.append((one.after, number, frame))
    return [frame for _, _, frame in sorted(out, key=lambda row: row[:2])]
