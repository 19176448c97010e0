"""Feed an exchange any lines: no error, nothing after its end; traces hide secrets and replay alike."""

from base64 import b64decode
from copy import copy

from popkernel.proto.pop3.sasl import MECHANISMS, Challenge, Credentials, Exchange, Failure


def same(one, other):
    """Compare two results, secrets aside."""
    if isinstance(one, Credentials) and isinstance(other, Credentials):
        return one[:2] == other[:2]
    return one == other


def step(exchange, line, first):
    shadow = copy(exchange)
    if first:
        shadow.begin(MECHANISMS[first - 1], None)
    shown = shadow.redacted(line or b"=" if first else line)
    result = exchange.begin(MECHANISMS[first - 1], line or b"=") if first else exchange.respond(line)
    again = (
        Exchange(MECHANISMS, "mail").begin(MECHANISMS[first - 1], shown) if first else shadow.respond(shown)
    )
    assert same(result, again), (result, again, shown)
    if (
        isinstance(result, Credentials)
        and len(result.secret) > 3
        and result.secret not in b"%b another secret" % result.user.encode()
    ):
        assert result.secret not in b64decode(shown).replace(result.user.encode(), b"")
    return result


def one(data):
    """Run an exchange.

    The first octet chooses the mechanism and whether there is an initial response; the rest are lines.
    """
    head, *lines = data[:1] or b"\0", *data[1:].split(b"\n")
    exchange, mechanism = Exchange(MECHANISMS, "mail"), head[0] % 4
    if head[0] & 4:
        result = step(exchange, lines.pop(0), mechanism + 1)
    else:
        result = exchange.begin(MECHANISMS[mechanism], None)
    while lines:
        if isinstance(result, Credentials):
            assert repr(result.secret) not in repr(result)
            assert 0 < len(result.secret) <= 8192
            assert result.user.isprintable()
            result = exchange.denied("AUTH", "no")
        elif isinstance(result, Challenge):
            assert result.line.startswith(b"+ ")
            assert result.line.endswith(b"\r\n")
            assert result.line.count(b"\n") == 1
            result = step(exchange, lines.pop(0), 0)
        else:
            assert isinstance(result, Failure)
            return


SEEDS = [
    b"\0AGFsaWNlAHBhc3N3b3Jk\n",
    b"\x04AGFsaWNlAHBhc3N3b3Jk\n\n",
    b"\1YWxpY2U=\ncGFzc3dvcmQ=\n\n",
    b"\5YWxpY2U=\n*\n",
    b"\0=\n",
    b"\0!!\n",
    b"\6dXNlcj1hbGljZQFhdXRoPUJlYXJlciBwYXNzd29yZAEB\n\nx\n",
    b"\7bixhPWFsaWNlLAFhdXRoPUJlYXJlciBwYXNzd29yZAEB\nAQ==\n\n",
    b"\3bixhPWFsaWNlLAEB\nAQ==\n",
]
