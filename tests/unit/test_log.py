"""The log's two forms: times with a zone, one line an entry whatever was said, and no line longer than a pipe takes at once."""

import datetime as dt
import json
import os
import time

import pytest
from popkernel.kernel.runtime import log as log_module
from popkernel.kernel.runtime.log import ERROR, INFO, NOTICE, WARNING, Log, as_json, event_text, say

EVIL = 'x" why=AUTH\n2026-01-01 popkernel: user=root \x1b[2J\u2028\udc80\\'


@pytest.fixture
def log(capfd):
    """What a Log of that form has written, as lines."""

    def lines(form, write, verbose=1):
        write(Log("stderr", verbose, form))
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
    (line,) = log("text", lambda log: log(WARNING, "disk is full"))
    when, _, rest = line.partition(" popkernel: ")
    assert dt.datetime.fromisoformat(when).tzinfo is not None and rest == "warning: disk is full\n"
    (line,) = log("text", lambda log: log(NOTICE, "a", "auth"))
    assert line.endswith(" popkernel: auth: a\n")
    assert log("text", lambda log: log(7, "debug")) == []
    assert len(log("text", lambda log: log(ERROR, "one\ntwo"))) == 2


def test_json(log):
    (line,) = log("json", lambda log: log(WARNING, "disk is full", "auth"))
    row = json.loads(line)
    dt.datetime.fromisoformat(row.pop("time"))
    assert row == {"level": "warning", "actor": "auth", "text": "disk is full"}
    fields = {"address": "[::1]:5", "user": EVIL, "commands": 3}
    (line,) = log("json", lambda log: log.event(INFO, "session over", fields))
    assert line.isascii() and line.count("\n") == 1
    row = json.loads(line)
    assert {name: row[name] for name in fields} == fields
    assert row["event"] == "session over" and row["level"] == "info" and "\n" not in row["text"]


def test_no_value_passes_for_two(log):
    (line,) = log("text", lambda log: log.event(NOTICE, "login failed", {"address": "a:1", "user": EVIL, "empty": ""}))
    assert line.count("\n") == 1 and line.rstrip("\n").isprintable()
    assert event_text("x", {"user": 'al "ice'}) == 'x: user="al \\"ice"'
    assert event_text("x", {"a": "-", "b": "", "c": 0, "d": "é"}) == 'x: a="-" b=- c=0 d=é'


@pytest.mark.parametrize("form", ["text", "json"])
def test_nothing_is_longer_than_a_pipe_takes(log, form):
    def write(log):
        log(WARNING, "\U0001f600" * 2000)
        log.event(NOTICE, "login failed", {"user": "\U0001f600" * 255, "why": "\x01" * 2000})
        log(WARNING, "after")

    lines = log(form, write)
    assert len(lines) == 3 and "after" in lines[-1]
    assert all(line.endswith("\n") and len(line.encode(errors="replace")) <= 4096 for line in lines)
    if form == "json":
        assert [json.loads(line)["level"] for line in lines] == ["warning", "notice", "warning"]
    assert len(as_json(3, "x" * 100_000, "a")) < 4096


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_reader_who_stopped_loses_lines_and_is_told(form, monkeypatch):
    reading, writing = os.pipe()
    kept = os.dup(2)
    os.dup2(writing, 2)
    try:
        log = Log("stderr", 0, form)
        for number in range(5000):
            log(WARNING, f"line {number} " + "." * 100)
        before = len(os.read(reading, 1 << 20))
        log(WARNING, "at last")
        told = os.read(reading, 1 << 16).decode().splitlines()
    finally:
        os.dup2(kept, 2)
        for fd in (reading, writing, kept):
            os.close(fd)
    assert before <= 1 << 16
    assert "lines of the log were lost" in told[0] and "at last" in told[1] and len(told) == 2
    if form == "json":
        assert json.loads(told[0])["level"] == "warning"


def test_init_s_words(capfd):
    say(ERROR, "one\ntwo \x1b")
    say(WARNING, "three")
    assert capfd.readouterr().err == "popkernel: one\npopkernel: two \\x1b\npopkernel: warning: three\n"
    say(NOTICE, "ready: x", "json")
    row = json.loads(capfd.readouterr().err)
    assert (row["actor"], row["level"], row["text"]) == ("init", "notice", "ready: x")
