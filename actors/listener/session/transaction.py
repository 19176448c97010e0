"""The maildrop of a logged-in session: the commands of the transaction state, what they ask, and what is answered. Sans I/O.

Neighbouring commands travel to the maildir actor as one message (`_run`), and what it is likely to be asked next comes along ahead
of time: messages in `_ahead`, sizes and unique ids in `_known`.
"""

from collections.abc import Callable
from typing import Any, ClassVar

from popkernel.actors.listener.session.policy import Policy
from popkernel.actors.listener.session.replies import Replies
from popkernel.proto import messages as m
from popkernel.proto.pop3.commands import LineReader, err, number, ok

__all__ = ["AHEAD", "TRANSACTION", "Maildrop"]

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


class Maildrop(Replies):
    """What a client does with its mail."""

    __slots__ = (
        "_ahead", "_ahead_octets", "_allowed", "_asked", "_known", "_last", "_reader", "_taken", "marked", "owed_credit", "removed",
        "retrieved", "total",
    )

    def __init__(self, policy: Policy) -> None:
        super().__init__(policy)
        self.total = 0  # messages there were at the start
        self.retrieved = self.marked = self.removed = 0
        self.owed_credit = 0
        self._allowed = m.WINDOW  # octets that the maildir actor may still send without new credit
        self._reader = LineReader()
        self._ahead: dict[int, tuple[int, memoryview]] = {}
        self._ahead_octets = 0
        self._taken: list[int] = []
        self._last = 0
        self._known: dict[type, dict[int, bytes]] = {m.List: {}, m.Uidl: {}}  # rows of messages that are not deleted
        self._asked = False

    @property
    def owes(self) -> bool:
        """The client waits for the maildir actor."""
        return bool(self._owed)

    def take_tell(self) -> list[tuple[Any, ...]]:
        """What is to go to the maildir actor now."""
        self._end_run()
        tell, self.tell = self.tell, []
        return tell

    # -- commands
    def _stat(self, rest: bytes) -> None:
        if rest.strip(b" "):
            self._bad("STAT takes no arguments")
        elif self._owed:
            self._end_deletes()
            self._owed.append(("stat",))
        else:
            self._put(b"+OK %d %d\r\n" % (self.messages, self.octets))

    def _noop(self, rest: bytes) -> None:
        if rest.strip(b" "):
            self._bad("NOOP takes no arguments")
        else:
            self._say(b"+OK\r\n")

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
        self._owed.append(("retr", n))
        self._join_run(0, n)

    def _join_run(self, kind: int, n: int) -> None:
        run = self._run
        if run is not None and run[0] == kind and run[1] + run[2] == n:
            run[2] += 1
            return
        self._end_run()
        self._run = [kind, n, 1]

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
        if self._owed:
            self._say(b"".join((head, data, b".\r\n")), len(head), len(data))
        else:
            self._put_mail(head, data)

    def _put_mail(self, head: bytes, data: memoryview) -> None:
        """A whole message; the shell puts the pieces together, so that nobody copies it before."""
        if self.shown is None:
            self.out += (head, data, b".\r\n")
            self.out_octets += len(head) + len(data) + 3
        else:
            self._put(b"".join((head, data, b".\r\n")), len(head), len(data))

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
            self._end_run()
            self._owed.append(("top", n))
            self.tell.append(m.Top(n, min(lines, 2**31 - 1)))

    def _list(self, rest: bytes) -> None:
        self._ask(rest, b"LIST", m.List)

    def _uidl(self, rest: bytes) -> None:
        self._ask(rest, b"UIDL", m.Uidl)

    def _ask(self, rest: bytes, verb: bytes, message: type[m.List | m.Uidl]) -> None:
        """LIST and UIDL: of one message or of all. Who asks for one after another is told from what came with the last answer."""
        if rest.strip(b" "):
            n = self._numbered(rest, verb)
            row = self._known[message].get(n) if not self._owed else None  # a DELE under way may be of this one
            if row is not None:
                self._put(b"+OK %d %b\r\n" % (n, row))
            elif n:
                self._end_run()
                self._owed.append(("one", n))
                many = min(_ROWS_AHEAD, self.total - n + 1) if self._asked else 1
                self._asked = True
                self.tell.append(message(n, many))
            return
        self._end_run()
        if not self.total:
            self._say(b"+OK 0 messages\r\n.\r\n")
            return
        self._owed.append(("all",))
        self.tell.append(message(1, self.total))

    def _dele(self, rest: bytes) -> None:
        n = self._numbered(rest, b"DELE")
        if not n:
            return
        held = self._ahead.pop(n, None)
        if held is not None:
            self._ahead_octets -= len(held[1])
        self._owed.append(("dele", n))
        self._join_run(1, n)

    def _rset(self, rest: bytes) -> None:
        if rest.strip(b" "):
            self._bad("RSET takes no arguments")
            return
        self._end_run()
        self._owed.append(("rset",))
        self.tell.append(m.Reset())

    def _quit(self, rest: bytes) -> None:
        del rest
        self._end_run()
        self._owed.append(("quit",))
        self.tell.append(m.Quit(self._taken))
        self.state = "update"
        self._reader.clear()

    def _end_run(self) -> None:
        run, self._run = self._run, None
        if run is None:
            return
        if run[0]:
            self.tell.append(m.Delete(run[1], run[2]))
            return
        ahead = 0
        if len(self._owed) == 1 and run[1] == self._last + 1 and run[1] > 1 and not self._reader.lines:
            ahead = _AHEAD  # one after the other, each awaited: the next will be asked for
        self._last = run[1] + run[2] - 1
        self.tell.append(m.Retrieve(run[1], run[2], ahead))

    # -- what the maildir actor says
    def _spend(self, octets: int) -> None:
        """A bulk frame has come: it must have begun within the credit, which the last one may exceed."""
        if self._allowed <= 0:
            raise ValueError("more than it has credit for")
        self._allowed -= octets
        self.owed_credit += octets

    def answered(self, message: tuple[Any, ...]) -> None:
        """An answer, in the order of the questions. ValueError for one that answers nothing asked."""
        if self.closing:
            return  # asked before this session had to end
        self._ANSWERS[type(message)](self, message)
        self._settle()

    def _expect(self, *kinds: str) -> tuple[Any, ...]:
        """What the client waits for first must be one of `kinds`."""
        owed = self._owed[0] if self._owed else ("nothing",)
        if owed[0] not in kinds:
            raise ValueError("an answer to nothing that was asked")
        return owed

    def _mail(self, message: m.Mail) -> None:
        data = message.data
        self._spend(m.bulk_octets(message))
        parts = message.parts
        view = memoryview(data)
        if len(parts) % 4 or (parts and min(parts) < 0):
            raise ValueError("parts that are none")
        at = 0
        for n, octets, size, last in zip(parts[::4], parts[1::4], parts[2::4], parts[3::4], strict=True):
            self._settle()
            end = at + size
            if end > len(data):
                raise ValueError("parts that are not the data")
            if last == AHEAD:
                self._keep_ahead(n, octets, view[at:end])
            else:
                owed = self._expect("retr", "top")
                if owed[1] != n:
                    raise ValueError("a part of a message that was not asked for")
                self._part(owed, octets, view[at:end], last)
            at = end
        if at != len(data):
            raise ValueError("parts that are not the data")

    def _part(self, owed: tuple[Any, ...], octets: int, view: memoryview, last: int) -> None:
        if len(owed) == 2:  # its first part
            head = b"+OK %d octets\r\n" % octets if owed[0] == "retr" else b"+OK\r\n"
            if last:
                self._put_mail(head, view)
            else:
                self._owed[0] = (owed[0], owed[1], "begun")
                self._put(head)
                self._put_part(view)
        else:
            self._put_part(view)
            if last:
                self._put(b".\r\n")
        if last:
            self._owed.popleft()
            if owed[0] == "retr":
                self.retrieved += 1

    def _put_part(self, view: memoryview) -> None:
        """A part of a large message: mostly a frame's whole data, which need not be copied."""
        if self.shown is None:
            self.out.append(view)
            self.out_octets += len(view)
        else:
            self._put(bytes(view), 0, len(view))

    def _keep_ahead(self, n: int, octets: int, data: memoryview) -> None:
        if self._owed or n in self._ahead or self._ahead_octets + len(data) > _AHEAD_OCTETS or len(self._ahead) >= _AHEAD:
            return  # the client has gone elsewhere meanwhile, and what it asked for there is answered in its turn
        self._ahead[n] = (octets, data)
        self._ahead_octets += len(data)

    def _missing(self, message: m.Missing) -> None:
        owed = self._expect("retr", "top")
        if owed[1] != message.number:
            raise ValueError("an answer for another message")
        self._owed.popleft()
        if len(owed) == 3:  # begun, and now it can't be finished: nothing but an end of the connection says so
            self._end_with(b"", "a message could not be read to its end")
            return
        self._put(err(message.text, message.code))

    def _sizes(self, message: m.Sizes) -> None:
        self._spend(m.bulk_octets(message))
        rows = [b"%d" % size if size >= 0 else b"" for size in message.sizes]
        self._rows(message.first, rows, message.last, self._known[m.List])

    def _ids(self, message: m.Ids) -> None:
        self._spend(m.bulk_octets(message))
        self._rows(message.first, [u.encode() for u in message.uidls], message.last, self._known[m.Uidl])

    def _rows(self, first: int, rows: list[bytes], last: bool, known: dict[int, bytes]) -> None:
        """Rows of a LIST or UIDL, empty for a deleted message."""
        owed = self._expect("one", "all")
        if owed[0] == "one":
            if owed[1] != first or not 1 <= len(rows) <= _ROWS_AHEAD:
                raise ValueError("an answer for another message")
            self._owed.popleft()
            self._put(b"+OK %d %b\r\n" % (first, rows[0]) if rows[0] else err(_NO_SUCH))
            if len(known) > _MOST_KNOWN:
                known.clear()
            known.update((n, row) for n, row in enumerate(rows, first) if row)
            return
        if len(owed) == 1:
            self._owed[0] = ("all", 0, "begun")
            self._put(b"+OK %d messages (%d octets)\r\n" % (self.messages, self.octets))
        self._put(b"".join([b"%d %b\r\n" % (n, row) for n, row in enumerate(rows, first) if row]))
        if last:
            self._put(b".\r\n")
            self._owed.popleft()

    def _deleted(self, message: m.Deleted) -> None:
        """One Deleted answers a run of DELEs, which the client sees answered one by one."""
        owed = self._expect("dele")
        n = message.first
        if owed[1] != n:
            raise ValueError("an answer for another message")
        refused = set(message.refused)
        self.messages, self.octets = message.messages, message.octets
        while self._owed and self._owed[0] == ("dele", n) and n < message.first + message.many:
            self._owed.popleft()
            if n in refused:
                self._put(err(_NO_SUCH))
            else:
                self.marked += 1
                self._known[m.List].pop(n, None)
                self._known[m.Uidl].pop(n, None)
                self._put(_MARKED)
            n += 1

    def _totals(self, message: m.Totals) -> None:
        self._expect("rset")
        for known in self._known.values():
            known.clear()
        self._owed.popleft()
        self.messages, self.octets = message.messages, message.octets
        self.marked = 0
        self._put(ok(f"{self.messages} messages ({self.octets} octets)"))

    def _bye(self, message: m.Bye) -> None:
        self._expect("quit")
        self._owed.popleft()
        if message.failed:
            self._put(err(f"{message.failed} messages could not be removed", "SYS/TEMP"))
        else:
            self._put(ok("bye"))
        self.removed = message.removed
        self._close("quit")

    _ANSWERS: ClassVar[dict[type, Callable[["Maildrop", Any], None]]] = {}

    def credit(self, unsent: int) -> int:
        """How much credit to give the maildir actor, `unsent` octets waiting to go to the client. Taking it is giving it."""
        # Half of the window is enough to read ahead by; sooner would wake the actor where nothing more is to come.
        if self.owed_credit >= m.WINDOW // 2 and unsent < self._policy.memory:
            owed, self.owed_credit = self.owed_credit, 0
            self._allowed = min(m.WINDOW, self._allowed + owed)
            return owed
        return 0


Maildrop._ANSWERS.update(  # noqa: SLF001  the table of its own methods
    {
        m.Mail: Maildrop._mail, m.Missing: Maildrop._missing, m.Sizes: Maildrop._sizes, m.Ids: Maildrop._ids,  # noqa: SLF001
        m.Deleted: Maildrop._deleted, m.Totals: Maildrop._totals, m.Bye: Maildrop._bye,  # noqa: SLF001
    },
)
TRANSACTION: dict[bytes, Callable[[Any, bytes], None]] = {
    b"STAT": Maildrop._stat, b"LIST": Maildrop._list, b"RETR": Maildrop._retr, b"DELE": Maildrop._dele, b"NOOP": Maildrop._noop,  # noqa: SLF001
    b"RSET": Maildrop._rset, b"TOP": Maildrop._top, b"UIDL": Maildrop._uidl, b"QUIT": Maildrop._quit,  # noqa: SLF001
}
