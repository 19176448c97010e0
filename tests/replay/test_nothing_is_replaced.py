"""Check that a replay gives its actors their own world and replaces nothing in this process."""

import os
import pathlib
import random
import secrets
import select
import signal
import socket
import sys
import time
from importlib import import_module
from types import ModuleType

import pytest
from popkernel.kernel.replay.harness import Harness
from popkernel.kernel.replay.runner import replay
from popkernel.kernel.runtime.channel import watch
from popkernel.proto.trace.recording import RecordingError, read

HERE = pathlib.Path(__file__).parent
SYSTEM = (os, random, secrets, select, signal, socket, time)
SIGNALS = (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGPIPE, signal.SIGQUIT)
FRAMES = 40  # between two checks, each of which takes some milliseconds


def things():
    """Return what is bound to each name of popkernel's modules, their classes and used system modules."""
    ours = [module for name, module in sys.modules.items() if name.partition(".")[0] == "popkernel"]
    classes = {
        value
        for module in ours
        for value in vars(module).values()
        if isinstance(value, type) and value.__module__.startswith("popkernel.")
    }
    found = {
        (place.__name__, name): value
        for place in (*ours, *SYSTEM)
        for name, value in vars(place).items()
        if not (isinstance(value, ModuleType) and value in ours)  # a submodule loaded meanwhile
    }
    found |= {
        (f"{kind.__module__}.{kind.__qualname__}", name): value
        for kind in classes
        for name, value in vars(kind).items()
    }
    return found | {("signal", number): signal.getsignal(number) for number in SIGNALS}


def changes(before):
    now = things()
    return sorted(
        f"{place}.{name}"
        for (place, name), value in before.items()
        if (place, name) not in now or now[place, name] is not value
    )


def test_playing_every_recording_replaces_nothing(monkeypatch):
    for actor in ("auth", "listener", "maildir", "mda"):
        import_module(f"popkernel.actors.{actor}.replay")
    found_changes = []

    def play(self, frames, plays=Harness.play):
        for number, frame in enumerate(plays(self, frames)):
            if number % FRAMES == 1:
                found_changes.append(changes(before))
            yield frame

    monkeypatch.setattr(Harness, "play", play)
    before = things()
    for path in sorted(HERE.glob("*.rec")):
        replay(read(path.read_bytes()))
    assert [name for found in found_changes for name in found] == []
    assert len(found_changes) > 50
    assert changes(before) == []
    assert watch.tap is None


def test_a_forged_recording_gets_no_tap_into_this_process():
    """A forged TraceStart must be refused.

    No tap records it; an actor that got it would send what this process shows from then on.
    """
    recording = read((HERE / "poplib.rec").read_bytes())
    at = next(i for i, f in enumerate(recording.frames) if f.actor == "listener.0" and f.way == "in")
    forged = recording.frames[at]._replace(
        peer="kernel", name="TraceStart", session=0, fields={"payload": True}
    )
    frames = [*recording.frames[:at], forged, *recording.frames[at:]]
    try:
        with pytest.raises(RecordingError, match="TraceStart is never recorded"):
            replay(recording._replace(frames=frames), actor="listener.0")
        assert watch.tap is None
    finally:
        watch.tap = None
