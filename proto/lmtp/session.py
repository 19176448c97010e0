"""LMTP, the server's side of one connection (RFC 2033), sans I/O: octets in, events and replies out.

Extensions: PIPELINING (RFC 2920), ENHANCEDSTATUSCODES (2034), 8BITMIME (6152), SMTPUTF8 (6531), SIZE (1870).
Mail comes out as it is to lie on disk: CR LF made LF, dots unstuffed, every other octet as it came (a lone CR or LF, NUL, 8
bit). It ends at CR LF . CR LF and nowhere else, so that no two servers disagree where a message ends. Memory is bounded by what
one `feed` gives and one command line: content is handed on as it comes, never collected here.

The owner calls `feed`, then `next` until it gives None, and sends `take_out()`. After `Rcpt` it must call `recipient`, after
`Done` `answer` for each recipient it took; until then `next` gives None and there is no use in feeding more.
"""

from typing import NamedTuple

from popkernel.proto.lmtp.paths import parse_path

__all__ = ["Cancelled", "Content", "Done", "Event", "Lmtp", "Rcpt"]

MOST_LINE = 4096  # octets of a command; RFC 5321 section 4.5.3.1.4 wants 512 and room for what extensions add
MOST_RECIPIENTS = 2000  # of one message; RFC 5321 section 4.5.3.1.8 wants 100 at least
_MOST_ERRORS = 50  # wrong commands before the connection is ended
_END = b"\r\n.\r\n"


class Rcpt(NamedTuple):
    """A recipient to be judged."""

    address: str


class Content(NamedTuple):
    """The next octets of the message."""

    data: bytes


class Done(NamedTuple):
    """The message is whole: each recipient is to be answered for."""


class Cancelled(NamedTuple):
    """There will be no more of this message, and nothing to be answered."""


Event = Rcpt | Content | Done | Cancelled


class Lmtp:
    """One connection. `sender` and `recipients` are those of the message under way. `closing`: send what there is, then close."""

    __slots__ = (
        "_answers", "_begun", "_buffer", "_commands", "_errors", "_held", "_hostname", "_most", "_octets", "_out", "_skipping", "_told",
        "announced", "closing", "greeted", "recipients", "sender", "state",
    )

    def __init__(self, hostname: str, most: int) -> None:
        """`most`: octets of the largest message taken."""
        self._hostname = hostname.encode("ascii", "replace")
        self._most = most
        self._buffer = b""
        self._out: list[bytes] = [b"220 %s LMTP popkernel\r\n" % self._hostname]
        self._commands = {
            b"LHLO": self._lhlo, b"MAIL": self._mail, b"RCPT": self._rcpt, b"DATA": self._data, b"RSET": self._rset,
            b"NOOP": self._noop, b"QUIT": self._quit, b"VRFY": self._vrfy, b"HELO": self._helo, b"EHLO": self._helo,
        }
        self._errors = 0
        self._skipping = False  # the rest of a line that was too long
        self.state = "command"  # command, asking, data, whole, answering
        self.closing = False
        self.greeted = False
        self._clear()

    def _clear(self) -> None:
        self.sender: str | None = None
        self.recipients: list[str] = []
        self.announced = 0  # octets: MAIL's SIZE (RFC 1870 section 6), 0 where there was none
        self._begun = False  # DATA's first octets have come
        self._octets = 0
        self._held = b""
        self._answers: list[bytes | None] = []
        self._told = 0

    # -- between messages
    @property
    def rest(self) -> list[int]:
        """All there is to a connection that waits for the next command of no message; empty where it does not."""
        busy = self.state != "command" or self.sender is not None or self._buffer or self._skipping or self._out or self.closing
        return [] if busy else [int(self.greeted), self._errors]

    def go_on(self, rest: list[int]) -> None:
        """Be that connection, before anything is fed."""
        self.greeted, self._errors = bool(rest[0]), rest[1]
        self._out = []

    # -- in
    @property
    def wants(self) -> bool:
        """Whether feeding more is of use now."""
        return self.state not in ("asking", "answering") and not self.closing

    def feed(self, data: bytes) -> None:
        """Octets from the client."""
        self._buffer = self._buffer + data if self._buffer else data

    def next(self) -> Event | None:
        """What happened; None: nothing until more is fed, or answered."""
        while not self.closing:
            state = self.state
            event: Event | None
            if state == "command":
                line = self._line()
                if line is None:
                    return None
                event = self._command(line)
            elif state == "data":
                if not self._buffer:
                    return None
                event = self._take_data()
            elif state == "whole":
                event = self._finish()
            else:
                return None
            if event is not None:
                return event
        return None

    def take_out(self) -> bytes:
        """Everything to be sent now."""
        out = self._out
        self._out = []
        return out[0] if len(out) == 1 else b"".join(out)

    def end(self, text: str) -> None:
        """Say that the connection is being closed, and why (421)."""
        self._reply(b"421 " + text.encode("ascii", "replace"))
        self.closing = True

    # -- the owner's answers
    def recipient(self, text: str, *, taken: bool = True) -> None:
        """After `Rcpt`. `text`: without the code, beginning with the RFC 3463 status."""
        if self.state != "asking":
            return
        self.state = "command"
        if taken:
            self._reply(b"250 " + _plain(text))
        else:
            self.recipients.pop()
            self._reply(_refusal(text))

    def answer(self, index: int, text: str, *, taken: bool = True) -> None:
        """After `Done`, for recipient `index` of `recipients`, in any order and once each; sent in order."""
        self._answers[index] = (b"250 " + _plain(text)) if taken else _refusal(text)
        answers = self._answers
        while self._told < len(answers):
            reply = answers[self._told]
            if reply is None:
                return
            self._reply(reply)
            self._told += 1
        self._clear()
        self.state = "command"

    # -- commands
    def _line(self) -> bytes | None:
        buffer = self._buffer
        end = buffer.find(b"\n")
        if end < 0:
            if len(buffer) > MOST_LINE:
                self._skipping = True
            if self._skipping:
                self._buffer = b""
            return None
        self._buffer = buffer[end + 1 :]
        if self._skipping or end > MOST_LINE:
            self._skipping = False
            return b"\n"
        return buffer[: end - 1] if buffer[end - 1 : end] == b"\r" else buffer[:end]

    def _command(self, line: bytes) -> Event | None:
        if line == b"\n":
            return self._wrong(b"500 5.5.2 line too long")
        command = self._commands.get(line[:4].upper())
        if command is None or (len(line) > 4 and line[4:5] != b" "):
            return self._wrong(b"500 5.5.1 command not known")
        return command(line[5:].strip(b" \t"))

    def _reply(self, text: bytes) -> None:
        self._out.append(text + b"\r\n")

    def _wrong(self, text: bytes) -> Event | None:
        self._errors += 1
        self._reply(text)
        if self._errors > _MOST_ERRORS:
            self.end("4.7.0 too many errors")
        return None

    def _lhlo(self, rest: bytes) -> Event | None:
        if not rest:
            return self._wrong(b"501 5.5.4 LHLO wants your name")
        self.greeted = True
        host = self._hostname
        self._reply(
            b"250-%s\r\n250-PIPELINING\r\n250-ENHANCEDSTATUSCODES\r\n250-8BITMIME\r\n250-SMTPUTF8\r\n250 SIZE %d"
            % (host, self._most)
        )
        return self._cancel()

    def _helo(self, rest: bytes) -> None:
        del rest
        self._wrong(b"500 5.5.1 this is LMTP: say LHLO")

    def _mail(self, rest: bytes) -> Event | None:
        if not self.greeted:
            return self._wrong(b"503 5.5.1 say LHLO first")
        if self.sender is not None:
            return self._wrong(b"503 5.5.1 one message at a time")
        if rest[:5].upper() != b"FROM:":
            return self._wrong(b"501 5.5.4 MAIL FROM:<address>")
        path = parse_path(rest[5:].lstrip(b" "), null=True)
        if path is None:
            return self._wrong(b"501 5.1.7 that is no address")
        address, parameters = path
        announced = 0
        for parameter in parameters.split():
            name, _, value = parameter.upper().partition(b"=")
            if name == b"SIZE" and value.isdigit() and len(value) <= 20:
                announced = int(value)
                if announced > self._most:
                    self._reply(b"552 5.3.4 a message may have %d octets" % self._most)
                    return None
            elif not ((name == b"BODY" and value in (b"7BIT", b"8BITMIME")) or (name == b"SMTPUTF8" and not value)):
                return self._wrong(b"555 5.5.4 a parameter that is not known")
        self.sender, self.announced = address, announced
        self._reply(b"250 2.1.0 ok")
        return None

    def _rcpt(self, rest: bytes) -> Event | None:
        if self.sender is None:
            return self._wrong(b"503 5.5.1 MAIL comes first")
        if rest[:3].upper() != b"TO:":
            return self._wrong(b"501 5.5.4 RCPT TO:<address>")
        path = parse_path(rest[3:].lstrip(b" "), null=False)
        if path is None:
            return self._wrong(b"501 5.1.3 that is no address")
        if path[1]:
            return self._wrong(b"555 5.5.4 a parameter that is not known")
        if len(self.recipients) >= MOST_RECIPIENTS:
            self._reply(b"452 4.5.3 too many recipients, send the message to the others after this")
            return None
        self.recipients.append(path[0])
        self.state = "asking"
        return Rcpt(path[0])

    def _data(self, rest: bytes) -> Event | None:
        if rest:
            return self._wrong(b"501 5.5.4 DATA takes nothing")
        if self.sender is None:
            return self._wrong(b"503 5.5.1 MAIL and RCPT come first")
        if not self.recipients:
            return self._wrong(b"503 5.5.1 no valid recipients")  # RFC 2033 section 4.2
        self._reply(b"354 go on, and end with a dot")
        self._held = b"\r\n"  # what stands before the first octet, so that a dot there is at the start of a line
        self.state = "data"
        return None

    def _take_data(self) -> Event | None:
        """What there is of DATA's octets. What could be the beginning of its end is held back."""
        data = self._held + self._buffer
        end = data.find(_END)
        if end >= 0:
            self._buffer = data[end + 5 :]
            self._held = b""
            data = data[: end + 2]
            self.state = "whole"
        else:
            self._buffer = b""
            keep = _open_end(data)
            if keep:
                self._held = data[-keep:]
                data = data[:-keep]
            else:
                self._held = b""
        if not data:
            return None
        if b"\r\n." in data:
            data = data.replace(b"\r\n.", b"\r\n")
        data = data.replace(b"\r\n", b"\n")
        if not self._begun:
            self._begun = True
            data = data[1:]  # the line end that _data put before
        return self._content(data)

    def _content(self, data: bytes) -> Event | None:
        """Hand it on; what is too much is dropped as it comes."""
        self._octets += len(data)
        return Content(data) if data and self._octets <= self._most else None

    def _finish(self) -> Event:
        if self._octets > self._most:
            for _ in self.recipients:
                self._reply(b"552 5.3.4 a message may have %d octets" % self._most)
            self._clear()
            self.state = "command"
            return Cancelled()
        self.state = "answering"
        self._answers = [None] * len(self.recipients)
        return Done()

    def _cancel(self) -> Event | None:
        had = bool(self.recipients)
        self._clear()
        return Cancelled() if had else None

    def _rset(self, rest: bytes) -> Event | None:
        del rest
        self._reply(b"250 2.0.0 ok")
        return self._cancel()

    def _noop(self, rest: bytes) -> None:
        del rest
        self._reply(b"250 2.0.0 ok")

    def _vrfy(self, rest: bytes) -> None:
        del rest
        self._reply(b"252 2.1.5 send some mail, and see")

    def _quit(self, rest: bytes) -> Event | None:
        del rest
        self._reply(b"221 2.0.0 bye")
        self.closing = True
        return self._cancel()


def _plain(text: str) -> bytes:
    return text.encode("ascii", "replace")


def _refusal(text: str) -> bytes:
    """A reply code that goes with the status that `text` begins with: 4yz try again, 5yz give up."""
    code = b"450 " if text.startswith("4") else b"550 "
    if text[:5] in ("4.3.1", "4.2.2", "4.5.3"):
        code = b"452 "  # RFC 5321 sections 4.2.2 and 4.5.3.1.10: no storage, too many recipients
    elif text[:5] in ("5.2.2", "5.3.4"):
        code = b"552 "
    elif text.startswith("4.3"):
        code = b"451 "
    return code + _plain(text)


def _open_end(data: bytes) -> int:
    """How many of the last octets could be the beginning of CR LF . CR LF."""
    for size in (4, 3, 2, 1):
        if data.endswith(_END[:size]):
            return size
    return 0
