"""What a message field may hold: kinds, bounds, secrecy; and the checks compiled from them.

A message is a `NamedTuple` whose fields are annotated with the kinds below. On the wire it is one msgpack array: the
message's code in the topology table, then its fields in order. `compile_check` turns a class into one flat Python
function, so that a message costs one call to check, however many fields it has.
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
    "Name",
    "Numbers",
    "Octets",
    "Secret",
    "Session",
    "Text",
    "UnsayableError",
    "compile_check",
    "fields_of",
    "sayable",
]


class BadMessageError(ValueError):
    """A message that its decoder did not take. The text names the reason, never a field's value."""


class UnsayableError(Exception):
    """A message of our own that its edge does not take: our mistake, or the data's, never the peer's. The text quotes no value."""


class Field(NamedTuple):
    """Kind and bounds of one field: `low`..`high` for an int, at most `high` characters, octets or items else."""

    kind: str  # int, str, bytes, bool; ints, strs, blobs: lists of int, str, bytes
    low: int = 0
    high: int = 0
    items: int = 0  # the most items a list may have
    secret: bool = False
    content: bool = False  # mail: shown as its size, unless somebody may see more


_U63 = 2**63 - 1

Session = Annotated[int, Field("int", 1, _U63)]  # a listener's own number for a connection; never used again by it
Octets = Annotated[int, Field("int", 0, _U63)]
Count = Annotated[int, Field("int", 0, 2**31 - 1)]
Name = Annotated[str, Field("str", 1, 300)]  # an instance's name is a user's and its row's
Address = Annotated[str, Field("str", 0, 64)]  # numeric host and port
Code = Annotated[str, Field("str", 0, 32)]  # a POP3 response code without its brackets, or none
_MOST_TEXT = 2000
Text = Annotated[str, Field("str", 0, _MOST_TEXT)]  # for people; what holds a path goes through sayable()
Secret = Annotated[bytes, Field("bytes", 0, 8192, secret=True)]
Blob = Annotated[bytes, Field("bytes", 0, 1 << 20)]
Numbers = Annotated[list[int], Field("ints", -1, _U63, items=8192)]


def sayable(text: str) -> str:
    """`text` as a field of kind Text takes it: cut where it is too long, and what is no UTF-8, which a path may hold, is escaped."""
    return text.encode(errors="backslashreplace").decode()[:_MOST_TEXT]


def fields_of(message: type) -> dict[str, Field]:
    """Names and kinds of a message class's fields, in wire order; TypeError for a field with no kind."""
    out: dict[str, Field] = {}
    for name, hint in get_type_hints(message, include_extras=True).items():
        found = [a for a in get_args(hint) if isinstance(a, Field)] if get_origin(hint) is Annotated else []
        if hint is bool:
            found = [Field("bool")]
        if not found:
            raise TypeError(f"{message.__name__}.{name} has no kind: annotate it with one of popkernel.proto.schema")
        out[name] = found[0]
    return out


def _condition(name: str, field: Field) -> str:
    """The Python expression that is true where the value in variable `name` is not what `field` allows."""
    match field.kind:
        case "int":
            return f"type({name}) is not int or not {field.low} <= {name} <= {field.high}"
        case "str":
            return f"type({name}) is not str or not {field.low} <= len({name}) <= {field.high}"
        case "bytes":
            return f"type({name}) is not bytes or len({name}) > {field.high}"
        case "bool":
            return f"type({name}) is not bool"
        case "ints":
            return (
                f"type({name}) is not list or len({name}) > {field.items} or {name}"  # a third of the time of a look at one after the other
                f" and (set(map(type, {name})) != Int or min({name}) < {field.low} or max({name}) > {field.high})"
            )
        case "strs":
            return (
                f"type({name}) is not list or len({name}) > {field.items}"
                f" or any(type(x) is not str or len(x) > {field.high} for x in {name})"
            )
        case "blobs":
            return (
                f"type({name}) is not list or len({name}) > {field.items}"
                f" or any(type(x) is not bytes or len(x) > {field.high} for x in {name})"
            )
        case other:
            raise TypeError(f"no such kind of field: {other}")


def compile_check(message: type) -> Callable[[Any], None]:
    """A function that takes the fields (tuple or list) and raises BadMessageError where one is not as annotated.

    Compiled from the annotations once, as `collections.namedtuple` does for its own methods: a loop over field
    objects costs some five times as much a message.
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
    space: dict[str, Any] = {"Bad": BadMessageError, "Int": {int}}
    exec("\n".join(lines), space)  # noqa: S102  the text above is made from our own annotations only
    check: Callable[[Any], None] = space["check"]
    return check
