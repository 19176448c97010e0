"""One POP3 session as the listener sees it: what the client sends, what the other actors say, what each is told. Sans I/O.

Feed it (`received`, `ready`, `denied`, `answered`, `maildir_gone`), then take `out` (octets for the client), `login` (for auth) and
`tell` (messages for the maildir actor), and the flags. It is a function of what it was fed: replay relies on it.

This floor reads lines and logs in; maildrop.py is what can be done then, replies.py keeps the answers in order.
"""

from collections.abc import Callable
from itertools import islice
from typing import Any

from popkernel.actors.listener.maildrop import TRANSACTION, Maildrop
from popkernel.actors.listener.policy import Policy
from popkernel.proto import messages as m
from popkernel.proto.pop3 import GREETING, TOO_LONG, capabilities, err, ok, split
from popkernel.proto.typed import harmless

__all__ = ["Session"]

_MOST_OWED = 1024  # commands under way; more wait in the reader
_LOW_WATER = 256 * 1024  # octets on their way to the client below which commands are acted on


class Session(Maildrop):
    """A connection from greeting to end."""

    __slots__ = ("address", "commands", "entered", "id", "login", "octets_sent", "starttls", "tls", "typed", "user")

    def __init__(self, session: int, policy: Policy, address: str, *, tls: bool) -> None:
        super().__init__(policy)
        self.id = session
        self.address = address
        self.tls = tls
        self.user = ""
        self.login: m.Login | None = None  # for auth (and Awaiting for the kernel); the shell takes it away
        self.starttls = False  # the shell is to start TLS when `out` is gone
        self.entered = False  # has been logged in
        self.commands = self.octets_sent = 0
        self.typed: list[bytes] = []  # while it is watched: what has come, without anything that could be a secret
        self._say(GREETING)

    # -- from the client
    def received(self, data: bytes) -> None:
        """Octets from the client; what comes after QUIT is nobody's."""
        if self.state not in _LAST_STATES:
            before = len(self._reader.lines)
            self._reader.feed(data)
            if self.shown is not None:
                self.typed += [harmless(line) for line in islice(self._reader.lines, before, None)]
            self.go_on()

    def take_typed(self) -> list[bytes]:
        """What was typed since the last time, for a watcher."""
        typed, self.typed = self.typed, []
        return typed

    @property
    def backlog(self) -> int:
        """Lines read and not yet acted on; a shell stops reading from a client that has too many."""
        return len(self._reader.lines)

    @property
    def busy(self) -> bool:
        """Something that was typed is not answered yet: who only speaks no more has that coming."""
        return bool(self._reader.lines or self._owed or self.state == "login" or self.starttls)

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
            self._bad("USER name")
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

    # -- the maildir actor
    def answered(self, message: tuple[Any, ...]) -> None:
        super().answered(message)
        if self._reader.lines:
            self.go_on()

    # -- the end
    def maildir_gone(self) -> None:
        """The maildir actor is no more: this session can't go on, and nothing is removed."""
        if self.state != "authorization" and not self.closing:
            self._end_with(err("the mailbox is not available now, try again", "SYS/TEMP"), "the maildir actor is gone")

    def stopping(self) -> None:
        """The service ends: say so, unless QUIT is being answered."""
        if self.state != "update":
            self._end_with(err("the server is going down, try again later", "SYS/TEMP"), "the service ends")

    def timed_out(self) -> None:
        """The client was silent too long (RFC 1939 section 3: closed, nothing removed, no answer sent)."""
        self._end_with(b"", "logged in too slowly" if self.state in ("authorization", "login") else "idle too long")


_USER_PASS = (b"USER", b"PASS")
_LAST_STATES = ("update", "over")
_PAUSED = ("login", *_LAST_STATES)
_AUTHORIZATION: dict[bytes, Callable[[Session, bytes], None]] = {
    b"USER": Session._user, b"PASS": Session._pass, b"CAPA": Session._capa, b"STLS": Session._stls,  # noqa: SLF001
    b"QUIT": Session._quit_early,  # noqa: SLF001
}
_TRANSACTION: dict[bytes, Callable[[Session, bytes], None]] = {**TRANSACTION, b"CAPA": Session._capa}  # noqa: SLF001
