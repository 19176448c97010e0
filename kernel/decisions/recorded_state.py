"""Convert the kernel's state and decisions to plain data for recordings, and back for a replay. Pure.

The state consists of Python's own containers and of classes that leases.py, deliveries.py, tables.py,
messages.py and a few others define. `thaw` makes no other objects, so a recording can't choose a class.
"""

from collections import deque
from typing import Any

from popkernel.kernel.decisions import actions, deliveries, leases, recipients
from popkernel.proto import messages
from popkernel.proto.access import user_names
from popkernel.proto.files import tables
from popkernel.proto.trace.redaction import cut, is_cut

__all__ = ["FreezeError", "freeze", "thaw"]

_MODULES = (leases, deliveries, actions, recipients, messages, tables, user_names)
_CLASSES: dict[str, type] = {
    name: value
    for module in _MODULES
    for name, value in vars(module).items()
    if isinstance(value, type) and value.__module__ == module.__name__
}
_LARGE = 8192  # octets; longer is the state of a parked session of a large maildrop, which decides nothing
_PLAIN = (int, str, float, bool, type(None))


class FreezeError(ValueError):
    """Raised for recorded data that is no state of this kernel."""


def _attributes(value: Any) -> dict[str, Any]:
    slots = getattr(type(value), "__slots__", None)
    found = {name: getattr(value, name) for name in slots} if slots else vars(value)
    # kernel/operator/tracing.py wraps methods during a trace
    return {name: v for name, v in found.items() if not callable(v)}


def freeze(value: Any, leave: tuple[type, ...] = ()) -> Any:
    """Convert to what msgpack can hold. Objects of the classes `leave` become None: frozen elsewhere."""
    if type(value) in _PLAIN:
        return value
    if type(value) is bytes:
        return cut(len(value)) if len(value) > _LARGE else value
    if type(value) is list:
        return [freeze(v, leave) for v in value]
    if isinstance(value, leave):
        return None
    name = type(value).__name__
    if isinstance(value, dict):
        return {"is": "dict", "of": [[freeze(k, leave), freeze(v, leave)] for k, v in value.items()]}
    if isinstance(value, tuple) and name in _CLASSES:
        return {"is": name, "of": [freeze(v, leave) for v in value]}
    if type(value) in (set, frozenset):
        return {"is": name, "of": sorted((freeze(v, leave) for v in value), key=repr)}
    if type(value) in (tuple, deque):
        return {"is": name, "of": [freeze(v, leave) for v in value]}
    return {"is": name, "has": {k: freeze(v, leave) for k, v in _attributes(value).items()}}


_CONTAINERS: dict[str, Any] = {
    "dict": dict,
    "set": set,
    "frozenset": frozenset,
    "tuple": tuple,
    "deque": deque,
}


def thaw(data: Any) -> Any:
    """Return the object that `freeze` was given; FreezeError if the data names no such object."""
    if type(data) is list:
        return [thaw(v) for v in data]
    if type(data) is not dict:
        return data
    if is_cut(data) >= 0:
        return bytes(is_cut(data))
    name, of, has = data.get("is"), data.get("of"), data.get("has") or {}
    try:
        if name in _CONTAINERS:
            return _CONTAINERS[name](thaw(of))
        made = _CLASSES[str(name)]
        if of is not None:
            return made(*thaw(of))
        thing: Any = object.__new__(made)
        for key, value in has.items():
            object.__setattr__(thing, key, thaw(value))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise FreezeError(f"no state of this kernel's: {name!r} ({error})") from None
    else:
        return thing
