"""Redact client input for traces. A redacted line gets the same reply on replay as the original."""

from collections.abc import Iterable

from popkernel.actors.listener.session.policy import Policy
from popkernel.proto.pop3.commands import LINE_LIMIT, TOO_LONG, split
from popkernel.proto.pop3.sasl import MALFORMED, Challenge, Credentials, Exchange, Step, arguments
from popkernel.proto.trace.client_input import redacted_line

__all__ = ["redact_lines"]

_WORDS = frozenset(b"USER PASS AUTH STLS CAPA UTF8 STAT LIST RETR DELE NOOP RSET UIDL QUIT".split())
_LONG = MALFORMED.ljust(LINE_LIMIT, b".")  # neither an answer to a challenge nor a command


def redact_lines(
    lines: Iterable[bytes],
    policy: Policy,
    state: str,
    shadow: Exchange | None,
    *,
    tls: bool,
) -> tuple[list[bytes], Exchange | None]:
    """Return `lines` without secrets, and the AUTH that is under way after them.

    `lines` came together in `state`. `shadow`: a copy of the AUTH under way before them; this function
    changes it.

    Lines after a login in the same packet came before the result of the login is known. Such a line may be a
    response to a challenge or a command; its redacted form gets the same reply as either. Each line that
    would begin an AUTH begins one in `shadow` too, so that both are at the same step.
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
                step = None  # it was a response, so it begins no AUTH
        elif not certain and line.upper() in _WORDS:
            form = line  # a command, or part of a password that equals one
        shadow = shadow if isinstance(step, Challenge) else None
        certain = certain and not isinstance(step, Credentials) and form[:5].upper() != b"PASS "
        shown.append(form)
    return shown, shadow


def _form(line: bytes, shadow: Exchange | None) -> tuple[bytes, Step | None]:
    """Redact a response to a challenge. Returns it, and the next step."""
    if shadow is None or line == TOO_LONG:
        return MALFORMED, None
    return shadow.redacted(line), shadow.respond(line)


def _command(
    line: bytes, policy: Policy, state: str, *, tls: bool
) -> tuple[bytes, Exchange | None, Step | None]:
    """Redact a command. Returns it, the AUTH that it begins, and that one's first step."""
    verb, rest = split(line)
    if len(line) > LINE_LIMIT - 2 and verb != b"AUTH":
        return TOO_LONG, None, None
    if verb != b"AUTH":
        return redacted_line(line), None, None
    if state == "transaction":
        return b"AUTH [not now]", None, None
    form, shadow, step = _begun(rest, policy)
    return (form, shadow, step) if tls or policy.plaintext else (form, None, None)


def _begun(rest: bytes, policy: Policy) -> tuple[bytes, Exchange | None, Step | None]:
    """Redact the arguments of AUTH. Returns the line, the exchange that it begins, and its first step."""
    mechanism, initial = arguments(rest)
    if not rest.strip(b" "):
        return b"AUTH ", None, None  # with a blank, which no response to a challenge has
    if mechanism not in policy.mechanisms:
        return b"AUTH [unknown]", None, None
    shadow = Exchange(policy.mechanisms, policy.scope)
    step = shadow.begin(mechanism, None)
    head = b"AUTH " + mechanism.encode()
    if initial is None:
        return head, shadow, step
    form = shadow.redacted(initial)
    return head + b" " + form, shadow, shadow.respond(b"" if initial == b"=" else initial or MALFORMED)
