"""Replay any recording: exit by code alone, no terminal control, an end in time, and no file left behind.

The octets choose a committed recording and change it: its values to bad ones, its octets at random.
"""

import contextlib
import io
import os
import pathlib
import random
import tempfile

import msgpack
from popkernel.cli.common import replay_bounds
from popkernel.cli.main import main

NASTY = [
    float("nan"),
    float("inf"),
    -1,
    -1.0,
    0,
    1 << 62,
    (1 << 64) - 1,
    -(1 << 63),
    1e300,
    "",
    "\x1b]0;x\x07\x1b[2J",
    "\udcff",
    "a" * 5000,
    "nobody.0",
    b"",
    b"/etc/passwd",
    b"../../x",
    b"..",
    b"a\0b",
    b"\xff" * 300,
    None,
    True,
    [],
    {},
    [[]],
    {"cut": 1 << 62},
    {"content": 1},
    {"is": "Core", "has": {}},
    "maildir.alice",
    "kernel",
    "listener.0",
    "mda",
    "auth",
    {"redacted": True},
]
WHERE = pathlib.Path(__file__).parent.parent / "replay"
RECORDINGS = [path.read_bytes() for path in sorted(WHERE.glob("*.rec")) if path.stat().st_size < 24_000]
SEEDS = [bytes([number]) for number in range(len(RECORDINGS) * 2)]


def one(data):
    recording = changed(data)
    kept, before = tempfile.tempdir, replay_bounds.SECONDS
    with tempfile.TemporaryDirectory(prefix="pkfuzz") as where:
        path = pathlib.Path(where) / "x.rec"
        path.write_bytes(recording)
        temporary = pathlib.Path(where) / "tmp"
        temporary.mkdir()
        out = io.StringIO()
        try:
            tempfile.tempdir, replay_bounds.SECONDS = str(temporary), 5
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
                code = main(["replay", str(path)])
        finally:
            tempfile.tempdir, replay_bounds.SECONDS = kept, before
        assert code in (0, 1, 65), (code, out.getvalue())
        assert all(c.isprintable() or c == "\n" for c in out.getvalue())
        assert sorted(os.listdir(where)) == ["tmp", "x.rec"]
        assert os.listdir(temporary) == []
        assert path.read_bytes() == recording


def changed(data):
    """Change one of the recordings as the octets say."""
    chance = random.Random(data)
    recording = RECORDINGS[(data[0] if data else 0) % len(RECORDINGS)]
    if chance.random() < 0.2:
        octets = bytearray(recording)
        for _ in range(chance.randint(1, 8)):
            octets[chance.randrange(len(octets))] = chance.randrange(256)
        return bytes(octets)
    things = list(
        msgpack.Unpacker(io.BytesIO(recording), strict_map_key=False, unicode_errors="surrogateescape")
    )
    for _ in range(chance.choice((1, 1, 2, 4, 16))):
        at = chance.choice((0, chance.randrange(len(things)), chance.randrange(len(things))))
        if at and chance.random() < 0.2:
            other = chance.randrange(1, len(things))
            things[at], things[other] = things[other], things[at]
        else:
            things[at] = worse(things[at], chance)
    return b"".join(msgpack.packb(thing, unicode_errors="surrogateescape") for thing in things)


def worse(thing, chance):
    """Replace some value inside, and mostly keep containers, so that the change lies deep."""
    if isinstance(thing, (dict, list)) and thing and chance.random() < 0.95:
        copy = thing.copy()
        keys = list(copy) if isinstance(copy, dict) else range(len(copy))
        key = chance.choice(keys)
        if isinstance(copy, dict) and chance.random() < 0.05:
            del copy[key]
        else:
            copy[key] = worse(copy[key], chance)
        return copy
    return chance.choice(NASTY)
