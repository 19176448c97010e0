"""Read a TLS ClientHello (RFC 8446 section 4.1.2) as far as it tells why a client cannot connect. Pure.

The octets come from a client: they may be cut anywhere, or be no TLS at all.
"""

__all__ = ["HANDSHAKE", "offered_version"]

HANDSHAKE = 22  # the content type of a handshake record, its first octet
_CLIENT_HELLO = 1
_SUPPORTED_VERSIONS = 43  # an extension


def offered_version(data: bytes) -> int:
    """Return the highest TLS version that a ClientHello offers, as in tls_versions.py; 0 if unknown.

    `data`: the first octets of a connection.
    """
    if len(data) < 11 or data[0] != HANDSHAKE or data[5] != _CLIENT_HELLO:
        return 0
    known = [_number(data[9:11])]
    at = 11 + 32  # the random
    try:
        at += 1 + data[at]  # the session id
        at += 2 + int.from_bytes(data[at : at + 2], "big")  # cipher suites
        at += 1 + data[at]  # compression methods
        end = at + 2 + int.from_bytes(data[at : at + 2], "big")
        at += 2
        while at + 4 <= len(data):
            kind = int.from_bytes(data[at : at + 2], "big")
            size = int.from_bytes(data[at + 2 : at + 4], "big")
            if kind == _SUPPORTED_VERSIONS:
                listed = data[at + 5 : at + 4 + size]
                known = [_number(listed[i : i + 2]) for i in range(0, len(listed) - 1, 2)]
                break
            at += 4 + size
    except IndexError:
        return 0
    # if it is cut, the extension may follow, or more of it
    return max(known, default=0) if at <= len(data) and end <= len(data) else 0


def _number(version: bytes) -> int:
    """Return the number of a version as the wire has it; 0 for an unknown one, such as those of RFC 8701."""
    return 9 + version[1] if len(version) == 2 and version[0] == 3 and 0 <= version[1] <= 4 else 0
