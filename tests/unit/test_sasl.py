"""Test AUTH step by step: valid and malformed exchanges, and that no secret shows."""

import json
from base64 import b64decode, b64encode

import pytest
from hypothesis import given
from hypothesis import strategies as st
from popkernel.proto.pop3.sasl import (
    AUTH_LINE_LIMIT,
    MECHANISMS,
    Challenge,
    Credentials,
    Exchange,
    Failure,
    arguments,
)

MALFORMED = Failure("", "malformed response")
TOKEN = b"eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJhIn0.c2ln-_~+/="
RIGHT = {
    "PLAIN": b"\0alice\0secret word",
    "XOAUTH2": b"user=alice\1auth=Bearer " + TOKEN + b"\1\1",
    "OAUTHBEARER": b"n,a=alice,\1host=mail.example.org\1port=995\1auth=Bearer " + TOKEN + b"\1\1",
}


def begun(mechanism):
    exchange = Exchange(MECHANISMS)
    step = exchange.begin(mechanism, None)
    return exchange, step


def said(mechanism, data):
    """Return the step after one response."""
    return begun(mechanism)[0].respond(b64encode(data))


def shown_in(challenge):
    assert challenge.line.startswith(b"+ ") and challenge.line.endswith(b"\r\n")
    return b64decode(challenge.line[2:-2], validate=True)


@pytest.mark.parametrize("mechanism", RIGHT)
def test_with_and_without_initial_response(mechanism):
    exchange, step = begun(mechanism)
    assert step == Challenge(b"+ \r\n")  # RFC 5034 section 4: a blank and nothing
    expected = Credentials(mechanism, "alice", b"secret word" if mechanism == "PLAIN" else TOKEN)
    assert exchange.respond(b64encode(RIGHT[mechanism])) == expected
    assert Exchange(MECHANISMS).begin(mechanism, b64encode(RIGHT[mechanism])) == expected


def test_login():
    exchange, step = begun("LOGIN")
    assert shown_in(step) == b"Username:"
    assert shown_in(exchange.respond(b64encode(b"alice"))) == b"Password:"
    assert exchange.respond(b64encode(b"\xffsecret word")) == Credentials(
        "LOGIN", "alice", b"\xffsecret word"
    )
    exchange = Exchange(MECHANISMS)
    assert shown_in(exchange.begin("LOGIN", b64encode(b"alice"))) == b"Password:"


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_cancelled(mechanism):
    exchange, _ = begun(mechanism)
    assert exchange.respond(b"*") == Failure("", "authentication cancelled")


def test_login_cancelled_at_the_password():
    exchange, _ = begun("LOGIN")
    exchange.respond(b64encode(b"alice"))
    assert exchange.respond(b"*") == Failure("", "authentication cancelled")


def test_only_offered_mechanisms():
    for mechanism in ("", "plain", "CRAM-MD5", "SCRAM-SHA-256"):
        assert Exchange((*MECHANISMS, "SCRAM-SHA-256")).begin(mechanism, None) == Failure(
            "", "unknown mechanism"
        )
    assert Exchange(("PLAIN",)).begin("XOAUTH2", None) == Failure("", "unknown mechanism")


def test_the_command():
    assert arguments(b"") == arguments(b"  ") == ("", None)
    assert arguments(b"plain") == arguments(b"PLAIN ") == ("PLAIN", None)
    assert arguments(b"Plain =") == ("PLAIN", b"=")
    assert arguments(b"PLAIN a b") == ("PLAIN", b"a b")
    assert arguments(b"\xff") == ("\ufffd", None)


@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.parametrize(
    "line",
    [
        # the last one has stray bits
        b"=",
        b"====",
        b"!",
        b"YWxpY2U",
        b"YWxpY2U==",
        b"YWxp Y2U=",
        b"YWxpY2U=\r",
        b" YWxpY2U=",
        b"YWxpY2U= ",
        b"YWxpY2V=",
        b"YWxpY2U=YWxpY2U=",
        b"YWxpY2U\0",
        b"\xff\xff\xff\xff",
        b"YWxp-_==",
        b"A" * (AUTH_LINE_LIMIT + 4),
    ],
)
def test_base64_in_no_other_than_its_canonical_form(mechanism, line):
    assert begun(mechanism)[0].respond(line) == MALFORMED
    if line != b"=":
        assert Exchange(MECHANISMS).begin(mechanism, line) == MALFORMED


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_an_empty_response_is_malformed(mechanism):
    assert Exchange(MECHANISMS).begin(mechanism, b"=") == MALFORMED
    assert Exchange(MECHANISMS).begin(mechanism, b"") == MALFORMED
    assert begun(mechanism)[0].respond(b"") == MALFORMED


@pytest.mark.parametrize(
    "data",
    [
        b"alice\0secret",
        b"\0alice\0",
        b"\0\0secret",
        b"\0\0",
        b"\0alice\0se\0cret",
        b"\0alice\0secret\0",
        b"\0al\xffice\0secret",
        b"\0alice\0se\xffcret",
        b"\xff\0alice\0secret",
        b"\0al ice\0secret",
        b"\0al\nice\0secret",
        b"\0" + b"a" * 256 + b"\0secret",
        b"\0alice\0" + b"s" * 1001,
        b"a" * 256 + b"\0alice\0secret",
    ],
)
def test_plain_malformed(data):
    assert said("PLAIN", data) == MALFORMED


def test_plain_at_its_bounds():
    assert said("PLAIN", b"\0" + b"a" * 255 + b"\0" + b"s" * 1000) == Credentials(
        "PLAIN", "a" * 255, b"s" * 1000
    )
    assert said("PLAIN", "\0josé\0pässword".encode()) == Credentials("PLAIN", "josé", "pässword".encode())


def test_no_authorization_for_another_user():
    assert said("PLAIN", b"alice\0alice\0secret") == Credentials("PLAIN", "alice", b"secret")
    for other in (b"bob", b"Alice", b"alice ", b"root"):
        assert said("PLAIN", other + b"\0alice\0secret").code == "AUTH"


@pytest.mark.parametrize("data", [b"al ice", b"\xff", b"al\0ice", b"a" * 256])
def test_login_names(data):
    assert said("LOGIN", data) == MALFORMED


@pytest.mark.parametrize("data", [b"", b"se\0cret", b"s" * 1001])
def test_login_passwords(data):
    exchange, _ = begun("LOGIN")
    exchange.respond(b64encode(b"alice"))
    assert exchange.respond(b64encode(data)) == MALFORMED


@pytest.mark.parametrize(
    "data",
    [
        b"user=alice\1auth=Bearer x\1",
        b"user=alice\1auth=Bearer \1\1",
        b"user=alice\1auth=Basic x\1\1",
        b"user=\1auth=Bearer x\1\1",
        b"auth=Bearer x\1user=alice\1\1",
        b"user=alice\1auth=Bearer x y\1\1",
        b"user=alice\1auth=Bearer x\1\1\1",
        b"user=al\0ice\1auth=Bearer x\1\1",
        b"user=alice\1auth=Bearer x\0\1\1",
        b"user=alice\1auth=Bearer =\1\1",
        b"user=alice\1auth=Bearer " + b"x" * 8193 + b"\1\1",
        b"n,,\1\1",
        b"user=al\xffice\1auth=Bearer x\1\1",
        b"user=alice\1auth=Bearer x\1\1\n",
    ],
)
def test_xoauth2_malformed(data):
    assert said("XOAUTH2", data) == MALFORMED


@pytest.mark.parametrize(
    "data",
    [
        b"n,,\1auth=Bearer x\1\1",  # no user, which popkernel requires
        b"p=tls-unique,a=alice,\1auth=Bearer x\1\1",
        b"n,a=alice\1auth=Bearer x\1\1",
        b"a=alice,\1auth=Bearer x\1\1",
        b"n,a=,\1auth=Bearer x\1\1",
        b"n,a=al=ice,\1auth=Bearer x\1\1",
        b"n,a=al=2cice,\1auth=Bearer x\1\1",
        b"n,a=alice,\1auth=Bearer x\1",
        b"n,a=alice,auth=Bearer x\1\1",
        b"n,a=alice,\1auth=Bearer x\1auth=Bearer y\1\1",
        b"n,a=alice,\1auth=Bearer x\1AUTH=Bearer y\1\1",
        b"n,a=alice,\1auth=Basic x\1\1",
        b"n,a=alice,\1auth=Bearer x y\1\1",
        b"n,a=alice,\1au th=Bearer x\1\1",
        b"n,a=alice,\1auth=Bearer x\1\1trailing",
        b"n,a=al\0ice,\1auth=Bearer x\1\1",
        b"n,a=alice,\1auth=Bearer x\1h\xff=y\1\1",
        b"n,a=al ice,\1auth=Bearer x\1\1",
        b"n,a=alice,\1auth=Bearer " + b"x" * 8193 + b"\1\1",
        b"user=alice\1\1",
        b"n,f=x,a=alice,\1auth=Bearer x\1\1",
    ],
)
def test_oauthbearer_malformed(data):
    assert said("OAUTHBEARER", data) == MALFORMED


def test_oauthbearer_s_names_and_keys():
    data = b"y,a=we=2Cird=3Dname,\1unknown=any thing\t!\1auth=bEARER  abc==\1\1"
    assert said("OAUTHBEARER", data) == Credentials("OAUTHBEARER", "we,ird=name", b"abc==")
    assert said("OAUTHBEARER", b"n,a=alice,\1auth=Bearer " + b"x" * 8192 + b"\1\1").secret == b"x" * 8192
    assert len(b64encode(b"n,a=" + b"a" * 255 + b",\1auth=Bearer " + b"x" * 8192 + b"\1\1")) < AUTH_LINE_LIMIT


@pytest.mark.parametrize("answer", [b"AQ==", b"*", b"", b"anything"])
@pytest.mark.parametrize("mechanism", ["XOAUTH2", "OAUTHBEARER"])
def test_a_failed_token_gets_a_reason_and_is_refused(mechanism, answer):
    exchange = Exchange(MECHANISMS, "mail.read")
    exchange.begin(mechanism, b64encode(RIGHT[mechanism]))
    why = json.loads(shown_in(exchange.denied("AUTH", "wrong name or password")))
    assert why["scope"] == "mail.read"
    assert why["status"] == ("invalid_token" if mechanism == "OAUTHBEARER" else "401")
    assert exchange.respond(answer) == Failure("AUTH", "wrong name or password")


def test_an_empty_token_asks_for_the_scope():
    """RFC 7628 section 4.3: an empty token, to learn the scope."""
    exchange, _ = begun("OAUTHBEARER")
    step = exchange.respond(b64encode(b"n,a=alice,\1host=h\1\1"))
    assert json.loads(shown_in(step)) == {"status": "invalid_request"}
    assert exchange.respond(b"AQ==").code == "AUTH"


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_a_temporary_failure_does_not_ask_for_a_new_token(mechanism):
    exchange, _ = begun(mechanism)
    if mechanism == "LOGIN":
        exchange.respond(b64encode(b"alice"))
    exchange.respond(b64encode(RIGHT.get(mechanism, b"secret")))
    assert exchange.denied("SYS/TEMP", "try again") == Failure("SYS/TEMP", "try again")


@pytest.mark.parametrize("mechanism", RIGHT)
def test_no_secret_shows(mechanism):
    exchange, _ = begun(mechanism)
    step = exchange.respond(b64encode(RIGHT[mechanism]))
    kept = "".join(repr(getattr(exchange, name)) for name in Exchange.__slots__)
    for text in (repr(step), str(step), f"{step}", repr(exchange), kept):
        assert (
            "secret word" not in text
            and TOKEN.decode() not in text
            and b64encode(RIGHT[mechanism]).decode() not in text
        )
    assert "[secret]" in repr(step)


def steps(mechanism, lines, *, redacted=False):
    """Return every step to the end; with `redacted` the exchange gets the redacted lines of a trace."""
    exchange = Exchange(MECHANISMS)
    said = [exchange.begin(mechanism, None)]
    for line in lines:
        said.append(exchange.respond(exchange.redacted(line) if redacted else line))
        if isinstance(said[-1], Credentials):
            said[-1] = said[-1]._replace(secret=b"")
            said.append(exchange.denied("AUTH", "wrong"))
        if isinstance(said[-1], Failure):
            break
    return said


PIECES = [
    b"\0",
    b"\1",
    b"alice",
    b"secret",
    b"n,",
    b"a=alice",
    b",",
    b"user=",
    b"auth=Bearer ",
    b"x.y",
    b"host=h",
    b"=2C",
    b"\xff",
    b" ",
    b"=",
    b"hunter2",
]
DATA = st.one_of(
    st.sampled_from([*RIGHT.values(), b"bob\0alice\0secret", b"n,a=alice,\1\1", b"alice", b"secret"]),
    st.lists(st.sampled_from(PIECES), max_size=8).map(b"".join),
    st.binary(max_size=30),
)
LINES = st.lists(
    st.one_of(
        DATA.map(b64encode),
        st.sampled_from([b"*", b"", b"=", b"hunter2", b"NOOP", b"STAT"]),
        st.binary(max_size=20),
    ),
    max_size=4,
)


@given(st.sampled_from(MECHANISMS), LINES)
def test_redacted_lines_are_treated_alike(mechanism, lines):
    assert steps(mechanism, lines, redacted=True) == steps(mechanism, lines)


@given(st.sampled_from(MECHANISMS), LINES)
def test_every_line_has_a_step(mechanism, lines):
    for step in steps(mechanism, lines):
        assert isinstance(step, Challenge | Failure | Credentials)
        if isinstance(step, Challenge):
            assert step.line.count(b"\n") == 1 and len(step.line) <= 512


def test_redacted_lines_have_no_secret():
    for mechanism in RIGHT:
        shown = b64decode(begun(mechanism)[0].redacted(b64encode(RIGHT[mechanism])))
        assert b"alice" in shown and b"secret word" not in shown and TOKEN not in shown
    exchange, _ = begun("LOGIN")
    assert exchange.redacted(b64encode(b"alice")) == b64encode(b"alice")
    exchange.respond(b64encode(b"alice"))
    assert exchange.redacted(b64encode(b"hunter2")) == b64encode(b"[secret]")
    # three octets of a password that look like a command
    assert exchange.redacted(b"STAT") == b64encode(b"[secret]")
    assert exchange.redacted(b"hunter2") == b"[malformed]"
