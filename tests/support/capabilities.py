"""Check that CAPA tells the truth: listed capabilities work in this state, others are refused."""

from base64 import b64encode

MECHANISMS = (
    b"PLAIN",
    b"LOGIN",
    b"XOAUTH2",
    b"OAUTHBEARER",
    b"CRAM-MD5",
    b"SCRAM-SHA-256",
    b"EXTERNAL",
    b"APOP",
)
ALWAYS = {
    b"TOP": b"",
    b"UIDL": b"",
    b"RESP-CODES": b"",
    b"AUTH-RESP-CODE": b"",
    b"PIPELINING": b"",
    b"UTF8": b"USER",
}
MAY_BE = {b"USER", b"SASL", b"STLS", b"LOGIN-DELAY", b"EXPIRE", b"IMPLEMENTATION"}


def listed(client):
    """Return the listed capabilities and their arguments."""
    lines = client.many(b"CAPA").split(b"\r\n")
    assert lines[-2:] == [b".", b""]
    found = {name: rest for name, _, rest in (line.partition(b" ") for line in lines[:-2])}
    assert len(found) == len(lines) - 2, "a capability is listed twice"
    return found


def check(fresh, *, logged_in, expire, login_delay, version):
    """Check every capability of RFC 2449 in one session state.

    `fresh()` returns a new client in that state. Its `ask(line)` returns the first line of a reply, its
    `many(line)` the lines after it.
    """
    found = listed(fresh())
    assert ALWAYS.items() <= found.items()
    assert set(found) <= set(ALWAYS) | MAY_BE
    assert found[b"EXPIRE"] == (b"%d" % expire if expire >= 0 else b"NEVER")
    assert found.get(b"LOGIN-DELAY") == (b"%d" % login_delay if login_delay else None)
    assert found[b"IMPLEMENTATION"] == b"popkernel-" + version
    works = {True: b"+OK", False: b"-ERR"}
    assert fresh().ask(b"USER alice").startswith(works[b"USER" in found])
    assert fresh().ask(b"STLS").startswith(works[b"STLS" in found])
    mechanisms = found.get(b"SASL", b"").split()
    nothing = fresh().ask(b"AUTH NOTHING " + b64encode(b"alice"))
    for mechanism in MECHANISMS:
        assert fresh().ask(b"AUTH " + mechanism).startswith(b"+ " if mechanism in mechanisms else b"-ERR "), (
            mechanism
        )
        # a name for LOGIN; malformed for the others
        said = fresh().ask(b"AUTH %b %b" % (mechanism, b64encode(b"alice")))
        assert said.startswith(b"+ " if mechanism == b"LOGIN" and mechanism in mechanisms else b"-ERR "), (
            mechanism
        )
        assert (said == nothing) == (mechanism not in mechanisms), mechanism
    bare = fresh().ask(b"AUTH")
    assert bare.startswith(works[bool(mechanisms)])
    for command in (b"TOP 1 0", b"UIDL", b"UIDL 1"):
        assert fresh().ask(command).startswith(works[logged_in]), command
    assert fresh().ask(b"UTF8").startswith(b"+OK")
    client = fresh()
    assert client.ask(b"NOPE\r\nUTF8\r\nCAPA").startswith(b"-ERR")  # PIPELINING
    assert client.line().startswith(b"+OK UTF8 ") and client.line().startswith(b"+OK capabilities ")
