"""Read what a listener must know of its certificates: names, validity, issuer, kind of key.

Pure: octets in, facts out. Only a few fields of RFC 5280 are read. OpenSSL, which gets the same octets,
verifies them. The `cryptography` package would read them too, but costs each listener 20 MB and half a second
at its start.
"""

import base64
import binascii
import re
from typing import NamedTuple

__all__ = ["DamagedError", "Facts", "Link", "chain", "facts"]

# As OpenSSL finds them: at the beginning of a line, after an optional byte order mark, with any label that it
# has written over the years.
_BEGIN = re.compile(
    rb"^(?:\xef\xbb\xbf)?-----BEGIN (?:X509 |TRUSTED )?CERTIFICATE-----[ \t\r]*$", re.MULTILINE
)
_END = b"-----END "
_SEQUENCE, _OBJECT, _OCTETS, _UTC_TIME, _TIME = 0x30, 0x06, 0x04, 0x17, 0x18
_VERSION, _EXTENSIONS, _DNS_NAME, _IP_ADDRESS, _KEY_ID = 0xA0, 0xA3, 0x82, 0x87, 0x80
_ALTERNATIVE_NAMES = b"\x55\x1d\x11"  # 2.5.29.17, RFC 5280 section 4.2.1.6
_SUBJECT_KEY, _ISSUER_KEY = b"\x55\x1d\x0e", b"\x55\x1d\x23"  # 2.5.29.14 and 35, sections 4.2.1.2 and 4.2.1.1


class Facts(NamedTuple):
    """The names and the validity of one certificate."""

    names: tuple[str, ...]
    """DNS names in lower case, A-labels; a wildcard begins with `*.`."""
    starts: str
    """Year to second in 14 digits, UTC: such texts sort as times do."""
    ends: str


class DamagedError(ValueError):
    """A certificate does not parse. `line`: where it begins, from 1."""

    def __init__(self, line: int) -> None:
        super().__init__("a certificate that is damaged")
        self.line = line


class Link(NamedTuple):
    """One certificate of a chain, with the fields that tie it to the next."""

    line: int
    """Where it begins in its file, from 1."""
    facts: Facts
    has_address: bool
    """Whether it names an IP address."""
    issuer: bytes
    subject: bytes
    algorithm: bytes
    """The content of the key's AlgorithmIdentifier, curve included."""
    subject_key: bytes
    issuer_key: bytes
    """Key identifiers; b"" if absent."""

    @property
    def self_issued(self) -> bool:
        """Whether it names itself as its issuer."""
        return self.issuer == self.subject

    def issued_by(self, other: "Link") -> bool:
        """Whether the other may have signed it: names match, and key identifiers do if both are present."""
        known = self.issuer_key and other.subject_key
        return self.issuer == other.subject and (not known or self.issuer_key == other.subject_key)


def facts(pem: bytes) -> Facts:
    """Read the first certificate of a PEM file.

    Raises:
        ValueError: there is none, or it is damaged.

    """
    return _chain(pem, 1)[0].facts


def chain(pem: bytes) -> list[Link]:
    """Read all certificates of a PEM file, at least one.

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
    """Iterate over the fields of one constructed DER value."""

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
        """Return the content of the next field. Raises IndexError if its tag is not among `tags` (if any)."""
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
    names, has_address = _names(found.get(_ALTERNATIVE_NAMES, b""))
    keys = _key_id(found.get(_SUBJECT_KEY, b""), _OCTETS), _key_id(found.get(_ISSUER_KEY, b""), _SEQUENCE)
    return Link(line, Facts(names, starts, ends), has_address, issuer, subject, algorithm, *keys)


def _time(fields: _Fields) -> str:
    tag = fields.tag()
    text = fields.take(_UTC_TIME, _TIME).decode("ascii")
    if tag == _UTC_TIME:  # RFC 5280 section 4.1.2.5.1
        text = ("19" if text[:2] >= "50" else "20") + text
    if len(text) != 15 or text[-1] != "Z" or not text[:-1].isdigit():
        raise IndexError
    return text[:-1]


def _extensions(fields: _Fields) -> dict[bytes, bytes]:
    """Return the three extensions used here by object identifier; the first of a repeated one."""
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
    """Return the key identifier; b"" if it is absent or of another form, which OpenSSL accepts too."""
    try:
        content = _Fields(extension).take(tag)
        if tag == _OCTETS:
            return content
        fields = _Fields(content)
        return fields.take() if fields and fields.tag() == _KEY_ID else b""
    except IndexError:
        return b""


def _names(extension: bytes) -> tuple[tuple[str, ...], bool]:
    """Return the DNS names, and whether there are IP addresses too."""
    general = _Fields(_Fields(extension).take(_SEQUENCE)) if extension else _Fields(b"")
    found = []
    has_address = False
    while general:
        tag, content = general.tag(), general.take()
        if tag == _DNS_NAME:
            found.append(content.decode("ascii").lower())
        has_address |= tag == _IP_ADDRESS
    return tuple(found), has_address
