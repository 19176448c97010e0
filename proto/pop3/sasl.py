"""Run the server's side of AUTH (RFC 5034) with PLAIN, LOGIN, XOAUTH2, OAUTHBEARER. Sans I/O.

One `Exchange` for each AUTH command. `begin` and `respond` return a Challenge to send, a Failure to reply, or
Credentials to pass to auth. If auth refuses them, `denied` returns the next step. Only Credentials hold a
secret, and their repr hides it. This module keeps a secret no longer than one step, logs nothing, and never
raises because of a client's input.

No SCRAM: it needs verifiers of its own beside the bcrypt hashes, and every connection uses TLS.
"""

import json
import re
from base64 import b64decode, b64encode
from collections.abc import Collection
from typing import NamedTuple

from popkernel.proto.pop3.commands import LINE_LIMIT

__all__ = [
    "AUTH_LINE_LIMIT",
    "MALFORMED",
    "MECHANISMS",
    "Challenge",
    "Credentials",
    "Exchange",
    "Failure",
    "Step",
    "arguments",
]

MECHANISMS = ("PLAIN", "LOGIN", "XOAUTH2", "OAUTHBEARER")
TOKENS = ("XOAUTH2", "OAUTHBEARER")  # mechanisms whose secret is a bearer token
# Octets with CRLF: base64 of a token of 8 KiB and its framing. Other lines keep the limit of 255.
AUTH_LINE_LIMIT = 12 * 1024
MOST_USER, MOST_PASSWORD, MOST_TOKEN = 255, 1000, 8192  # octets
MALFORMED = b"[malformed]"  # `redacted` replaces a malformed response by this
_SHOWN, _SHOWN_TOKEN = b"[secret]", b"not-shown"  # replace a secret; a token cannot have brackets
_LINE = LINE_LIMIT - 2
_MALFORMED = "malformed response"
_TOKEN = rb"[A-Za-z0-9._~+/-]{1,8192}=*"  # b64token, RFC 6750 section 2.1
_XOAUTH2 = re.compile(rb"user=([^\x01]+)\x01auth=[Bb][Ee][Aa][Rr][Ee][Rr] +(%b)\x01\x01" % _TOKEN)
_BEARER = re.compile(rb"[Bb][Ee][Aa][Rr][Ee][Rr] +(%b)" % _TOKEN)
# RFC 7628 section 3.1. "p=..." is refused: there is no channel binding here. "y": the client supports it, and
# believes that the server does not.
_GS2 = re.compile(rb"[ny],(?:a=([^,\x00\x01]+))?,\x01((?:[A-Za-z]+=[\t\n\r -~]*\x01)*)\x01")


class Challenge(NamedTuple):
    """Send this line, CRLF included, and pass the client's next line to `respond`."""

    line: bytes


class Failure(NamedTuple):
    """The exchange is over: reply -ERR.

    `code`: a response code without brackets, or "" (RFC 3206: AUTH if the credentials are wrong).
    """

    code: str
    text: str


class Credentials(NamedTuple):
    """Ask auth about these; if it refuses, call `Exchange.denied`."""

    mechanism: str
    user: str  # the name that the client authenticates as; an authzid was empty or the same
    secret: bytes

    def __repr__(self) -> str:
        return f"Credentials({self.mechanism}, {self.user!r}, [secret])"


Step = Challenge | Failure | Credentials


def arguments(rest: bytes) -> tuple[str, bytes | None]:
    """Split AUTH's arguments: the mechanism in upper case ("" for none), and the initial response or None.

    Accepts extra blanks around and between them.
    """
    name, blank, initial = rest.strip(b" ").partition(b" ")
    mechanism = name.upper().decode("ascii", "replace")
    return mechanism, initial.lstrip(b" ") if blank else None


class Exchange:
    """The state of one AUTH command.

    `offered`: mechanisms that this session may use. `scope`: sent to clients without a valid token.
    """

    __slots__ = ("_failure", "_mechanism", "_offered", "_scope", "_state", "_user")

    def __init__(self, offered: Collection[str], scope: str = "") -> None:
        self._offered = offered
        self._scope = scope
        self._mechanism = ""
        # new, wait (for a response), asked (auth), explained (to the client, why its token failed), over
        self._state = "new"
        self._user: str | None = None  # LOGIN's first response
        self._failure = Failure("", _MALFORMED)

    def __repr__(self) -> str:
        return f"Exchange({self._mechanism or 'none'}, {self._state})"

    def begin(self, mechanism: str, initial: bytes | None) -> Step:
        """Start with the AUTH command's arguments.

        `initial`: the initial response in base64, "=" for an empty one, None for none.
        """
        assert self._state == "new", self
        if mechanism not in self._offered or mechanism not in MECHANISMS:
            return self._fail(Failure("", "unknown mechanism"))
        self._mechanism = mechanism
        self._state = "wait"
        if initial is None:
            return _challenge(b"Username:" if mechanism == "LOGIN" else b"")
        return self._take(b"" if initial == b"=" else initial or None)

    def respond(self, line: bytes) -> Step:
        """Take the client's response to a challenge, without its line end."""
        assert self._state in ("wait", "explained"), self
        # RFC 7628 section 3.2.3: a dummy response. Its content does not matter: the failure is decided.
        if self._state == "explained":
            return self._fail(self._failure)
        if line == b"*":
            return self._fail(Failure("", "authentication cancelled"))
        return self._take(line)

    def denied(self, code: str, text: str) -> Step:
        """Take auth's refusal.

        A client with a bad token first gets the reason in a challenge, and responds (RFC 7628 section 3.2.2).
        """
        assert self._state == "asked", self
        self._failure = Failure(code, text)
        # Another code, such as an overloaded auth, says nothing about the token.
        if self._mechanism not in TOKENS or code != "AUTH":
            return self._fail(self._failure)
        return self._explain("invalid_token")

    def redacted(self, line: bytes) -> bytes:
        """Redact a line for traces: an initial response, or a response before it goes to `respond`.

        On replay the redacted line leads to the same step, user and texts as the original. The secret is
        replaced. It is too long for a command if the original is.
        """
        if self._state == "explained" or line in (b"*", b"=", b""):
            return b"" if self._state == "explained" and line != b"*" else line
        data = _decoded(line)
        parsed = None if data is None else self._parse(data)
        if parsed is None:
            return MALFORMED
        user, secret, other = parsed
        word = _SHOWN_TOKEN if self._mechanism in TOKENS else _SHOWN
        return b64encode(
            self._format(
                user.encode(), word if len(line) <= _LINE else word * 32, empty=not secret, other=other
            )
        )

    # -- the steps
    def _fail(self, failure: Failure) -> Failure:
        self._state = "over"
        self._user = None
        return failure

    def _take(self, line: bytes | None) -> Step:
        data = None if line is None else _decoded(line)
        parsed = None if data is None else self._parse(data)
        if parsed is None:
            return self._fail(Failure("", _MALFORMED))
        user, secret, other = parsed
        if other:
            return self._fail(Failure("AUTH", "nobody logs in for somebody else here"))
        if secret:
            self._state = "asked"
            self._user = None
            return Credentials(self._mechanism, user, secret)
        if self._mechanism == "LOGIN":
            self._user = user
            return _challenge(b"Password:")
        self._failure = Failure("AUTH", "a token is needed")
        return self._explain("invalid_request")

    def _explain(self, status: str) -> Challenge:
        self._state = "explained"
        if self._mechanism == "XOAUTH2":
            why = {"status": "401" if status == "invalid_token" else "400", "schemes": "bearer"}
        else:
            why = {"status": status}
        return _challenge(json.dumps(why | ({"scope": self._scope} if self._scope else {})).encode())

    # -- formats: user, secret ("" if absent), whether another user is meant; None if malformed
    def _parse(self, data: bytes) -> tuple[str, bytes, bool] | None:
        match self._mechanism:
            case "PLAIN":
                return _plain(data)
            case "LOGIN":
                return self._login(data)
            case "XOAUTH2":
                found = _XOAUTH2.fullmatch(data)
                user = _name(found[1]) if found else None
                return (user, found[2], False) if found and user and len(found[2]) <= MOST_TOKEN else None
            case _:
                return _oauthbearer(data)

    def _login(self, data: bytes) -> tuple[str, bytes, bool] | None:
        """Parse LOGIN's two responses (draft-murchison-sasl-login): the name, then the password."""
        if self._user is None:
            user = _name(data)
            return (user, b"", False) if user else None
        return (self._user, data, False) if 0 < len(data) <= MOST_PASSWORD and b"\0" not in data else None

    def _format(self, user: bytes, secret: bytes, *, empty: bool, other: bool) -> bytes:
        """Format a response of this mechanism that `_parse` accepts."""
        match self._mechanism:
            case "PLAIN":
                return b"%b\0%b\0%b" % (b"another" if other else b"", user, secret)
            case "LOGIN":
                return user if empty else secret
            case "XOAUTH2":
                return b"user=%b\1auth=Bearer %b\1\1" % (user, secret)
            case _:
                name = user.replace(b"=", b"=3D").replace(b",", b"=2C")
                return b"n,a=%b,\1%b\1" % (name, b"" if empty else b"auth=Bearer %b\1" % secret)


def _challenge(text: bytes) -> Challenge:
    return Challenge(b"+ " + b64encode(text) + b"\r\n")


def _decoded(line: bytes) -> bytes | None:
    """Decode base64 in its one canonical form (RFC 4648 sections 3.5 and 4); None for any other."""
    if len(line) > AUTH_LINE_LIMIT:
        return None
    try:
        data = b64decode(line)
    except ValueError:
        return None
    return data if b64encode(data) == line else None


def _name(data: bytes) -> str | None:
    """Return a user name as USER would accept it: UTF-8, printable, without blanks, not empty; else None."""
    if len(data) > MOST_USER:
        return None
    try:
        name = data.decode()
    except UnicodeDecodeError:
        return None
    return name if name.isprintable() and " " not in name and name else None


def _plain(data: bytes) -> tuple[str, bytes, bool] | None:
    """Parse PLAIN (RFC 4616 section 2): authzid NUL authcid NUL password, UTF-8, the last two not empty."""
    parts = data.split(b"\0")
    if len(parts) != 3 or len(parts[0]) > MOST_USER or not 0 < len(parts[2]) <= MOST_PASSWORD:
        return None
    user = _name(parts[1])
    try:
        parts[0].decode(), parts[2].decode()
    except UnicodeDecodeError:
        return None
    return (user, parts[2], parts[0] not in (b"", parts[1])) if user else None


def _oauthbearer(data: bytes) -> tuple[str, bytes, bool] | None:
    """Parse OAUTHBEARER (RFC 7628 section 3.1).

    The user must be named ("a="). Host, port and unknown keys are ignored.
    """
    found = _GS2.fullmatch(data)
    if found is None or found[1] is None or re.search(rb"=(?!2C|3D)", found[1]):
        return None
    user = _name(found[1].replace(b"=2C", b",").replace(b"=3D", b"="))
    pairs = [pair.split(b"=", 1) for pair in found[2].split(b"\1")[:-1]]
    values = {key.lower(): value for key, value in pairs}
    if not user or len(values) != len(pairs):
        return None
    auth = values.get(b"auth", b"")
    bearer = _BEARER.fullmatch(auth)
    if bearer and len(bearer[1]) <= MOST_TOKEN:
        return user, bearer[1], False
    # A response without a token asks which one is wanted (RFC 7628 section 4.3).
    return (user, b"", False) if not auth else None
