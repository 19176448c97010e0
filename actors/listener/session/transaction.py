"""Serve the maildrop of a logged-in session: the commands of the transaction state, the requests they make, and the answers. Sans I/O.

Neighbouring commands travel to the maildir actor as one message (a batch), and what it is likely to be asked next comes along ahead
of time: messages in `_ahead`, sizes and unique ids in `_known_sizes` and `_known_uidls`.
"""

from collections.abc import Callable
from typing import Any, ClassVar

from popkernel.actors.listener.session.replies import Awaited, Replies
from popkernel.proto import messages as m
from popkernel.proto.pop3.commands import LineReader, err, number, ok

__all__ = ["AHEAD", "Transaction"]

AHEAD = 2  # in Mail.parts, in the place of `last`: a whole message that nobody asked for yet
_AHEAD = 64  # messages the maildir actor may send ahead of being asked, within one frame
_AHEAD_OCTETS = 320 * 1024  # of them that are kept
_ROWS_AHEAD = 256  # sizes or unique ids that come along with one that is asked for
_MOST_KNOWN = 2048  # of those, how many are kept
_NO_SUCH = "no such message"
_MARKED = b"+OK marked\r\n"
_USAGE = {
    b"RETR": "RETR number", b"DELE": "DELE number", b"TOP": "TOP number lines", b"LIST": "LIST [number]", b"UIDL": "UIDL [number]",
}


class Transaction:
    """The transaction state of one session (RFC 1939 section 5)."""

    __slots__ = (
        "_ahead", "_ahead_octets", "_allowed", "_asked", "_batch_deletes", "_batch_first", "_batch_many", "_known_sizes", "_known_uidls",
        "_last", "_memory", "_reader", "_replies", "_taken", "marked", "messages", "octets", "owed_credit", "quitting", "removed",
        "requests", "retrieved", "total",
    )

    def __init__(self, replies: Replies, reader: LineReader, memory: int) -> None:
        """`reader`: has the commands that wait; `memory`: octets that may wait for the client before more credit is given."""
        self.requests: list[tuple[Any, ...]] = []  # for the maildir actor
        self.total = 0  # messages there were at the start
        self.messages = self.octets = 0  # undeleted ones
        self.retrieved = self.marked = self.removed = 0
        self.quitting = False  # QUIT was given: the update state
        self.owed_credit = 0
        self._replies = replies
        self._reader = reader
        self._memory = memory
        self._allowed = m.WINDOW  # octets that the maildir actor may still send without new credit
        self._ahead: dict[int, tuple[int, memoryview]] = {}
        self._ahead_octets = 0
        self._taken: list[int] = []
        self._last = 0
        self._known_sizes: dict[int, bytes] = {}  # rows of messages that are not deleted
        self._known_uidls: dict[int, bytes] = {}
        self._asked = False
        self._batch_deletes = False  # DELEs, not RETRs
        self._batch_first = self._batch_many = 0  # messages of neighbouring commands that are not requested yet

    def begin(self, message: m.Ready) -> None:
        """The maildrop is open."""
        self.messages = self.total = message.messages
        self.octets = message.octets
        self._replies.say(ok(f"{self.messages} messages ({self.octets} octets)"))

    def take_requests(self) -> list[tuple[Any, ...]]:
        """Take what is to go to the maildir actor now."""
        if self._batch_many:
            self.flush()
        requests, self.requests = self.requests, []
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
        """The message number, or 0 and the client told."""
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
        if self._batch_many and not self._batch_deletes and self._batch_first + self._batch_many == n:
            self._batch_many += 1
        else:
            self._begin_batch(n, deletes=False)

    def _begin_batch(self, n: int, *, deletes: bool) -> None:
        self.flush()
        self._batch_deletes = deletes
        self._batch_first = n
        self._batch_many = 1

    def _from_ahead(self, n: int, octets: int, data: memoryview) -> None:
        """A message that came before it was asked for."""
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
        """LIST and UIDL: of one message or of all. Who asks for one after another is told from what came with the last answer."""
        if rest.strip(b" "):
            n = self._numbered(rest, verb)
            row = known.get(n) if not self._replies.pending else None  # a DELE under way may be of this one
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
        batched = bool(self._batch_many) and self._batch_deletes and self._batch_first + self._batch_many == n
        # A batch of DELEs is answered in one go, so no other reply may stand between two of them.
        batched = batched and bool(pending) and type(pending[-1]) is Awaited
        pending.append(Awaited("dele", n))
        if batched:
            self._batch_many += 1
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
        """Request what was gathered."""
        many, self._batch_many = self._batch_many, 0
        if not many:
            return
        first = self._batch_first
        if self._batch_deletes:
            self.requests.append(m.Delete(first, many))
            return
        ahead = 0
        if len(self._replies.pending) == 1 and first == self._last + 1 and first > 1 and not self._reader.lines:
            ahead = _AHEAD  # one after the other, each awaited: the next will be asked for
        self._last = first + many - 1
        self.requests.append(m.Retrieve(first, many, ahead))

    # -- what the maildir actor says
    def _spend(self, octets: int) -> None:
        """A bulk frame has come: it must have begun within the credit, which the last one may exceed."""
        if self._allowed <= 0:
            raise ValueError("more than it has credit for")
        self._allowed -= octets
        self.owed_credit += octets

    def answered(self, message: tuple[Any, ...]) -> None:
        """An answer, in the order of the questions. ValueError for one that answers nothing asked."""
        if self._replies.closing:
            return  # asked before this session had to end
        self._ANSWERS[type(message)](self, message)
        self._replies.settle()

    def _mail(self, message: m.Mail) -> None:
        data = message.data
        self._spend(m.bulk_octets(message))
        parts = message.parts
        view = memoryview(data)
        if len(parts) % 4 or (parts and min(parts) < 0):
            raise ValueError("parts that are none")
        at = 0
        for n, octets, size, last in zip(parts[::4], parts[1::4], parts[2::4], parts[3::4], strict=True):
            self._replies.settle()
            end = at + size
            if end > len(data):
                raise ValueError("parts that are not the data")
            if last == AHEAD:
                self._keep_ahead(n, octets, view[at:end])
            else:
                awaited = self._replies.expect("retr", "top")
                if awaited.number != n:
                    raise ValueError("a part of a message that was not asked for")
                self._part(awaited, octets, view[at:end], last)
            at = end
        if at != len(data):
            raise ValueError("parts that are not the data")

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
        if self._replies.pending or n in held or self._ahead_octets + len(data) > _AHEAD_OCTETS or len(held) >= _AHEAD:
            return  # the client has gone elsewhere meanwhile, and what it asked for there is answered in its turn
        held[n] = (octets, data)
        self._ahead_octets += len(data)

    def _missing(self, message: m.Missing) -> None:
        awaited = self._replies.expect("retr", "top")
        if awaited.number != message.number:
            raise ValueError("an answer for another message")
        self._replies.pending.popleft()
        if awaited.begun:  # it can't be finished now: nothing but an end of the connection says so
            self._replies.end_with(b"", "a message could not be read to its end")
            return
        self._replies.put(err(message.text, message.code))

    def _sizes(self, message: m.Sizes) -> None:
        self._spend(m.bulk_octets(message))
        rows = [b"%d" % size if size >= 0 else b"" for size in message.sizes]
        self._rows(message.first, rows, message.last, self._known_sizes)

    def _ids(self, message: m.Ids) -> None:
        self._spend(m.bulk_octets(message))
        self._rows(message.first, [u.encode() for u in message.uidls], message.last, self._known_uidls)

    def _rows(self, first: int, rows: list[bytes], last: bool, known: dict[int, bytes]) -> None:
        """Rows of a LIST or UIDL, empty for a deleted message."""
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

    def _deleted(self, message: m.Deleted) -> None:
        """One Deleted answers a batch of DELEs, which the client sees answered one by one."""
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

    def _totals(self, message: m.Totals) -> None:
        self._replies.expect("rset")
        self._known_sizes.clear()
        self._known_uidls.clear()
        self._replies.pending.popleft()
        self.messages, self.octets = message.messages, message.octets
        self.marked = 0
        self._replies.put(ok(f"{self.messages} messages ({self.octets} octets)"))

    def _bye(self, message: m.Bye) -> None:
        self._replies.expect("quit")
        self._replies.pending.popleft()
        if message.failed:
            self._replies.put(err(f"{message.failed} messages could not be removed", "SYS/TEMP"))
        else:
            self._replies.put(ok("bye"))
        self.removed = message.removed
        self._replies.close("quit")

    def credit(self, unsent: int) -> int:
        """How much credit to give the maildir actor, `unsent` octets waiting to go to the client. Taking it is giving it."""
        # Half of the window is enough to read ahead by; sooner would wake the actor where nothing more is to come.
        if self.owed_credit >= m.WINDOW // 2 and unsent < self._memory:
            owed, self.owed_credit = self.owed_credit, 0
            self._allowed = min(m.WINDOW, self._allowed + owed)
            return owed
        return 0

    COMMANDS: ClassVar[dict[bytes, Callable[["Transaction", bytes], None]]] = {
        b"STAT": _stat, b"LIST": _list, b"RETR": _retr, b"DELE": _dele, b"NOOP": _noop, b"RSET": _rset, b"TOP": _top, b"UIDL": _uidl,
        b"QUIT": _quit,
    }
    _ANSWERS: ClassVar[dict[type, Callable[["Transaction", Any], None]]] = {
        m.Mail: _mail, m.Missing: _missing, m.Sizes: _sizes, m.Ids: _ids, m.Deleted: _deleted, m.Totals: _totals, m.Bye: _bye,
    }
