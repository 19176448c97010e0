"""Every text that can reach a client, read out of the sources, has a translation; LANG as RFC 6856 has it."""

import ast
import os
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from popkernel.proto import texts
from popkernel.proto.texts import LANGUAGES, language, reply, translate

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
# Where a text is given: function or class by name, and which of its arguments it is.
GIVEN = {"_bad": 0, "ok": 0, "err": 0, "denied": 1, "_no": 2, "_refusal": 0, "Failure": 1, "Turned": 2, "Denied": 2, "Missing": 2, "Unready": 1, "StoreError": 1}
# Texts of deliveries: they go to mail servers.
NOT_POP3 = {"actors/maildir/delivery.py", "actors/maildir/quota.py", "actors/maildir/deliveries.py", "actors/maildir/reception.py"}


def sources():
    for folder in ("actors/listener", "actors/auth", "actors/maildir"):
        for name in sorted(os.listdir(f"{ROOT}/{folder}")):
            if name.endswith(".py") and f"{folder}/{name}" not in NOT_POP3:
                yield f"{folder}/{name}"
    yield from ("kernel/core.py", "proto/pop3.py", "proto/sasl.py")


def shapes(node):
    """The texts an expression can be, `{}` for what only a run knows; none for an expression that is no text of its own."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return [node.value]
    if isinstance(node, ast.JoinedStr):
        return ["".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)]
    if isinstance(node, ast.IfExp):
        return shapes(node.body) + shapes(node.orelse)
    return []


def said(tree):
    """(line, text) of each text in a file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in GIVEN and len(node.args) > GIVEN[name]:
                for text in shapes(node.args[GIVEN[name]]):
                    yield node.lineno, text
        elif isinstance(node, ast.Constant) and isinstance(node.value, bytes):
            found = re.match(rb"(?:\+OK|-ERR)(?: \[[A-Z/-]+\])? ([^\r]*)\r\n", node.value)
            if found:
                yield node.lineno, re.sub("%[bds]", "{}", found[1].decode())
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            yield from named(node)


def named(node):
    """Texts that have a name: DENIED, the usages, the bounds."""
    name, value = node.targets[0].id, node.value
    if name == "DENIED":
        yield node.lineno, value.elts[1].value
    elif name == "_USAGE":
        for text in value.values:
            yield node.lineno, "usage: " + text.value
            yield node.lineno, text.value
    elif name.startswith("TOO_MANY") or name == "TOO_FAST":
        yield node.lineno, value.value


def all_said():
    for path in sources():
        with open(f"{ROOT}/{path}", "rb") as file:
            for line, text in said(ast.parse(file.read(), path)):
                words = text.replace("{}", "").strip(" ():[]")
                if words and text not in ("{}: {}", "{}"):
                    yield f"{path}:{line}", text


@pytest.mark.parametrize("tongue", [tag for tag in LANGUAGES if tag != "en"])
def test_every_text_has_a_translation(tongue):
    lacking = {(where, text) for where, text in all_said() if translate(text.replace("{}", "17"), tongue) == text.replace("{}", "17")}
    assert not lacking


def test_the_sources_were_read():
    found = {text for _, text in all_said()}
    assert {
        "wrong name or password", "another session has this mailbox open", "no such message", "marked", "{} messages ({} octets)", "use TLS",
        "use TLS first (STLS)", "usage: {}", "RETR number", "popcache: locked by another program for more than {} s", "POP3 ready",
        "too many connections from your address", "{} octets", "the message can't be read: {}", "can't check passwords now, try again",
    } <= found  # fmt: skip
    assert len(found) > 45


@pytest.mark.parametrize("key", texts._GERMAN)
def test_a_translation_has_the_same_holes_and_fits_a_line(key):
    german = texts._GERMAN[key]
    assert german.count("{}") == key.count("{}")
    assert len(german.encode()) < 400
    assert german.isprintable()
    assert german != key


@pytest.mark.parametrize(
    ("line", "german"),
    [
        (b"+OK POP3 ready\r\n", "+OK POP3 bereit\r\n"),
        (b"+OK 12 messages (345 octets)\r\n", "+OK 12 Nachrichten (345 Oktette)\r\n"),
        (b"+OK 345 octets\r\n", "+OK 345 Oktette\r\n"),
        (b"+OK 2 345\r\n", "+OK 2 345\r\n"),
        (b"+OK 2 messages octets\r\n", "+OK 2 messages octets\r\n"),
        (b"+OK\r\n", "+OK\r\n"),
        (b"-ERR [AUTH] wrong name or password\r\n", "-ERR [AUTH] Name oder Passwort ist falsch\r\n"),
        (b"-ERR usage: TOP number lines\r\n", "-ERR Gebrauch: TOP Nummer Zeilen\r\n"),
        (b"-ERR STAT takes no arguments\r\n", "-ERR STAT steht allein\r\n"),
        (b"-ERR [SYS/TEMP] message gone: a{b} was removed by another program\r\n",
         "-ERR [SYS/TEMP] Nachricht fort: ein anderes Programm hat a{b} gelöscht\r\n"),
        (b"-ERR [SYS/PERM] cur: Permission denied\r\n", "-ERR [SYS/PERM] cur: Permission denied\r\n"),
        (b"From: a mail\r\n", "From: a mail\r\n"),
        (b"+OK half a line", "+OK half a line"),
    ],
)  # fmt: skip
def test_whole_replies(line, german):
    assert reply(line, "de") == german.encode()
    assert reply(line, "en") == line


@example(b"[\x80", b"-ERR ")
@example(b"[\x80] x", b"-ERR ")
@example(b"[" + b"A" * 600 + b"] x", b"-ERR ")
@given(st.binary(max_size=700), st.sampled_from([b"+OK ", b"-ERR ", b"-ERR [SYS/TEMP] the message can't be read: ", b""]))
def test_any_line_stays_one_line_and_utf8(body, head):
    line = head + body.replace(b"\r", b"").replace(b"\n", b"") + b"\r\n"
    out = reply(line, "de")
    assert out.endswith(b"\r\n")
    assert out.count(b"\n") == 1
    if line.startswith((b"+OK ", b"-ERR ")):
        assert len(out) <= 512
        out.decode()


def test_lang():
    assert language(b"", "en") == (b"+OK languages follow\r\nen English\r\nde Deutsch\r\n.\r\n", "en")
    assert language(b" ", "de") == (b"+OK die Sprachen folgen\r\nen English\r\nde Deutsch\r\n.\r\n", "de")
    for asked in (b"de", b" DE ", b"de-AT", b"de-Latn-CH-1996"):
        assert language(asked, "en") == (b"+OK de Texte kommen nun auf Deutsch\r\n", "de")
    for asked in (b"*", b"en", b"en-GB", b"i-default"):
        assert language(asked, "de") == (b"+OK en texts are in English now\r\n", "en")
    for asked in (b"fr", b"dea", b"-", b"de*", b"\0", b"i"):
        assert language(asked, "de") == (b"-ERR diese Sprache gibt es hier nicht\r\n", "de")
    for asked in (b"de en", b"\xc3\xa4", b"x" * 41):
        assert language(asked, "en") == (b"-ERR usage: LANG [language]\r\n", "en")
