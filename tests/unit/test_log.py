"""Test the log's two forms: times with a zone, one line an entry, lines of bounded length."""

import datetime as dt
import json
import os
import time

import pytest
from popkernel.kernel.runtime import log as log_module
from popkernel.kernel.runtime.log import Log, as_json, say
from popkernel.proto.log_events import EVENTS, FINDINGS, text_of
from popkernel.proto.log_levels import DEBUG, ERROR, INFO, NOTICE, WARNING

EVIL = 'x" why=AUTH\n2026-01-01 popkernel: user=root \x1b[2J\u2028\udc80\\'


@pytest.fixture
def log(capfd):
    """Return the lines that a Log of that form has written."""

    def lines(form, write, most=INFO):
        write(Log("stderr", most, form))
        return capfd.readouterr().err.splitlines(keepends=True)

    return lines


@pytest.mark.parametrize(("zone", "offset"), [("UTC0", "+00:00"), ("CET-1", "+01:00"), ("NST3:30", "-03:30")])
def test_times_have_their_offset(monkeypatch, zone, offset):
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        shown = log_module.stamp()
        assert shown.endswith(offset) and len(shown) == len("2026-11-23T13:00:00.000+00:00")
        assert abs((dt.datetime.fromisoformat(shown) - dt.datetime.now(dt.UTC)).total_seconds()) < 60
    finally:
        monkeypatch.undo()
        time.tzset()


def test_text(log):
    (line,) = log("text", lambda log: log(WARNING, "mailbox.fault", fault="disk is full"))
    when, _, rest = line.partition(" popkernel: ")
    assert dt.datetime.fromisoformat(when).tzinfo is not None and rest == "warning: disk is full\n"
    (line,) = log("text", lambda log: log.event(NOTICE, "maildir.swept", {"files": 2}, "maildir.bob"))
    assert line.endswith(" popkernel: maildir.bob: swept 2 old files out of tmp\n")
    assert log("text", lambda log: log(DEBUG, "mailboxes.checked")) == []
    one, two = log("text", lambda log: log(ERROR, "reload.failed", error="one\ntwo \x1b"))
    assert one.endswith(" popkernel: error: not reloaded, what is in force stays: one\n")
    assert two.endswith(" popkernel: error: two \\x1b\n")


def test_json(log):
    fields = {"error": "No space left on device"}
    (line,) = log("json", lambda log: log.event(WARNING, "maildir.delivery_failed", fields, "maildir.bob"))
    row = json.loads(line)
    dt.datetime.fromisoformat(row.pop("time"))
    assert row == {"level": "warning", "actor": "maildir.bob", "event": "maildir.delivery_failed", **fields}
    fields = {"address": "[::1]:5", "user": EVIL, "commands": 3}
    (line,) = log("json", lambda log: log.event(INFO, "session.over", fields))
    assert line.isascii() and line.count("\n") == 1
    row = json.loads(line)
    assert list(row) == ["time", "level", "actor", "event", *fields]  # each thing once
    assert {name: row[name] for name in fields} == fields
    assert row["event"] == "session.over" and row["level"] == "info"


def test_a_list_of_findings_is_an_object_each(log):
    lines = log("json", lambda log: log(ERROR, "reload.failed", error="a\n" + "b" * 3000 + "\n" + "c" * 3000))
    rows = [json.loads(line) for line in lines]
    assert [row["error"] for row in rows] == ["a", "b" * 3000, "c" * 3000]
    assert {row["event"] for row in rows} == {"reload.failed"}


FORGED = "x\nlogin failed: address=192.0.2.1:5 session=1.1 reason=password waited_ms=1 user="


@pytest.mark.parametrize("event", sorted(EVENTS))
def test_no_text_from_outside_begins_a_line(log, event):
    """A listener gave a session a name with the line of a failed login, and a kick wrote it for fail2ban."""
    known = EVENTS[event]
    for name, example in known.example.items():
        if type(example) is str and name not in FINDINGS:
            fields = dict(known.example) | {name: FORGED}
            lines = log("text", lambda log, fields=fields: log.event(WARNING, event, fields))
            assert len(lines) == 1 and lines[0].rstrip("\n").isprintable()


def test_no_value_passes_for_two(log):
    (line,) = log(
        "text", lambda log: log.event(NOTICE, "login.failed", {"address": "a:1", "user": EVIL, "empty": ""})
    )
    assert line.count("\n") == 1 and line.rstrip("\n").isprintable()
    assert " popkernel: login failed: address=a:1 user=" in line
    assert text_of("x", {"user": 'al "ice'}) == 'x: user="al \\"ice"'
    assert text_of("x", {"a": "-", "b": "", "c": 0, "d": "é"}) == 'x: a="-" b=- c=0 d=é'


@pytest.mark.parametrize("form", ["text", "json"])
def test_nothing_is_longer_than_a_pipe_takes(log, form):
    def write(log):
        log(WARNING, "mailbox.fault", fault="\U0001f600" * 2000)
        log.event(NOTICE, "login.failed", {"user": "\U0001f600" * 255, "why": "\x01" * 2000})
        log(WARNING, "mailbox.fault", fault="after")

    lines = log(form, write)
    assert len(lines) == 3 and "after" in lines[-1]
    assert all(line.endswith("\n") and len(line.encode(errors="replace")) <= 4096 for line in lines)
    if form == "json":
        assert [json.loads(line)["level"] for line in lines] == ["warning", "notice", "warning"]
    assert len(as_json(ERROR, "a", "x", {"error": "x" * 100_000})) < 4096


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_reader_that_stops_loses_lines_and_is_told(form, monkeypatch):
    reading, writing = os.pipe()
    kept = os.dup(2)
    os.dup2(writing, 2)
    try:
        log = Log("stderr", NOTICE, form)
        for number in range(5000):
            log(WARNING, "mailbox.fault", fault=f"line {number} " + "." * 100)
        before = len(os.read(reading, 1 << 20))
        log(WARNING, "mailbox.fault", fault="at last")
        told = os.read(reading, 1 << 16).decode().splitlines()
    finally:
        os.dup2(kept, 2)
        for fd in (reading, writing, kept):
            os.close(fd)
    assert before <= 1 << 16
    assert "at last" in told[1] and len(told) == 2
    if form == "json":
        row = json.loads(told[0])
        assert (row["level"], row["event"]) == ("warning", "log.lost") and row["count"] > 1000
    else:
        assert " popkernel: warning: " in told[0] and told[0].endswith(
            " lines of the log were lost: nobody read them"
        )


def test_lines_of_init(capfd):
    say(ERROR, "service.failed", error="one\ntwo \x1b")
    say(WARNING, "service.doubt", problem="three")
    assert capfd.readouterr().err == "popkernel: one\npopkernel: two \\x1b\npopkernel: warning: three\n"
    say(NOTICE, "service.ready", "json", addresses="x", users=1, seconds=0.5)
    row = json.loads(capfd.readouterr().err)
    assert (row["actor"], row["level"], row["event"], row["users"]) == ("init", "notice", "service.ready", 1)


@pytest.mark.parametrize("form", ["text", "json"])
def test_under_the_journal_a_line_has_its_level(form, monkeypatch, tmp_path):
    """JOURNAL_STREAM alone says nothing: it is inherited by programs whose standard error leads elsewhere."""
    path = tmp_path / "journal"
    kept = os.dup(2)
    with open(path, "wb") as file:
        os.dup2(file.fileno(), 2)
        try:
            there = os.fstat(2)
            for stream in (f"{there.st_dev}:{there.st_ino}", f"{there.st_dev}:{there.st_ino + 1}", "x", ""):
                monkeypatch.setenv("JOURNAL_STREAM", stream)
                Log("stderr", INFO, form)(WARNING, "maildir.note", note="here")
                in_journal = stream == f"{there.st_dev}:{there.st_ino}"
                assert Log("syslog", INFO, form).seen == in_journal, "else its ready line is there twice"
        finally:
            os.dup2(kept, 2)
            os.close(kept)
    first, *others = path.read_text().splitlines()
    assert len(others) == 3
    if form == "text":
        assert first == "<4>here" and all(line.endswith(" popkernel: warning: here") for line in others)
    else:
        lines = (first.removeprefix("<4>"), *others)
        assert first.startswith("<4>{") and all(json.loads(line)["level"] == "warning" for line in lines)
