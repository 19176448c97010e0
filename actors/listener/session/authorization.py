"""The authorization state: TLS, who a client says it is, and what auth and the kernel make of that. Sans I/O.

A name and password come by USER and PASS, or by AUTH (RFC 5034), and go to auth the same way, as one Login.
"""

from collections.abc import Callable
from typing import Any

from popkernel.actors.listener.session.policy import Policy
from popkernel.actors.listener.session.transaction import Maildrop
from popkernel.proto import messages as m
from popkernel.proto.pop3.commands import LINE_LIMIT, capabilities, err, ok
from popkernel.proto.pop3.sasl import AUTH_LINE_LIMIT, Challenge, Credentials, Exchange, Failure, Step, arguments

__all__ = ["AUTHORIZATION", "EITHER", "Login"]


class Login(Maildrop):
    """A client from its greeting to its maildrop."""

    __slots__ = ("address", "entered", "exchange", "id", "login", "starttls", "tls", "user", "utf8")

    def __init__(self, session: int, policy: Policy, address: str, *, tls: bool) -> None:
        super().__init__(policy)
        self.id = session
        self.address = address
        self.tls = tls
        self.user = ""
        self.login: m.Login | None = None  # for auth (and Awaiting for the kernel); the shell takes it away
        self.starttls = False  # the shell is to start TLS when `out` is gone
        self.entered = False  # has been logged in
        self.exchange: Exchange | None = None  # the AUTH under way
        self.utf8 = False
        self._reader.limit = AUTH_LINE_LIMIT

    # -- USER and PASS
    def _user(self, rest: bytes) -> None:
        name = rest.strip(b" ")
        self.user = ""  # a name that is refused must leave no earlier one to the next PASS
        if not self._may_log_in():
            return
        try:
            user = name.decode()
        except UnicodeDecodeError:
            user = ""
        if not user or len(user) > 255 or not user.isprintable() or " " in user:
            self._bad("usage: USER name")
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

    # -- AUTH
    def _auth(self, rest: bytes) -> None:
        """RFC 5034 section 4. A bare AUTH lists the mechanisms: it is no standard's, and what some clients begin with."""
        if not self._may_log_in():
            return
        mechanism, initial = arguments(rest)
        if not mechanism:
            self._say(b"".join([ok("mechanisms follow"), *[b"%b\r\n" % name.encode() for name in self._policy.mechanisms], b".\r\n"]))
            return
        self.exchange = Exchange(self._policy.mechanisms, self._policy.scope)
        self._step(self.exchange.begin(mechanism, initial))

    def _sasl(self, line: bytes) -> None:
        """The client's answer to a challenge."""
        assert self.exchange is not None
        self._step(self.exchange.respond(line))

    def _step(self, step: Step) -> None:
        match step:
            case Challenge(line):
                self.state = "sasl"
                self._say(line)
            case Credentials(mechanism, user, secret):
                self.user = user
                self.login = m.Login(self.id, user, secret, self.address, mechanism)
                self.state = "login"
            case Failure(code, text):
                self._no_login(code, text)

    def _no_login(self, code: str, text: str) -> None:
        self.state = "authorization"
        self.exchange = None
        self.user = ""
        self._bad(text, code)

    # -- the rest
    def _capa(self, rest: bytes) -> None:
        del rest
        self._end_run()
        policy, login = self._policy, self.state == "transaction"
        may = not login and (self.tls or policy.plaintext)
        self._say(
            capabilities(
                starttls=self._may_stls() and not login, user=may, mechanisms=policy.mechanisms if may else (), expire=policy.expire,
                login_delay=policy.login_delay, version=policy.version,
            ),
        )

    def _may_stls(self) -> bool:
        return self._policy.starttls and not self.tls and not self.utf8

    def _stls(self, rest: bytes) -> None:
        if rest.strip(b" "):
            self._bad("STLS takes no arguments")
        elif not self._may_stls():
            self._bad("TLS is on already" if self.tls else "no STLS behind UTF8" if self.utf8 else "no STLS here")
        else:
            self._say(ok("begin TLS"))
            self.starttls = True

    def secured(self) -> None:
        """TLS is on; nothing that was said before counts (RFC 2595 section 4)."""
        self.starttls = False
        self.tls = True
        self.user = ""
        self._reader.clear()

    def _utf8(self, rest: bytes) -> None:
        """Answer UTF8 (RFC 6856 section 2), before and after login, for clients send it in both states.

        It changes no answer: mail is sent as it lies in the maildir, and names and passwords are UTF-8 always (CAPA: `UTF8 USER`). STLS
        is refused behind it, for TLS must come first. The response code [UTF8] is for a server that refuses a login or a message to a
        client which did not say UTF8; this one refuses none for that, and never sends it.
        """
        if rest.strip(b" "):
            self._bad("UTF8 takes no arguments")
            return
        self._end_run()
        self.utf8 = True
        self._say(ok("UTF8 it is"))

    def _quit_early(self, rest: bytes) -> None:
        del rest
        self._say(ok("bye"))
        self._close("quit before login")

    # -- what became of it
    def refused(self, text: str) -> None:
        """One connection too many: that is all it is told, in the place of the greeting."""
        self.out.clear()
        self._end_with(err(text, "SYS/TEMP"), text)

    def denied(self, code: str, text: str) -> None:
        """Auth says no, or could not be asked, or the maildrop can't be had."""
        if self.state != "login":
            return
        if self.exchange is not None:
            self._step(self.exchange.denied(code, text))
        else:
            self._no_login(code, text)

    def ready(self, message: m.Ready) -> None:
        """The maildrop is open."""
        self.state = "transaction"
        self.entered = True
        self.exchange = None
        self._reader.limit = LINE_LIMIT
        self._errors = 0
        self.messages = self.total = message.messages
        self.octets = message.octets
        self._say(ok(f"{self.messages} messages ({self.octets} octets)"))


AUTHORIZATION: dict[bytes, Callable[[Any, bytes], None]] = {
    b"USER": Login._user, b"PASS": Login._pass, b"AUTH": Login._auth, b"STLS": Login._stls, b"QUIT": Login._quit_early,  # noqa: SLF001
}
EITHER: dict[bytes, Callable[[Any, bytes], None]] = {b"CAPA": Login._capa, b"UTF8": Login._utf8}  # noqa: SLF001
