"""Test UTF8 (RFC 6856) on a real service: accepted in both states; mail is sent as stored."""

import pytest

from tests.support import awkward
from tests.support.pop3 import RawPop3
from tests.support.service import Service

UMLAUTS = "Subject: Grüße\nFrom: josé@exämple.org\n\nPřílohy, 你好\n".encode()
MAIL = [UMLAUTS, awkward.head("plain") + b"body\n"]


@pytest.fixture(scope="module")
def service():
    users = {"alice": "secret", "josé": "pässwörd"}
    with Service(users=users, mail=MAIL, lmtp=False, allow_plaintext=True) as running:
        yield running


@pytest.mark.parametrize("tls", ["tls", "stls", ""])
def test_utf8_before_and_after_login(service, tls):
    with RawPop3(service, tls) as client:
        assert b"UTF8 USER\r\n" in client.many(b"CAPA")
        assert client.ask(b"UTF8") == b"+OK UTF8 it is\r\n"
        assert client.ask(b"UTF8 now") == b"-ERR UTF8 takes no arguments\r\n"
        assert client.ask("USER josé".encode()) == b"+OK\r\n"
        assert client.ask("PASS pässwörd".encode()).startswith(b"+OK 2 ")
        assert client.ask(b"utf8") == b"+OK UTF8 it is\r\n"
        assert client.many(b"RETR 1") == awkward.on_the_wire(UMLAUTS)
        assert client.many(b"TOP 1 0") == awkward.top(UMLAUTS, 0)
        assert client.ask(b"LIST 1") == b"+OK 1 %d\r\n" % len(awkward.sent(UMLAUTS))


def test_without_utf8_mail_and_names_are_the_same(service):
    with RawPop3(service) as client:
        assert client.ask("USER josé".encode()) == b"+OK\r\n"
        assert client.ask("PASS pässwörd".encode()).startswith(b"+OK 2 ")
        assert client.many(b"RETR 1") == awkward.on_the_wire(UMLAUTS)
    with RawPop3(service) as client:  # the name in Latin-1 is not UTF-8
        assert client.ask("USER josé".encode("latin-1")) == b"-ERR usage: USER name\r\n"


def test_no_stls_behind_utf8(service):
    """RFC 6856 section 2.1; CAPA says so too."""
    with RawPop3(service, "") as client:
        assert b"STLS\r\n" in client.many(b"CAPA")
        client.ask(b"UTF8")
        assert b"STLS\r\n" not in client.many(b"CAPA")
        assert client.ask(b"STLS") == b"-ERR no STLS behind UTF8\r\n"
        client.ask(b"USER alice")
        assert client.ask(b"PASS secret").startswith(b"+OK 2 ")
