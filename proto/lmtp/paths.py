"""Parse addresses in angle brackets, as SMTP and LMTP write them (RFC 5321 section 4.1.2, RFC 6531). Pure."""

__all__ = ["MOST_PATH", "parse_path"]

MOST_PATH = 254  # octets of an address: RFC 5321 section 4.5.3.1.3, without the brackets


def parse_path(text: bytes, *, null: bool) -> tuple[str, bytes] | None:
    """Parse `<address> parameters`: return the address and the parameters; None if it is malformed.

    Drops a source route before the address (RFC 5321 appendix C). Returns "" for `<>`, if `null` allows it.
    """
    if text[:1] != b"<":
        return None
    end = _end_of_path(text)
    if end < 0:
        return None
    path, rest = text[1:end], text[end + 1 :]
    if rest and rest[:1] != b" ":
        return None
    if path[:1] == b"@":
        path = path.partition(b":")[2]
    if not path:
        return ("", rest.strip()) if null else None
    try:
        address = path.decode("utf-8")
    except UnicodeDecodeError:
        return None
    local, sign, domain = address.rpartition("@")
    if len(path) > MOST_PATH or not address.isprintable() or (sign and not (local and domain)):
        return None
    quoted = (local if sign else address).startswith('"')
    if " " in domain or (("<" in address or " " in local or (not sign and " " in address)) and not quoted):
        return None
    return address, rest.strip()


def _end_of_path(text: bytes) -> int:
    """Return the offset of the closing bracket, or -1. A quoted local part may contain brackets."""
    if text[1:2] != b'"':
        return text.find(b">")
    at = 2
    while at < len(text) and text[at] != 0x22:
        at += 2 if text[at] == 0x5C else 1
    return text.find(b">", at)
