"""Authorize a client: TLS, USER and PASS, AUTH (RFC 5034), answers of auth and the kernel. Sans I/O.

Names and passwords of all mechanisms go to auth in the same message, LoginRequest.
"""

from collections.abc import Callable
from typing import ClassVar

from popkernel.actors.listener.session.actions import Action, LogIn
from popkernel.actors.listener.session.client_faults import NO_TLS, not_offered
from popkernel.actors.listener.session.policy import Policy
from popkernel.actors.listener.session.replies import Replies
from popkernel.proto import messages as m
from popkernel.proto.pop3.commands import capabilities, ok
from popkernel.proto.pop3.sasl import Challenge, Credentials, Exchange, Failure, Step, arguments

__all__ = ["Authorization"]


class Authorization:
    """The authorization state of one session (RFC 1939 section 4), and the commands CAPA and UTF8."""

    __slots__ = (
        "_policy",
        "_replies",
        "address",
        "exchange",
        "fault",
        "id",
        "logins",
        "mechanism",
        "starttls",
        "state",
        "tls",
        "user",
        "utf8",
    )

    def __init__(self, session: int, policy: Policy, replies: Replies, address: str, *, tls: bool) -> None:
        # authorization, sasl (AUTH awaits a response), login (auth is asked), transaction
        self.state = "authorization"
        self.id = session
        self.address = address
        self.tls = tls
        self.user = ""
        self.mechanism = ""  # of the last login
        self.logins: list[Action] = []  # LogIn, not returned yet
        self.starttls = False  # TLS begins when all replies are sent
        self.exchange: Exchange | None = None  # the AUTH under way
        self.utf8 = False
        # what keeps the client from logging in, for the log: "tls" or "client", and why
        self.fault = ("", "")
        self._policy = policy
        self._replies = replies

    # -- USER and PASS
    def _user(self, rest: bytes) -> None:
        name = rest.strip(b" ")
        self.user = ""  # after a refused name, PASS must not use an earlier one
        if not self._may_log_in():
            return
        try:
            user = name.decode()
        except UnicodeDecodeError:
            user = ""
        if not user or len(user) > 255 or not user.isprintable() or " " in user:
            self._replies.bad("usage: USER name")
            return
        self.user = user
        self._replies.say(ok())

    def _may_log_in(self) -> bool:
        if self.tls or self._policy.plaintext:
            return True
        self.fault = "tls", NO_TLS
        self._replies.bad("use TLS first (STLS)" if self._policy.starttls else "use TLS")
        return False

    def _pass(self, rest: bytes) -> None:
        if not self._may_log_in():
            return
        if not self.user:
            self._replies.bad("USER first")
            return
        self._log_in(self.user, rest, "PASS")

    def _log_in(self, user: str, secret: bytes, mechanism: str) -> None:
        self.user = user
        self.mechanism = mechanism
        self.logins.append(LogIn(m.LoginRequest(self.id, user, secret, self.address, mechanism)))
        self.state = "login"

    # -- AUTH
    def _auth(self, rest: bytes) -> None:
        """Begin AUTH (RFC 5034 section 4).

        A bare AUTH lists the mechanisms: no standard has it, but some clients begin with it.
        """
        if not self._may_log_in():
            return
        mechanism, initial = arguments(rest)
        if not mechanism:
            names = [b"%b\r\n" % name.encode() for name in self._policy.mechanisms]
            self._replies.say(b"".join([ok("mechanisms follow"), *names, b".\r\n"]))
            return
        if mechanism not in self._policy.mechanisms:
            self.fault = "client", not_offered("AUTH", mechanism)
        self.exchange = Exchange(self._policy.mechanisms, self._policy.scope)
        self._step(self.exchange.begin(mechanism, initial))

    def respond(self, line: bytes) -> None:
        """Take the client's answer to a challenge."""
        assert self.exchange is not None
        self._step(self.exchange.respond(line))

    def _step(self, step: Step) -> None:
        match step:
            case Challenge(line):
                self.state = "sasl"
                self._replies.say(line)
            case Credentials(mechanism, user, secret):
                self._log_in(user, secret, mechanism)
            case Failure(code, text):
                self.fail(text, code)

    def fail(self, text: str, code: str = "") -> None:
        """Refuse this login; the client may try again."""
        self.state = "authorization"
        self.exchange = None
        self.user = ""
        self._replies.bad(text, code)

    # -- STLS, QUIT
    def _may_stls(self) -> bool:
        return self._policy.starttls and not self.tls and not self.utf8

    def _stls(self, rest: bytes) -> None:
        if rest.strip(b" "):
            self._replies.bad("STLS takes no arguments")
        elif not self._may_stls():
            self._replies.bad(
                "TLS is on already" if self.tls else "no STLS behind UTF8" if self.utf8 else "no STLS here"
            )
        else:
            self._replies.say(ok("begin TLS"))
            self.starttls = True

    def secured(self) -> None:
        """Note that TLS is on, and forget all that was sent before it (RFC 2595 section 4)."""
        self.starttls = False
        self.tls = True
        self.user = ""

    def _quit(self, rest: bytes) -> None:
        del rest
        self._replies.say(ok("bye"))
        self._replies.close("quit before login")

    # -- in both states
    def _capa(self, rest: bytes) -> None:
        del rest
        policy, login = self._policy, self.state == "transaction"
        may = not login and (self.tls or policy.plaintext)
        self._replies.say(
            capabilities(
                starttls=self._may_stls() and not login,
                user=may,
                mechanisms=policy.mechanisms if may else (),
                expire=policy.expire,
                login_delay=policy.login_delay,
                version=policy.version,
            ),
        )

    def _utf8(self, rest: bytes) -> None:
        """Answer UTF8 (RFC 6856 section 2), before and after login, for clients send it in both states.

        It changes no other answer: mail is sent as stored, and names and passwords are always UTF-8 (CAPA:
        `UTF8 USER`). After it STLS is refused, for TLS must come first. The response code [UTF8] is for a
        server that refuses a login or a message to a client that did not send UTF8. This server never does,
        and never sends the code.
        """
        if rest.strip(b" "):
            self._replies.bad("UTF8 takes no arguments")
            return
        self.utf8 = True
        self._replies.say(ok("UTF8 it is"))

    # -- the outcome of a login
    def denied(self, code: str, text: str) -> None:
        """Answer a failed login: auth refused it or did not answer, or no maildrop can be had."""
        if self.exchange is not None:
            self._step(self.exchange.denied(code, text))
        else:
            self.fail(text, code)

    def granted(self) -> None:
        """Enter the transaction state: the maildrop is open."""
        self.state = "transaction"
        self.exchange = None

    EITHER: ClassVar[dict[bytes, Callable[["Authorization", bytes], None]]] = {b"CAPA": _capa, b"UTF8": _utf8}
    COMMANDS: ClassVar[dict[bytes, Callable[["Authorization", bytes], None]]] = {
        b"USER": _user,
        b"PASS": _pass,
        b"AUTH": _auth,
        b"STLS": _stls,
        b"QUIT": _quit,
    }
