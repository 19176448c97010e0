"""Parse the PROXY protocol's header, versions 1 and 2 (HAProxy's proxy-protocol.txt). Sans I/O.

The header comes once, before everything else, also before TLS. It is expected from the configured proxies
only, and required of them: the specification forbids guessing. `parse` gets all octets received so far. While
it returns None, every octet belongs to the header.
"""

from ipaddress import AddressValueError, IPv4Address, IPv6Address
from typing import NamedTuple

__all__ = ["MOST", "Header", "ProxyError", "parse"]

MOST = 536
"""The most octets of a header: senders keep within one segment (section 2.2)."""
_MOST_V1 = 107  # octets with CRLF, section 2.1
_SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
_FIXED = 16  # octets of version 2 before the addresses
_V1 = b"PROXY "
_LOCAL, _PROXY = 0, 1
_TCP4, _TCP6, _UNIX = 0x11, 0x21, 0x31
_ADDRESSES = {0x00: 0, _TCP4: 12, _TCP6: 36, _UNIX: 216}  # octets of them, by family and transport
_DATAGRAMS = (0x12, 0x22, 0x32)
_CRC32C = 0x03  # PP2_TYPE_CRC32C, section 2.2.4


class ProxyError(ValueError):
    """The octets are no PROXY header. The text says why, and quotes nothing of them."""


class Header(NamedTuple):
    """A complete header."""

    octets: int
    """Its length; octets after it are the client's."""
    address: str
    """The client's; "" (LOCAL, UNKNOWN, or another family than TCP's): use the address of the peer."""
    port: int


def parse(data: bytes) -> Header | None:
    """Parse the header at the beginning of `data`, all octets received so far.

    Returns:
        None if the header is incomplete; never for MOST octets or more.

    Raises:
        ProxyError: this is no header, whatever follows.

    """
    if data[: len(_SIGNATURE)] == _SIGNATURE[: len(data)]:
        return _parse_v2(data) if len(data) >= _FIXED else None
    if data[: len(_V1)] == _V1[: len(data)]:
        return _parse_v1(data)
    raise ProxyError("neither version of the PROXY protocol")


def _parse_v1(data: bytes) -> Header | None:
    line, end, _ = data[:_MOST_V1].partition(b"\r\n")
    if b"\n" in line or b"\r" in (line if end else line[:-1]) or (not end and len(data) >= _MOST_V1):
        raise ProxyError(f"version 1: no CRLF within {_MOST_V1} octets, or half a one before it")
    if not end:
        return None
    words = line.split(b" ")
    if words[1] == b"UNKNOWN":
        return Header(len(line) + 2, "", 0)  # a receiver must ignore the rest of the line
    if words[1] not in (b"TCP4", b"TCP6") or len(words) != 6:
        raise ProxyError("version 1: not TCP4, TCP6 or UNKNOWN with two addresses and two ports")
    source = _address(words[2], words[1])
    _address(words[3], words[1])
    port = _port(words[4])
    _port(words[5])
    return Header(len(line) + 2, source, port)


def _address(word: bytes, family: bytes) -> str:
    try:
        text = word.decode("ascii")
        if family == b"TCP4":
            return str(IPv4Address(text))
        if "%" in text:
            raise ProxyError("version 1: an address with a zone")
        return str(IPv6Address(text))
    except (UnicodeDecodeError, AddressValueError):
        raise ProxyError(f"version 1: not an address of {family.decode()}") from None


def _port(word: bytes) -> int:
    """Parse 1 to 5 digits without leading zeros."""
    if not (
        word.isdigit()
        and len(word) <= 5
        and int(word) < 65536
        and (word == b"0" or not word.startswith(b"0"))
    ):
        raise ProxyError("version 1: not a port")
    return int(word)


def _parse_v2(data: bytes) -> Header | None:
    version, command, kind = data[12] >> 4, data[12] & 15, data[13]
    octets = _FIXED + int.from_bytes(data[14:16], "big")
    if version != 2 or command not in (_LOCAL, _PROXY):
        raise ProxyError(f"version 2: version {version} or command {command} that is not there")
    if octets > MOST:
        raise ProxyError(f"version 2: {octets} octets, over {MOST}")
    if command == _PROXY and kind in _DATAGRAMS:
        raise ProxyError("version 2: POP3 does not come in datagrams")
    if command == _PROXY and kind not in _ADDRESSES:
        raise ProxyError(f"version 2: family and transport {kind:#04x} that is not there")
    if command == _PROXY and octets < _FIXED + _ADDRESSES[kind]:
        raise ProxyError("version 2: shorter than its addresses")
    if len(data) < octets:
        return None
    header = data[:octets]
    if command == _LOCAL:
        return Header(octets, "", 0)  # a receiver must discard the rest, whatever its family
    _check_tlvs(header, _FIXED + _ADDRESSES[kind])
    if kind == _TCP4:
        return Header(octets, str(IPv4Address(header[16:20])), int.from_bytes(header[24:26], "big"))
    if kind == _TCP6:
        return Header(octets, str(IPv6Address(header[16:32])), int.from_bytes(header[48:50], "big"))
    return Header(octets, "", 0)


def _check_tlvs(header: bytes, at: int) -> None:
    """Check the fields after the addresses.

    Only the checksum field has a meaning here. If present, it must be right.
    """
    while at < len(header):
        size = int.from_bytes(header[at + 1 : at + 3], "big")
        begin, end = at + 3, at + 3 + size
        if end > len(header):
            raise ProxyError("version 2: a field that is longer than the header")
        if header[at] == _CRC32C:
            if size != 4:
                raise ProxyError("version 2: a checksum that has not 4 octets")
            if crc32c(b"".join((header[:begin], bytes(4), header[end:]))) != int.from_bytes(
                header[begin:end], "big"
            ):
                raise ProxyError("version 2: the checksum is wrong")
        at = end


def _crc_row(value: int) -> int:
    for _ in range(8):
        value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
    return value


_CRC_TABLE = tuple(map(_crc_row, range(256)))


def crc32c(data: bytes) -> int:
    """Compute the Castagnoli checksum (RFC 3720 appendix B.4) for PP2_TYPE_CRC32C."""
    value = 0xFFFFFFFF
    for octet in data:
        value = (value >> 8) ^ _CRC_TABLE[(value ^ octet) & 255]
    return value ^ 0xFFFFFFFF
