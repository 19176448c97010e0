"""LANG and UTF8 (RFC 6856) on a real service: German texts in every state, codes and words as ever; UTF8 in both states, mail as it lies."""

import os
import signal

import pytest

from tests.e2e import awkward
from tests.e2e.awkward import RawClient
from tests.e2e.supervised import pid_of
from tests.service import Service

UMLAUTS = "Subject: Grüße\nFrom: josé@exämple.org\n\nPřílohy, 你好\n".encode()
MAIL = [UMLAUTS, awkward.head("plain") + b"body\n"]
LANGUAGES = b"de Deutsch\r\nen English\r\n"


@pytest.fixture(scope="module")
def service():
    users = {"alice": "secret", "josé": "pässwörd", "carol": "secret"}
    with Service(users=users, mail=MAIL, lmtp=False, allow_plaintext=True) as running:
        yield running


def sorted_lines(text):
    return sorted(text.removesuffix(b".\r\n").splitlines(keepends=True))


def test_lang_lists_and_changes(service):
    with RawClient(service) as client:
        assert b"LANG\r\n" in client.many(b"CAPA")
        assert sorted_lines(client.many(b"LANG")) == LANGUAGES.splitlines(keepends=True)
        assert client.ask(b"LANG de") == b"+OK de Texte kommen nun auf Deutsch\r\n"
        assert client.ask(b"XYZZY") == b"-ERR diesen Befehl gibt es nicht\r\n"
        assert client.ask(b"LANG") == b"+OK die Sprachen folgen\r\n"
        assert sorted_lines(client.rest()) == LANGUAGES.splitlines(keepends=True)
        assert client.ask(b"LANG fr") == b"-ERR diese Sprache gibt es hier nicht\r\n"
        assert client.ask(b"LANG de en") == b"-ERR Gebrauch: LANG [Sprache]\r\n"
        assert client.ask(b"XYZZY") == b"-ERR diesen Befehl gibt es nicht\r\n"  # a refusal changes nothing
        assert client.ask(b"lang DE-at") == b"+OK de Texte kommen nun auf Deutsch\r\n"
        assert client.ask(b"LANG *") == b"+OK en texts are in English now\r\n"
        assert client.ask(b"XYZZY") == b"-ERR unknown command\r\n"


def test_german_from_login_to_quit(service):
    with RawClient(service) as client, RawClient(service, user="carol"):
        client.ask(b"LANG de")
        client.ask(b"USER carol")
        assert client.ask(b"PASS secret") == b"-ERR [IN-USE] eine andere Sitzung hat dieses Postfach offen\r\n"
        client.ask(b"USER alice")
        assert client.ask(b"PASS wrong") == b"-ERR [AUTH] Name oder Passwort ist falsch\r\n"
        assert client.ask(b"AUTH PLAIN") == b"+ \r\n"
        assert client.ask(b"*") == b"-ERR Anmeldung abgebrochen\r\n"
        client.ask(b"USER alice")
        assert client.ask(b"PASS secret").startswith(b"+OK 2 Nachrichten (")
        assert client.ask(b"STAT").startswith(b"+OK 2 ")
        assert client.many(b"RETR 1") == awkward.on_the_wire(UMLAUTS)
        assert client.ask(b"RETR 3") == b"-ERR diese Nachricht gibt es nicht\r\n"
        assert client.ask(b"RETR x") == b"-ERR Gebrauch: RETR Nummer\r\n"
        assert client.ask(b"STAT x") == b"-ERR STAT steht allein\r\n"
        client.send(b"DELE 1\r\nDELE 1\r\nRSET\r\nLANG en\r\nDELE 1\r\nRSET\r\nLANG de\r\nNOOP\r\n")  # in the order in which they came
        said = [client.line() for _ in range(8)]
        assert said[:2] == [b"+OK vorgemerkt\r\n", b"-ERR diese Nachricht gibt es nicht\r\n"]
        assert said[2].startswith(b"+OK 2 Nachrichten (") and said[3].startswith(b"+OK en ") and said[4] == b"+OK marked\r\n"
        assert said[5].startswith(b"+OK 2 messages (") and said[6].startswith(b"+OK de ") and said[7] == b"+OK\r\n"
        assert client.ask(b"QUIT") == b"+OK bis bald\r\n"


def test_german_to_the_bitter_end(service):
    with RawClient(service, user="alice") as client:
        client.ask(b"LANG de")
        os.kill(pid_of(service, "maildir.alice"), signal.SIGKILL)
        assert client.end() == b"-ERR [SYS/TEMP] das Postfach ist gerade nicht erreichbar, bitte noch einmal versuchen\r\n"


def test_stls_begins_in_english(service):
    with RawClient(service, "") as client:
        client.ask(b"LANG de")
        assert client.ask(b"STLS") == b"+OK TLS kann beginnen\r\n"
        client.secure()
        assert client.ask(b"XYZZY") == b"-ERR unknown command\r\n"


def test_sessions_have_each_their_own_language(service):
    with RawClient(service) as one, RawClient(service) as other:
        one.ask(b"LANG de")
        assert other.ask(b"XYZZY") == b"-ERR unknown command\r\n"
        assert one.ask(b"XYZZY") == b"-ERR diesen Befehl gibt es nicht\r\n"


@pytest.mark.parametrize("tls", ["tls", "stls", ""])
def test_utf8_before_and_after_login(service, tls):
    with RawClient(service, tls) as client:
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
    with RawClient(service) as client:
        assert client.ask("USER josé".encode()) == b"+OK\r\n"
        assert client.ask("PASS pässwörd".encode()).startswith(b"+OK 2 ")
        assert client.many(b"RETR 1") == awkward.on_the_wire(UMLAUTS)
    with RawClient(service) as client:  # the name as Latin-1 is no UTF-8
        assert client.ask("USER josé".encode("latin-1")) == b"-ERR usage: USER name\r\n"


def test_no_stls_behind_utf8(service):
    """RFC 6856 section 2.1; and CAPA says so."""
    with RawClient(service, "") as client:
        assert b"STLS\r\n" in client.many(b"CAPA")
        client.ask(b"UTF8")
        assert b"STLS\r\n" not in client.many(b"CAPA")
        assert client.ask(b"STLS") == b"-ERR no STLS behind UTF8\r\n"
        client.ask(b"USER alice")
        assert client.ask(b"PASS secret").startswith(b"+OK 2 ")
