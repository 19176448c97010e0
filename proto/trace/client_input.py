"""Redact a client's lines for traces: only what cannot be a secret is left. Pure.

An allow-list: POP3's commands with numbers, and one word after USER. Everything else (passwords, SASL
responses, a password typed in the wrong place, the arguments of unknown commands) is replaced by a mark. A
redacted line gets the same reply on replay as the original.
"""

from popkernel.proto.pop3.commands import TOO_LONG

__all__ = ["UNKNOWN", "lmtp_commands", "redacted_line"]

UNKNOWN = b"[unknown]"

_SECRET = b"[secret]"
_NUMBERS = frozenset(b"0123456789 ")
_NUMBERED = (b"RETR", b"DELE", b"LIST", b"UIDL", b"TOP")
_BARE = (b"STAT", b"NOOP", b"RSET", b"QUIT", b"CAPA", b"STLS", b"UTF8")


def redacted_line(line: bytes) -> bytes:
    """Redact a line without its end, as LineReader gives it."""
    if line == TOO_LONG:
        return line
    verb, blank, rest = line.partition(b" ")
    upper = verb.upper()
    if upper == b"PASS":
        return verb + blank + (_SECRET if rest else b"")
    if upper == b"USER":
        name = rest.strip(b" ")
        return line if _is_name(name) else verb + b" [not one word]"
    if upper in _NUMBERED:
        return line if _NUMBERS.issuperset(rest) else verb + b" [no number]"
    if upper in _BARE:
        return line if not rest.strip(b" ") else verb + b" [argument]"
    return UNKNOWN


def _is_name(name: bytes) -> bool:
    """Say whether it is one word that could be a user name."""
    try:
        text = name.decode()
    except UnicodeDecodeError:
        return False
    return bool(text) and len(text) <= 255 and text.isprintable() and " " not in text


_LMTP = (b"LHLO", b"MAIL", b"RCPT", b"DATA", b"RSET", b"NOOP", b"QUIT", b"VRFY")


def lmtp_commands(data: bytes) -> list[bytes] | None:
    """Split input to an LMTP server in command state; None unless it is whole commands and surely no mail."""
    *lines, rest = data.split(b"\n")
    verbs = [line[:4].upper() for line in lines]
    if (
        rest
        or not lines
        or any(
            v not in _LMTP or line[4:5] not in (b" ", b"\r", b"")
            for v, line in zip(verbs, lines, strict=True)
        )
    ):
        return None
    return None if b"DATA" in verbs[:-1] else [line.removesuffix(b"\r") for line in lines]
