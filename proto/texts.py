"""The listener's texts in the languages it speaks (LANG, RFC 6856 section 3): English as written in the code, and German from a table here.

Keys are the English texts, with `{}` for whatever stands in one place of them: `translate` finds the key a text was made from, so that
kernel, auth and maildir actors go on saying what they say in English and know nothing of languages. A test reads every reply out of the
sources and fails for one that has no translation.

UTF8 (RFC 6856 section 2): mail is sent as it lies in the maildir, with UTF-8 in its headers or without, so nothing in an answer depends
on whether UTF8 was given, octet counts neither. What it changes: it is acknowledged with +OK before and after login, and STLS is refused
behind it, for TLS is to come first. Names and passwords are UTF-8 always (CAPA: `UTF8 USER`). The response code [UTF8] is for a server
that refuses a login or a message to a client which did not say UTF8; this one refuses none for that, and never sends it.
"""

import re
from functools import lru_cache

__all__ = ["DEFAULT", "LANGUAGES", "language", "named_language", "reply", "translate"]

DEFAULT = "en"
LANGUAGES = {"en": "English", "de": "Deutsch"}
"""Each with its name in itself."""
_CHANGED = {"en": "texts are in English now", "de": "Texte kommen nun auf Deutsch"}
_REPLY_LIMIT = 512  # octets with CRLF, RFC 2449 section 4
_CODE = re.compile(rb"\[[!-Z^-~]{1,60}\] ")  # section 8 there; what is none is text
_MOST_TAG = 40  # octets of a language tag that are looked at

_GERMAN = {
    # good news
    "POP3 ready": "POP3 bereit",
    "bye": "bis bald",
    "begin TLS": "TLS kann beginnen",
    "marked": "vorgemerkt",
    "capabilities follow": "die Fähigkeiten folgen",
    "languages follow": "die Sprachen folgen",
    "{} octets": "{} Oktette",
    "{} messages": "{} Nachrichten",
    "{} messages ({} octets)": "{} Nachrichten ({} Oktette)",
    # commands that make no sense
    "unknown command": "diesen Befehl gibt es nicht",
    "not now": "jetzt nicht",
    "line too long": "die Zeile ist zu lang",
    "too many errors": "zu viele Fehler",
    "too many commands": "zu viele Befehle",
    "no such message": "diese Nachricht gibt es nicht",
    "no such language": "diese Sprache gibt es hier nicht",
    "usage: {}": "Gebrauch: {}",
    "RETR number": "RETR Nummer",
    "DELE number": "DELE Nummer",
    "TOP number lines": "TOP Nummer Zeilen",
    "LIST [number]": "LIST [Nummer]",
    "UIDL [number]": "UIDL [Nummer]",
    "USER name": "USER Name",
    "PASS password": "PASS Passwort",
    "LANG [language]": "LANG [Sprache]",
    "USER first": "zuerst USER",
    "{} takes no arguments": "{} steht allein",
    "TLS is on already": "TLS ist schon an",
    "no STLS here": "STLS gibt es hier nicht",
    "use TLS": "nur mit TLS",
    "use TLS first (STLS)": "zuerst TLS (STLS)",
    # logins
    "wrong name or password": "Name oder Passwort ist falsch",
    "can't check passwords now, try again": "Passwörter lassen sich gerade nicht prüfen, bitte noch einmal versuchen",
    "another session has this mailbox open": "eine andere Sitzung hat dieses Postfach offen",
    "the mailbox is not available now": "das Postfach ist gerade nicht erreichbar",
    "the mailbox is not available now, try again": "das Postfach ist gerade nicht erreichbar, bitte noch einmal versuchen",
    "the mailbox can't be opened": "das Postfach lässt sich nicht öffnen",
    "the server is going down, try again later": "der Server wird beendet, bitte später noch einmal versuchen",
    "too many logins at once, try again later": "zu viele Anmeldungen zugleich, bitte später noch einmal versuchen",
    "too many failed logins from your address, try again in {} seconds":
        "zu viele fehlgeschlagene Anmeldungen von Ihrer Adresse, bitte in {} Sekunden noch einmal versuchen",
    "only one login in {} seconds": "nur eine Anmeldung in {} Sekunden",
    "mechanisms follow": "die Verfahren folgen",
    "unknown mechanism": "dieses Verfahren gibt es hier nicht",
    "malformed response": "die Antwort ist nicht wohlgeformt",
    "authentication cancelled": "Anmeldung abgebrochen",
    "nobody logs in for somebody else here": "niemand meldet sich hier für andere an",
    "a token is needed": "ein Token fehlt",
    "no STLS behind UTF8": "kein STLS nach UTF8",
    "UTF8 it is": "UTF8 gilt",
    # bounds
    "too many logins at once, try again": "zu viele Anmeldungen zugleich, bitte noch einmal versuchen",
    "too many logins of this user from your address at once, try again":
        "zu viele Anmeldungen dieses Benutzers von Ihrer Adresse zugleich, bitte noch einmal versuchen",
    "the server is full now, try again later": "der Server ist gerade voll, bitte später noch einmal versuchen",
    "too many connections, try again later": "zu viele Verbindungen, bitte später noch einmal versuchen",
    "too many connections from your address": "zu viele Verbindungen von Ihrer Adresse",
    "too many connections a minute from your address, try again later":
        "zu viele Verbindungen je Minute von Ihrer Adresse, bitte später noch einmal versuchen",
    "too many TLS handshakes at once, try again": "zu viele TLS-Verbindungen im Aufbau, bitte noch einmal versuchen",
    # mail
    "the message has changed, log in again": "die Nachricht hat sich geändert, bitte neu anmelden",
    "the message can't be read: {}": "die Nachricht lässt sich nicht lesen: {}",
    "{} messages could not be removed": "{} Nachrichten ließen sich nicht löschen",
    "the mailbox was changed by another program, log in again": "ein anderes Programm hat das Postfach geändert, bitte neu anmelden",
    "the mailbox is not available now, try again later": "das Postfach ist gerade nicht erreichbar, bitte später noch einmal versuchen",
    "another program has this mailbox open, try again later":
        "ein anderes Programm hat dieses Postfach offen, bitte später noch einmal versuchen",
    "the message is gone: another program removed it": "die Nachricht ist fort: ein anderes Programm hat sie gelöscht",
    "the message can't be read": "die Nachricht lässt sich nicht lesen",
    "the maildir is not there, and its user may not make it: mount its file system, or make it, owned by that user":
        "das Maildir gibt es nicht, und sein Benutzer darf es nicht anlegen: einhängen, oder für ihn anlegen",
    "maildir: it belongs to uid {}: mount its file system, or give it to its user": "maildir: es gehört uid {}: einhängen, oder übergeben",
    "another directory is in the place of this maildir now": "das Maildir ist jetzt ein anderes",
    "the maildir was replaced while the session was open": "das Maildir wurde während der Sitzung ersetzt",
    "it is not what was listed: another program changed it": "sie ist nicht, was angezeigt wurde: ein anderes Programm hat sie geändert",
    "{} is no directory, or a symbolic link: put a directory there": "{} ist kein Verzeichnis oder ein Symlink: ein Verzeichnis anlegen",
    "popcache: locked by another program for more than {} s": "popcache: seit über {} s von einem anderen Programm gesperrt",
    "popcache is no regular file: remove it, it will be made anew": "popcache ist keine Datei: entfernen, es wird neu angelegt",
    "message gone: cur/{} is no regular file any more": "Nachricht fort: cur/{} ist keine Datei mehr",
    "message gone: {} was removed by another program": "Nachricht fort: ein anderes Programm hat {} gelöscht",
    "message changed: {} is not the size it was listed with": "Nachricht geändert: {} ist nicht so groß wie angezeigt",
}  # fmt: skip
_TABLES = {"de": _GERMAN}
_NUMBERS_FIRST = ("{} octets", "{} messages", "{} messages ({} octets)", "{} messages could not be removed")


def _pattern(key: str) -> str:
    """What a key's texts look like; where numbers are meant nothing else is taken for them."""
    hole = r"([0-9]+)" if key in _NUMBERS_FIRST else r"(.+)"
    return hole.join(map(re.escape, key.split("{}")))


_TEMPLATES = {
    language: [(re.compile(_pattern(key)), text) for key, text in table.items() if "{}" in key] for language, table in _TABLES.items()
}


def translate(text: str, tongue: str) -> str:
    """A text in another language; itself where there is no other for it, which a client is better served with than with nothing."""
    table = _TABLES.get(tongue)
    if table is None:
        return text
    found = table.get(text)
    if found is not None:
        return found
    for pattern, template in _TEMPLATES[tongue]:
        match = pattern.fullmatch(text)
        if match:
            return template.format(*(table.get(part, part) for part in match.groups()))
    return text


@lru_cache(maxsize=256)
def reply(line: bytes, tongue: str) -> bytes:
    """A whole reply line (`+OK ...` or `-ERR [CODE] ...`, with CRLF) with its text translated, at most 512 octets of it."""
    if tongue == DEFAULT or not line.endswith(b"\r\n"):
        return line
    sign, blank, rest = line[:-2].partition(b" ")
    if sign not in (b"+OK", b"-ERR") or not blank:
        return line
    code = b""
    if sign == b"-ERR" and (found := _CODE.match(rest)):
        code, rest = found[0], rest[found.end() :]
    head = sign + blank + code
    text = translate(rest.decode(errors="replace"), tongue).encode()
    whole = text[: _REPLY_LIMIT - len(head) - 2].decode(errors="ignore").encode()  # no half of a letter at the cut
    return head + whole + b"\r\n"


def language(argument: bytes, tongue: str) -> tuple[bytes, str]:
    """Answer LANG: the whole answer, and the language from now on.

    `argument`: what stands behind the command; nothing lists the languages, `*` asks for this server's own, and of a longer tag than
    there is the shorter is taken (RFC 4647 section 3.4). `tongue`: the language so far, which stays where the answer is -ERR.
    """
    asked = argument.strip(b" ")
    if not asked:
        rows = "".join(f"{tag} {name}\r\n" for tag, name in LANGUAGES.items())
        return reply(b"+OK languages follow\r\n", tongue) + rows.encode() + b".\r\n", tongue
    wanted = named_language(asked)
    if wanted is None:
        return reply(b"-ERR usage: LANG [language]\r\n", tongue), tongue
    if not wanted:
        return reply(b"-ERR no such language\r\n", tongue), tongue
    return f"+OK {wanted} {_CHANGED[wanted]}\r\n".encode(), wanted


def named_language(argument: bytes) -> str | None:
    """The language that an argument of LANG names: "" for one there is not, None for what is no language tag."""
    asked = argument.strip(b" ")
    if len(asked) > _MOST_TAG or b" " in asked or not asked.isascii():
        return None
    return _lookup(asked.decode().lower())


def _lookup(tag: str) -> str:
    if tag in ("*", "i-default"):  # RFC 2277 section 4.5
        return DEFAULT
    while tag and tag not in LANGUAGES:
        tag = tag.rpartition("-")[0]
    return tag
