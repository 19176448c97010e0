"""Encode messages as POP3 sends them, and count their octets: line ends, dot-stuffing, TOP.

Pure: functions, and classes that are fed chunks. The rules (RFC 1939 sections 3 and 11):

- a bare LF becomes CR LF and counts 2; a CR LF stays one line end; a bare CR is an ordinary octet;
- a missing last line end is added and counted (a message that ends in a bare CR ends in CR CR LF);
- a line that begins with `.` gets another `.` on the wire, which is not counted;
- an empty message has 0 octets and is sent as nothing.

The closing `.` CR LF is never added here: it belongs to the reply.
"""

from __future__ import annotations

_CRLF = b"\r\n"
# As a number: `in` tries octets as a number first, which raises an exception inside.
_CR = 13


def wire_size(data: bytes) -> int:
    """Return the octets of a whole message as STAT and LIST count them: CR LF line ends, no dot-stuffing."""
    if not data:
        return 0
    size = len(data) + data.count(b"\n")
    if _CR in data:
        size -= data.count(_CRLF)
    return size if data.endswith(b"\n") else size + 2


def _crlf(data: bytes) -> bytes:
    """Make every line end CR LF. No CR that belongs to the first LF may precede `data`."""
    if _CR not in data:
        return data.replace(b"\n", _CRLF)
    # Replacing single octets is four times as fast as pairs, and most mail with a CR has CR LF throughout.
    out = data.replace(b"\r", b"").replace(b"\n", _CRLF)
    if out == data:
        return data
    return data.replace(_CRLF, b"\n").replace(b"\n", _CRLF)


def encode(data: bytes) -> tuple[bytes, int]:
    """Return a whole message's wire form and its `wire_size`, with one pass less than two calls."""
    out = _crlf(data)
    if out and not out.endswith(b"\n"):
        out += _CRLF
    octets = len(out)
    out = _stuffed(out)
    if out.startswith(b"."):
        out = b"." + out
    return out, octets


def _stuffed(data: bytes) -> bytes:
    """Double the dot at the beginning of each line but the first.

    `split` takes half the time of `replace`, which looks for pairs.
    """
    return b"\n..".join(data.split(b"\n."))


class WireEncoder:
    """Encode a message that comes in chunks, cut anywhere.

    `octets`: the size of the output so far without stuffed dots; after `finish` the message's `wire_size`.
    """

    __slots__ = ("_after_cr", "_line_start", "octets")

    def __init__(self) -> None:
        self.octets = 0
        self._after_cr = False  # the last octet was CR: a following LF belongs to it
        self._line_start = True

    def feed(self, chunk: bytes) -> bytes:
        """Encode the next chunk of any length."""
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
        """Return CR LF if the last line has no end, else nothing."""
        if self._line_start:
            return b""
        self._line_start = True
        self._after_cr = False
        self.octets += 2
        return _CRLF


class SizeCounter:
    """Compute the `wire_size` of a message that comes in chunks, cut anywhere."""

    __slots__ = ("_after_cr", "_line_start", "_octets")

    def __init__(self) -> None:
        self._octets = 0
        self._after_cr = False
        self._line_start = True

    def feed(self, chunk: bytes) -> None:
        """Count the next chunk of any length."""
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
        """Return the octets of the whole message, an added last line end included. May be called again."""
        return self._octets if self._line_start else self._octets + 2


class TopCutter:
    """Cut a message for TOP n m (RFC 1939 section 7): header, blank line and `lines` lines of the body.

    Comes before the `WireEncoder`: takes raw chunks, or a message with CR LF line ends, but not stuffed. A
    line ends with LF; a bare CR ends none. A message without a blank line is all header. `done` becomes true
    once the rest is not needed, and the reader may stop; a message that ends earlier is passed on whole.
    """

    __slots__ = ("_in_body", "_left", "_line", "done")

    def __init__(self, lines: int) -> None:
        """`lines`: body lines wanted, 0 or more."""
        if lines < 0:
            raise ValueError("TOP takes 0 or more lines")
        self._left = lines
        self._in_body = False
        # The header line so far if it is still b"" or b"\r"; any other is b"x".
        self._line = b""
        self.done = False

    def feed(self, chunk: bytes) -> bytes:
        """Return the part of `chunk` that TOP shows; nothing once `done`."""
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
        """Return the offset after the blank line, or -1 if it is not in `chunk`."""
        line = self._line
        if line != b"x":
            # The line that continues from the last chunk is blank so far: two octets decide.
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
        """Return the offset after the last line to show; the body begins at `start`."""
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
