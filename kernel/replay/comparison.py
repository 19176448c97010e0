"""Compare what a recorded actor sent with what the replayed one sends, field by field. Pure."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from popkernel.kernel.operator.viewers import TraceFilter, concerns_all, frame_session
from popkernel.kernel.replay.harness import Said
from popkernel.proto.trace.recording import Frame
from popkernel.proto.trace.redaction import is_cut

__all__ = ["Difference", "Result", "compare", "recorded_of", "rewritten", "signs_of_life"]

_CONTEXT = 4  # frames shown before a difference
# Fields that do not follow from the recording: `octets_in` counts the client's password, which is redacted,
# `messages_in` and `messages_out` count all messages of the process, `peak` is its memory, and the others are
# times of what is not played, handshakes and hashing, or faults of clients in what is not recorded.
_NOT_COMPARED = {
    "ConnectionEnded": ("octets_in", "tls_ms", "fault", "reason"),
    "Counters": ("messages_in", "messages_out"),
    "LoginDenied": ("milliseconds",),
    "LoginGranted": ("queue_ms", "hash_ms", "penalty_ms"),
    "SessionClosed": ("peak",),
    "SessionParked": ("peak",),
}
_OF_ALL = {"Counters": ("sessions",)}  # not compared either if some sessions could not be played
_NOT_PLAYED = ("Hello",)  # sent before the first frame
_SECRET_PEERS = ("auth", "auth")  # what one auth hands over to the next is secret
# actors whose LogEvents are not compared: they tell of refused clients and of waiting, which are not played
_UNCOMPARED_LOGS = ("listener.", "auth")
_LOADS = ("LoginLoad", "PlacesRefused", "AccountState")  # reports of the same


class Difference(NamedTuple):
    """Hold one difference.

    `where`: index of the recorded frame. `lines`: the differing fields. `before`: the frames before it.
    """

    actor: str
    where: int
    title: str
    lines: list[str]
    before: list[Frame]


class Result(NamedTuple):
    """Hold an actor's replay. `notes`: what could not be replayed, and why."""

    actor: str
    frames: list[Frame]  # of this actor, in order
    said: list[Said]
    differences: list[Difference]
    notes: list[str]
    compared: int
    unjudged: frozenset[int] = frozenset()  # frames that were not compared


def recorded_of(wish: TraceFilter, actor: str, sessions: set[int], one: Said) -> bool:
    """Return whether the recording would have this message: one of a single user or session lacks some.

    `sessions`: those it does have.
    """
    frame = {
        "actor": actor,
        "way": "out",
        "peer": one.peer,
        "name": one.name,
        "session": one.session,
        "fields": one.fields,
    }
    if not wish.shows(frame):
        return False
    return not wish.user or frame_session(frame) in sessions or wish.names_user(frame) or concerns_all(frame)


def _is_compared(frame: Frame, skipped: set[int]) -> bool:
    judged = frame.name not in _NOT_PLAYED and not _is_uncompared(frame.actor, frame.peer, frame.name)
    return frame.way == "out" and judged and frame.session not in skipped


def _is_uncompared(actor: str, peer: str, name: str) -> bool:
    log = name in _LOADS or (name == "LogEvent" and actor.startswith(_UNCOMPARED_LOGS))
    return log or (actor.partition("~")[0], peer.partition("~")[0]) == _SECRET_PEERS


def signs_of_life(frames: Sequence[Frame]) -> set[int]:
    """Find Counters frames without a CountersRequest.

    An actor sends them during long work, and a replay may be quicker.
    """
    asked, found = 0, set()
    for index, frame in enumerate(frames):
        if frame.way == "in" and frame.name == "CountersRequest":
            asked += 1
        elif frame.way == "out" and frame.name == "Counters":
            if not asked:
                found.add(index)
            asked = max(0, asked - 1)
    return found


def compare(
    actor: str, frames: Sequence[Frame], said: Sequence[Said], *, skipped: set[int], cut_off: bool
) -> list[Difference]:
    """Compare each recorded "out" frame with the message sent now, stream by stream (peer and session).

    Messages sent after the recording's last turn are no difference: the recording may have ended before them.
    """
    recorded: dict[tuple[str, int], list[int]] = {}
    unasked = signs_of_life(frames)
    for index, frame in enumerate(frames):
        if _is_compared(frame, skipped) and index not in unasked:
            recorded.setdefault((frame.peer.partition("~")[0], frame.session), []).append(index)
    now: dict[tuple[str, int], list[Said]] = {}
    for one in said:
        if one.session not in skipped and not _is_uncompared(actor, one.peer, one.name):
            now.setdefault((one.peer.partition("~")[0], one.session), []).append(one)
    now = _with_recorded_names(recorded, now)
    last = frames[-1].turn if frames else 0
    out: list[Difference] = []
    for stream in [*recorded, *(s for s in now if s not in recorded)]:
        out += _stream(
            actor,
            frames,
            recorded.get(stream, []),
            now.get(stream, []),
            last,
            cut_off=cut_off,
            partly=bool(skipped),
        )
    return sorted(out, key=lambda d: d.where)


def _with_recorded_names(
    recorded: dict[tuple[str, int], Any], now: dict[tuple[str, int], list[Said]]
) -> dict[tuple[str, int], list[Said]]:
    """Give listeners the names of the recording: a maildir actor calls each of them "listener"."""
    names = {session: peer for peer, session in recorded if peer.startswith("listener.")}
    return {((names[s], s) if p == "listener" and s in names else (p, s)): v for (p, s), v in now.items()}


def _stream(
    actor: str,
    frames: Sequence[Frame],
    indices: list[int],
    said: list[Said],
    last: int,
    *,
    cut_off: bool,
    partly: bool,
) -> list[Difference]:
    out: list[Difference] = []
    for index, one in zip(indices, said, strict=False):
        frame = frames[index]
        if frame.name != one.name:
            lines = [f"recorded: {frame.name} {frame.fields}", f"now:      {one.name} {one.fields}"]
            return [
                *out,
                Difference(actor, index, f"another message to {frame.peer}", lines, _before(frames, index)),
            ]
        # the fields were too large for a frame: compare their size
        if is_cut(frame.fields) >= 0:
            lines = _fields(frame.name, {"octets": frame.octets}, {"octets": one.octets}, partly=partly)
        else:
            lines = _fields(frame.name, frame.fields, one.fields, partly=partly)
        if lines:
            out.append(
                Difference(actor, index, f"{frame.name} to {frame.peer}", lines, _before(frames, index))
            )
    for index in indices[len(said) :]:
        frame = frames[index]
        out.append(
            Difference(
                actor,
                index,
                f"{frame.name} to {frame.peer} is no longer sent",
                [f"recorded: {frame.fields}"],
                _before(frames, index),
            )
        )
    late = (one for one in said[len(indices) :] if one.turn < last and not cut_off)
    out += [
        Difference(
            actor,
            one.after,
            f"{one.name} to {one.peer} is sent, but was not recorded",
            [f"now: {one.fields}"],
            _before(frames, one.after + 1),
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
    """Return the actor's frames with the messages sent now in the place of the recorded ones."""
    left = result.unjudged | signs_of_life(result.frames)
    kept = [
        (index, frame)
        for index, frame in enumerate(result.frames)
        if index in left or not _is_compared(frame, skipped)
    ]
    names = {f.session: f.peer for f in result.frames if f.way == "out" and f.peer.startswith("listener.")}
    out = [(index, 0, frame) for index, frame in kept]
    for number, one in enumerate(result.said, 1):
        cause = result.frames[min(one.after, len(result.frames) - 1)]
        peer = names.get(one.session, one.peer) if one.peer == "listener" else one.peer
        frame = Frame(
            cause.time + number,
            max(cause.turn, one.turn),
            result.actor,
            "out",
            peer,
            one.name,
            one.session,
            one.octets,
            one.fields,
        )
        out.append((one.after, number, frame))
    return [frame for _, _, frame in sorted(out, key=lambda row: row[:2])]
