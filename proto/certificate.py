"""What a listener must know of its own certificates: the host names they are for and when they are valid. Octets in, facts out. Pure.

A walk along RFC 5280's fields to two of them. It judges nothing: OpenSSL does that, with the same octets. `cryptography` would do it
too, and cost every listener 20 MB and half a second at its start.
"""

import base64
import binascii
from typing import NamedTuple

__all__ = ["Facts", "facts"]

_BEGIN, _END = b"-----BEGIN CERTIFICATE-----", b"-----END CERTIFICATE-----"
_SEQUENCE, _OBJECT, _OCTETS, _UTC_TIME, _TIME = 0x30, 0x06, 0x04, 0x17, 0x18
_VERSION, _EXTENSIONS, _DNS_NAME = 0xA0, 0xA3, 0x82
_ALTERNATIVE_NAMES = b"\x55\x1d\x11"  # 2.5.29.17, RFC 5280 section 4.2.1.6


class Facts(NamedTuple):
    """Of one certificate."""

    names: tuple[str, ...]
    """DNS names in lower case, A-labels; a wildcard is `*.` and the rest."""
    starts: str
    """Year to second in 14 digits, UTC: such texts compare as times do."""
    ends: str


def facts(pem: bytes) -> Facts:
    """Look at the first certificate of a PEM file.

    Raises:
        ValueError: there is none, or it is damaged.

    """
    _, begin, rest = pem.partition(_BEGIN)
    body, end, _ = rest.partition(_END)
    if not (begin and end):
        raise ValueError("no certificate in PEM form")
    try:
        der = base64.b64decode(b"".join(body.split()), validate=True)
        return _of(der)
    except (binascii.Error, IndexError, UnicodeDecodeError):
        raise ValueError("a certificate that is damaged") from None


class _Fields:
    """The fields of one constructed value, one after the other."""

    __slots__ = ("_at", "_data", "_end")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0
        self._end = len(data)

    def __bool__(self) -> bool:
        return self._at < self._end

    def tag(self) -> int:
        return self._data[self._at]

    def take(self, *tags: int) -> bytes:
        """The next field's content; of any tag where none is named."""
        tag, length, at = self._data[self._at], self._data[self._at + 1], self._at + 2
        if length & 0x80:
            size = length & 0x7F
            length, at = int.from_bytes(self._data[at : at + size], "big"), at + size
        if (tags and tag not in tags) or at + length > self._end:
            raise IndexError
        self._at = at + length
        return self._data[at : at + length]


def _of(der: bytes) -> Facts:
    body = _Fields(_Fields(_Fields(der).take(_SEQUENCE)).take(_SEQUENCE))
    if body.tag() == _VERSION:
        body.take()
    for _ in range(3):  # serial number, algorithm, issuer
        body.take()
    validity = _Fields(body.take(_SEQUENCE))
    starts, ends = _time(validity), _time(validity)
    names: tuple[str, ...] = ()
    while body:
        if body.tag() == _EXTENSIONS:
            names = _names(_Fields(_Fields(body.take()).take(_SEQUENCE)))
        else:
            body.take()
    return Facts(names, starts, ends)


def _time(fields: _Fields) -> str:
    tag = fields.tag()
    text = fields.take(_UTC_TIME, _TIME).decode("ascii")
    if tag == _UTC_TIME:  # RFC 5280 section 4.1.2.5.1
        text = ("19" if text[:2] >= "50" else "20") + text
    if len(text) != 15 or text[-1] != "Z" or not text[:-1].isdigit():
        raise IndexError
    return text[:-1]


def _names(extensions: _Fields) -> tuple[str, ...]:
    while extensions:
        extension = _Fields(extensions.take(_SEQUENCE))
        if extension.take(_OBJECT) != _ALTERNATIVE_NAMES:
            continue
        if extension.tag() != _OCTETS:
            extension.take()  # "critical"
        general = _Fields(_Fields(extension.take(_OCTETS)).take(_SEQUENCE))
        found = []
        while general:
            tag, content = general.tag(), general.take()
            if tag == _DNS_NAME:
                found.append(content.decode("ascii").lower())
        return tuple(found)
    return ()
