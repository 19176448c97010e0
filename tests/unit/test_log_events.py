"""Check that the table of log events agrees with the code and the documents."""

import ast
import os
import re

import pytest
from popkernel.proto import log_levels
from popkernel.proto.log_events import EVENTS, objection, required, text_of
from popkernel.proto.log_levels import DEBUG, ERROR, INFO, NOTICE, WARNING
from popkernel.proto.schema import fit_fields
from popkernel.proto.topology import ACTORS

from tests.support.event_documents import LOGS, logs

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
LEVELS = {name: getattr(log_levels, name) for name in ("ERROR", "WARNING", "NOTICE", "INFO", "DEBUG")}
NAME = re.compile(r"[a-z][a-z_]*(\.[a-z][a-z_]*)+")
CALLS = {
    "Note",
    "WriteLog",
    "LogEvent",
    "_event",
    "_lines",
    "_log",
    "_say",
    "end",
    "event",
    "log",
    "said",
    "say",
}
OWN = {"time", "level", "actor", "event"}  # of each object of the JSON form


def sources():
    for folder in ("actors", "cli", "kernel"):
        for place, _, names in os.walk(f"{ROOT}/{folder}"):
            for name in names:
                if name.endswith(".py"):
                    path = os.path.join(place, name)
                    with open(path, "rb") as file:
                        yield os.path.relpath(path, ROOT), ast.parse(file.read())


def levels_of(node):
    """Return the levels that an argument may have; None if it is no level."""
    if isinstance(node, ast.Name):
        return {LEVELS[node.id]} if node.id in LEVELS else {0} if node.id == "level" else None
    if isinstance(node, ast.IfExp):
        one, other = levels_of(node.body), levels_of(node.orelse)
        return None if one is None or other is None else one | other
    return None


def said():
    """Yield each place that logs an event.

    (place, levels, event, fields): levels are 0 and fields None if not known there.
    """
    for path, tree in sources():
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call):
                continue
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if name not in CALLS:
                continue
            arguments = [ast.Name("WARNING"), *node.args] if name == "Note" else node.args
            for at, (first, second) in enumerate(zip(arguments, arguments[1:], strict=False)):
                levels = levels_of(first)
                if levels is None or not (isinstance(second, ast.Constant) and isinstance(second.value, str)):
                    continue
                names = {keyword.arg for keyword in node.keywords} - {"alone", "timed"}
                rest = arguments[at + 2 :]
                if rest and isinstance(rest[0], ast.Dict):
                    names |= {key.value for key in rest[0].keys}
                elif None in names or (rest and not node.keywords) or (names == set() and rest):
                    names = None
                yield f"{path}:{node.lineno}", levels, second.value, names


SAID = list(said())


def test_the_places_are_found():
    assert len(SAID) > 50 and sum(names is not None for *_, names in SAID) > 40


@pytest.mark.parametrize("place", SAID, ids=lambda place: place[0])
def test_logged_events_are_in_the_table(place):
    where, levels, event, names = place
    assert event in EVENTS, f"{where}: {event} is not in proto/log_events.py"
    assert levels - {0} <= set(EVENTS[event].levels), where
    if names is not None:
        assert required(event) <= names <= EVENTS[event].example.keys(), where


def test_events_of_the_table_are_logged():
    used = {
        node.value
        for _, tree in sources()
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in EVENTS
    }
    assert used == EVENTS.keys()


@pytest.mark.parametrize("event", EVENTS)
def test_an_event(event):
    known = EVENTS[event]
    assert NAME.fullmatch(event) and known.levels and set(known.levels) <= set(LEVELS.values())
    assert set(known.by) <= {row.name for row in ACTORS}
    assert not OWN & known.example.keys() and required(event) <= known.example.keys()
    assert dict(known.example) == fit_fields(dict(known.example))
    text = text_of(event, known.example)
    assert text.isprintable() and "?" not in text.replace("table?", "") and not re.search(r"[{}<]", text)
    least = {name: known.example[name] for name in required(event)}
    assert not re.search(r"[{}<]|  ", text_of(event, least))


def test_sentences_are_made_of_fields():
    met = {"address": "192.0.2.7", "what": "refused", "key": "max_sessions", "limit": 5}
    assert text_of("limit.met", met) == "192.0.2.7: refused: max_sessions is met (5 in this process)"
    assert text_of("limit.met", {**met, "more": 3}).endswith("; 3 times more since the last such line")
    assert text_of("reload.done", {"users": 1}) == "reloaded: 1 user"
    assert text_of("reload.done", {"users": 0}) == "reloaded: 0 users"
    assert (
        text_of("service.ready", {"addresses": "a", "users": 2, "seconds": 0.1})
        == "ready: a (2 users, 0.10 s)"
    )
    broken = {"process": "auth", "call": "socket", "promise": "", "then": "ended"}
    assert text_of("process.broke_promise", broken) == "auth broke its promises: socket; ended"
    broken = {"process": "init", "call": "socket", "promise": "inet\n"}
    assert text_of("process.broke_promise", broken) == "init broke its promises: socket would need 'inet\\n'"
    assert text_of("maildir.failed", {"error": "a {path} <b> %s"}) == "a {path} <b> %s", (
        "a value is no template"
    )


@pytest.mark.parametrize(
    ("kind", "level", "event", "fields"),
    [
        ("maildir.{user}", NOTICE, "login.failed", {"address": "a", "why": "AUTH", "user": "x"}),
        ("maildir.{user}", WARNING, "no.such", {}),
        ("maildir.{user}", ERROR, "maildir.note", {"note": "x"}),
        ("maildir.{user}", WARNING, "maildir.note", {}),
        ("maildir.{user}", WARNING, "maildir.note", {"note": "x", "level": "error"}),
        ("auth", WARNING, "maildir.note", {"note": "x"}),
        ("listener", INFO, "session.over", {"address": "a", "user": "x"}),
    ],
)
def test_what_an_actor_may_not_say(kind, level, event, fields):
    assert objection(kind, level, event, fields)


def test_what_an_actor_may_say():
    assert not objection("maildir.{user}", WARNING, "maildir.note", {"note": "x"})
    assert not objection("gate", DEBUG, "session.over", {"address": "a", "why": "x", "user": ""})
    assert not objection("auth", DEBUG, "process.failed_at", {"call": "x"})


def test_the_documents_have_the_table():
    """`python -m tests.support.event_documents` writes the table."""
    with open(LOGS, encoding="utf-8") as file:
        text = file.read()
    assert logs(text) == text
