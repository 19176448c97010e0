"""The octets of a message as POP3 sends them: line ends, dot-stuffing, sizes, TOP.

Pure functions and small machines fed with chunks; nothing here knows of files or sockets. The rules (RFC 1939,
section 3 and 11):

- a bare LF becomes CR LF and counts 2; a CR LF already there stays one line end; a bare CR is an octet like any other;
- a missing last line end is added and counted (so a message that ends in a bare CR ends in CR CR LF);
- a line that begins with ``.`` gets one more ``.`` on the wire, which is never counted;
- an empty message is 0 octets and needs nothing.

What is sent here never holds the closing ``.`` CR LF: that belongs to the reply, not to the message.
"""

from __future__ import annotations

_CRLF = b"\r\n"
_CR = 13  # `in` takes a number as it is; octets it takes for a number first, and words an error for itself before it looks for them


def wire_size(data: bytes) -> int:
    """Octets of a whole message as STAT and LIST must say them: line ends as CR LF, byte-stuffing not counted."""
    if not data:
        return 0
    size = len(data) + data.count(b"\n")
    if _CR in data:
        size -= data.count(_CRLF)
    return size if data.endswith(b"\n") else size + 2


def _crlf(data: bytes) -> bytes:
    """Make every line end CR LF. ``data`` stands by itself: no CR before it that belongs to its first LF."""
    if _CR not in data:
        return data.replace(b"\n", _CRLF)
    # Replacing single octets is four times as fast as looking for pairs, and mail with a CR is mostly all CR LF.
    out = data.replace(b"\r", b"").replace(b"\n", _CRLF)
    if out == data:
        return data
    return data.replace(_CRLF, b"\n").replace(b"\n", _CRLF)


def encode(data: bytes) -> tuple[bytes, int]:
    """Give a whole message's wire form and its ``wire_size`` in one go: one pass less than asking for both."""
    out = _crlf(data)
    if out and not out.endswith(b"\n"):
        out += _CRLF
    octets = len(out)
    out = _stuffed(out)
    if out.startswith(b"."):
        out = b"." + out
    return out, octets


def _stuffed(data: bytes) -> bytes:
    """Double the dot at each line's beginning, but for the first line's. ``replace`` looks for pairs at half the speed of ``split``."""
    return b"\n..".join(data.split(b"\n."))


class WireEncoder:
    """``encode`` for a message that comes in chunks, cut anywhere.

    ``octets`` is what was given out so far, stuffed dots not counted: after ``finish`` it is the message's ``wire_size``.
    """

    __slots__ = ("_after_cr", "_line_start", "octets")

    def __init__(self) -> None:
        self.octets = 0
        self._after_cr = False  # the last octet was CR: an LF now ends that same line
        self._line_start = True

    def feed(self, chunk: bytes) -> bytes:
        """Encode the next raw chunk (any length, zero too)."""
        if not chunk:
            return b""
        head = b""
        body = chunk
        if self._after_cr and chunk.startswith(b"\n"):
            head, body = b"\n", chunk[1:]
            self._line_start = True
        out = _crlf(body)
        self.octets += len(head) + len(out)
        out = _stuffed(out)
        if self._line_start and out.startswith(b"."):
            head += b"."
        self._after_cr = chunk.endswith(b"\r")
        self._line_start = chunk.endswith(b"\n")
        return head + out if head else out

    def finish(self) -> bytes:
        """End the message: CR LF where its last line had no end, else nothing."""
        if self._line_start:
            return b""
        self._line_start = True
        self._after_cr = False
        self.octets += 2
        return _CRLF


class SizeCounter:
    """``wire_size`` for a message that comes in chunks, cut anywhere."""

    __slots__ = ("_after_cr", "_line_start", "_octets")

    def __init__(self) -> None:
        self._octets = 0
        self._after_cr = False
        self._line_start = True

    def feed(self, chunk: bytes) -> None:
        """Count the next raw chunk (any length, zero too)."""
        if not chunk:
            return
        octets = len(chunk) + chunk.count(b"\n")
        if _CR in chunk:
            octets -= chunk.count(_CRLF)
        if self._after_cr and chunk.startswith(b"\n"):
            octets -= 1
        self._octets += octets
        self._after_cr = chunk.endswith(b"\r")
        self._line_start = chunk.endswith(b"\n")

    def finish(self) -> int:
        """Octets of the whole message, the added last line end with them. May be asked again."""
        return self._octets if self._line_start else self._octets + 2


class TopCutter:
    """TOP n m (RFC 1939, section 7): the headers, the blank line and ``lines`` lines of the body.

    Stands before the ``WireEncoder``: takes raw chunks or, as well, a message with CR LF line ends; not a stuffed one.
    A line ends with LF; a bare CR ends none. A message without a blank line is all headers. ``done`` turns true as soon
    as nothing more is wanted, and the reader may stop; a message that ends before that is given whole.
    """

    __slots__ = ("_in_body", "_left", "_line", "done")

    def __init__(self, lines: int) -> None:
        """``lines``: body lines wanted, 0 or more."""
        if lines < 0:
            raise ValueError("TOP takes 0 or more lines")
        self._left = lines
        self._in_body = False
        self._line = b""  # the header line so far, when it is still b"" or b"\r"; anything else stands as b"x"
        self.done = False

    def feed(self, chunk: bytes) -> bytes:
        """Give back the part of ``chunk`` that TOP shows: its beginning, all of it, or nothing once ``done``."""
        if self.done or not chunk:
            return b""
        start = 0
        if not self._in_body:
            start = self._headers_end(chunk)
            if start < 0:
                return chunk
            self._in_body = True
        return chunk[: self._body_end(chunk, start)]

    def _headers_end(self, chunk: bytes) -> int:
        """Offset after the blank line, or -1 when it is not in ``chunk``."""
        line = self._line
        if line != b"x":
            # The line cut by the chunk's beginning is blank so far: two octets decide.
            begin = line + chunk[:2]
            if begin.startswith(b"\n"):
                return 1
            if begin.startswith(_CRLF):
                return 2 - len(line)
            if begin == b"\r":
                self._line = begin
                return -1
        plain = chunk.find(b"\n\n")
        crlf = chunk.find(b"\n\r\n", 0, plain + 1 if plain >= 0 else len(chunk))
        if crlf >= 0:
            return crlf + 3
        if plain >= 0:
            return plain + 2
        self._line = b"" if chunk.endswith(b"\n") else b"\r" if chunk.endswith(b"\n\r") else b"x"
        return -1

    def _body_end(self, chunk: bytes, start: int) -> int:
        """Offset after the last body line wanted of ``chunk``, whose body begins at ``start``."""
        there = chunk.count(b"\n", start)
        if there < self._left:
            self._left -= there
            return len(chunk)
        self.done = True
        end = start
        for _ in range(self._left):
            end = chunk.find(b"\n", end) + 1
        self._left = 0
        return end
