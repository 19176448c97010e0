"""Bounds that somebody hostile meets, and who is given time when the service ends. No service."""

import os
import select
from types import SimpleNamespace

import pytest
from popkernel.actors.maildir import replay
from popkernel.cli import replay_bounds
from popkernel.kernel.supervisor import sessions as ledger
from popkernel.kernel.supervisor import shutdown
from popkernel.proto.trace.recording import RecordingError


def test_what_a_replay_writes_has_an_end(tmp_path):
    (tmp_path / "m").mkdir(0o700)
    drop = replay._Drop(os.fsencode(tmp_path / "m"))
    try:
        drop.left = 1000
        with drop.deliver_begin() as one:
            one.write(b"x" * 600)
        with drop.deliver_begin() as two:
            two.write(b"x" * 400)
            with pytest.raises(RecordingError, match="too much for a replay"):
                two.write(b"x")
    finally:
        drop.close()


def test_who_waits_for_a_disk_is_not_waited_for_for_ever(monkeypatch):
    monkeypatch.setattr(replay_bounds, "SECONDS", 0.05)
    with pytest.raises(replay_bounds.DearError, match="takes more than 0.2 s"), replay_bounds.bounded(0):
        select.select([], [], [], 10)


def test_a_listener_that_never_says_what_is_over_holds_no_more_than_so_much(monkeypatch):
    monkeypatch.setattr(ledger, "_MOST_OPENED", 3)
    sessions = {number: ("alice", float(number)) for number in range(9)}
    made = ledger.Ledger(SimpleNamespace(core=SimpleNamespace(sessions=sessions)))
    for number in sessions:
        made.opened(number)
    assert list(made._opened) == [6, 7, 8]


def test_who_may_be_at_a_quit_or_a_delivery_is_given_its_time():
    def process(name, kind="maildir.{user}"):
        return SimpleNamespace(name=name, kind=kind, parent="spawner", hello=1, session=0, state="stopping")

    there = {name: process(f"maildir.{name}") for name in ("reads", "idle", "gets")} | {"auth": process("auth", "auth")}
    maildirs = {"reads": SimpleNamespace(key=1), "idle": SimpleNamespace(key=None), "gets": SimpleNamespace(key=None)}
    kernel = SimpleNamespace(
        processes=there, loop=None, hangs=None, core=SimpleNamespace(maildirs=maildirs), deliveries=SimpleNamespace(holders={"gets": "mda"}),
    )
    stop = shutdown.Stopping(kernel)
    asked = []
    stop._silent = SimpleNamespace(suspect=lambda process, seconds: asked.append(process.name))
    stop._ask_alive(list(there.values()))
    assert asked == ["maildir.idle", "auth"]


def test_it_is_asked_whether_it_lives_before_it_is_told_to_stop():
    said = []
    mda = SimpleNamespace(
        name="mda", kind="mda", parent="init", hello=1, session=0, state="serving", channel=SimpleNamespace(send=lambda message: said.append(type(message).__name__)),
    )
    kernel = SimpleNamespace(
        processes={"mda": mda}, hangs=None, state="running", log_line=lambda *_: None, loop=SimpleNamespace(later=lambda *_: None),
        core=SimpleNamespace(maildirs={}), deliveries=SimpleNamespace(holders={}), reloads=SimpleNamespace(stop=lambda: None),
    )
    stop = shutdown.Stopping(kernel)
    stop._ask_alive = lambda stage: said.append("asked") if stage else None
    stop.begin()
    assert said[-2:] == ["asked", "Stop"] and mda.state == "stopping"
