"""What of a message may be shown: its fields by name, secret ones replaced, mail content cut to its size. Pure.

A watched actor calls this before anything of the message leaves it, so a secret is never encoded for a trace or a recording.
"""

from typing import Any

import msgpack
from popkernel.proto.schema import fields_of

__all__ = ["SECRET", "content", "cut", "is_cut", "recut", "shown"]

SECRET = "[secret]"  # noqa: S105  stands in the place of a secret field, whatever its length was
_CUT = "octets cut"
_WHOLE = "content"

_pack = msgpack.Packer(use_bin_type=True, autoreset=True).pack
_shapes: dict[type, tuple[tuple[str, int], ...]] = {}
_PLAIN, _SECRET, _CONTENT = 0, 1, 2


def cut(octets: int) -> dict[str, int]:
    """What stands in the place of content that is not shown."""
    return {_CUT: octets}


def is_cut(value: Any) -> int:
    """The octets of cut content; -1 where `value` is not that."""
    return value[_CUT] if type(value) is dict and len(value) == 1 and type(value.get(_CUT)) is int else -1


def content(data: bytes) -> dict[str, bytes]:
    """How content is shown to who asked for it: apart from what is not content, so that `recut` finds it."""
    return {_WHOLE: data}


def recut(value: Any) -> Any:
    """The same with all content cut: for a viewer who did not ask for it, beside one who did."""
    if type(value) is dict:
        whole = value.get(_WHOLE)
        return cut(len(whole)) if len(value) == 1 and type(whole) is bytes else {k: recut(v) for k, v in value.items()}
    return [recut(v) for v in value] if type(value) is list and value and type(value[0]) is not int else value


def _shape(message: type) -> tuple[tuple[str, int], ...]:
    shape = tuple(
        (name, _SECRET if f.secret else _CONTENT if f.content else _PLAIN) for name, f in fields_of(message).items()
    )
    _shapes[message] = shape
    return shape


def shown(message: tuple[Any, ...], *, payload: bool) -> tuple[dict[str, Any], int]:
    """Its fields, and its size in octets as a frame (that of a secret is not told: it counts as the mark that replaces it)."""
    shape = _shapes.get(type(message)) or _shape(type(message))
    fields: dict[str, Any] = {}
    octets = 2  # array head and code
    for (name, kind), value in zip(shape, message, strict=True):
        if kind == _PLAIN:
            fields[name] = value
        elif kind == _SECRET:
            fields[name] = SECRET
        else:
            octets += len(value) + 5
            fields[name] = content(value) if payload else cut(len(value))
            continue
        octets += len(_pack(fields[name]))
    return fields, octets
