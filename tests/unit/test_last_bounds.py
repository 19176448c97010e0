"""Bounds that somebody hostile meets, and who is given time when the service ends. No service."""

import os
import select
from types import SimpleNamespace

import pytest
from popkernel.actors.maildir import replay
from popkernel.cli.common import replay_bounds
from popkernel.kernel.decisions.leases import Core, Key, Settings
from popkernel.kernel.replay.harness import StageLoop
from popkernel.kernel.supervisor import sessions
from popkernel.kernel.supervisor.shutdown import Shutdown
from popkernel.proto.trace.recording import RecordingError

from tests.support.registry import Registry, Said


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
    monkeypatch.setattr(sessions, "_MOST_OPENED", 3)
    core = Core({}, Settings())
    core.sessions = {Key("listener.0", number): ("alice", float(number)) for number in range(9)}
    made = sessions.Sessions(None, None, core, None, None, None, None, None, None)
    for key in core.sessions:
        made.opened(key)
    assert [key.session for key in made._opened] == [6, 7, 8]


def shutdown(maildirs=None, holders=None):
    """One that is about to begin, and its registry; who is asked whether it lives."""
    loop, asked = StageLoop(), []
    processes, core = Registry(loop), SimpleNamespace(maildirs=maildirs or {})
    made = Shutdown(loop, processes, core, SimpleNamespace(holders=holders or {}), Said(), None, lambda: None)
    made._silent = SimpleNamespace(suspect=lambda process, seconds: asked.append(process.name))
    return made, processes, asked


def test_who_may_be_at_a_quit_or_a_delivery_is_given_its_time():
    maildirs = {"reads": SimpleNamespace(key=1), "idle": SimpleNamespace(key=None), "gets": SimpleNamespace(key=None)}
    stop, processes, asked = shutdown(maildirs, {"gets": "mda"})
    for name in maildirs:
        processes.comes(f"maildir.{name}")
    processes.comes("auth", "init")
    stop._ask_alive(processes)
    assert asked == ["maildir.idle", "auth"]


def test_it_is_asked_whether_it_lives_before_it_is_told_to_stop():
    stop, processes, asked = shutdown()
    mda = processes.comes("mda", "init")
    mda.channel.send = lambda message: asked.append(type(message).__name__)
    stop.begin()
    assert asked[-2:] == ["mda", "Stop"] and mda.state == "stopping"
