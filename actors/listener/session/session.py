"""One POP3 session as the listener sees it: what the client sends, what the other actors say, what each is told. Sans I/O.

Feed it (`received`, `ready`, `denied`, `answered`, `maildir_gone`), then take `out` (octets for the client), `login` (for auth) and
`tell` (messages for the maildir actor), and the flags. It is a function of what it was fed: replay relies on it.

This module reads lines; authorization.py is how a client comes in, transaction.py what it can do then; replies.py keeps answers in order.
"""

from copy import copy
from itertools import islice
from typing import Any

from popkernel.actors.listener.session.authorization import AUTHORIZATION, EITHER, Login
from popkernel.actors.listener.session.policy import Policy
from popkernel.actors.listener.session.redaction import overheard
from popkernel.actors.listener.session.transaction import TRANSACTION
from popkernel.proto import messages as m
from popkernel.proto.pop3.commands import GREETING, LINE_LIMIT, TOO_LONG, err, split
from popkernel.proto.pop3.sasl import Exchange

__all__ = ["Session"]

_MOST_OWED = 1024  # commands under way; more wait in the reader
_MOST_LINES = 512  # lines, and octets of them, that may wait before no more are read
_MOST_WAITING = 64 * 1024
_KEEP_USER = frozenset((b"USER", b"PASS", b"CAPA", b"NOOP", b"UTF8"))  # between USER and PASS they change nothing
_LAST_STATES = ("update", "over")
_PAUSED = frozenset(("login", *_LAST_STATES))
_AUTHORIZATION = {**AUTHORIZATION, **EITHER}
_TRANSACTION = {**TRANSACTION, **EITHER}


class Session(Login):
    """A connection from greeting to end."""

    __slots__ = ("_shadow", "_waiting", "commands", "octets_sent", "typed")

    def __init__(self, session: int, policy: Policy, address: str, *, tls: bool) -> None:
        super().__init__(session, policy, address, tls=tls)
        self.commands = self.octets_sent = 0
        self.typed: list[bytes] = []  # while it is watched: what has come, without anything that could be a secret
        self._shadow: Exchange | None = None  # the AUTH under way behind what was typed last
        self._waiting = 0  # octets that came since no line waited
        self._say(GREETING)

    # -- from the client
    def received(self, data: bytes) -> None:
        """Octets from the client; what comes after QUIT is nobody's."""
        if self.state not in _LAST_STATES:
            before = len(self._reader.lines)
            self._waiting = self._waiting + len(data) if before else len(data)
            self._reader.feed(data)
            if self.shown is None:
                self._shadow = None
            else:
                new, state = islice(self._reader.lines, before, None), self.state
                if not before:
                    self._shadow = copy(self.exchange) if state == "sasl" else None
                elif state != "transaction":
                    state = "login"  # what waits comes first, and may be one
                typed, self._shadow = overheard(new, self._policy, state, self._shadow, tls=self.tls)
                self.typed += typed
            self.go_on()

    def take_typed(self) -> list[bytes]:
        """What was typed since the last time, for a watcher."""
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
        return bool(self._reader.lines or self._owed or self.state == "login" or self.starttls)

    def go_on(self) -> bool:
        """Act on the lines that wait, as far as may be; whether there were any. A client that takes no answers gets no more."""
        lines = self._reader.lines
        before = self.commands
        memory, most = self._policy.memory, self._policy.most_commands
        while (
            lines and not self.closing and not self.starttls and self.state not in _PAUSED
            and len(self._owed) < _MOST_OWED and self.out_octets < memory
        ):
            self._act(lines.popleft())
            self.commands += 1
            if most and self.commands >= most and self.state not in _LAST_STATES:
                self._end_run()
                self._say(err("too many commands"))
                self._close("too many commands")
        return self.commands > before

    def _act(self, line: bytes) -> None:
        state = self.state
        if state == "sasl" and line != TOO_LONG:
            self._sasl(line)
            return
        verb, rest = split(line)
        if line == TOO_LONG or (len(line) > LINE_LIMIT - 2 and verb != b"AUTH"):
            self._too_long()
        elif state == "transaction":
            handler = _TRANSACTION.get(verb)
            if handler is None:
                self._bad("not now" if verb in AUTHORIZATION else "unknown command")
                return
            errors = self._errors
            handler(self, rest)
            if self._errors == errors:
                self._errors = 0
        else:
            handler = _AUTHORIZATION.get(verb)
            if verb not in _KEEP_USER:
                self.user = ""
            if handler is None:
                self._bad("not now" if verb in TRANSACTION else "unknown command")
            else:
                handler(self, rest)

    def _too_long(self) -> None:
        if self.state != "transaction":
            self._no_login("", "line too long")
        else:
            self._bad("line too long")

    # -- the other actors
    def denied(self, code: str, text: str) -> None:
        super().denied(code, text)
        self.go_on()

    def ready(self, message: m.Ready) -> None:
        super().ready(message)
        self.go_on()

    def answered(self, message: tuple[Any, ...]) -> None:
        super().answered(message)
        if self._reader.lines:
            self.go_on()

    # -- the end
    def maildir_gone(self) -> None:
        """The maildir actor is no more: this session can't go on, and nothing is removed."""
        if self.state not in ("authorization", "sasl") and not self.closing:
            self._end_with(err("the mailbox is not available now, try again", "SYS/TEMP"), "the maildir actor is gone")

    def stopping(self) -> None:
        """The service ends: say so, unless QUIT is being answered."""
        if self.state not in _LAST_STATES:
            self._end_with(err("the server is going down, try again later", "SYS/TEMP"), "the service ends")

    def timed_out(self) -> None:
        """The client was silent too long (RFC 1939 section 3: closed, nothing removed, no answer sent)."""
        self._end_with(b"", "idle too long" if self.entered else "logged in too slowly")
