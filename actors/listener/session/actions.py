"""Define the actions that a POP3 session (session.py) returns to its shell."""

from typing import NamedTuple

from popkernel.proto import messages as m

__all__ = ["Action", "Ask", "Close", "GiveCredit", "HangUp", "LogIn", "Say", "Shown", "StartTls", "Typed"]


class Say(list[bytes | memoryview]):
    """Send these octets to the client, in this order.

    Say and Ask are lists, not tuples around lists: each command makes one, and the tuple costs a tenth of a
    NOOP.
    """

    __slots__ = ()


class Ask(list[tuple[object, ...]]):
    """Send these requests to the maildir actor."""

    __slots__ = ()


class GiveCredit(NamedTuple):
    """Let the maildir actor send this many octets more."""

    octets: int


class LogIn(NamedTuple):
    """Have auth check a login. Then call `denied`, or `admitted` and `ready`."""

    request: m.LoginRequest


class StartTls(NamedTuple):
    """Start TLS. All replies are sent."""


class Close(NamedTuple):
    """Close the connection now: all replies are sent, or the client took too long. `why` is for the log."""

    why: str


class HangUp(NamedTuple):
    """Close the connection now: the client closed its side, and has all its answers."""


class Typed(NamedTuple):
    """Trace these lines of the client. They contain no secret."""

    lines: list[bytes]


class Shown(NamedTuple):
    """Trace these octets to the client. Each piece of mail is in a tuple."""

    said: list[bytes | tuple[bytes]]


Action = Say | Ask | GiveCredit | LogIn | StartTls | Close | HangUp | Typed | Shown
