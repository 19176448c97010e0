"""What a watcher is shown of what a client types: never a secret, and always what a replay answers as the line itself was answered."""

from collections.abc import Iterable
from copy import copy

from popkernel.actors.listener.policy import Policy
from popkernel.proto.pop3 import LINE_LIMIT, TOO_LONG, split
from popkernel.proto.sasl import Challenge, Exchange, arguments
from popkernel.proto.typed import harmless

__all__ = ["overheard"]


def overheard(lines: Iterable[bytes], policy: Policy, state: str, exchange: Exchange | None) -> list[bytes]:
    """Harmless forms of `lines`, which came together in that state. `exchange`: the AUTH that is under way, which is not touched."""
    shadow = copy(exchange) if state == "sasl" else None
    shown = []
    for line in lines:
        if shadow is not None:
            shown.append(shadow.harmless(line))
            shadow = shadow if isinstance(shadow.respond(line), Challenge) else None
            continue
        verb, rest = split(line)
        if len(line) > LINE_LIMIT - 2 and verb != b"AUTH":
            shown.append(TOO_LONG)
            continue
        if verb != b"AUTH" or state == "transaction":
            shown.append(harmless(line))
            continue
        mechanism, initial = arguments(rest)
        if not rest.strip(b" ") or mechanism not in policy.mechanisms:
            shown.append(b"AUTH [unknown]" if rest.strip(b" ") else b"AUTH")
            continue
        shadow = Exchange(policy.mechanisms, policy.scope)
        shadow.begin(mechanism, None)
        if initial is None:
            shown.append(b"AUTH " + mechanism.encode())
            continue
        shown.append(b"AUTH %b %b" % (mechanism.encode(), shadow.harmless(initial)))
        shadow = shadow if isinstance(shadow.respond(b"" if initial == b"=" else initial or b"[malformed]"), Challenge) else None
    return shown
