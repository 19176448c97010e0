"""Act on what a client sends in one POP3 session, and on what the other actors answer. Sans I/O.

Feed it (`received`, `ready`, `denied`, `answered`, `maildir_gone`), then take `replies.out` (octets for the client),
`authorization.login` (for auth) and `transaction.requests` (messages for the maildir actor), and the flags. It is a function of what it
was fed: replay relies on it.

This module reads lines and gives each to the state that it is for. authorization.py is the state before the login, transaction.py the one
behind it; both send their replies through replies.py.
"""

from copy import copy
from itertools import islice
from typing import Any

from popkernel.actors.listener.session.authorization import Authorization
from popkernel.actors.listener.session.policy import Policy
from popkernel.actors.listener.session.redaction import overheard
from popkernel.actors.listener.session.replies import Replies
from popkernel.actors.listener.session.transaction import Transaction
from popkernel.proto import messages as m
from popkernel.proto.pop3.commands import GREETING, LINE_LIMIT, TOO_LONG, LineReader, err, split
from popkernel.proto.pop3.sasl import AUTH_LINE_LIMIT, Exchange

__all__ = ["Session"]

_MOST_PENDING = 1024  # commands under way; more wait in the reader
_MOST_LINES = 512  # lines, and octets of them, that may wait before no more are read
_MOST_WAITING = 64 * 1024
_KEEP_USER = frozenset((b"USER", b"PASS", b"CAPA", b"NOOP", b"UTF8"))  # between USER and PASS they change nothing
_EITHER = Authorization.EITHER
_AUTHORIZATION = {**Authorization.COMMANDS, **_EITHER}
_TRANSACTION = Transaction.COMMANDS


class Session:
    """A connection from greeting to end."""

    __slots__ = (
        "_most_commands", "_policy", "_reader", "_shadow", "_waiting", "authorization", "commands", "entered", "id", "octets_sent",
        "replies", "transaction", "typed",
    )

    def __init__(self, session: int, policy: Policy, address: str, *, tls: bool) -> None:
        self.id = session
        self.replies = Replies(policy.most_errors)
        self.authorization = Authorization(session, policy, self.replies, address, tls=tls)
        self._reader = LineReader(AUTH_LINE_LIMIT)
        self.transaction = Transaction(self.replies, self._reader, policy.memory)
        self.entered = False  # has been logged in
        self.commands = self.octets_sent = 0
        self.typed: list[bytes] = []  # while it is watched: what has come, without anything that could be a secret
        self._policy = policy
        self._most_commands = policy.most_commands
        self._shadow: Exchange | None = None  # the AUTH under way behind what was typed last
        self._waiting = 0  # octets that came since no line waited
        self.replies.say(GREETING)

    @property
    def state(self) -> str:
        """Return authorization, sasl, login, transaction, update or over."""
        if self.replies.over:
            return "over"
        return "update" if self.transaction.quitting else self.authorization.state

    # -- from the client
    def received(self, data: bytes) -> None:
        """Octets from the client; what comes after QUIT is nobody's."""
        if not self.replies.over and not self.transaction.quitting:
            lines = self._reader.lines
            before = len(lines)
            self._waiting = self._waiting + len(data) if before else len(data)
            self._reader.feed(data)
            if self.replies.shown is None:
                self._shadow = None
            else:
                new, state = islice(lines, before, None), self.state
                if not before:
                    self._shadow = copy(self.authorization.exchange) if state == "sasl" else None
                elif state != "transaction":
                    state = "login"  # what waits comes first, and may be one
                typed, self._shadow = overheard(new, self._policy, state, self._shadow, tls=self.authorization.tls)
                self.typed += typed
            self.go_on()

    def take_typed(self) -> list[bytes]:
        """Take what was typed since the last time, for a watcher."""
        typed, self.typed = self.typed, []
        return typed

    @property
    def backlog(self) -> bool:
        """So much was read and is not yet acted on that a shell reads no more from this client."""
        lines = self._reader.lines
        return bool(lines) and (self._waiting >= _MOST_WAITING or len(lines) >= _MOST_LINES)

    @property
    def busy(self) -> bool:
        """Something that was typed is not answered yet: who only speaks no more has that coming."""
        return bool(self._reader.lines or self.replies.pending or self.state == "login" or self.authorization.starttls)

    def go_on(self) -> bool:
        """Act on the lines that wait, as far as may be; whether there were any. A client that takes no answers gets no more."""
        lines = self._reader.lines
        if not lines:
            return False
        replies, authorization, transaction = self.replies, self.authorization, self.transaction
        before = self.commands
        memory, most = self._policy.memory, self._most_commands
        while (
            lines and not replies.over and not transaction.quitting and not authorization.starttls and authorization.state != "login"
            and len(replies.pending) < _MOST_PENDING and replies.out_octets < memory
        ):
            self._act(lines.popleft())
            self.commands += 1
            if most and self.commands >= most and not replies.over and not transaction.quitting:
                transaction.flush()
                replies.say(err("too many commands"))
                replies.close("too many commands")
        return self.commands > before

    def _act(self, line: bytes) -> None:
        state = self.authorization.state
        if state == "sasl" and line != TOO_LONG:
            self.authorization.respond(line)
            return
        verb, rest = split(line)
        if line == TOO_LONG or (len(line) > LINE_LIMIT - 2 and verb != b"AUTH"):
            self._too_long()
        elif state == "transaction":
            self._transact(verb, rest)
        else:
            if verb not in _KEEP_USER:
                self.authorization.user = ""
            handler = _AUTHORIZATION.get(verb)
            if handler is None:
                self.replies.bad("not now" if verb in _TRANSACTION else "unknown command")
            else:
                handler(self.authorization, rest)

    def _transact(self, verb: bytes, rest: bytes) -> None:
        replies = self.replies
        errors = replies.errors
        handler = _TRANSACTION.get(verb)
        if handler is not None:
            handler(self.transaction, rest)
        else:
            self.transaction.flush()
            either = _EITHER.get(verb)
            if either is not None:
                either(self.authorization, rest)
            else:
                replies.bad("not now" if verb in _AUTHORIZATION else "unknown command")
        if replies.errors == errors:
            replies.errors = 0

    def _too_long(self) -> None:
        if self.authorization.state != "transaction":
            self.authorization.fail("line too long")
        else:
            self.transaction.flush()
            self.replies.bad("line too long")

    # -- the other actors
    def secured(self) -> None:
        """TLS is on."""
        self.authorization.secured()
        self._reader.clear()

    def denied(self, code: str, text: str) -> None:
        """Auth says no, or could not be asked, or there is no maildrop to be had."""
        if self.state == "login":
            self.authorization.denied(code, text)
        self.go_on()

    def ready(self, message: m.Ready) -> None:
        """The maildrop is open."""
        self.authorization.granted()
        self.entered = True
        self._reader.limit = LINE_LIMIT
        self.replies.errors = 0
        self.transaction.begin(message)
        self.go_on()

    def answered(self, message: tuple[Any, ...]) -> None:
        """The maildir actor answers, in the order of the requests. ValueError for an answer to nothing that was requested."""
        self.transaction.answered(message)
        if self._reader.lines:
            self.go_on()

    # -- the end
    def refused(self, text: str) -> None:
        """One connection too many: the client gets this in the place of the greeting, and no more."""
        self.replies.out.clear()
        self.replies.end_with(err(text, "SYS/TEMP"), text)

    def maildir_gone(self) -> None:
        """The maildir actor is no more: this session can't go on, and nothing is removed."""
        if self.state not in ("authorization", "sasl") and not self.replies.closing:
            self.replies.end_with(err("the mailbox is not available now, try again", "SYS/TEMP"), "the maildir actor is gone")

    def stopping(self) -> None:
        """The service ends: say so, unless QUIT is being answered."""
        if not self.replies.over and not self.transaction.quitting:
            self.replies.end_with(err("the server is going down, try again later", "SYS/TEMP"), "the service ends")

    def timed_out(self) -> None:
        """The client was silent too long (RFC 1939 section 3: closed, nothing removed, no answer sent)."""
        self.replies.end_with(b"", "idle too long" if self.entered else "logged in too slowly")
