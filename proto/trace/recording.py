"""Recordings: what was watched, as a file. Pure.

A recording is msgpack objects, one behind the other: a header map, a map a frame, an end map. Any msgpack tool reads it. The header
says format, topology digest, program version, what was asked for, both clocks at the beginning and, where it was taken along, the
maildir as it was then; so a replay needs nothing else.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import msgpack

__all__ = ["FORMAT", "MOST_OCTETS", "Frame", "Recording", "RecordingError", "end", "header", "pack", "read"]

FORMAT = 1
MOST_OCTETS = 256 << 20  # of a recording; the header with a maildir in it is the largest part
_MOST_ITEMS = 1 << 20  # of an array or a map: room for them is made before they come
_WAYS = ("in", "out", "note")


class RecordingError(ValueError):
    """No recording, or one of another kind; the text is for whoever gave the file."""


class Frame(NamedTuple):
    """What passed at an actor. `time` and `turn` (when its loop woke): nanoseconds of the monotonic clock.

    `ending`: at the end of that turn, when what was put off until then is done.
    `way`: "in" or "out" seen from `actor`, `peer` the other end; or "note", an event that is no message, of `actor` about `peer`.
    `twin`: this is an "out" whose "in" at the other end is shown too. `lost`: so many frames before this one are missing.
    """

    time: int
    turn: int
    actor: str
    way: str
    peer: str
    name: str
    session: int
    octets: int
    fields: dict[str, Any]
    twin: bool = False
    lost: int = 0
    ending: bool = False

    @property
    def source(self) -> str:
        """Who says it."""
        return self.peer if self.way == "in" else self.actor

    @property
    def target(self) -> str:
        """Who is told."""
        return self.actor if self.way == "in" else self.peer

    def as_map(self) -> dict[str, Any]:
        """As it is recorded; what is not so is left out."""
        return {name: value for name, value in self._asdict().items() if value or name not in _OFTEN_NOT}

    @classmethod
    def of_map(cls, data: Any) -> "Frame":
        """RecordingError for a map that is no frame."""
        if type(data) is dict and set(data) == {"lost"} and type(data["lost"]) is int:
            return cls(0, 0, "", "note", "", "Lost", 0, 0, {"frames": data["lost"]}, lost=data["lost"])
        try:
            frame = cls(**data)
        except TypeError:
            raise RecordingError("not the fields of a frame") from None
        good = all(type(v) is t for v, t in zip(frame, _TYPES, strict=True))
        if not good or frame.way not in _WAYS or not all(type(k) is str for k in frame.fields):
            raise RecordingError("a frame's field of another type")
        return frame


_OFTEN_NOT = ("twin", "lost", "ending")
_TYPES = (int, int, str, str, str, str, int, int, dict, bool, int, bool)


class Recording(NamedTuple):
    """A recording that was read. `damage`: where and why it ends early, "" where it is whole."""

    header: dict[str, Any]
    frames: list[Frame]
    damage: str = ""


def pack(thing: Mapping[str, Any] | Frame) -> bytes:
    """A header, a frame or an end, as octets."""
    data: bytes = msgpack.packb(thing.as_map() if isinstance(thing, Frame) else dict(thing), unicode_errors="surrogateescape")
    return data


def header(answer: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """The header, from the server's answer to who attached."""
    kept = {key: answer[key] for key in ("topology", "version", "wall", "monotonic", "watches", "running")}
    return {"popkernel recording": FORMAT, **kept, **more}


def end(frames: int, lost: int) -> dict[str, Any]:
    """The end map of a whole recording."""
    return {"end": frames, "lost": lost}


def read(data: bytes) -> Recording:
    """Take a file apart. A damaged one is read up to there; RecordingError where not even the header can be."""
    objects = _objects(data)
    first = next(objects, None)
    if first is None or type(first[1]) is not dict or "popkernel recording" not in first[1]:
        raise RecordingError("no popkernel recording")
    head = first[1]
    if head["popkernel recording"] != FORMAT:
        raise RecordingError(f"a recording of format {head['popkernel recording']!r}; this program reads format {FORMAT}: record it anew")
    if any(name in head and not _of_kind(head[name], kind) for name, kind in _HEADER.items()):
        raise RecordingError("no popkernel recording: its header is none")
    frames: list[Frame] = []
    at = first[0]
    for where, thing in objects:
        if isinstance(thing, str):
            return Recording(head, frames, f"damaged at octet {at}, behind {len(frames)} frames: {thing}")
        if type(thing) is dict and "end" in thing:
            return Recording(head, frames)
        try:
            frames.append(Frame.of_map(thing))
        except RecordingError as error:
            return Recording(head, frames, f"damaged at octet {at}, behind {len(frames)} frames: {error}")
        at = where
    return Recording(head, frames, f"cut off at octet {at}, behind {len(frames)} frames")


# What is read of a header, where it says it; kinds in a list: one of each.
_HEADER: dict[str, Any] = {"monotonic": int, "watches": dict, "maildir_taken": [int, int]}


def _of_kind(value: Any, kind: Any) -> bool:
    if isinstance(kind, list):
        return type(value) is list and [type(v) for v in value] == kind
    return type(value) is kind


def _objects(data: bytes) -> Iterator[tuple[int, Any]]:
    """Each object and the octet behind it; a text in place of one that is none, then no more."""
    items = min(len(data), _MOST_ITEMS)  # one that claims more than there are octets is cut off
    unpacker = msgpack.Unpacker(
        max_buffer_size=MOST_OCTETS, max_array_len=items, max_map_len=items, max_ext_len=0, unicode_errors="surrogateescape",
    )
    try:
        unpacker.feed(data)
        while True:
            thing = unpacker.unpack()
            yield unpacker.tell(), thing if type(thing) is not str else None
    except msgpack.exceptions.OutOfData:
        return
    except (ValueError, TypeError, msgpack.exceptions.UnpackException, msgpack.exceptions.BufferFull) as error:
        yield -1, f"no msgpack ({type(error).__name__})"
