"""Test AUTH (RFC 5034) on a real service: PLAIN, LOGIN and tokens in every form, and long lines."""

import base64
import json

import pytest
from popkernel.proto.pop3.sasl import AUTH_LINE_LIMIT

from tests.support import awkward
from tests.support.bearer_tokens import RESPONSES, SCOPE, key_set, settings, token
from tests.support.pop3 import RawPop3
from tests.support.service import Service

MAIL = [awkward.head("one") + b"body\n", awkward.head("two") + b"body\n"]
SPACED = " päss word with blanks "
WRONG = b"-ERR [AUTH] wrong name or password\r\n"
MALFORMED = b"-ERR malformed response\r\n"
IN = b"+OK 2 messages "


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    """Run a service with tokens."""
    jwks = tmp_path_factory.mktemp("oauth") / "jwks"
    jwks.write_bytes(key_set())
    users = {"alice": "secret", "bob": "secret", "spaced": SPACED, "josé": "secret", "long": "p" * 72}
    with Service(users=users, mail=MAIL, lmtp=False, most_errors=1000, **settings(jwks)) as running:
        yield running


@pytest.fixture(scope="module")
def without():
    """Run a service without tokens that allows passwords in the clear."""
    with Service(mail=MAIL, lmtp=False, allow_plaintext=True) as running:
        yield running


def b64(data):
    return base64.b64encode(data)


def plain(user=b"alice", password=b"secret", other=b""):
    return b64(b"\0".join((other, user, password)))


def well(client):
    """Check that the session goes on: it can log in and read."""
    assert client.ask(b"AUTH PLAIN " + plain()).startswith(IN)
    assert client.many(b"RETR 1") == awkward.on_the_wire(MAIL[0])
    assert client.ask(b"QUIT") == b"+OK bye\r\n"


@pytest.mark.parametrize("tls", ["tls", "stls"])
def test_plain_with_and_without_an_initial_response(service, tls):
    with RawPop3(service, tls) as client:
        well(client)
    with RawPop3(service, tls) as client:
        assert client.ask(b"auth plain") == b"+ \r\n"
        assert client.ask(plain(other=b"alice")).startswith(IN)
        assert service.status()["leases"][-1]["user"] == "alice"


def test_login(service):
    with RawPop3(service) as client:
        assert client.ask(b"AUTH LOGIN") == b"+ " + b64(b"Username:") + b"\r\n"
        assert client.ask(b64(b"alice")) == b"+ " + b64(b"Password:") + b"\r\n"
        assert client.ask(b64(b"secret")).startswith(IN)
    with RawPop3(service) as client:
        assert client.ask(b"AUTH login " + b64(b"alice")) == b"+ " + b64(b"Password:") + b"\r\n"
        assert client.ask(b64(b"secret")).startswith(IN)


@pytest.mark.parametrize(
    ("user", "password"),
    [("spaced", SPACED), ("josé", "secret"), ("long", "p" * 72)],
    ids=["blanks and 8-bit", "a name of UTF-8", "72 octets"],
)
def test_names_and_passwords_are_unchanged(service, user, password):
    for first, second in ((plain(user.encode(), password.encode()), b""), (None, b64(password.encode()))):
        with RawPop3(service) as client:
            if first:
                assert client.ask(b"AUTH PLAIN " + first).startswith(IN)
            else:
                client.ask(b"AUTH LOGIN " + b64(user.encode()))
                assert client.ask(second).startswith(IN)


def test_pipelined_auth_and_response_in_one_packet(service):
    with RawPop3(service) as client:
        client.send(
            b"CAPA\r\nAUTH PLAIN\r\n*\r\nAUTH LOGIN\r\n"
            + b64(b"alice")
            + b"\r\n"
            + b64(b"secret")
            + b"\r\nSTAT\r\nDELE 9\r\nQUIT\r\n"
        )
        said = client.end().split(b".\r\n", 1)[1].split(b"\r\n")
    assert said[:3] == [b"+ ", b"-ERR authentication cancelled", b"+ " + b64(b"Username:")]
    assert (
        said[4].startswith(IN)
        and said[5].startswith(b"+OK 2 ")
        and said[6:] == [b"-ERR no such message", b"+OK bye", b""]
    )


def test_split_at_every_octet(service):
    whole = b"AUTH PLAIN\r\n" + plain() + b"\r\nQUIT\r\n"
    with RawPop3(service) as client:
        for octet in whole:
            client.send(bytes([octet]))
        assert client.end().endswith(b"+OK bye\r\n")


FAILURES = {
    "cancelled": ([b"AUTH PLAIN", b"*"], b"-ERR authentication cancelled\r\n"),
    "cancelled at the password": ([b"AUTH LOGIN", b64(b"alice"), b"*"], b"-ERR authentication cancelled\r\n"),
    "an empty initial response": ([b"AUTH PLAIN ="], MALFORMED),
    "an empty answer": ([b"AUTH PLAIN", b""], MALFORMED),
    "an empty name": ([b"AUTH LOGIN", b""], MALFORMED),
    "an empty password": ([b"AUTH LOGIN", b64(b"alice"), b""], MALFORMED),
    "= for an answer": ([b"AUTH PLAIN", b"="], MALFORMED),
    "no base64": ([b"AUTH PLAIN", b"!!!!"], MALFORMED),
    "base64 cut short": ([b"AUTH PLAIN " + plain()[:-1]], MALFORMED),
    "base64 with a blank in it": ([b"AUTH PLAIN " + plain()[:4] + b" " + plain()[4:]], MALFORMED),
    "clear text": ([b"AUTH PLAIN", b"PASS secret"], MALFORMED),
    "a command": ([b"AUTH PLAIN", b"QUIT"], MALFORMED),
    "NULs alone": ([b"AUTH PLAIN " + b64(b"\0\0")], MALFORMED),
    "another NUL": ([b"AUTH PLAIN " + plain(password=b"secret\0more")], MALFORMED),
    "a name of two lines": ([b"AUTH PLAIN " + plain(b"al\r\nice")], MALFORMED),
    "for somebody else": (
        [b"AUTH PLAIN " + plain(other=b"bob")],
        b"-ERR [AUTH] nobody logs in for somebody else here\r\n",
    ),
    "wrong": ([b"AUTH PLAIN " + plain(password=b"wrong")], WRONG),
    "wrong, LOGIN": ([b"AUTH LOGIN", b64(b"alice"), b64(b"wrong")], WRONG),
    "unknown": ([b"AUTH PLAIN " + plain(b"nobody-here")], WRONG),
    "of more than 72 octets": ([b"AUTH PLAIN " + plain(b"long", b"p" * 73)], WRONG),
    "no such mechanism": ([b"AUTH CRAM-MD5"], b"-ERR unknown mechanism\r\n"),
    "SCRAM": ([b"AUTH SCRAM-SHA-256 biwsbj1hbGljZQ=="], b"-ERR unknown mechanism\r\n"),
    "a mechanism of 8-bit": ([b"AUTH \xff\xfe"], b"-ERR unknown mechanism\r\n"),
}


@pytest.mark.parametrize("title", FAILURES)
def test_a_failure_is_one_and_the_session_goes_on(service, title):
    lines, answer = FAILURES[title]
    with RawPop3(service) as client:
        client.ask(b"USER bob")
        for line in lines[:-1]:
            assert client.ask(line).startswith(b"+ "), line
        assert client.ask(lines[-1]) == answer
        assert client.ask(b"PASS secret") == b"-ERR USER first\r\n"  # USER is forgotten
        well(client)


def test_the_second_attempt_knows_nothing_of_the_first(service):
    with RawPop3(service) as client:
        client.ask(b"AUTH LOGIN " + b64(b"bob"))
        client.ask(b"*")
        assert client.ask(b"AUTH LOGIN") == b"+ " + b64(b"Username:") + b"\r\n"
        assert client.ask(b64(b"alice")) == b"+ " + b64(b"Password:") + b"\r\n"
        assert client.ask(b64(b"secret")).startswith(IN)
        assert client.ask(b"AUTH PLAIN " + plain()) == b"-ERR not now\r\n"
        assert client.ask(b"STAT").startswith(b"+OK 2 ")


@pytest.mark.parametrize("command", [b"AUTH PLAIN", b"AUTH PLAIN ", b""])
def test_lines_of_12_kib_and_beyond(service, command):
    """The longest line that is read is malformed, since no password is so long; one octet more is too long.

    No octet of it is taken for a command.
    """
    inline = command.endswith(b" ")
    for longer, answer in (
        (0, MALFORMED if command else b"-ERR line too long\r\n"),
        (1, b"-ERR line too long\r\n"),
    ):
        with RawPop3(service) as client:
            if command and not inline:
                assert client.ask(command) == b"+ \r\n"
            head = command if inline else b""
            line = head + b"A" * (AUTH_LINE_LIMIT - 2 - len(head) + longer)
            client.send(line + b"\r\n")
            assert client.line() == answer
            well(client)


def test_an_endless_response_takes_no_memory_and_ends_the_exchange(service):
    with RawPop3(service) as client:
        client.ask(b"AUTH PLAIN")
        pid = service.actor("listener")["pid"]
        before = resident(pid)
        for _ in range(64):
            client.send(b"A" * 262144)
        assert client.line() == b"-ERR line too long\r\n"
        assert resident(pid) - before < 2048, "KiB"
        client.send(b"\r\n")
        well(client)


def resident(pid):
    with open(f"/proc/{pid}/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmRSS"))


def test_other_lines_stay_at_255_octets(service):
    with RawPop3(service) as client:
        client.ask(b"USER alice")
        assert client.ask(b"PASS " + b"x" * 300) == b"-ERR line too long\r\n"
        well(client)
    with RawPop3(service, user="alice") as client:
        assert client.ask(b"AUTH PLAIN " + b"A" * 300) == b"-ERR line too long\r\n"
        assert client.ask(b"STAT").startswith(b"+OK 2 ")


def test_bare_auth_lists_the_mechanisms_of_capa(service, without):
    for running, names in (
        (service, [b"PLAIN", b"LOGIN", b"XOAUTH2", b"OAUTHBEARER"]),
        (without, [b"PLAIN", b"LOGIN"]),
    ):
        with RawPop3(running) as client:
            assert client.many(b"AUTH") == b"\r\n".join([*names, b".\r\n"])
            assert b"SASL " + b" ".join(names) in client.many(b"CAPA").split(b"\r\n")
            well(client)


def test_before_tls(service, without):
    with RawPop3(service, "") as client:
        assert b"SASL" not in client.many(b"CAPA")
        for line in (b"AUTH", b"AUTH PLAIN", b"AUTH PLAIN " + plain(), b"AUTH LOGIN", b"AUTH CRAM-MD5"):
            assert client.ask(line) == b"-ERR use TLS first (STLS)\r\n"
        assert client.ask(plain()) == b"-ERR unknown command\r\n"
    with RawPop3(without, "") as client:  # the operator allows it
        assert b"SASL PLAIN LOGIN\r\n" in client.many(b"CAPA")
        well(client)


def test_stls_in_an_exchange_is_an_answer_and_no_command(without):
    with RawPop3(without, "") as client:
        client.ask(b"AUTH PLAIN")
        assert client.ask(b"STLS") == MALFORMED
        client.ask(b"AUTH LOGIN " + b64(b"alice"))
        assert client.ask(b"*").startswith(b"-ERR")
        client.send(b"STLS\r\nAUTH LOGIN\r\n")  # clear text after STLS is discarded
        assert client.line() == b"+OK begin TLS\r\n"
        client.secure()
        assert client.ask(b64(b"alice")) == b"-ERR unknown command\r\n"
        well(client)


def test_failures_are_counted(without):
    with RawPop3(without) as client:
        client.send(b"AUTH PLAIN !\r\n" * 60)
        assert client.end().endswith(MALFORMED + b"-ERR too many errors\r\n")


def test_in_use(service):
    with RawPop3(service, user="alice"), RawPop3(service) as second:
        assert (
            second.ask(b"AUTH PLAIN " + plain()) == b"-ERR [IN-USE] another session has this mailbox open\r\n"
        )
        assert (
            second.ask(b"AUTH XOAUTH2 " + RESPONSES[b"XOAUTH2"](token()))
            == b"-ERR [IN-USE] another session has this mailbox open\r\n"
        )
        assert second.ask(b"AUTH PLAIN " + plain(b"bob")).startswith(IN)


# Tokens


@pytest.mark.parametrize("mechanism", RESPONSES)
@pytest.mark.parametrize("initial", [True, False])
def test_a_good_token(service, mechanism, initial):
    response = RESPONSES[mechanism](token())
    with RawPop3(service) as client:
        if initial:
            said = client.ask(b"AUTH " + mechanism + b" " + response)
        else:
            assert client.ask(b"AUTH " + mechanism) == b"+ \r\n"
            said = client.ask(response)
        assert said.startswith(IN)
        assert client.many(b"RETR 2") == awkward.on_the_wire(MAIL[1])


@pytest.mark.parametrize("mechanism", RESPONSES)
@pytest.mark.parametrize("dummy", [b"", b"AQ==", b"*", b"anything"])
def test_a_bad_token_gets_a_reason_and_the_dummy_answer_ends_it(service, mechanism, dummy):
    """RFC 7628 section 3.2.3: whatever the client answers, the exchange has failed."""
    with RawPop3(service) as client:
        said = client.ask(b"AUTH " + mechanism + b" " + RESPONSES[mechanism](token(email="bob")))
        why = json.loads(base64.b64decode(said.removeprefix(b"+ ")))
        assert (
            why["status"] == ("401" if mechanism == b"XOAUTH2" else "invalid_token") and why["scope"] == SCOPE
        )
        assert client.ask(dummy) == WRONG
        well(client)
    assert " reason=token " in service.wait_log("login failed")


def test_no_token_is_a_question(service):
    """RFC 7628 section 4.3: the client asks for the scope."""
    with RawPop3(service) as client:
        said = client.ask(b"AUTH OAUTHBEARER " + b64(b"n,a=alice,\1auth=\1\1"))
        assert json.loads(base64.b64decode(said.removeprefix(b"+ "))) == {
            "status": "invalid_request",
            "scope": SCOPE,
        }
        assert client.ask(b"AQ==") == b"-ERR [AUTH] a token is needed\r\n"
        well(client)


def test_a_token_is_no_password_and_a_password_no_token(service):
    good = token()
    with RawPop3(service) as client:
        assert client.ask(b"AUTH PLAIN " + plain(password=good)) == WRONG
        said = client.ask(b"AUTH XOAUTH2 " + RESPONSES[b"XOAUTH2"](b"secret"))
        assert said.startswith(b"+ ") and client.ask(b"") == WRONG
        well(client)


def test_tokens_of_a_service_without_them(without):
    with RawPop3(without) as client:
        for mechanism, response in RESPONSES.items():
            assert (
                client.ask(b"AUTH " + mechanism + b" " + response(token())) == b"-ERR unknown mechanism\r\n"
            )
        well(client)
