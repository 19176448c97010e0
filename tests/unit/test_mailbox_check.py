"""Init's look at mailboxes: told once, whatever it finds, and nobody ever waits for one that hangs."""

import os
import select
import sys
import time

import pytest
from popkernel.kernel.init import mailbox_check as look_module
from popkernel.kernel.init.mailbox_check import Look
from popkernel.kernel.runtime.loop import Loop
from popkernel.kernel.supervisor import reload as reload_module
from popkernel.kernel.supervisor.reload import Asker


@pytest.fixture
def finished(monkeypatch):
    """Run a look of which `warnings` is given to its end, as init does, and give what it told."""

    def run(warnings):
        monkeypatch.setattr(look_module, "warnings", lambda *_, **__: warnings())
        loop, told = Loop(), []
        look = Look(loop, "/users", "", told.append)
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


def test_what_is_found(finished):
    assert finished(lambda: iter(())) == []
    assert finished(lambda: iter(["one", "two \udc80\n\x1b"])) == ["one", "two \\udc80\\n\\x1b"]


def test_long_lines_are_bounded(finished):
    lines = finished(lambda: iter(["\U0001f600" * 5000] * 11))
    assert sum(len(line.encode()) for line in lines) <= 1 << 16
    assert all(len(line) <= 1900 for line in lines)


def test_a_table_gone_bad_is_the_kernel_s_to_tell(finished, capfd):
    def bad():
        yield "one"
        raise ValueError("users:3: x")

    assert finished(bad) == ["one"]
    assert capfd.readouterr().err == ""


def test_an_error_of_its_own_is_shown(finished, capfd, monkeypatch):
    plain = open(2, "w", closefd=False)  # pytest's own has another descriptor, which the look rightly closes
    monkeypatch.setattr(sys, "stderr", plain)

    def wrong():
        yield "one"
        raise KeyError("wrong")

    assert finished(wrong) == ["one"]
    assert "KeyError: 'wrong'" in capfd.readouterr().err


def test_one_that_hangs_is_ended_at_once(monkeypatch):
    reading, writing = os.pipe()
    monkeypatch.setattr(look_module, "warnings", lambda *_, **__: map(lambda fd: os.read(fd, 1).decode(), [kept]))
    kept = reading
    monkeypatch.setattr(look_module.os, "closerange", lambda *_: None)
    loop, told = Loop(), []
    look = Look(loop, "/users", "", told.append)
    pid = look.pid
    before = time.monotonic()
    look.end()
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == 9
    assert time.monotonic() - before < 5 and told == []
    os.close(reading)
    os.close(writing)


def test_it_keeps_no_descriptor_of_init_s(finished):
    """The lock of the run directory above all."""
    lock = os.open("/", os.O_RDONLY)

    def held():
        yield str(sorted(int(fd) for fd in os.listdir("/proc/self/fd")))

    try:
        fds = [int(fd) for fd in finished(held)[0].strip("[]").split(", ")]
    finally:
        os.close(lock)
    assert lock not in fds and len(fds) <= 5, fds  # 0, 1, 2, the pipe, and the listing's own


def test_a_reload_is_answered_without_it(monkeypatch):
    monkeypatch.setattr(reload_module, "_LOOK_SECONDS", 0.01)
    loop, answers, log = Loop(), [], []
    asker = Asker(loop, lambda *line: log.append(line), answers.append, ["listeners"])
    asker.wait()
    asker.looked("start", "user a: of the start")  # an earlier look's word
    asker.looked("start", "")
    assert answers == []
    asker.warned("c:1: y; z")
    asker.warned("c:1: y; z")  # of the next listener
    asker.looked("reload", "user b: x")
    while not answers:
        loop.turn()
    asker.looked("reload", "")
    assert answers == [{"ok": True, "next_start": ["listeners"], "warnings": ["c:1: y; z"], "mailboxes": ["user b: x"]}]
    assert [line[1] for line in log][:3:2] == ["user a: of the start", "user b: x"]


def test_who_has_a_session_goes_first(finished):
    """A look at ten thousand mailboxes takes a fifth of a second of a processor, at the time when all clients come back."""
    mine = os.getpriority(os.PRIO_PROCESS, 0)

    def looking():
        yield str(os.getpriority(os.PRIO_PROCESS, 0))

    assert finished(looking) == [str(min(19, mine + 10))]
