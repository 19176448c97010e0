"""Process the commands of the transaction state and the maildir actor's answers. Sans I/O.

Consecutive commands travel to the maildir actor as one message (a batch). It sends ahead what is likely to be
requested next: messages are kept in `_ahead`, sizes and unique ids in `_known_sizes` and `_known_uidls`.
"""

from collections.abc import Callable
from typing import Any, ClassVar

from popkernel.actors.listener.session.actions import Ask
from popkernel.actors.listener.session.replies import Awaited, Replies
from popkernel.proto import messages as m
from popkernel.proto.pop3.commands import LineReader, err, number, ok

__all__ = ["AHEAD", "ENOUGH_CREDIT", "Transaction"]

AHEAD = 2  # in MailContent.parts, in the place of `last`: a whole message sent ahead
# octets; half of the window is enough to read ahead, and smaller credits would wake the actor too often
ENOUGH_CREDIT = m.WINDOW // 2
_AHEAD = 64  # messages the maildir actor may send ahead, within one frame
_AHEAD_OCTETS = 320 * 1024  # octets of messages kept ahead
_ROWS_AHEAD = 256  # sizes or unique ids sent along with the one requested
_MOST_KNOWN = 2048  # sizes, and unique ids, that are kept
_NO_SUCH = "no such message"
_MARKED = b"+OK marked\r\n"
_USAGE = {
    b"RETR": "RETR number",
    b"DELE": "DELE number",
    b"TOP": "TOP number lines",
    b"LIST": "LIST [number]",
    b"UIDL": "UIDL [number]",
}


class Transaction:
    """The transaction state of one session (RFC 1939 section 5)."""

    __slots__ = (
        "_ahead",
        "_ahead_octets",
        "_allowed",
        "_asked",
        "_batch_deletes",
        "_batch_first",
        "_known_sizes",
        "_known_uidls",
        "_last",
        "_memory",
        "_reader",
        "_replies",
        "_taken",
        "gathered",
        "marked",
        "messages",
        "octets",
        "owed_credit",
        "quitting",
        "removed",
        "requests",
        "retrieved",
        "total",
    )

    def __init__(self, replies: Replies, reader: LineReader, memory: int) -> None:
        """`reader`: has the commands that wait.

        `memory`: while more octets wait for the client, no credit is given.
        """
        self.requests = Ask()  # requests for the maildir actor
        self.total = 0  # messages at the start of the session
        self.messages = self.octets = 0  # undeleted ones
        self.retrieved = self.marked = self.removed = 0
        self.quitting = False  # QUIT was received: the update state
        self.owed_credit = 0
        self._replies = replies
        self._reader = reader
        self._memory = memory
        self._allowed = m.WINDOW  # octets the maildir actor may still send without new credit
        self._ahead: dict[int, tuple[int, memoryview]] = {}
        self._ahead_octets = 0
        self._taken: list[int] = []
        self._last = 0
        self._known_sizes: dict[int, bytes] = {}  # rows of messages that are not deleted
        self._known_uidls: dict[int, bytes] = {}
        self._asked = False
        self._batch_deletes = False  # the batch is of DELEs, not RETRs
        # the batch: messages of consecutive commands, not requested yet
        self._batch_first = self.gathered = 0

    def begin(self, message: m.MaildropReady) -> None:
        """Begin with the maildrop's totals."""
        self.messages = self.total = message.messages
        self.octets = message.octets
        self._replies.say(ok(f"{self.messages} messages ({self.octets} octets)"))

    def take_requests(self) -> Ask:
        """Return the requests to send to the maildir actor now."""
        if self.gathered:
            self.flush()
        requests, self.requests = self.requests, Ask()
        return requests

    # -- commands
    def _stat(self, rest: bytes) -> None:
        if rest.strip(b" "):
            self._bad("STAT takes no arguments")
        else:
            self._replies.say_computed(self._totals_line)

    def _totals_line(self) -> bytes:
        return b"+OK %d %d\r\n" % (self.messages, self.octets)

    def _bad(self, text: str) -> None:
        self.flush()
        self._replies.bad(text)

    def _noop(self, rest: bytes) -> None:
        if rest.strip(b" "):
            self._bad("NOOP takes no arguments")
        else:
            self._replies.say(b"+OK\r\n")

    def _numbered(self, rest: bytes, verb: bytes) -> int:
        """Return the message number. If it is none, refuse the command and return 0."""
        n = number(rest)
        if 1 <= n <= self.total:
            return n
        self._bad(_NO_SUCH if n >= 0 else f"usage: {_USAGE[verb]}")
        return 0

    def _retr(self, rest: bytes) -> None:
        n = self._numbered(rest, b"RETR")
        if not n:
            return
        held = self._ahead.pop(n, None)
        if held is not None:
            self._from_ahead(n, *held)
            return
        self._drop_ahead()
        self._replies.pending.append(Awaited("retr", n))
        if self.gathered and not self._batch_deletes and self._batch_first + self.gathered == n:
            self.gathered += 1
        else:
            self._begin_batch(n, deletes=False)

    def _begin_batch(self, n: int, *, deletes: bool) -> None:
        self.flush()
        self._batch_deletes = deletes
        self._batch_first = n
        self.gathered = 1

    def _from_ahead(self, n: int, octets: int, data: memoryview) -> None:
        """Answer RETR with a message that was sent ahead."""
        self._ahead_octets -= len(data)
        self._last = n
        self.retrieved += 1
        if len(self._taken) >= 2 and self._taken[-2] + self._taken[-1] == n:
            self._taken[-1] += 1
        elif len(self._taken) < 4096:
            self._taken += (n, 1)
        head = b"+OK %d octets\r\n" % octets
        if self._replies.pending:
            self._replies.say(b"".join((head, data, b".\r\n")), len(head), len(data))
        else:
            self._replies.put_mail(head, data)

    def _drop_ahead(self) -> None:
        self._ahead.clear()
        self._ahead_octets = 0

    def _top(self, rest: bytes) -> None:
        first, _, second = rest.strip(b" ").partition(b" ")
        lines = number(second.strip(b" "))
        if lines < 0:
            self._bad(f"usage: {_USAGE[b'TOP']}")
            return
        n = self._numbered(first, b"TOP")
        if n:
            self.flush()
            self._replies.pending.append(Awaited("top", n))
            self.requests.append(m.Top(n, min(lines, 2**31 - 1)))

    def _list(self, rest: bytes) -> None:
        self._ask(rest, b"LIST", m.List, self._known_sizes)

    def _uidl(self, rest: bytes) -> None:
        self._ask(rest, b"UIDL", m.Uidl, self._known_uidls)

    def _ask(self, rest: bytes, verb: bytes, message: type[m.List | m.Uidl], known: dict[int, bytes]) -> None:
        """Answer LIST or UIDL, of one message or of all.

        A client that asks for one after another is answered from the rows that came with an earlier answer.
        """
        if rest.strip(b" "):
            n = self._numbered(rest, verb)
            row = known.get(n) if not self._replies.pending else None  # a pending DELE may be of this message
            if row is not None:
                self._replies.put(b"+OK %d %b\r\n" % (n, row))
            elif n:
                self.flush()
                self._replies.pending.append(Awaited("one", n))
                many = min(_ROWS_AHEAD, self.total - n + 1) if self._asked else 1
                self._asked = True
                self.requests.append(message(n, many))
            return
        self.flush()
        if not self.total:
            self._replies.say(b"+OK 0 messages\r\n.\r\n")
            return
        self._replies.pending.append(Awaited("all"))
        self.requests.append(message(1, self.total))

    def _dele(self, rest: bytes) -> None:
        n = self._numbered(rest, b"DELE")
        if not n:
            return
        held = self._ahead.pop(n, None)
        if held is not None:
            self._ahead_octets -= len(held[1])
        pending = self._replies.pending
        batched = bool(self.gathered) and self._batch_deletes and self._batch_first + self.gathered == n
        # A batch of DELEs gets one answer, so no other reply may stand between two of them.
        batched = batched and bool(pending) and type(pending[-1]) is Awaited
        pending.append(Awaited("dele", n))
        if batched:
            self.gathered += 1
        else:
            self._begin_batch(n, deletes=True)

    def _rset(self, rest: bytes) -> None:
        if rest.strip(b" "):
            self._bad("RSET takes no arguments")
            return
        self.flush()
        self._replies.pending.append(Awaited("rset"))
        self.requests.append(m.Reset())

    def _quit(self, rest: bytes) -> None:
        del rest
        self.flush()
        self._replies.pending.append(Awaited("quit"))
        self.requests.append(m.Quit(self._taken))
        self.quitting = True
        self._reader.clear()

    def flush(self) -> None:
        """Turn the batch into a request."""
        many, self.gathered = self.gathered, 0
        if not many:
            return
        first = self._batch_first
        if self._batch_deletes:
            self.requests.append(m.Delete(first, many))
            return
        ahead = 0
        if (
            len(self._replies.pending) == 1
            and first == self._last + 1
            and first > 1
            and not self._reader.lines
        ):
            ahead = _AHEAD  # RETRs one by one, each awaited: the next is likely to follow
        self._last = first + many - 1
        self.requests.append(m.Retrieve(first, many, ahead))

    # -- answers of the maildir actor
    def _spend(self, octets: int) -> None:
        """Charge a bulk frame to the credit. It must begin within the credit; the last one may exceed it."""
        if self._allowed <= 0:
            raise ValueError("more octets than its credit")
        self._allowed -= octets
        self.owed_credit += octets

    def answered(self, message: tuple[Any, ...]) -> None:
        """Process the maildir actor's answer. ValueError if it answers no request."""
        if self._replies.closing:
            return  # requested before this session had to end
        self._ANSWERS[type(message)](self, message)
        self._replies.settle()

    def _mail(self, message: m.MailContent) -> None:
        data = message.data
        self._spend(m.bulk_octets(message))
        parts = message.parts
        view = memoryview(data)
        if len(parts) % 4 or (parts and min(parts) < 0):
            raise ValueError("malformed parts")
        at = 0
        for n, octets, size, last in zip(parts[::4], parts[1::4], parts[2::4], parts[3::4], strict=True):
            self._replies.settle()
            end = at + size
            if end > len(data):
                raise ValueError("parts that do not match the data")
            if last == AHEAD:
                self._keep_ahead(n, octets, view[at:end])
            else:
                awaited = self._replies.expect("retr", "top")
                if awaited.number != n:
                    raise ValueError("a part of a message that was not requested")
                self._part(awaited, octets, view[at:end], last)
            at = end
        if at != len(data):
            raise ValueError("parts that do not match the data")

    def _part(self, awaited: Awaited, octets: int, view: memoryview, last: int) -> None:
        replies = self._replies
        if awaited.begun:
            replies.put_part(view)
            if last:
                replies.put(b".\r\n")
        else:
            head = b"+OK %d octets\r\n" % octets if awaited.kind == "retr" else b"+OK\r\n"
            if last:
                replies.put_mail(head, view)
            else:
                awaited.begun = True
                replies.put(head)
                replies.put_part(view)
        if last:
            replies.pending.popleft()
            if awaited.kind == "retr":
                self.retrieved += 1

    def _keep_ahead(self, n: int, octets: int, data: memoryview) -> None:
        held = self._ahead
        if (
            self._replies.pending
            or n in held
            or self._ahead_octets + len(data) > _AHEAD_OCTETS
            or len(held) >= _AHEAD
        ):
            # The client has asked for something else since, and that answer comes in its turn.
            return
        held[n] = (octets, data)
        self._ahead_octets += len(data)

    def _missing(self, message: m.MessageMissing) -> None:
        awaited = self._replies.expect("retr", "top")
        if awaited.number != message.number:
            raise ValueError("an answer for another message")
        self._replies.pending.popleft()
        if awaited.begun:  # it can't be completed: only the end of the connection tells the client
            self._replies.end_with(b"", "a message could not be read to its end")
            return
        self._replies.put(err(message.text, message.code))

    def _sizes(self, message: m.MessageSizes) -> None:
        self._spend(m.bulk_octets(message))
        rows = [b"%d" % size if size >= 0 else b"" for size in message.sizes]
        self._rows(message.first, rows, message.last, self._known_sizes)

    def _ids(self, message: m.MessageUidls) -> None:
        self._spend(m.bulk_octets(message))
        self._rows(message.first, [u.encode() for u in message.uidls], message.last, self._known_uidls)

    def _rows(self, first: int, rows: list[bytes], last: bool, known: dict[int, bytes]) -> None:
        """Answer LIST or UIDL with rows; a deleted message's is empty."""
        awaited = self._replies.expect("one", "all")
        if awaited.kind == "one":
            if awaited.number != first or not 1 <= len(rows) <= _ROWS_AHEAD:
                raise ValueError("an answer for another message")
            self._replies.pending.popleft()
            self._replies.put(b"+OK %d %b\r\n" % (first, rows[0]) if rows[0] else err(_NO_SUCH))
            if len(known) > _MOST_KNOWN:
                known.clear()
            known.update((n, row) for n, row in enumerate(rows, first) if row)
            return
        if not awaited.begun:
            awaited.begun = True
            self._replies.put(b"+OK %d messages (%d octets)\r\n" % (self.messages, self.octets))
        self._replies.put(b"".join([b"%d %b\r\n" % (n, row) for n, row in enumerate(rows, first) if row]))
        if last:
            self._replies.put(b".\r\n")
            self._replies.pending.popleft()

    def _deleted(self, message: m.MessagesMarked) -> None:
        """Answer each DELE of a batch, which MessagesMarked answers as a whole."""
        n = message.first
        if self._replies.expect("dele").number != n:
            raise ValueError("an answer for another message")
        pending = self._replies.pending
        refused = set(message.refused)
        self.messages, self.octets = message.messages, message.octets
        while pending and n < message.first + message.many:
            first = pending[0]
            if type(first) is not Awaited or first.kind != "dele" or first.number != n:
                break
            pending.popleft()
            if n in refused:
                self._replies.put(err(_NO_SUCH))
            else:
                self.marked += 1
                self._known_sizes.pop(n, None)
                self._known_uidls.pop(n, None)
                self._replies.put(_MARKED)
            n += 1

    def _totals(self, message: m.MaildropTotals) -> None:
        self._replies.expect("rset")
        self._known_sizes.clear()
        self._known_uidls.clear()
        self._replies.pending.popleft()
        self.messages, self.octets = message.messages, message.octets
        self.marked = 0
        self._replies.put(ok(f"{self.messages} messages ({self.octets} octets)"))

    def _bye(self, message: m.QuitDone) -> None:
        self._replies.expect("quit")
        self._replies.pending.popleft()
        if message.failed:
            self._replies.put(err(f"{message.failed} messages could not be removed", "SYS/TEMP"))
        else:
            self._replies.put(ok("bye"))
        self.removed = message.removed
        self._replies.close("quit")

    def credit(self, unsent: int) -> int:
        """Return the credit to give the maildir actor now, and count it as given.

        `unsent`: octets that wait for the client.
        """
        if self.owed_credit >= ENOUGH_CREDIT and unsent < self._memory:
            owed, self.owed_credit = self.owed_credit, 0
            self._allowed = min(m.WINDOW, self._allowed + owed)
            return owed
        return 0

    COMMANDS: ClassVar[dict[bytes, Callable[["Transaction", bytes], None]]] = {
        b"STAT": _stat,
        b"LIST": _list,
        b"RETR": _retr,
        b"DELE": _dele,
        b"NOOP": _noop,
        b"RSET": _rset,
        b"TOP": _top,
        b"UIDL": _uidl,
        b"QUIT": _quit,
    }
    _ANSWERS: ClassVar[dict[type, Callable[["Transaction", Any], None]]] = {
        m.MailContent: _mail,
        m.MessageMissing: _missing,
        m.MessageSizes: _sizes,
        m.MessageUidls: _ids,
        m.MessagesMarked: _deleted,
        m.MaildropTotals: _totals,
        m.QuitDone: _bye,
    }
