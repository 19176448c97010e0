"""Parse POP3 command lines and format replies (RFC 1939, 2449, 2595, 3206). Sans I/O.

`LineReader` holds at most one line; everything else is a function of its arguments.
"""

from collections import deque
from collections.abc import Sequence

__all__ = ["GREETING", "LINE_LIMIT", "LineReader", "capabilities", "err", "number", "ok", "split"]

LINE_LIMIT = 255  # octets with CRLF, RFC 2449 section 4
REPLY_LIMIT = 512  # octets with CRLF, RFC 2449 section 4
GREETING = b"+OK POP3 ready\r\n"
# Replaces a line that was too long. It equals no line from a client: a NUL makes a line invalid.
TOO_LONG = b"\0"


class LineReader:
    """Split octets into lines without their ends; accept a bare LF too.

    A line over the limit becomes TOO_LONG.
    """

    __slots__ = ("_partial", "_skipping", "limit", "lines")

    def __init__(self, limit: int = LINE_LIMIT) -> None:
        self.limit = limit
        self.lines: deque[bytes] = deque()
        self._partial = b""
        self._skipping = False

    def feed(self, data: bytes) -> None:
        """Add octets from the client; complete lines go to `lines`."""
        if self._partial:
            data = self._partial + data
        *whole, rest = data.split(b"\n")
        limit = self.limit
        for line in whole:
            if self._skipping:
                self._skipping = False  # TOO_LONG is in `lines` already
            elif len(line) >= limit:
                self.lines.append(TOO_LONG)
            elif line.endswith(b"\r"):
                self.lines.append(line[:-1])
            else:
                self.lines.append(line)
        if len(rest) >= limit:
            if not self._skipping:
                self.lines.append(TOO_LONG)
                self._skipping = True
            rest = b""
        elif self._skipping:
            rest = b""
        self._partial = rest

    def clear(self) -> None:
        """Discard all input: what a client sent in clear after STLS must not be executed (CVE-2011-0411)."""
        self.lines.clear()
        self._partial = b""
        self._skipping = False


def split(line: bytes) -> tuple[bytes, bytes]:
    """Return the keyword in upper case, and everything after one blank: a password may begin with a blank."""
    verb, _, rest = line.partition(b" ")
    return verb.upper(), rest


def number(argument: bytes) -> int:
    """Parse a message number or line count: 1 to 10 digits without leading zeros, blanks around; else -1."""
    argument = argument.strip(b" ")
    if argument.isdigit() and (
        len(argument) <= 10 or (len(argument) <= 40 and len(argument.lstrip(b"0")) <= 10)
    ):
        return int(argument)
    return -1


def ok(text: str = "") -> bytes:
    """Format a +OK line, cut to `REPLY_LIMIT`."""
    return b"+OK " + text.encode()[: REPLY_LIMIT - 6] + b"\r\n" if text else b"+OK\r\n"


def err(text: str, code: str = "") -> bytes:
    """Format a -ERR line, cut to `REPLY_LIMIT`; `code` without brackets (RFC 2449 section 8)."""
    line = f"[{code}] {text}" if code else text
    return b"-ERR " + line.encode()[: REPLY_LIMIT - 7] + b"\r\n"


def capabilities(
    *, starttls: bool, user: bool, mechanisms: Sequence[str], expire: int, login_delay: int, version: str
) -> bytes:
    """Format the whole answer to CAPA (RFC 2449) for the session's present state.

    `starttls`, `user`: whether STLS and USER are accepted now. `mechanisms`: those that AUTH accepts now.
    `expire`: days that mail is kept, 0 for until it is retrieved, -1 for ever (section 6.7). `login_delay`:
    seconds between logins, 0 for none (section 6.5).
    """
    lines = ["TOP", "UIDL", "RESP-CODES", "AUTH-RESP-CODE", "PIPELINING", "UTF8 USER"]
    if user:
        lines.append("USER")
    if mechanisms:
        lines.append("SASL " + " ".join(mechanisms))
    if starttls:
        lines.append("STLS")
    if login_delay:
        lines.append(f"LOGIN-DELAY {login_delay}")
    lines += [f"EXPIRE {expire}" if expire >= 0 else "EXPIRE NEVER", f"IMPLEMENTATION popkernel-{version}"]
    return b"+OK capabilities follow\r\n" + "\r\n".join([*lines, ".", ""]).encode()
