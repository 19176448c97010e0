"""Awkward messages, and what POP3 must give for each: worked out here line by line, with nothing of popkernel's own.

Also a client that shows the octets as they came: a socket, TLS on it at once or by STLS, and no opinion about anything.
"""

import socket
import ssl

_HEAD = b"From: a@example.org\nTo: alice@localhost\nSubject: %s\n\n"
_CHUNKS = (65536, 131072, 262144 - 32768, 262144)  # octets: what the actors read, send and stream at a time


def head(name: str) -> bytes:
    """Headers and the blank line."""
    return _HEAD % name.encode()


def dots_at_chunks(octets: int = 600_000) -> bytes:
    """A message whose lines begin with dots just before, at and after every multiple of the sizes mail is cut at."""
    body = bytearray(head("dots at chunk boundaries") + b"x" * octets + b"\n")
    for chunk in _CHUNKS:
        for at in range(chunk, octets, chunk):
            for shift in (-5, -2, 0, 2, 5):
                body[at + shift : at + shift + 2] = b"\n."
    return bytes(body)


def crlf_at_chunks(octets: int = 600_000) -> bytes:
    """CR at the end of one chunk and LF at the beginning of the next, a dot behind; and a lone CR there."""
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
    """A large message of ordinary lines, some with a dot in front."""
    lines = b"".join(b"%s line %d of a large message, which is the same again and again\n" % (b"." if i % 7 == 0 else b"", i) for i in range(1000))
    body = lines * (megabytes * 1_000_000 // len(lines) + 1)
    return head("big") + body


def lines_of(raw: bytes) -> list[bytes]:
    """The lines of a file as POP3 sees them: LF or CR LF ends a line, a last one without an end is one too."""
    lines = raw.split(b"\n")
    ended = len(lines) - 1  # all but the last piece had an LF behind them
    result = [line[:-1] if line.endswith(b"\r") else line for line in lines[:ended]]
    if lines[ended]:
        result.append(lines[ended])
    return result


def sent(raw: bytes) -> bytes:
    """The message as a client has it in the end: each line with CR LF behind. Its length is what STAT and LIST count."""
    return b"".join(line + b"\r\n" for line in lines_of(raw))


def on_the_wire(raw: bytes) -> bytes:
    """The octets between the first line of the reply and the end of it, the closing dot with them."""
    return b"".join((b"." if line.startswith(b".") else b"") + line + b"\r\n" for line in lines_of(raw)) + b".\r\n"


def top(raw: bytes, count: int) -> bytes:
    """What TOP gives: the wire form of the headers, the blank line and `count` lines."""
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


class RawClient:
    """POP3 as octets. `tls`: "tls" at once, "stls" by STLS, "" not at all. `source`: the address to come from; `before`: to say first of all."""

    def __init__(self, service, tls="tls", *, user="", password="secret", timeout=20, buffer=0, source="", before=b""):
        where = service.tls if tls == "tls" else service.plain
        self.sock = socket.socket(socket.AF_INET6 if ":" in where.host else socket.AF_INET)
        self.sock.settimeout(timeout)
        if source:
            self.sock.bind((source, 0))
        if buffer:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        self.data = bytearray()
        self.cafile = service.site.cert
        try:
            self.sock.connect((where.host, where.port))
            self.sock.send(before, getattr(socket, "MSG_MORE", 0) if tls == "tls" else 0)  # in one segment with the ClientHello
            self._begin(tls, user, password)
        except BaseException:
            self.close()
            raise

    def _begin(self, tls, user, password):
        if tls == "tls":
            self.secure()
        self.greeting = self.line()
        if tls == "stls":
            assert self.ask(b"STLS").startswith(b"+OK")
            self.secure()
        if user:
            assert self.ask(b"USER " + user.encode()) == b"+OK\r\n"
            answer = self.ask(b"PASS " + password.encode())
            assert answer.startswith(b"+OK"), answer

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def secure(self):
        """TLS from here on."""
        context = ssl.create_default_context(cafile=self.cafile)
        context.check_hostname = False
        self.sock = context.wrap_socket(self.sock)

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def more(self) -> bool:
        """Take what comes next; False at the end of the connection."""
        try:
            data = self.sock.recv(1 << 18)
        except (ConnectionResetError, ssl.SSLEOFError):
            data = b""
        self.data += data
        return bool(data)

    def take(self, octets: int) -> bytes:
        """Exactly so many octets."""
        while len(self.data) < octets:
            if not self.more():
                raise EOFError(bytes(self.data[-200:]))
        data = bytes(self.data[:octets])
        del self.data[:octets]
        return data

    def line(self) -> bytes:
        """A line with its CR LF."""
        start = 0
        while (at := self.data.find(b"\n", start)) < 0:
            start = len(self.data)
            if not self.more():
                raise EOFError(bytes(self.data[-200:]))
        return self.take(at + 1)

    def ask(self, command: bytes) -> bytes:
        """Send a line, give the first line of the reply."""
        self.send(command + b"\r\n")
        return self.line()

    def rest(self) -> bytes:
        """What follows the first line of a reply of many lines, as it came, the closing dot with it."""
        start = 0
        while True:
            if self.data.startswith(b".\r\n"):
                return self.take(3)
            at = self.data.find(b"\r\n.\r\n", max(0, start - 4))
            if at >= 0:
                return self.take(at + 5)
            start = len(self.data)
            if not self.more():
                raise EOFError(bytes(self.data[-200:]))

    def many(self, command: bytes) -> bytes:
        """A command whose reply has many lines; those after the first, which must be +OK."""
        answer = self.ask(command)
        assert answer.startswith(b"+OK"), answer
        return self.rest()

    def end(self) -> bytes:
        """All that still comes until the server closes."""
        while self.more():
            continue
        data, self.data = bytes(self.data), bytearray()
        return data

    def close(self):
        self.sock.close()
