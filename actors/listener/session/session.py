"""Process one POP3 session: the client's octets and the other actors' answers. Sans I/O.

Each method takes an event (`received`, `ready`, `denied`, `answered`, `sent` ...) and returns the actions to
be done now, in order (actions.py). A session depends on nothing else: replay relies on that.

This module reads lines and gives each to the module of its state: authorization.py before the login,
transaction.py after it. Both send their replies through replies.py.
"""

from copy import copy
from itertools import islice
from typing import Any

from popkernel.actors.listener.session.actions import (
    Action,
    Close,
    GiveCredit,
    HangUp,
    Say,
    Shown,
    StartTls,
    Typed,
)
from popkernel.actors.listener.session.authorization import Authorization
from popkernel.actors.listener.session.client_faults import not_offered
from popkernel.actors.listener.session.policy import Policy
from popkernel.actors.listener.session.redaction import redact_lines
from popkernel.actors.listener.session.replies import Replies
from popkernel.actors.listener.session.transaction import ENOUGH_CREDIT, Transaction
from popkernel.proto import messages as m
from popkernel.proto.pop3.commands import GREETING, LINE_LIMIT, TOO_LONG, LineReader, err, split
from popkernel.proto.pop3.sasl import AUTH_LINE_LIMIT, Exchange

__all__ = ["Session"]

_MOST_PENDING = 1024  # commands under way; more wait in the reader
_MOST_LINES = 512  # lines, and octets, that may wait before no more are read
_MOST_WAITING = 64 * 1024
# these commands between USER and PASS keep the user
_KEEP_USER = frozenset((b"USER", b"PASS", b"CAPA", b"NOOP", b"UTF8"))
_LONGEST = LINE_LIMIT - 2  # octets of a line without its end
_EITHER = Authorization.EITHER
_AUTHORIZATION = {**Authorization.COMMANDS, **_EITHER}
_TRANSACTION = Transaction.COMMANDS


class Session:
    """Run a connection from greeting to end. `refusal`: sent instead of the greeting, before the end."""

    __slots__ = (
        "_hung_up",
        "_most_commands",
        "_policy",
        "_reader",
        "_shadow",
        "_waiting",
        "authorization",
        "commands",
        "entered",
        "id",
        "replies",
        "transaction",
    )

    def __init__(self, session: int, policy: Policy, address: str, *, tls: bool, refusal: str = "") -> None:
        self.id = session
        self.replies = Replies(policy.most_errors)
        self.authorization = Authorization(session, policy, self.replies, address, tls=tls)
        self._reader = LineReader(AUTH_LINE_LIMIT)
        self.transaction = Transaction(self.replies, self._reader, policy.memory)
        self.entered = False  # a maildrop was opened
        self.commands = 0
        self._policy = policy
        self._most_commands = policy.most_commands
        self._shadow: Exchange | None = None  # the AUTH that is under way after the lines traced last
        self._waiting = 0  # octets that came since the last time no line waited
        self._hung_up = False  # the client sends no more, and may still receive
        if refusal:
            self.replies.end_with(err(refusal, "SYS/TEMP"), refusal)
        else:
            self.replies.say(GREETING)

    @property
    def state(self) -> str:
        """Return authorization, sasl, login, transaction, update or over."""
        if self.replies.over:
            return "over"
        return "update" if self.transaction.quitting else self.authorization.state

    # -- watched
    def watch(self) -> None:
        """Return Typed and Shown from now on."""
        self.replies.shown = [bytes(piece) for piece in self.replies.out]

    def unwatch(self) -> None:
        """Return Typed and Shown no more."""
        self.replies.shown = None

    # -- actions
    def _actions(self) -> list[Action]:
        """Collect the actions to be done now, in order."""
        transaction, replies = self.transaction, self.replies
        actions: list[Action] = []
        if replies.out:
            actions.append(replies.out)
            replies.out = Say()
            if replies.shown is not None:
                actions.append(Shown(replies.shown))
                replies.shown = []
        if self.authorization.logins:
            actions += self.authorization.logins
            self.authorization.logins.clear()
        if transaction.requests or transaction.gathered:
            actions.append(transaction.take_requests())
        return actions

    # -- from the client
    def begin(self) -> list[Action]:
        """Greet the client."""
        return self._actions()

    def received(self, data: bytes) -> list[Action]:
        """Process octets from the client; discard those after QUIT."""
        replies = self.replies
        typed: list[bytes] | None = None if replies.shown is None else []
        if not replies.over and not self.transaction.quitting:
            lines = self._reader.lines
            before = len(lines)
            self._waiting = self._waiting + len(data) if before else len(data)
            self._reader.feed(data)
            if typed is None:
                self._shadow = None
            else:
                typed = self._redact(before)
            if lines:
                self._go_on()
        actions = self._actions()
        if typed is not None:
            actions.insert(0, Typed(typed))
        return actions

    def _redact(self, before: int) -> list[bytes]:
        """Return the lines after the first `before`, with all that could be a secret removed."""
        new, state = islice(self._reader.lines, before, None), self.state
        if not before:
            self._shadow = copy(self.authorization.exchange) if state == "sasl" else None
        elif state != "transaction":
            state = "login"  # the lines before these may log in
        typed, self._shadow = redact_lines(new, self._policy, state, self._shadow, tls=self.authorization.tls)
        return typed

    def hung_up(self) -> list[Action]:
        """Note that the client closed its side: the connection is closed once it has its answers."""
        self._hung_up = True
        return []

    def sent(self, unsent: int) -> list[Action]:
        """Note that all but `unsent` octets went to the client, and do what waited for that."""
        replies = self.replies
        replies.out_octets = unsent
        if self._reader.lines:
            self._go_on()
            actions = self._actions()
            if actions:
                return actions
        if not unsent:
            if replies.closing:
                return [Close(replies.why or "connection lost")]
            if self.authorization.starttls:
                return [StartTls()]
            if self._hung_up and not self._busy:
                return [HangUp()]
        if self.transaction.owed_credit >= ENOUGH_CREDIT:
            credit = self.transaction.credit(unsent)
            if credit:
                return [GiveCredit(credit)]
        return []

    @property
    def wants(self) -> bool:
        """Return whether to read more from this client: not while much that was read still waits."""
        lines = self._reader.lines
        return not self.replies.closing and not (
            lines and (self._waiting >= _MOST_WAITING or len(lines) >= _MOST_LINES)
        )

    @property
    def _busy(self) -> bool:
        """Return whether a command is not answered yet.

        A client that closed its sending side still gets that answer.
        """
        return bool(
            self._reader.lines or self.replies.pending or self.state == "login" or self.authorization.starttls
        )

    @property
    def nothing_follows(self) -> bool:
        """Return whether the client's last command is the login under way, and it sends no more."""
        return self._hung_up and self.authorization.state == "login" and not self._reader.lines

    def _go_on(self) -> None:
        """Act on the lines that wait, as far as possible.

        If the client does not take its answers, the rest waits.
        """
        lines = self._reader.lines
        replies, authorization, transaction = self.replies, self.authorization, self.transaction
        memory, most = self._policy.memory, self._most_commands
        while (
            lines
            and not replies.over
            and not transaction.quitting
            and not authorization.starttls
            and authorization.state != "login"
            and len(replies.pending) < _MOST_PENDING
            and replies.out_octets < memory
        ):
            self._act(lines.popleft())
            self.commands += 1
            if most and self.commands >= most and not replies.over and not transaction.quitting:
                transaction.flush()
                replies.say(err("too many commands"))
                replies.close("too many commands")

    def _act(self, line: bytes) -> None:
        state = self.authorization.state
        if state == "sasl" and line != TOO_LONG:
            self.authorization.respond(line)
            return
        verb, rest = split(line)
        if line == TOO_LONG or (len(line) > _LONGEST and verb != b"AUTH"):
            self._too_long()
        elif state == "transaction":
            self._transact(verb, rest)
        else:
            if verb not in _KEEP_USER:
                self.authorization.user = ""
            handler = _AUTHORIZATION.get(verb)
            if handler is None:
                if verb == b"APOP":
                    self.authorization.fault = "client", not_offered("APOP")
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
    def secured(self) -> list[Action]:
        """Continue after the TLS handshake, as if nothing had been received before (RFC 2595 section 4)."""
        if self.authorization.starttls:
            self.authorization.secured()
            self._reader.clear()
        return self._actions()

    def admitted(self, user: str) -> None:
        """Take the user's name as the tables spell it, for a session that the kernel admitted."""
        self.authorization.user = user

    def denied(self, code: str, text: str) -> list[Action]:
        """Answer a failed login: auth refused it or did not answer, or no maildrop can be had."""
        if self.state == "login":
            self.authorization.denied(code, text)
        self._go_on()
        return self._actions()

    def ready(self, message: m.MaildropReady) -> list[Action]:
        """Enter the transaction state: the maildrop is open."""
        self.authorization.granted()
        self.entered = True
        self._reader.limit = LINE_LIMIT
        self.replies.errors = 0
        self.transaction.begin(message)
        self._go_on()
        return self._actions()

    def answered(self, message: tuple[Any, ...]) -> list[Action]:
        """Process the maildir actor's answer, in the order of the requests.

        ValueError if it answers no request.
        """
        self.transaction.answered(message)
        if self._reader.lines:
            self._go_on()
        return self._actions()

    # -- the end
    def maildir_gone(self) -> list[Action]:
        """End the session, for its maildir actor is gone. Nothing is removed."""
        if self.state not in ("authorization", "sasl") and not self.replies.closing:
            self.replies.end_with(
                err("the mailbox is not available now, try again", "SYS/TEMP"), "the maildir actor is gone"
            )
        return self._actions()

    def stopping(self) -> list[Action]:
        """Tell the client that the service ends, unless QUIT is being answered."""
        if not self.replies.over and not self.transaction.quitting:
            self.replies.end_with(
                err("the server is going down, try again later", "SYS/TEMP"), "the service ends"
            )
        return self._actions()

    def kicked(self) -> list[Action]:
        """End the session for the operator. Only a client that waits for an answer is told."""
        if not self.replies.closing:
            text = err("this session was ended by the administrator, try again later", "SYS/TEMP")
            self.replies.end_with(text if self._busy else b"", "kicked")
        return self._actions()

    def timed_out(self) -> list[Action]:
        """Close after a timeout (RFC 1939 section 3: nothing removed, no answer sent)."""
        self.replies.end_with(b"", "idle too long" if self.entered else "logged in too slowly")
        return [Close(self.replies.why)]
