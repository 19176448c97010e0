"""Encode messages to octets and decode them, with one codec for each edge of the topology.

Every octet received is hostile until `decode` has checked it.
"""

from collections.abc import Callable
from typing import Any

import msgpack
from popkernel.proto import topology
from popkernel.proto.schema import BadMessageError, compile_check, fields_of

__all__ = ["Codec"]

_pack = msgpack.Packer(use_bin_type=True, autoreset=True).pack
_unpack = msgpack.unpackb
_checks: dict[type, Callable[[Any], None]] = {}
_BIN32 = b"\xc6"
_EMPTY_BIN = b"\xc4\0"
_BULK_FROM = 4096  # octets: a last field of this size or more is sent without a copy
_TRIES = 32  # places in a frame that look like the head of a bulk field


def _check_of(message: type) -> Callable[[Any], None]:
    check = _checks.get(message)
    if check is None:
        check = _checks[message] = compile_check(message)
    return check


class Codec:
    """Encode and decode the messages of one edge of the topology table, and no others."""

    __slots__ = ("_bulk", "_by_class", "_by_code", "_largest_map", "_longest", "edge", "name", "octets")

    def __init__(self, source: str, target: str) -> None:
        """`source` and `target` are rows of the table. Raises KeyError if there is no such edge."""
        self.edge = topology.edge(source, target)
        self.name = f"{source}>{target}"
        self.octets = self.edge.octets
        secret = {
            f"{c.__name__}.{n}" for c in self.edge.messages for n, f in fields_of(c).items() if f.secret
        }
        if secret != set(self.edge.secrets):
            raise TypeError(
                f"edge {self.name}: its messages' secret fields {secret} are not those its row names"
            )
        rows = [(code, c, _check_of(c)) for code, c in enumerate(self.edge.messages, 1)]
        # msgpack allocates what an array announces before the items come: the bound is the longest array of
        # this edge. msgpack itself limits nesting (about 1,000 levels).
        fields = [fields_of(c) for c in self.edge.messages]
        self._longest = max([1 + len(fs) for fs in fields] + [f.items for fs in fields for f in fs.values()])
        self._largest_map = max([f.items for fs in fields for f in fs.values() if f.kind == "map"], default=0)
        lasts = [(c, list(fs.values())[-1]) for c, fs in zip(self.edge.messages, fields, strict=True) if fs]
        self._bulk: dict[type, int] = {c: last.high for c, last in lasts if last.kind == "bytes"}
        self._by_code: dict[int, tuple[type, Callable[[Any], None]]] = {r[0]: (r[1], r[2]) for r in rows}
        self._by_class: dict[type, tuple[int, Callable[[Any], None]]] = {r[1]: (r[0], r[2]) for r in rows}

    def encode(self, message: tuple[Any, ...]) -> bytes:
        """Encode a message as one msgpack array.

        Raises BadMessageError if this edge does not have the message, a field is out of its bounds, or a text
        is not UTF-8.
        """
        row = self._by_class.get(type(message))
        if row is None:
            raise BadMessageError(f"{type(message).__name__} may not go {self.name}")
        row[1](message)
        try:
            data: bytes = _pack((row[0], *message))
        except UnicodeEncodeError:
            raise BadMessageError(f"{type(message).__name__}: a text that is not UTF-8") from None
        if len(data) > self.octets:
            raise BadMessageError(
                f"{type(message).__name__}: {len(data)} octets are more than {self.name} takes"
            )
        return data

    def encode_bulk(self, message: tuple[Any, ...], data: memoryview | bytes) -> list[bytes | memoryview]:
        """Encode a message whose last field is `data`: as [head, data] without a copy, if `data` is large."""
        if len(data) < _BULK_FROM:
            return [self.encode(whole(message, data))]
        code, check = self._by_class[type(message)]
        check(message)
        try:
            fields = [*map(_pack, message[:-1])]
        except UnicodeEncodeError:
            raise BadMessageError(f"{type(message).__name__}: a text that is not UTF-8") from None
        head = b"".join(
            [bytes((0x91 + len(message),)), _pack(code), *fields, _BIN32, len(data).to_bytes(4, "big")]
        )
        if len(head) + len(data) > self.octets:
            raise BadMessageError(f"{type(message).__name__}: more octets than {self.name} takes")
        return [head, data]

    def decode(self, data: bytes | bytearray | memoryview) -> tuple[Any, ...]:
        """Decode a message and check its bounds. Raises BadMessageError, which never quotes the input."""
        if len(data) > self.octets:
            raise BadMessageError(f"{len(data)} octets are more than {self.name} takes")
        try:
            fields = _unpack(data, max_array_len=self._longest, max_map_len=self._largest_map, max_ext_len=0)
        except Exception as error:  # noqa: BLE001  msgpack raises of many kinds, and each means the same
            raise BadMessageError(f"not one msgpack array ({type(error).__name__})") from None
        if type(fields) is not list or not fields or type(fields[0]) is not int:
            raise BadMessageError("not an array that begins with a code")
        row = self._by_code.get(fields.pop(0))
        if row is None:
            raise BadMessageError(f"no such message on {self.name}")
        row[1](fields)
        message: tuple[Any, ...] = row[0](*fields)
        return message

    def decode_bulk(self, frame: bytes | bytearray) -> tuple[Any, ...]:
        """Decode a frame of `encode_bulk`: a large last field becomes a view of `frame`, without a copy."""
        at = -1
        for _ in range(_TRIES):
            at = frame.find(_BIN32, at + 1)
            octets = len(frame) - at - 5
            if at < 0 or octets < _BULK_FROM:
                break
            if int.from_bytes(frame[at + 1 : at + 5], "big") == octets <= self.octets - at - 5:
                try:
                    message = self.decode(bytes(frame[:at]) + _EMPTY_BIN)
                except BadMessageError:
                    break
                # Only the field that begins at `at` can be the empty one: the frame is this message.
                if octets > self._bulk.get(type(message), 0) or message[-1] != b"":
                    break
                make: Any = type(message)
                made: tuple[Any, ...] = make(*message[:-1], memoryview(frame)[at + 5 :])
                return made
        return self.decode(frame)


def whole(message: tuple[Any, ...], data: memoryview | bytes) -> tuple[Any, ...]:
    """Return the message with `data` as its last field."""
    make: Any = type(message)
    made: tuple[Any, ...] = make(*message[:-1], bytes(data))
    return made
