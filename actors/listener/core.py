"""One POP3 session as the listener sees it: what the client sends, what the other actors say, what each is told. Sans I/O.

Feed it (`received`, `opened`, `turned`, `denied`, `answered`, `maildir_gone`), then take `out` (octets for the client) and
`tell` (messages for the maildir actor) and the flags. It is a function of what it was fed, clock included: replay relies on it.

Answers leave in the order of the commands. `_owed` holds what the client waits for: a reply that is ready, or the
maildir actor's answer that is still to come; what is ready waits behind what is not.
"""

from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import Any, ClassVar, NamedTuple

from popkernel.proto import messages as m
from popkernel.proto.pop3 import GREETING, TOO_LONG, LineReader, capabilities, err, number, ok, split
from popkernel.proto.typed import harmless

__all__ = ["Policy", "Session"]

_MOST_OWED = 1024  # commands under way; more wait in the reader
_AHEAD = 64  # messages the maildir actor may send ahead of being asked, within one frame
_ROWS_AHEAD = 256  # sizes or unique ids that come along with one that is asked for
_MOST_KNOWN = 2048  # of those, how many are kept
_LOW_WATER = 256 * 1024  # octets on their way to the client below which credit goes back, and commands are acted on
_NO_SUCH = err("no such message")
_USAGE = {
    b"RETR": "RETR number", b"DELE": "DELE number", b"TOP": "TOP number lines", b"LIST": "LIST [number]",
    b"UIDL": "UIDL [number]", b"USER": "USER name", b"PASS": "PASS password",
}


class Policy(NamedTuple):
    """What the configuration says about sessions. Seconds."""

    version: str
    plaintext: bool = False  # USER and PASS without TLS
    starttls: bool = False  # STLS is offered where there is no TLS yet
    login_seconds: int = 30
    idle_seconds: int = 600
    most_errors: int = 50  # bad commands, in a row once logged in, before the connection is closed


class Session:
    """A connection from greeting to end."""

    __slots__ = (
        "_ahead", "_ahead_octets", "_asked", "_errors", "_known", "_last", "_owed", "_policy", "_reader", "_run", "_taken", "address",
        "closing", "commands", "deleted", "entered", "id", "login", "messages", "octets", "octets_sent", "out", "out_octets",
        "owed_credit", "retrieved", "shown", "starttls", "state", "tell", "tls", "total", "typed", "user", "why",
    )

    def __init__(self, session: int, policy: Policy, address: str, *, tls: bool) -> None:
        self.id = session
        self.address = address
        self.tls = tls
        self.user = ""
        self.state = "authorization"  # authorization, login, transaction, update, over
        self.out: list[bytes] = []
        self.out_octets = 0  # made and not yet taken by the client; the shell says what it still holds after each write
        self.tell: list[tuple[Any, ...]] = []  # for the maildir actor
        self.login: m.Login | None = None  # for auth (and Awaiting for the kernel); the shell takes it away
        self.starttls = False  # the shell is to start TLS when `out` is gone
        self.entered = False  # has been logged in
        self.closing = False  # close when `out` is gone
        self.why = ""
        self.messages = self.octets = self.total = 0  # undeleted ones; all there were at the start
        self.commands = self.retrieved = self.deleted = 0
        self.owed_credit = self.octets_sent = 0
        self._policy = policy
        self._reader = LineReader()
        self._owed: deque[tuple[Any, ...]] = deque()
        self._run: list[int] | None = None  # [RETR or DELE as 0/1, first, many]: neighbours travel as one message
        self._ahead: dict[int, tuple[int, bytes]] = {}
        self._ahead_octets = 0
        self._taken: list[int] = []
        self._last = 0
        self._errors = 0
        self._known: dict[type, dict[int, bytes]] = {m.List: {}, m.Uidl: {}}  # rows of messages that are not deleted
        self._asked = False
        self.shown: list[bytes | tuple[bytes]] | None = None  # while it is watched: what is said, mail content apart in a tuple
        self.typed: list[bytes] = []  # while it is watched: what has come, without anything that could be a secret
        self._say(GREETING)

    # -- out
    def _say(self, data: bytes, before: int = 0, octets: int = 0) -> None:
        """To the client, in its turn. `octets` of it, behind the first `before`, are mail."""
        if self._owed:
            self._end_deletes()
            self._owed.append(("text", data, before, octets))
        else:
            self._put(data, before, octets)

    def _put(self, data: bytes, before: int = 0, octets: int = 0) -> None:
        self.out.append(data)
        self.out_octets += len(data)
        if self.shown is not None:
            pieces: list[bytes | tuple[bytes]] = (
                [data[:before], (data[before : before + octets],), data[before + octets :]] if octets else [data]
            )
            self.shown += [piece for piece in pieces if piece]

    def take_shown(self) -> list[bytes | tuple[bytes]]:
        """What was said since the last time, for a watcher."""
        shown, self.shown = self.shown or [], []
        return shown

    def take_typed(self) -> list[bytes]:
        """What was typed since the last time, for a watcher."""
        typed, self.typed = self.typed, []
        return typed

    def take_out(self) -> list[bytes]:
        """What is to go to the client now."""
        out, self.out = self.out, []
        return out

    def take_tell(self) -> list[tuple[Any, ...]]:
        """What is to go to the maildir actor now."""
        self._end_run()
        tell, self.tell = self.tell, []
        return tell

    def _end_deletes(self) -> None:
        """A run of DELEs is answered in one go, so nothing else may be owed between them."""
        if self._run is not None and self._run[0]:
            self._end_run()

    def _end_run(self) -> None:
        run, self._run = self._run, None
        if run is None:
            return
        if run[0]:
            self.tell.append(m.Delete(run[1], run[2]))
            return
        ahead = 0
        if run[2] == 1 and run[1] == self._last + 1 and run[1] > 1 and not self._reader.lines:
            ahead = _AHEAD  # one after the other, each awaited: the next will be asked for
        self._last = run[1] + run[2] - 1
        self.tell.append(m.Retrieve(run[1], run[2], ahead))

    # -- from the client
    def received(self, data: bytes) -> None:
        """Octets from the client; what comes after QUIT is nobody's."""
        if self.state not in _LAST_STATES:
            before = len(self._reader.lines)
            self._reader.feed(data)
            if self.shown is not None:
                self.typed += [harmless(line) for line in islice(self._reader.lines, before, None)]
            self.go_on()

    @property
    def backlog(self) -> int:
        """Lines read and not yet acted on; a shell stops reading from a client that has too many."""
        return len(self._reader.lines)

    def go_on(self) -> bool:
        """Act on the lines that wait, as far as may be; whether there were any. A client that takes no answers gets no more."""
        lines = self._reader.lines
        before = self.commands
        while (
            lines and not self.closing and not self.starttls and self.state not in _PAUSED
            and len(self._owed) < _MOST_OWED and self.out_octets < _LOW_WATER
        ):
            line = lines.popleft()
            self.commands += 1
            if line == TOO_LONG:
                if self.state == "authorization":
                    self.user = ""
                self._bad("line too long")
                continue
            verb, rest = split(line)
            if self.state == "transaction":
                handler = _TRANSACTION.get(verb)
            else:
                handler = _AUTHORIZATION.get(verb)
                if verb not in _USER_PASS:
                    self.user = ""  # PASS counts right behind USER only
            if handler is None:
                self._bad("unknown command" if verb not in _AUTHORIZATION and verb not in _TRANSACTION else "not now")
            else:
                errors = self._errors
                handler(self, rest)
                if self.state == "transaction" and self._errors == errors:
                    self._errors = 0
        return self.commands > before

    def _bad(self, text: str, code: str = "") -> None:
        self._errors += 1
        self._end_run()
        self._say(err(text, code))
        if self._errors > self._policy.most_errors:
            self._say(err("too many errors"))
            self._close("too many errors")

    def _close(self, why: str) -> None:
        """Close once everything owed is out."""
        self.why = self.why or why
        self.state = "over"
        if self._owed:
            self._owed.append(("close",))
        else:
            self.closing = True

    # -- authorization state
    def _user(self, rest: bytes) -> None:
        name = rest.strip(b" ")
        self.user = ""  # a name that is refused must not leave an earlier one to the next PASS
        if not self._may_log_in():
            return
        try:
            user = name.decode()
        except UnicodeDecodeError:
            user = ""
        if not user or len(user) > 255 or not user.isprintable() or " " in user:
            self._bad(_USAGE[b"USER"])
            return
        self.user = user
        self._say(ok())

    def _may_log_in(self) -> bool:
        if self.tls or self._policy.plaintext:
            return True
        self._bad("use TLS first (STLS)" if self._policy.starttls else "use TLS")
        return False

    def _pass(self, rest: bytes) -> None:
        if not self._may_log_in():
            return
        if not self.user:
            self._bad("USER first")
            return
        self.login = m.Login(self.id, self.user, rest, self.address, "PASS")
        self.state = "login"

    def _capa(self, rest: bytes) -> None:
        del rest
        login = self.state == "transaction"
        self._end_run()
        self._say(
            capabilities(
                tls=self.tls, starttls=self._policy.starttls and not self.tls and not login, login=login,
                plaintext=self._policy.plaintext, version=self._policy.version,
            ),
        )

    def _stls(self, rest: bytes) -> None:
        if self.tls or not self._policy.starttls or rest.strip(b" "):
            self._bad("TLS is on already" if self.tls else "STLS takes no arguments" if rest.strip(b" ") else "no STLS here")
            return
        self._say(ok("begin TLS"))
        self.starttls = True

    def secured(self) -> None:
        """TLS is on; nothing that was said before counts (RFC 2595 section 4)."""
        self.starttls = False
        self.tls = True
        self.user = ""
        self._reader.clear()

    def _quit_early(self, rest: bytes) -> None:
        del rest
        self._say(ok("bye"))
        self._close("quit before login")

    # -- what became of PASS
    def denied(self, code: str, text: str) -> None:
        """Auth says no, or could not be asked, or the maildrop can't be had."""
        if self.state != "login":
            return
        self.state = "authorization"
        self.user = ""
        self._bad(text, code)
        self.go_on()

    def ready(self, message: m.Ready) -> None:
        """The maildrop is open."""
        self.state = "transaction"
        self.entered = True
        self._errors = 0
        self.messages = self.total = message.messages
        self.octets = message.octets
        self._say(ok(f"{self.messages} messages ({self.octets} octets)"))
        self.go_on()

    # -- transaction state
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
        self._bad("no such message" if n >= 0 else f"usage: {_USAGE[verb]}")
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

    def _from_ahead(self, n: int, octets: int, data: bytes) -> None:
        """A message that came before it was asked for."""
        self._ahead_octets -= len(data)
        self._last = n
        self.retrieved += 1
        if len(self._taken) >= 2 and self._taken[-2] + self._taken[-1] == n:
            self._taken[-1] += 1
        elif len(self._taken) < 4096:
            self._taken += (n, 1)
        head = b"+OK %d octets\r\n" % octets
        self._say(b"%b%b.\r\n" % (head, data), len(head), len(data))

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

    # -- what the maildir actor says
    def answered(self, message: tuple[Any, ...]) -> None:
        """An answer, in the order of the questions. ValueError for one that answers nothing asked."""
        if self.closing:
            return  # asked before this session had to end
        self._ANSWERS[type(message)](self, message)
        self._settle()
        if self._reader.lines:
            self.go_on()

    def _expect(self, *kinds: str) -> tuple[Any, ...]:
        """What the client waits for first must be one of `kinds`."""
        owed = self._owed[0] if self._owed else ("nothing",)
        if owed[0] not in kinds:
            raise ValueError("an answer to nothing that was asked")
        return owed

    def _settle(self) -> None:
        """Say what has become ready at the head of what is owed."""
        owed = self._owed
        while owed:
            kind = owed[0][0]
            if kind == "text":
                self._put(*owed[0][1:])
            elif kind == "stat":
                self._put(b"+OK %d %d\r\n" % (self.messages, self.octets))
            elif kind == "close":
                self.closing = True
            else:
                return
            owed.popleft()

    def _mail(self, message: m.Mail) -> None:
        data = message.data
        self.owed_credit += m.bulk_octets(message)
        parts = message.parts
        view = memoryview(data)
        at = 0
        for i in range(0, len(parts) - 3, 4):
            n, octets, size, last = parts[i : i + 4]
            self._settle()
            owed = self._owed[0] if self._owed else None
            if owed is None or owed[0] not in ("retr", "top") or owed[1] != n:
                if last != 1 or at + size > len(data):
                    raise ValueError("a part of a message that was not asked for")
                self._keep_ahead(n, octets, bytes(view[at : at + size]))
            else:
                self._part(owed, octets, bytes(view[at : at + size]) if size != len(data) else data, last)
            at += size
        if at != len(data):
            raise ValueError("parts that are not the data")

    def _part(self, owed: tuple[Any, ...], octets: int, data: bytes, last: int) -> None:
        if len(owed) == 2:  # its first part
            head = b"+OK %d octets\r\n" % octets if owed[0] == "retr" else b"+OK\r\n"
            if last:
                self._put(b"%b%b.\r\n" % (head, data), len(head), len(data))
            else:
                self._owed[0] = (owed[0], owed[1], "begun")
                self._put(head)
                self._put(data, 0, len(data))
        else:
            self._put(data, 0, len(data))
            if last:
                self._put(b".\r\n")
        if last:
            self._owed.popleft()
            if owed[0] == "retr":
                self.retrieved += 1

    def _keep_ahead(self, n: int, octets: int, data: bytes) -> None:
        if self._ahead_octets + len(data) > 320 * 1024 or len(self._ahead) >= _AHEAD:
            return  # two answers for one message, of which the earlier came ahead: not worth keeping
        if not self._owed:  # else the client has gone elsewhere meanwhile
            self._ahead[n] = (octets, data)
            self._ahead_octets += len(data)

    def _missing(self, message: m.Missing) -> None:
        owed = self._expect("retr", "top")
        if owed[1] != message.number:
            raise ValueError("an answer for another message")
        self._owed.popleft()
        if len(owed) == 3:  # begun, and now it can't be finished: nothing but an end of the connection says so
            self._put(b"")
            self.state = "over"
            self.closing = True
            self.why = "a message could not be read to its end"
            self._owed.clear()
            return
        self._put(err(message.text, message.code))

    def _sizes(self, message: m.Sizes) -> None:
        self.owed_credit += m.bulk_octets(message)
        rows = [b"%d" % size if size >= 0 else b"" for size in message.sizes]
        self._rows(message.first, rows, message.last, self._known[m.List])

    def _ids(self, message: m.Ids) -> None:
        self.owed_credit += m.bulk_octets(message)
        self._rows(message.first, [u.encode() for u in message.uidls], message.last, self._known[m.Uidl])

    def _rows(self, first: int, rows: list[bytes], last: bool, known: dict[int, bytes]) -> None:
        """Rows of a LIST or UIDL, empty for a deleted message."""
        owed = self._expect("one", "all")
        if owed[0] == "one":
            if owed[1] != first or not 1 <= len(rows) <= _ROWS_AHEAD:
                raise ValueError("an answer for another message")
            self._owed.popleft()
            self._put(b"+OK %d %b\r\n" % (first, rows[0]) if rows[0] else _NO_SUCH)
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
                self._put(_NO_SUCH)
            else:
                self.deleted += 1
                self._known[m.List].pop(n, None)
                self._known[m.Uidl].pop(n, None)
                self._put(b"+OK marked\r\n")
            n += 1

    def _totals(self, message: m.Totals) -> None:
        self._expect("rset")
        for known in self._known.values():
            known.clear()
        self._owed.popleft()
        self.messages, self.octets = message.messages, message.octets
        self.deleted = 0
        self._put(ok(f"{self.messages} messages ({self.octets} octets)"))

    def _bye(self, message: m.Bye) -> None:
        self._expect("quit")
        self._owed.popleft()
        if message.failed:
            self._put(err(f"{message.failed} messages could not be removed", "SYS/TEMP"))
        else:
            self._put(ok("bye"))
        self.deleted = message.removed
        self._close("quit")

    _ANSWERS: ClassVar[dict[type, Callable[["Session", Any], None]]] = {}

    # -- the end
    def maildir_gone(self) -> None:
        """The maildir actor is no more: this session can't go on, and nothing is removed.

        Into an answer that is half out no word is put, for the client would take it for mail: the end of the connection says it.
        """
        if self.state != "authorization" and not self.closing:
            begun = any(len(o) == 3 for o in self._owed)
            self._end_with(b"" if begun else err("the mailbox is not available now, try again", "SYS/TEMP"), "the maildir actor is gone")

    def stopping(self) -> None:
        """The service ends: say so, unless an answer is half out, or QUIT is being answered."""
        if self.state == "update":
            return
        begun = any(len(o) == 3 for o in self._owed)
        self._end_with(b"" if begun else err("the server is going down, try again later", "SYS/TEMP"), "the service ends")

    def timed_out(self) -> None:
        """The client was silent too long (RFC 1939 section 3: closed, nothing removed, no answer sent)."""
        self._end_with(b"", "logged in too slowly" if self.state in ("authorization", "login") else "idle too long")

    def _end_with(self, text: bytes, why: str) -> None:
        self._owed.clear()
        if text:
            self._put(text)
        self.state = "over"
        self.closing = True
        self.why = self.why or why

    def credit(self, unsent: int) -> int:
        """How much credit to give the maildir actor, `unsent` octets waiting to go to the client. Taking it is giving it."""
        if self.owed_credit >= _LOW_WATER // 2 and unsent < _LOW_WATER:
            owed, self.owed_credit = self.owed_credit, 0
            return owed
        return 0


Session._ANSWERS.update(  # noqa: SLF001  the table of its own methods
    {
        m.Mail: Session._mail, m.Missing: Session._missing, m.Sizes: Session._sizes, m.Ids: Session._ids,  # noqa: SLF001
        m.Deleted: Session._deleted, m.Totals: Session._totals, m.Bye: Session._bye,  # noqa: SLF001
    },
)
_USER_PASS = (b"USER", b"PASS")
_LAST_STATES = ("update", "over")
_PAUSED = ("login", *_LAST_STATES)
_AUTHORIZATION: dict[bytes, Callable[[Session, bytes], None]] = {
    b"USER": Session._user, b"PASS": Session._pass, b"CAPA": Session._capa, b"STLS": Session._stls,  # noqa: SLF001
    b"QUIT": Session._quit_early,  # noqa: SLF001
}
_TRANSACTION: dict[bytes, Callable[[Session, bytes], None]] = {
    b"STAT": Session._stat, b"LIST": Session._list, b"RETR": Session._retr, b"DELE": Session._dele, b"NOOP": Session._noop,  # noqa: SLF001
    b"RSET": Session._rset, b"TOP": Session._top, b"UIDL": Session._uidl, b"CAPA": Session._capa, b"QUIT": Session._quit,  # noqa: SLF001
}
