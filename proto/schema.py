"""Declare what a message field may hold (kind, bounds, secrecy), and compile the checks of it.

A message is a `NamedTuple` whose fields are annotated with the kinds below. On the wire it is one msgpack
array: the message's code in the topology table, then its fields in order. `compile_check` makes one function
of a class, so that checking a message costs one call.
"""

from collections.abc import Callable
from typing import Annotated, Any, NamedTuple, get_args, get_origin, get_type_hints

__all__ = [
    "Address",
    "BadMessageError",
    "Blob",
    "Code",
    "Count",
    "Field",
    "Fields",
    "Line",
    "Name",
    "Numbers",
    "Octets",
    "ReplyStatus",
    "Secret",
    "Session",
    "Text",
    "UnsendableError",
    "compile_check",
    "fields_of",
    "fit_fields",
    "fit_text",
    "printable",
]


class BadMessageError(ValueError):
    """A message violates its declaration or its edge. The text gives the reason, never a field's value."""


class UnsendableError(Exception):
    """A process tried to send a message that its edge does not allow: the fault is not the peer's.

    The text quotes no value.
    """


class Field(NamedTuple):
    """Kind and bounds of a field: `low`..`high` for an int, else at most `high` characters or octets."""

    kind: str  # int, str, bytes, bool; ints, strs, blobs: lists of int, str, bytes; map: names to str or int
    low: int = 0
    high: int = 0
    items: int = 0  # the longest list or map; all texts of a map together have `high` characters
    secret: bool = False
    line: bool = False  # a str without control characters: it becomes a part of a line that somebody parses
    content: bool = False  # mail: a trace shows its size only, unless it was started with the payload


_U63 = 2**63 - 1

# A listener's number for a connection; it never uses one again.
Session = Annotated[int, Field("int", 1, _U63)]
Octets = Annotated[int, Field("int", 0, _U63)]
Count = Annotated[int, Field("int", 0, 2**31 - 1)]
Name = Annotated[str, Field("str", 1, 300)]  # an actor's name may contain a user's name
Address = Annotated[str, Field("str", 0, 64)]  # numeric host and port
Code = Annotated[str, Field("str", 0, 32, line=True)]  # a POP3 response code without its brackets, or none
_MOST_TEXT = 2000
Text = Annotated[str, Field("str", 0, _MOST_TEXT)]  # for people; a text with a path goes through fit_text()
Line = Annotated[str, Field("str", 0, _MOST_TEXT, line=True)]  # for a client's or a mail server's connection
ReplyStatus = Annotated[str, Field("str", 1, 16, line=True)]  # RFC 3463: "4.3.0"
Secret = Annotated[bytes, Field("bytes", 0, 8192, secret=True)]
Blob = Annotated[bytes, Field("bytes", 0, 1 << 20)]
Numbers = Annotated[list[int], Field("ints", -1, _U63, items=8192)]
_MOST_FIELDS = 3000
# The fields of an event of the log, by name. No text has control characters.
Fields = Annotated[dict[str, str | int], Field("map", -_U63, _MOST_FIELDS, items=16)]
_LONGEST_NAME = 32


def fit_text(text: str) -> str:
    """Make a text fit for a Text field: cut it to its limit, and escape what is not UTF-8, as in a path."""
    return text.encode(errors="backslashreplace").decode()[:_MOST_TEXT]


def printable(text: str) -> str:
    """Escape everything in `text` that could break a line or move a terminal's cursor.

    It uses repr(): the codec unicode_escape would have to be imported, which the sandbox does not allow.
    """
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def fit_fields(fields: dict[str, str | int]) -> dict[str, str | int]:
    """Make texts fit for a Fields field, in place: escape and cut them."""
    room = _MOST_FIELDS
    for name, value in fields.items():
        if type(value) is str:
            text = fields[name] = printable(fit_text(value))[: min(room, _MOST_TEXT)]
            room -= len(text)
    return fields


def _no_map(fields: Any, field: Field) -> bool:
    """Say whether `fields` violates a field of kind map."""
    if type(fields) is not dict or len(fields) > field.items:
        return True
    room = field.high
    for name, value in fields.items():
        if type(name) is not str or not name.isidentifier() or len(name) > _LONGEST_NAME:
            return True
        if type(value) is str:
            room -= len(value)
            if room < 0 or not value.isprintable():
                return True
        elif type(value) is not int or not field.low <= value <= _U63:
            return True
    return False


def fields_of(message: type) -> dict[str, Field]:
    """Return a message class's fields by name, in wire order. Raises TypeError for a field without a kind."""
    out: dict[str, Field] = {}
    for name, hint in get_type_hints(message, include_extras=True).items():
        found = [a for a in get_args(hint) if isinstance(a, Field)] if get_origin(hint) is Annotated else []
        if hint is bool:
            found = [Field("bool")]
        if not found:
            raise TypeError(
                f"{message.__name__}.{name} has no kind: annotate it with one of popkernel.proto.schema"
            )
        out[name] = found[0]
    return out


def _condition(name: str, field: Field) -> str:
    """Return a Python expression that is true if the value in variable `name` violates `field`."""
    match field.kind:
        case "int":
            return f"type({name}) is not int or not {field.low} <= {name} <= {field.high}"
        case "str":
            control = f" or not {name}.isprintable()" if field.line else ""
            return f"type({name}) is not str or not {field.low} <= len({name}) <= {field.high}{control}"
        case "bytes":
            return f"type({name}) is not bytes or len({name}) > {field.high}"
        case "bool":
            return f"type({name}) is not bool"
        case "ints":
            return (
                # takes a third of the time of a loop over the items
                f"type({name}) is not list or len({name}) > {field.items} or {name}"
                f" and (set(map(type, {name})) != Int"
                f" or min({name}) < {field.low} or max({name}) > {field.high})"
            )
        case "strs":
            return (
                f"type({name}) is not list or len({name}) > {field.items}"
                f" or ({name} and any(type(x) is not str or len(x) > {field.high} for x in {name}))"
            )
        case "blobs":
            return (
                f"type({name}) is not list or len({name}) > {field.items}"
                f" or ({name} and any(type(x) is not bytes or len(x) > {field.high} for x in {name}))"
            )
        case "map":
            return f"no_map({name}, {name}_field)"
        case other:
            raise TypeError(f"no such kind of field: {other}")


def compile_check(message: type) -> Callable[[Any], None]:
    """Return a function that checks a message's fields (tuple or list), and raises BadMessageError.

    It is compiled once, as `collections.namedtuple` compiles its methods: a loop over field objects takes
    about five times as long.
    """
    fields = fields_of(message)
    lines = ["def check(fields):"]
    if fields:
        names = [f"f{i}" for i in range(len(fields))]
        lines += [
            f"    if len(fields) != {len(names)}:",
            f"        raise Bad('{message.__name__}: not {len(names)} fields')",
            f"    ({', '.join(names)},) = fields",
        ]
        for variable, (name, field) in zip(names, fields.items(), strict=True):
            lines += [
                f"    if {_condition(variable, field)}:",
                f"        raise Bad('{message.__name__}.{name}: not {field.kind} within its bounds')",
            ]
    else:
        lines += ["    if fields:", f"        raise Bad('{message.__name__}: not 0 fields')"]
    space: dict[str, Any] = {"Bad": BadMessageError, "Int": {int}, "no_map": _no_map}
    space |= {f"f{i}_field": field for i, field in enumerate(fields.values())}
    exec("\n".join(lines), space)  # noqa: S102  made from the annotations above only, never from input
    check: Callable[[Any], None] = space["check"]
    return check
