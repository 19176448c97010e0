"""Read and write recordings, the files of traced frames. Pure.

A recording is a sequence of msgpack objects: a header map, a map for each frame, an end map. Any msgpack tool
reads it. The header holds format, topology digest, program version, options, both clocks at the beginning
and, if recorded, the maildir at that time: a replay needs nothing else.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import msgpack

__all__ = ["FORMAT", "MOST_OCTETS", "Frame", "Recording", "RecordingError", "end", "header", "pack", "read"]

FORMAT = 1
MOST_OCTETS = 256 << 20  # of a recording; a maildir in the header takes most of it
_MOST_ITEMS = 1 << 20  # of an array or a map: msgpack allocates it before the items come
_WAYS = ("in", "out", "note")


class RecordingError(ValueError):
    """The file is no recording, or of another format. The text is for the operator."""


class Frame(NamedTuple):
    """A message that an actor received or sent, or an event of its own.

    `time` and `turn` (when its loop woke): nanoseconds of the monotonic clock. `ending`: at the end of that
    turn, when deferred work is done. `way`: "in" or "out", seen from `actor`, with `peer` at the other end;
    or "note", an event of `actor` about `peer`. `twin`: an "out" whose "in" at the other end is shown too.
    `lost`: number of frames missing before this one.
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
        """The sender."""
        return self.peer if self.way == "in" else self.actor

    @property
    def target(self) -> str:
        """The receiver."""
        return self.actor if self.way == "in" else self.peer

    def as_map(self) -> dict[str, Any]:
        """Return the map to be recorded; fields in `_OFTEN_NOT` only if set."""
        return {name: value for name, value in self._asdict().items() if value or name not in _OFTEN_NOT}

    @classmethod
    def of_map(cls, data: Any) -> "Frame":
        """Make a frame of a recorded map. Raises RecordingError if it is malformed."""
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
    """A recording that was read. `damage`: where and why it ends early, "" if it is whole."""

    header: dict[str, Any]
    frames: list[Frame]
    damage: str = ""


def pack(thing: Mapping[str, Any] | Frame) -> bytes:
    """Encode a header, a frame or an end map."""
    data: bytes = msgpack.packb(
        thing.as_map() if isinstance(thing, Frame) else dict(thing), unicode_errors="surrogateescape"
    )
    return data


def header(answer: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """Make the header from the server's answer to `trace`."""
    kept = {key: answer[key] for key in ("topology", "version", "wall", "monotonic", "watches", "running")}
    return {"popkernel recording": FORMAT, **kept, **more}


def end(frames: int, lost: int) -> dict[str, Any]:
    """Make the end map of a whole recording."""
    return {"end": frames, "lost": lost}


def read(data: bytes) -> Recording:
    """Parse a recording.

    A damaged one is read up to the damage. Raises RecordingError if the header cannot be read.
    """
    objects = _objects(data)
    first = next(objects, None)
    if first is None or type(first[1]) is not dict or "popkernel recording" not in first[1]:
        raise RecordingError("no popkernel recording")
    head = first[1]
    if head["popkernel recording"] != FORMAT:
        raise RecordingError(
            f"a recording of format {head['popkernel recording']!r};"
            f" this program reads format {FORMAT}: record it anew"
        )
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


# Types of the header's optional fields; a list of types: one item of each.
_HEADER: dict[str, Any] = {"monotonic": int, "watches": dict, "maildir_taken": [int, int]}


def _of_kind(value: Any, kind: Any) -> bool:
    if isinstance(kind, list):
        return type(value) is list and [type(v) for v in value] == kind
    return type(value) is kind


def _objects(data: bytes) -> Iterator[tuple[int, Any]]:
    """Yield each object with the offset behind it; at malformed octets a text with the error, then stop."""
    items = min(len(data), _MOST_ITEMS)  # an object cannot have more items than the file has octets
    unpacker = msgpack.Unpacker(
        max_buffer_size=MOST_OCTETS,
        max_array_len=items,
        max_map_len=items,
        max_ext_len=0,
        unicode_errors="surrogateescape",
    )
    try:
        unpacker.feed(data)
        while True:
            thing = unpacker.unpack()
            yield unpacker.tell(), thing if type(thing) is not str else None
    except msgpack.exceptions.OutOfData:
        return
    except (
        ValueError,
        TypeError,
        msgpack.exceptions.UnpackException,
        msgpack.exceptions.BufferFull,
    ) as error:
        yield -1, f"no msgpack ({type(error).__name__})"
