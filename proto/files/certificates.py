"""What a listener must know of its own certificates: names, times, which signed which, the kind of key. Octets in, facts out. Pure.

A walk along RFC 5280's fields to a few of them. It judges nothing: OpenSSL does that, with the same octets. `cryptography` would do it
too, and cost every listener 20 MB and half a second at its start.
"""

import base64
import binascii
import re
from typing import NamedTuple

__all__ = ["DamagedError", "Facts", "Link", "chain", "facts"]

# As OpenSSL finds them: at the begin of a line, perhaps behind a byte order mark, with the marks that it has written over the years.
_BEGIN = re.compile(rb"^(?:\xef\xbb\xbf)?-----BEGIN (?:X509 |TRUSTED )?CERTIFICATE-----[ \t\r]*$", re.MULTILINE)
_END = b"-----END "
_SEQUENCE, _OBJECT, _OCTETS, _UTC_TIME, _TIME = 0x30, 0x06, 0x04, 0x17, 0x18
_VERSION, _EXTENSIONS, _DNS_NAME, _IP_ADDRESS, _KEY_ID = 0xA0, 0xA3, 0x82, 0x87, 0x80
_ALTERNATIVE_NAMES = b"\x55\x1d\x11"  # 2.5.29.17, RFC 5280 section 4.2.1.6
_SUBJECT_KEY, _ISSUER_KEY = b"\x55\x1d\x0e", b"\x55\x1d\x23"  # 2.5.29.14 and 35, sections 4.2.1.2 and 4.2.1.1


class Facts(NamedTuple):
    """Of one certificate."""

    names: tuple[str, ...]
    """DNS names in lower case, A-labels; a wildcard is `*.` and the rest."""
    starts: str
    """Year to second in 14 digits, UTC: such texts compare as times do."""
    ends: str


class DamagedError(ValueError):
    """A certificate that is none. `line`: where it begins, from 1."""

    def __init__(self, line: int) -> None:
        super().__init__("a certificate that is damaged")
        self.line = line


class Link(NamedTuple):
    """One certificate of a chain, and what parts it from, or ties it to, the next."""

    line: int
    """Where it begins in its file, from 1."""
    facts: Facts
    addressed: bool
    """Whether it is for an IP address."""
    issuer: bytes
    subject: bytes
    algorithm: bytes
    """Of its key, with the curve: the content of AlgorithmIdentifier."""
    subject_key: bytes
    issuer_key: bytes
    """Key identifiers; b"" for none."""

    @property
    def own(self) -> bool:
        """Whether it names itself as its issuer."""
        return self.issuer == self.subject

    def issued_by(self, other: "Link") -> bool:
        """Whether the other may have signed it: the names fit, and the keys' identifiers where both have one."""
        known = self.issuer_key and other.subject_key
        return self.issuer == other.subject and (not known or self.issuer_key == other.subject_key)


def facts(pem: bytes) -> Facts:
    """Look at the first certificate of a PEM file.

    Raises:
        ValueError: there is none, or it is damaged.

    """
    return _chain(pem, 1)[0].facts


def chain(pem: bytes) -> list[Link]:
    """Look at all certificates of a PEM file, at least one.

    Raises:
        ValueError: there is none, or one of them is damaged.

    """
    return _chain(pem, 0)


def _chain(pem: bytes, most: int) -> list[Link]:
    links: list[Link] = []
    for begin in _BEGIN.finditer(pem):
        body, end, _ = pem[begin.end() :].partition(_END)
        if not end:
            break
        line = pem.count(b"\n", 0, begin.start()) + 1
        try:
            links.append(_of(base64.b64decode(b"".join(body.split()), validate=True), line))
        except (binascii.Error, IndexError, UnicodeDecodeError):
            raise DamagedError(line) from None
        if len(links) == most:
            break
    if not links:
        raise ValueError("no certificate in PEM form")
    return links


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


def _of(der: bytes, line: int) -> Link:
    body = _Fields(_Fields(_Fields(der).take(_SEQUENCE)).take(_SEQUENCE))
    if body.tag() == _VERSION:
        body.take()
    for _ in range(2):  # serial number, algorithm
        body.take()
    issuer = body.take()
    validity = _Fields(body.take(_SEQUENCE))
    starts, ends = _time(validity), _time(validity)
    subject = body.take() if body else b""
    key = _Fields(body.take() if body else b"")
    algorithm = key.take() if key else b""
    found: dict[bytes, bytes] = {}
    while body:
        if body.tag() == _EXTENSIONS:
            found = _extensions(_Fields(_Fields(body.take()).take(_SEQUENCE)))
        else:
            body.take()
    names, addressed = _names(found.get(_ALTERNATIVE_NAMES, b""))
    keys = _key_id(found.get(_SUBJECT_KEY, b""), _OCTETS), _key_id(found.get(_ISSUER_KEY, b""), _SEQUENCE)
    return Link(line, Facts(names, starts, ends), addressed, issuer, subject, algorithm, *keys)


def _time(fields: _Fields) -> str:
    tag = fields.tag()
    text = fields.take(_UTC_TIME, _TIME).decode("ascii")
    if tag == _UTC_TIME:  # RFC 5280 section 4.1.2.5.1
        text = ("19" if text[:2] >= "50" else "20") + text
    if len(text) != 15 or text[-1] != "Z" or not text[:-1].isdigit():
        raise IndexError
    return text[:-1]


def _extensions(fields: _Fields) -> dict[bytes, bytes]:
    """Those that are looked at, by the octets of their name; of one that is there twice the first."""
    found: dict[bytes, bytes] = {}
    while fields:
        extension = _Fields(fields.take(_SEQUENCE))
        name = extension.take(_OBJECT)
        if name not in (_ALTERNATIVE_NAMES, _SUBJECT_KEY, _ISSUER_KEY):
            continue
        if extension.tag() != _OCTETS:
            extension.take()  # "critical"
        found.setdefault(name, extension.take(_OCTETS))
    return found


def _key_id(extension: bytes, tag: int) -> bytes:
    """Of a key: b"" where there is none, or one of another form; OpenSSL does not mind either."""
    try:
        content = _Fields(extension).take(tag)
        if tag == _OCTETS:
            return content
        fields = _Fields(content)
        return fields.take() if fields and fields.tag() == _KEY_ID else b""
    except IndexError:
        return b""


def _names(extension: bytes) -> tuple[tuple[str, ...], bool]:
    """DNS names, and whether there are addresses too."""
    general = _Fields(_Fields(extension).take(_SEQUENCE)) if extension else _Fields(b"")
    found = []
    addressed = False
    while general:
        tag, content = general.tag(), general.take()
        if tag == _DNS_NAME:
            found.append(content.decode("ascii").lower())
        addressed |= tag == _IP_ADDRESS
    return tuple(found), addressed
