"""What a watcher is shown of what a client types: never a secret, and always what a replay answers as the line itself was answered."""

from collections.abc import Iterable

from popkernel.actors.listener.session.policy import Policy
from popkernel.proto.pop3.commands import LINE_LIMIT, TOO_LONG, split
from popkernel.proto.pop3.sasl import MALFORMED, Challenge, Credentials, Exchange, Step, arguments
from popkernel.proto.trace.client_input import harmless

__all__ = ["overheard"]

_WORDS = frozenset(b"USER PASS AUTH STLS CAPA UTF8 STAT LIST RETR DELE NOOP RSET UIDL QUIT".split())
_LONG = MALFORMED.ljust(LINE_LIMIT, b".")  # neither an answer to a challenge nor a command


def overheard(
    lines: Iterable[bytes], policy: Policy, state: str, shadow: Exchange | None, *, tls: bool,
) -> tuple[list[bytes], Exchange | None]:
    """Harmless forms of `lines`, which came together in that state, and the AUTH that is under way behind them.

    `shadow`: the AUTH under way before them, a copy, for it is told what the lines tell.

    What stands behind a login in one packet came before anybody knows how the login goes: it may be an answer to a challenge, or a
    command. Its form is the same as both; and whatever begins an AUTH in earnest begins one here, so that the two are at the same step.
    """
    shown = []
    certain = state in ("authorization", "sasl")
    for line in lines:
        form, step = _form(line, shadow)
        if form == MALFORMED or (line and not form and not certain):
            answers = shadow is not None
            form, shadow, step = _command(line, policy, state, tls=tls)
            if line != form == TOO_LONG and (answers or not certain):
                form = _LONG
            if answers and certain:
                step = None  # it was no command, so it begins nothing
        elif not certain and line.upper() in _WORDS:
            form = line  # the command, or three octets of a password that look like it
        shadow = shadow if isinstance(step, Challenge) else None
        certain = certain and not isinstance(step, Credentials) and form[:5].upper() != b"PASS "
        shown.append(form)
    return shown, shadow


def _form(line: bytes, shadow: Exchange | None) -> tuple[bytes, Step | None]:
    """Of an answer to a challenge, and what comes of it."""
    if shadow is None or line == TOO_LONG:
        return MALFORMED, None
    return shadow.harmless(line), shadow.respond(line)


def _command(line: bytes, policy: Policy, state: str, *, tls: bool) -> tuple[bytes, Exchange | None, Step | None]:
    """Of a command; the AUTH that it begins, and what comes of that."""
    verb, rest = split(line)
    if len(line) > LINE_LIMIT - 2 and verb != b"AUTH":
        return TOO_LONG, None, None
    if verb != b"AUTH":
        return harmless(line), None, None
    if state == "transaction":
        return b"AUTH [not now]", None, None
    form, shadow, step = _begun(rest, policy)
    return (form, shadow, step) if tls or policy.plaintext else (form, None, None)


def _begun(rest: bytes, policy: Policy) -> tuple[bytes, Exchange | None, Step | None]:
    """What follows AUTH, the exchange that it begins, and its first step."""
    mechanism, initial = arguments(rest)
    if not rest.strip(b" "):
        return b"AUTH ", None, None  # with a blank, which no answer to a challenge has
    if mechanism not in policy.mechanisms:
        return b"AUTH [unknown]", None, None
    shadow = Exchange(policy.mechanisms, policy.scope)
    step = shadow.begin(mechanism, None)
    head = b"AUTH " + mechanism.encode()
    if initial is None:
        return head, shadow, step
    form = shadow.harmless(initial)
    return head + b" " + form, shadow, shadow.respond(b"" if initial == b"=" else initial or MALFORMED)
