"""Run the server's side of one LMTP connection (RFC 2033): octets in, actions out. Sans I/O.

Extensions: PIPELINING (RFC 2920), ENHANCEDSTATUSCODES (2034), 8BITMIME (6152), SMTPUTF8 (6531), SIZE (1870).
Mail comes out in the form for the disk: CR LF becomes LF, dots are unstuffed, every other octet is unchanged
(a lone CR or LF, NUL, 8-bit octets). A message ends at CR LF . CR LF and nowhere else, so that no two servers
disagree about its end. Memory is bounded by one `feed` and one command line: content is passed on as it
comes.

Each method returns the actions to be done now (actions.py). After FindRecipient, PassOn and Finish the
session waits: the owner must call `recipient`, `go_on` or `answer`. After `recipient` and `answer` it calls
`go_on`, until that returns nothing.
"""

from popkernel.proto.lmtp.actions import Action, Cancel, Close, FindRecipient, Finish, PassOn, Refused, Reply
from popkernel.proto.lmtp.paths import parse_path

__all__ = ["Lmtp"]

MOST_LINE = 4096  # octets of a command; RFC 5321 section 4.5.3.1.4 asks for 512, and extensions add to it
MOST_RECIPIENTS = 2000  # of one message; RFC 5321 section 4.5.3.1.8 asks for at least 100
_MOST_ERRORS = 50  # wrong commands before the connection is closed
_END = b"\r\n.\r\n"


class Lmtp:
    """The state of one connection.

    `sender` and `recipients` are those of the current message. `closing`: no more commands are executed.
    """

    __slots__ = (
        "_answered",
        "_answers",
        "_begun",
        "_buffer",
        "_commands",
        "_errors",
        "_held",
        "_hostname",
        "_most",
        "_octets",
        "_passing",
        "_refused",
        "_replies",
        "_skipping",
        "announced",
        "closing",
        "greeted",
        "recipients",
        "sender",
        "state",
    )

    def __init__(self, hostname: str, most: int) -> None:
        """`most`: octets of the largest message accepted."""
        self._hostname = hostname.encode("ascii", "replace")
        self._most = most
        self._buffer = b""
        self._replies: list[bytes] = []  # of the present call
        self._refused: list[Refused] = []
        self._commands = {
            b"LHLO": self._lhlo,
            b"MAIL": self._mail,
            b"RCPT": self._rcpt,
            b"DATA": self._data,
            b"RSET": self._rset,
            b"NOOP": self._noop,
            b"QUIT": self._quit,
            b"VRFY": self._vrfy,
            b"HELO": self._helo,
            b"EHLO": self._helo,
        }
        self._errors = 0
        self._skipping = False  # drops the rest of a line that was too long
        self._passing = False  # PassOn was returned, and `go_on` not yet called
        self.state = "command"  # command, asking, data, whole, answering
        self.closing = False
        self.greeted = False
        self._clear()

    def _clear(self) -> None:
        self.sender: str | None = None
        self.recipients: list[str] = []
        self.announced = 0  # octets: MAIL's SIZE (RFC 1870 section 6), 0 if it had none
        self._begun = False  # the first octets after DATA have been taken
        self._octets = 0
        self._held = b""
        self._answers: list[bytes | None] = []
        self._answered = 0

    # -- state between messages, for recordings
    @property
    def rest(self) -> list[int]:
        """The state of an idle connection, for `resume`; empty while a message or output is pending."""
        busy = (
            self.state != "command"
            or self.sender is not None
            or self._buffer
            or self._skipping
            or self.closing
        )
        return [] if busy else [int(self.greeted), self._errors]

    def resume(self, rest: list[int]) -> None:
        """Continue a connection from its `rest`. Call it before `feed`."""
        self.greeted, self._errors = bool(rest[0]), rest[1]

    # -- input and output
    @property
    def wants(self) -> bool:
        """Whether more octets can be processed now."""
        return self.state not in ("asking", "answering") and not self.closing

    def begin(self) -> list[Action]:
        """Greet the client."""
        self._reply(b"220 %s LMTP popkernel" % self._hostname)
        return self._with_replies([])

    def feed(self, data: bytes) -> list[Action]:
        """Process octets from the client."""
        self._buffer = self._buffer + data if self._buffer else data
        return [] if self._passing else self.go_on()

    def go_on(self) -> list[Action]:
        """Process what was fed: there is room for more content, or a question was answered."""
        if self.closing:
            return []
        self._passing = False
        actions: list[Action] = []
        while not self.closing:
            action: Action | None
            if self.state == "command":
                line = self._line()
                if line is None:
                    break
                action = self._command(line)
            elif self.state == "data":
                if not self._buffer:
                    break
                action = self._take_data()
            elif self.state == "whole":
                action = self._finish()
            else:
                break
            if action is not None:
                actions.append(action)
                if type(action) is not Cancel:
                    break
        return self._with_replies(actions)

    def _with_replies(self, actions: list[Action]) -> list[Action]:
        """Put the replies of the present call first, and Close last."""
        if self._replies:
            actions.insert(0, Reply(b"".join(self._replies)))
            self._replies = []
        if self._refused:
            actions += self._refused
            self._refused = []
        if self.closing:
            actions.append(Close())
        return actions

    def end(self, text: str) -> list[Action]:
        """Reply 421 with this text, and close."""
        self._fail(text)
        return self._with_replies([])

    def _fail(self, text: str) -> None:
        self._reply(b"421 " + text.encode("ascii", "replace"))
        self.closing = True

    # -- the owner's answers
    def recipient(self, text: str, *, taken: bool = True) -> list[Action]:
        """Answer FindRecipient. `text`: the reply without its code, beginning with an RFC 3463 status."""
        if self.state != "asking":
            return []
        self.state = "command"
        if taken:
            self._reply(b"250 " + _plain(text))
        else:
            reply = _refusal(text)
            self._reply(self._note_refusal(self.sender or "", self.recipients.pop(), reply))
        return self._with_replies([])

    def answer(self, index: int, text: str, *, taken: bool = True) -> list[Action]:
        """Answer Finish for recipient `index`: once each, in any order; they are sent in order."""
        said = self._answers[index] = (b"250 " + _plain(text)) if taken else _refusal(text)
        if not taken:
            self._note_refusal(self.sender or "", self.recipients[index], said)
        answers = self._answers
        while self._answered < len(answers):
            reply = answers[self._answered]
            if reply is None:
                return self._with_replies([])
            self._reply(reply)
            self._answered += 1
        self._clear()
        self.state = "command"
        return self._with_replies([])

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

    def _command(self, line: bytes) -> Action | None:
        if line == b"\n":
            return self._wrong(b"500 5.5.2 line too long")
        command = self._commands.get(line[:4].upper())
        if command is None or (len(line) > 4 and line[4:5] != b" "):
            return self._wrong(b"500 5.5.1 command not known")
        return command(line[5:].strip(b" \t"))

    def _note_refusal(self, sender: str, recipient: str, reply: bytes) -> bytes:
        self._refused.append(Refused(sender, recipient, reply.decode("ascii")))
        return reply

    def _too_large(self, sender: str, recipient: str) -> None:
        reply = b"552 5.3.4 a message may have %d octets" % self._most
        self._reply(self._note_refusal(sender, recipient, reply))

    def _reply(self, text: bytes) -> None:
        self._replies.append(text + b"\r\n")

    def _wrong(self, text: bytes) -> Action | None:
        self._errors += 1
        self._reply(text)
        if self._errors > _MOST_ERRORS:
            self._fail("4.7.0 too many errors")
        return None

    def _lhlo(self, rest: bytes) -> Action | None:
        if not rest:
            return self._wrong(b"501 5.5.4 LHLO wants your name")
        self.greeted = True
        host = self._hostname
        self._reply(
            b"250-%s\r\n250-PIPELINING\r\n250-ENHANCEDSTATUSCODES\r\n250-8BITMIME\r\n250-SMTPUTF8\r\n"
            b"250 SIZE %d" % (host, self._most)
        )
        return self._cancel()

    def _helo(self, rest: bytes) -> None:
        del rest
        self._wrong(b"500 5.5.1 this is LMTP: say LHLO")

    def _mail(self, rest: bytes) -> Action | None:
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
                    self._too_large(address, "")
                    return None
            elif not (
                (name == b"BODY" and value in (b"7BIT", b"8BITMIME")) or (name == b"SMTPUTF8" and not value)
            ):
                return self._wrong(b"555 5.5.4 a parameter that is not known")
        self.sender, self.announced = address, announced
        self._reply(b"250 2.1.0 ok")
        return None

    def _rcpt(self, rest: bytes) -> Action | None:
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
        return FindRecipient(path[0])

    def _data(self, rest: bytes) -> Action | None:
        if rest:
            return self._wrong(b"501 5.5.4 DATA takes nothing")
        if self.sender is None:
            return self._wrong(b"503 5.5.1 MAIL and RCPT come first")
        if not self.recipients:
            return self._wrong(b"503 5.5.1 no valid recipients")  # RFC 2033 section 4.2
        self._reply(b"354 go on, and end with a dot")
        # Stands before the first octet, so that a dot there is at the start of a line.
        self._held = b"\r\n"
        self.state = "data"
        return None

    def _take_data(self) -> Action | None:
        """Take message octets from the buffer; hold back what may be the beginning of CR LF . CR LF."""
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
            data = data[1:]  # removes the line end that _data put before
        return self._content(data)

    def _content(self, data: bytes) -> Action | None:
        """Return the octets as an action; drop them once the message is too large."""
        self._octets += len(data)
        if not data or self._octets > self._most:
            return None
        self._passing = True
        return PassOn(data)

    def _finish(self) -> Action:
        if self._octets > self._most:
            for recipient in self.recipients:
                self._too_large(self.sender or "", recipient)
            self._clear()
            self.state = "command"
            return Cancel()
        self.state = "answering"
        self._answers = [None] * len(self.recipients)
        return Finish()

    def _cancel(self) -> Action | None:
        had = bool(self.recipients)
        self._clear()
        return Cancel() if had else None

    def _rset(self, rest: bytes) -> Action | None:
        del rest
        self._reply(b"250 2.0.0 ok")
        return self._cancel()

    def _noop(self, rest: bytes) -> None:
        del rest
        self._reply(b"250 2.0.0 ok")

    def _vrfy(self, rest: bytes) -> None:
        del rest
        self._reply(b"252 2.1.5 send some mail, and see")

    def _quit(self, rest: bytes) -> Action | None:
        del rest
        self._reply(b"221 2.0.0 bye")
        self.closing = True
        return self._cancel()


def _plain(text: str) -> bytes:
    return text.encode("ascii", "replace")


def _refusal(text: str) -> bytes:
    """Format a refusal with the reply code for its status: 4yz to try again, 5yz to give up."""
    code = b"450 " if text.startswith("4") else b"550 "
    if text[:5] in ("4.3.1", "4.2.2", "4.5.3"):
        code = b"452 "  # RFC 5321 sections 4.2.2 and 4.5.3.1.10: no storage, too many recipients
    elif text[:5] in ("5.2.2", "5.3.4"):
        code = b"552 "
    elif text.startswith("4.3"):
        code = b"451 "
    return code + _plain(text)


def _open_end(data: bytes) -> int:
    """Return how many of the last octets may be the beginning of CR LF . CR LF."""
    for size in (4, 3, 2, 1):
        if data.endswith(_END[:size]):
            return size
    return 0
