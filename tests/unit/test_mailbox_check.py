"""Test init's mailbox check: reported once, whatever it finds, and nobody waits for one that hangs."""

import os
import select
import sys
import time

import pytest
from popkernel.kernel.init import mailbox_check as look_module
from popkernel.kernel.init.mailbox_check import MailboxCheck
from popkernel.kernel.runtime.loop import Loop
from popkernel.kernel.supervisor import reload as reload_module
from popkernel.kernel.supervisor.reload import Asker


@pytest.fixture
def finished(monkeypatch):
    """Run a check with these warnings to its end, as init does; return what it reported."""

    def run(warnings):
        monkeypatch.setattr(look_module, "warnings", lambda *_, **__: warnings())
        loop, told = Loop(), []
        look = MailboxCheck(loop, "/users", "", told.append)
        pid = look.pid
        watch = os.pidfd_open(pid)
        until = time.monotonic() + 20
        while not select.select([watch], [], [], 0)[0]:  # it may wait for its reader
            loop.later(0.01, lambda: None)
            loop.turn()
            assert time.monotonic() < until
        os.close(watch)
        assert os.waitpid(pid, os.WNOHANG)[0] == pid
        assert told == []
        look.reaped(pid + 1)
        look.reaped(pid)
        look.reaped(pid)
        assert len(told) == 1
        look.end()
        return told[0]

    return run


def test_faults_are_reported(finished):
    assert finished(lambda: iter(())) == []
    assert finished(lambda: iter(["one", "two \udc80\n\x1b"])) == ["one", "two \\udc80\\n\\x1b"]


def test_long_lines_are_bounded(finished):
    lines = finished(lambda: iter(["\U0001f600" * 5000] * 11))
    assert sum(len(line.encode()) for line in lines) <= 1 << 16
    assert all(len(line) <= 1900 for line in lines)


def test_a_bad_table_is_left_to_the_kernel(finished, capfd):
    def bad():
        yield "one"
        raise ValueError("users:3: x")

    assert finished(bad) == ["one"]
    assert capfd.readouterr().err == ""


def test_an_error_of_its_own_is_shown(finished, capfd, monkeypatch):
    plain = open(2, "w", closefd=False)  # pytest's own stream has another descriptor, which the check closes
    monkeypatch.setattr(sys, "stderr", plain)

    def wrong():
        yield "one"
        raise KeyError("wrong")

    assert finished(wrong) == ["one"]
    assert "KeyError: 'wrong'" in capfd.readouterr().err


def test_a_hung_check_is_ended_at_once(monkeypatch):
    reading, writing = os.pipe()
    monkeypatch.setattr(
        look_module, "warnings", lambda *_, **__: map(lambda fd: os.read(fd, 1).decode(), [kept])
    )
    kept = reading
    monkeypatch.setattr(look_module.os, "closerange", lambda *_: None)
    loop, told = Loop(), []
    look = MailboxCheck(loop, "/users", "", told.append)
    pid = look.pid
    before = time.monotonic()
    look.end()
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == 9
    assert time.monotonic() - before < 5 and told == []
    os.close(reading)
    os.close(writing)


def test_the_check_keeps_no_descriptor_of_init(finished):
    """Above all not the lock of the run directory."""
    lock = os.open("/", os.O_RDONLY)

    def held():
        yield str(sorted(int(fd) for fd in os.listdir("/proc/self/fd")))

    try:
        fds = [int(fd) for fd in finished(held)[0].strip("[]").split(", ")]
    finally:
        os.close(lock)
    assert lock not in fds and len(fds) <= 5, fds  # 0, 1, 2, the pipe, and the one of this listing


def test_a_reload_is_answered_without_it(monkeypatch):
    monkeypatch.setattr(reload_module, "_LOOK_SECONDS", 0.01)
    loop, answers, log = Loop(), [], []
    asker = Asker(
        loop, lambda level, event, **fields: log.append((level, event, fields)), answers.append, ["listeners"]
    )
    asker.wait()
    asker.mailbox_fault("start", "user a: of the start")  # a line of an earlier check
    asker.mailboxes_checked("start")
    assert answers == []
    asker.warned("c:1: y; z")
    asker.warned("c:1: y; z")  # of the next listener
    asker.mailbox_fault("reload", "user b: x")
    while not answers:
        loop.turn()
    asker.mailboxes_checked("reload")
    assert answers == [
        {"ok": True, "next_start": ["listeners"], "warnings": ["c:1: y; z"], "mailboxes": ["user b: x"]}
    ]
    assert [fields["fault"] for _, event, fields in log if event == "mailbox.fault"] == [
        "user a: of the start",
        "user b: x",
    ]


def test_the_check_has_a_lower_priority(finished):
    """Checking ten thousand mailboxes takes 0.2 s of processor time, just when all clients reconnect."""
    mine = os.getpriority(os.PRIO_PROCESS, 0)

    def looking():
        yield str(os.getpriority(os.PRIO_PROCESS, 0))

    assert finished(looking) == [str(min(19, mine + 10))]
