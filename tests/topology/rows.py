"""Make values from the table: for each message of each edge, valid ones and every kind of invalid one."""

import msgpack
from popkernel.proto.codec import Codec
from popkernel.proto.schema import fields_of
from popkernel.proto.topology import EDGES

CASES = [(edge, message) for edge in EDGES for message in edge.messages]
IDS = [f"{edge.source}>{edge.target}:{message.__name__}" for edge, message in CASES]
FIELDS = [(edge, message, name) for edge, message in CASES for name in fields_of(message)]
FIELD_IDS = [f"{edge.source}>{edge.target}:{message.__name__}.{name}" for edge, message, name in FIELDS]


def smallest(field):
    """Return the smallest value of a field."""
    return {
        "int": field.low,
        "str": "a" * field.low,
        "bytes": b"",
        "bool": False,
        "ints": [],
        "strs": [],
        "blobs": [],
        "map": {},
    }[field.kind]


def largest(field, room):
    """Return the largest value of a field, in `room` octets."""
    items = max(0, min(field.items, room // 9))
    return {
        "int": field.high,
        "str": "\U0001f4ec" * min(field.high, room // 4),
        "bytes": b"\xff" * min(field.high, room),
        "bool": True,
        "ints": [field.high] * items,
        "strs": ["a" * min(field.high, 8)] * items,
        "blobs": [b"a" * min(field.high, 8)] * items,
        "map": {
            # four octets each, and as many as allowed
            f"name{n}": "\U0001f4ec" * min(field.high // max(1, items), room // 4 // max(1, items))
            for n in range(items)
        },
    }[field.kind]


def wrong_types(field):
    """Return one value of each other type."""
    values = {
        "none": None,
        "int": 1,
        "bool": True,
        "float": 1.0,
        "str": "a",
        "bytes": b"a",
        "list": [],
        "nested": [[]],
        "map": {},
        "maps": [{}],
        "ext": msgpack.ExtType(1, b"a"),
        "time": msgpack.Timestamp(1),
        "strs": ["a"],
        "blobs": [b"a"],
        "ints": [1],
        "bools": [True],
        "floats": [1.0],
    }
    fits = {
        "int": {"int"},
        "str": {"str"},
        "bytes": {"bytes"},
        "bool": {"bool"},
        "ints": {"list", "ints"},
        "strs": {"list", "strs"},
        "blobs": {"list", "blobs"},
        "map": {"map"},
    }[field.kind]
    return {name: value for name, value in values.items() if name not in fits}


def out_of_bounds(field):
    """Return values of the right type just beyond each bound."""
    found = []
    if field.kind == "int":
        found += [field.low - 1, field.high + 1]
    elif field.kind == "str":
        found += ["a" * (field.high + 1), *(["a" * (field.low - 1)] if field.low else [])]
    elif field.kind == "bytes":
        found.append(b"a" * (field.high + 1))
    elif field.kind == "ints":
        found += [[field.low - 1], [field.high + 1], [0] * (field.items + 1)]
    elif field.kind == "strs":
        found += [["a" * (field.high + 1)], [""] * (field.items + 1)]
    elif field.kind == "blobs":
        found += [[b"a" * (field.high + 1)], [b""] * (field.items + 1)]
    elif field.kind == "map":
        found += [{"a": low} for low in (field.low - 1, 2**63)]
        found += [{f"n{n}": 1 for n in range(field.items + 1)}, {"a": "x" * (field.high + 1)}]
        found += [{"a": "x" * (field.high // 2 + 1), "b": "x" * (field.high // 2 + 1)}]
        found += [{"a" * 33: 1}, {"": 1}, {"a b": 1}, {"a": None}, {"a": True}, {"a": [1]}, {"a": {"b": 1}}]
        found += [{"a": text} for text in ("a\nb", "\x1b", "\u2028", "\x7f")]
    return [value for value in found if not (isinstance(value, int) and not -(2**63) <= value < 2**64)]


def code_of(edge, message):
    return edge.messages.index(message) + 1


def values(message, **changed):
    """Return a message's fields, each the smallest unless given."""
    return [changed.get(name, smallest(field)) for name, field in fields_of(message).items()]


def packed(edge, message, fields):
    return msgpack.packb([code_of(edge, message), *fields])


def codec(edge):
    return Codec(edge.source, edge.target)
