"""Test bounds against hostile input, and which actors get time when the service ends."""

import os
import select
from types import SimpleNamespace

import pytest
from popkernel.actors.maildir import replay
from popkernel.cli.common import replay_bounds
from popkernel.kernel.decisions.leases import Core, Key, Settings
from popkernel.kernel.replay.loop import ReplayLoop
from popkernel.kernel.supervisor import sessions
from popkernel.kernel.supervisor.shutdown import Shutdown
from popkernel.proto.trace.recording import RecordingError

from tests.support.registry import LogRecorder, Registry


def test_output_of_a_replay_is_bounded(tmp_path):
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


def test_a_process_that_waits_for_a_disk_is_given_up(monkeypatch):
    monkeypatch.setattr(replay_bounds, "SECONDS", 0.05)
    with (
        pytest.raises(replay_bounds.TooExpensiveError, match="takes more than 0.2 s"),
        replay_bounds.bounded(0),
    ):
        select.select([], [], [], 10)


def test_unreported_session_ends_are_bounded(monkeypatch):
    monkeypatch.setattr(sessions, "_MOST_OPENED", 3)
    core = Core({}, Settings())
    core.sessions = {Key("listener.0", number): ("alice", float(number)) for number in range(9)}
    made = sessions.Sessions(None, None, core, None, None, None, None, None, None, None)
    for key in core.sessions:
        made.opened(key)
    assert [key.session for key in made._opened] == [6, 7, 8]


def shutdown(maildirs=None, holders=None):
    """Return a shutdown about to begin, its registry, and the list of actors asked whether they live."""
    loop, asked = ReplayLoop(), []
    processes, core = Registry(loop), SimpleNamespace(maildirs=maildirs or {})
    made = Shutdown(
        loop, processes, core, SimpleNamespace(holders=holders or {}), LogRecorder(), None, lambda: None
    )
    made._silent = SimpleNamespace(suspect=lambda process, seconds: asked.append(process.name))
    return made, processes, asked


def test_actors_with_a_quit_or_a_delivery_get_time():
    maildirs = {
        "reads": SimpleNamespace(key=1),
        "idle": SimpleNamespace(key=None),
        "gets": SimpleNamespace(key=None),
    }
    stop, processes, asked = shutdown(maildirs, {"gets": "mda"})
    for name in maildirs:
        processes.comes(f"maildir.{name}")
    processes.comes("auth", "init")
    stop._ask_alive(processes)
    assert asked == ["maildir.idle", "auth"]


def test_liveness_is_checked_before_a_stop():
    stop, processes, asked = shutdown()
    mda = processes.comes("mda", "init")
    mda.channel.send = lambda message: asked.append(type(message).__name__)
    stop.begin()
    assert asked[-2:] == ["mda", "ActorStop"] and mda.state == "stopping"
