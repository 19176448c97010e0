"""Build awkward messages and compute what POP3 must send for each, without any code of popkernel."""

_HEAD = b"From: a@example.org\nTo: alice@localhost\nSubject: %s\n\n"
# octets: the sizes in which the actors read, send and stream
_CHUNKS = (65536, 131072, 262144 - 32768, 262144)
BIG = b"From: demo@localhost\nSubject: large\n\n" + b"".join(
    b"%09d %b\n" % (n, b"x" * 60) for n in range(290_000)
)


def head(name: str) -> bytes:
    """Return the header fields and the blank line."""
    return _HEAD % name.encode()


def dots_at_chunks(octets: int = 600_000) -> bytes:
    """Build a message with line-start dots just before, at and after every chunk boundary."""
    body = bytearray(head("dots at chunk boundaries") + b"x" * octets + b"\n")
    for chunk in _CHUNKS:
        for at in range(chunk, octets, chunk):
            for shift in (-5, -2, 0, 2, 5):
                body[at + shift : at + shift + 2] = b"\n."
    return bytes(body)


def crlf_at_chunks(octets: int = 600_000) -> bytes:
    """Build a message with CR LF, a dot or a lone CR across chunk boundaries."""
    body = bytearray(head("CR LF at chunk boundaries") + b"y" * octets + b"\n")
    for chunk in _CHUNKS:
        for number, at in enumerate(range(chunk, octets, chunk)):
            body[at - 1 : at + 2] = b"\r\n." if number % 2 == 0 else b"\r.\n"
    return bytes(body)


MESSAGES: dict[str, bytes] = {
    "plain": head("plain") + b"one line\n",
    "first octet a dot": b".Odd: header\n" + head("dot") + b".\n",
    "lines of dots": head("dots") + b".\n..\n...\n.\n\n.x\n. \n" + b"." * 300 + b"\n.",
    "no last newline": head("no newline") + b"the last line has no end",
    "CR LF in the file": head("crlf").replace(b"\n", b"\r\n") + b".first\r\n\r\n.\r\nlast\r\n",
    "mixed line ends": head("mixed") + b"lf\ncrlf\r\n.lf\n.crlf\r\n\r\n\n",
    "bare CR": head("bare cr") + b"one\rtwo\r\r\nthree\r.four\n\rfive\n",
    "ends in a bare CR": head("ends in cr") + b"line\nlast\r",
    "8-bit": head("8-bit") + "Grüße, привет, 你好\n".encode() + bytes(range(128, 256)) + b"\n",
    "NUL": head("nul") + b"a\0b\n\0\n\0.\n.\0\n",
    "1 MB line": head("long line") + b"." + b"0123456789abcdef" * 65536 + b"\n.end\n",
    "empty": b"",
    "headers only": b"From: a@example.org\nSubject: headers only\n",
    "headers only, no newline": b"Subject: headers only",
    "one newline": b"\n",
    "one dot": b".",
    "dots at chunk boundaries": dots_at_chunks(),
    "CR LF at chunk boundaries": crlf_at_chunks(),
    "exactly a frame": head("frame") + b"z" * (262144 - len(head("frame")) - 1) + b"\n",
}


def big(megabytes: int = 50) -> bytes:
    """Build a large message of ordinary lines, some of which begin with a dot."""
    lines = b"".join(
        b"%s line %d of a large message, which is the same again and again\n"
        % (b"." if i % 7 == 0 else b"", i)
        for i in range(1000)
    )
    body = lines * (megabytes * 1_000_000 // len(lines) + 1)
    return head("big") + body


def lines_of(raw: bytes) -> list[bytes]:
    """Split a file into lines as POP3 sees them.

    LF or CR LF ends a line. A last line without an end counts too.
    """
    lines = raw.split(b"\n")
    ended = len(lines) - 1  # all but the last piece ended in LF
    result = [line[:-1] if line.endswith(b"\r") else line for line in lines[:ended]]
    if lines[ended]:
        result.append(lines[ended])
    return result


def sent(raw: bytes) -> bytes:
    """Return the message as a client stores it: each line ends in CR LF.

    STAT and LIST count this length.
    """
    return b"".join(line + b"\r\n" for line in lines_of(raw))


def on_the_wire(raw: bytes) -> bytes:
    """Return the octets after the first reply line, dots stuffed, with the closing dot."""
    return (
        b"".join((b"." if line.startswith(b".") else b"") + line + b"\r\n" for line in lines_of(raw))
        + b".\r\n"
    )


def top(raw: bytes, count: int) -> bytes:
    """Return what TOP sends: headers, the blank line and `count` lines, with the closing dot."""
    shown, left = [], None
    for line in lines_of(raw):
        if left == 0:
            break
        shown.append(line + b"\r\n")
        if left is None:
            left = count if line == b"" else None
        else:
            left -= 1
    return on_the_wire(b"".join(shown))
