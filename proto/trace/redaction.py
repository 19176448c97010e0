"""Redact messages for traces: fields by name, secrets replaced, mail content cut to its size.

Pure. A traced actor calls this before anything of a message leaves it: a secret is never encoded for a trace
or a recording.
"""

from typing import Any

import msgpack
from popkernel.proto.schema import fields_of

__all__ = ["SECRET", "content", "cut", "is_cut", "recut", "shown"]

SECRET = "[secret]"  # noqa: S105  replaces a secret of any length
_CUT = "octets cut"
_WHOLE = "content"

_pack = msgpack.Packer(use_bin_type=True, autoreset=True).pack
_shapes: dict[type, tuple[tuple[str, int], ...]] = {}
_PLAIN, _SECRET, _CONTENT = 0, 1, 2


def cut(octets: int) -> dict[str, int]:
    """Return the mark that replaces content of that many octets."""
    return {_CUT: octets}


def is_cut(value: Any) -> int:
    """Return the octets that the mark `value` stands for; -1 if it is no such mark."""
    return value[_CUT] if type(value) is dict and len(value) == 1 and type(value.get(_CUT)) is int else -1


def content(data: bytes) -> dict[str, bytes]:
    """Wrap content that is shown, so that `recut` can find it."""
    return {_WHOLE: data}


def recut(value: Any) -> Any:
    """Cut all content in a value: for a viewer without the payload, beside one with it."""
    if type(value) is dict:
        whole = value.get(_WHOLE)
        return (
            cut(len(whole))
            if len(value) == 1 and type(whole) is bytes
            else {k: recut(v) for k, v in value.items()}
        )
    return [recut(v) for v in value] if type(value) is list and value and type(value[0]) is not int else value


def _shape(message: type) -> tuple[tuple[str, int], ...]:
    shape = tuple(
        (name, _SECRET if f.secret else _CONTENT if f.content else _PLAIN)
        for name, f in fields_of(message).items()
    )
    _shapes[message] = shape
    return shape


def shown(message: tuple[Any, ...], *, payload: bool) -> tuple[dict[str, Any], int]:
    """Return a message's redacted fields and its size in octets as a frame; a secret counts as its mark."""
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
