"""Replay malicious recordings: exit code 65 and a line, within bounds, and nothing written elsewhere."""

import io
import os
import resource
import subprocess
import sys
import threading
import time

import msgpack
import pytest
from popkernel.actors.maildir import replay as maildir_replay
from popkernel.cli.common import replay_bounds
from popkernel.cli.main import main
from popkernel.kernel.replay import snapshots
from popkernel.proto.trace import recording as rec

from tests.replay.test_recordings import HERE

HEADER = {"popkernel recording": 1, "monotonic": 0, "watches": {}}
MUCH = 300 << 20  # octets of memory, Python's own included
REPLAY = """
import re, sys, time
from popkernel.cli.main import main
code = main(["replay", sys.argv[1]])
print(time.process_time(), int(re.search(r"VmHWM:\\s+([0-9]+)", open("/proc/self/status").read())[1]) << 10)
sys.exit(code)
"""


def raw(name="poplib"):
    """Return a recording's objects, to be changed."""
    return list(msgpack.Unpacker(io.BytesIO((HERE / f"{name}.rec").read_bytes())))


def written(tmp_path, things, name="x.rec"):
    path = tmp_path / name
    path.write_bytes(things if type(things) is bytes else b"".join(map(msgpack.packb, things)))
    return str(path)


def refused(path, capsys, words=""):
    """Check that a replay fails with 65 and gives the reason in one line."""
    assert main(["replay", path]) == 65
    out, err = capsys.readouterr()
    assert words in err
    assert "Traceback" not in err
    assert all(c.isprintable() or c == "\n" for c in out + err)
    return err


def settings_of(things, kind):
    return next(t["fields"] for t in things if t.get("name") == "Settings" and t["actor"].startswith(kind))


@pytest.mark.parametrize("head", [b"", msgpack.packb(HEADER)], ids=["whole", "behind a header"])
def test_a_gibibyte_of_nulls(tmp_path, head):
    path = written(tmp_path, head)
    os.truncate(path, 1 << 30)
    child = subprocess.run(
        [sys.executable, "-c", REPLAY, path], capture_output=True, text=True, timeout=60, check=False
    )
    assert (child.returncode, child.stderr.count("\n")) == (65, 1)
    assert "256 MiB" in child.stderr
    seconds, octets = map(float, child.stdout.split())
    assert seconds < 5
    assert octets < MUCH


@pytest.mark.parametrize("head", [b"", msgpack.packb(HEADER)], ids=["whole", "behind a header"])
@pytest.mark.parametrize(
    "claim",
    [b"\xdb", b"\xc6", b"\xdd", b"\xdf", b"\xc9"],
    ids=["text", "octets", "array", "map", "extension"],
)
def test_claimed_lengths(tmp_path, capsys, head, claim):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(written(tmp_path, head + (claim + b"\xff\xff\xff\xff" + b"\x01" * 9) * 3), capsys)
    refused(written(tmp_path, head + claim + b"\x0f\xff\xff\xff" + b"\x01" * 9), capsys)
    refused(written(tmp_path, head + (b"\xdd\x00\x0f\x00\x00" * 200) + b"\x01" * 4000), capsys)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10


@pytest.mark.parametrize("head", [b"", msgpack.packb(HEADER)], ids=["whole", "behind a header"])
@pytest.mark.parametrize(
    "nest",
    [b"\x91", b"\x81\xa1x", b"\x81\x81", b"\x81\x90"],
    ids=["arrays", "maps", "maps as keys", "arrays as keys"],
)
def test_nested(tmp_path, capsys, head, nest):
    refused(written(tmp_path, head + nest * 100_000), capsys)


def test_deep_values_in_a_frame(tmp_path, capsys):
    deep = b"\x91" * 400 + b"\x01"
    things = raw("restarts")
    state = next(t for t in things if t.get("name") == "State")
    state["fields"]["core"] = "DEEP"
    path = written(tmp_path, b"".join(map(msgpack.packb, things)).replace(msgpack.packb("DEEP"), deep))
    refused(path, capsys, "kernel: ")


def test_memory_has_an_end(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(replay_bounds, "MEMORY", 64 << 20)
    before = resource.getrlimit(resource.RLIMIT_AS)
    million = b"\xdd\x00\x0f\x00\x00" + b"\x80" * 0xF0000  # 64 octets of memory for each of the file's
    refused(written(tmp_path, msgpack.packb(HEADER) + b"\x94" + million * 4), capsys, "of memory")
    assert resource.getrlimit(resource.RLIMIT_AS) == before


@pytest.mark.parametrize("when", [1 << 62, (1 << 64) - 1])
def test_a_clock_in_the_far_future(tmp_path, capsys, monkeypatch, when):
    """The mda's deadlines are checked each second, and a recording without timers may span ages."""
    monkeypatch.setattr(replay_bounds, "SECONDS", 0.5)
    # half a second of processor time takes long on a busy machine
    monkeypatch.setattr(replay_bounds, "WALL", 1000)
    things = raw("delivery")
    settings_of(things, "mda")["timers"] = False
    frame = [t for t in things if t.get("actor") == "mda" and t["way"] == "in"][-1]
    frame["turn"] = frame["time"] = when
    refused(written(tmp_path, things), capsys, "processor time")


@pytest.mark.parametrize("value", [float("nan"), -1.0, (1 << 64) - 1], ids=repr)
def test_clocks_and_counts_that_are_none(tmp_path, monkeypatch, capsys, value):
    """Any clock or count at the start: replay ends soon, with one of its exit codes."""
    monkeypatch.setattr(replay_bounds, "SECONDS", 5)
    for name, kind in (
        ("delivery", "maildir"),
        ("delivery", "mda"),
        ("poplib", "listener"),
        ("poplib", "maildir"),
    ):
        things = raw(name)
        fields = settings_of(things, kind)
        for key in [k for k, v in fields.items() if type(v) in (int, float, list) and k != "timers"]:
            kept = fields[key]
            fields[key] = [value] * len(kept) if type(kept) is list else value
            assert main(["replay", written(tmp_path, things)]) in (0, 1, 65), key
            fields[key] = kept
    for things in (raw(), raw("restarts")):
        for thing in things:
            thing.update({key: value for key in ("seconds", "now") if key in thing})
            if thing.get("name") in ("Clock", "Decision"):
                thing["fields"] = {k: value if type(v) is float else v for k, v in thing["fields"].items()}
        assert main(["replay", written(tmp_path, things)]) in (0, 1, 65)
    assert "Traceback" not in capsys.readouterr().err


ESCAPES = "\x1b]0;owned\x07\x1b[2J\r\n\udcff"


def test_names_that_drive_a_terminal(tmp_path, capsys):
    for field in ("actor", "peer", "name"):
        things = raw()
        for thing in things[2:]:
            if thing.get("way") == "out":
                thing[field] = thing[field] + ESCAPES
        packed = b"".join(msgpack.packb(t, unicode_errors="surrogateescape") for t in things)
        assert main(["replay", written(tmp_path, packed)]) in (1, 65)
        out, err = capsys.readouterr()
        assert "x1b[2J" in out + err
        assert all(c.isprintable() or c == "\n" for c in out + err)


def test_a_fifo_without_a_writer_says_so_at_once(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(replay_bounds, "PATIENCE", 20)
    monkeypatch.setattr(replay_bounds, "WRITER", 0.2)
    path = str(tmp_path / "pipe")
    os.mkfifo(path)
    begun = time.monotonic()
    refused(path, capsys, "a FIFO that nobody has opened to write within")
    assert time.monotonic() - begun < 10


def test_standard_input_is_replayed():
    with open(HERE / "poplib.rec", "rb") as file:
        recording = file.read()
    ended = subprocess.run(
        [sys.executable, "-m", "popkernel", "replay", "-"],
        input=recording,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 0 and b"as recorded" in ended.stdout, ended


def test_a_pipe_without_input(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(replay_bounds, "PATIENCE", 0.3)
    path = str(tmp_path / "pipe")
    os.mkfifo(path)
    writer = os.open(path, os.O_RDWR)
    try:
        os.write(writer, msgpack.packb(HEADER))
        refused(path, capsys, "no file, and its end has not come")
    finally:
        os.close(writer)


def test_a_pipe_is_read_to_its_end(tmp_path, capsys):
    path = str(tmp_path / "pipe")
    os.mkfifo(path)

    def write():
        with open(path, "wb") as out:
            out.write((HERE / "poplib.rec").read_bytes())

    thread = threading.Thread(target=write)
    thread.start()
    try:
        assert main(["replay", path]) == 0
    finally:
        thread.join()
    capsys.readouterr()


def test_a_device_without_end(capsys):
    refused("/dev/zero", capsys, "256 MiB")


@pytest.mark.parametrize(
    "name",
    [
        b"../x",
        b"cur/../../x",
        b"/tmp/x",
        b"/x",
        b"cur",
        b"new",
        b"",
        b".",
        b"..",
        b"cur/",
        b"cur/..",
        b"a\0b",
        b"cur/" + b"x" * 300,
        "text",
        7,
        b"elsewhere/x",
    ],
    ids=repr,
)
def test_mail_outside_of_the_maildir(tmp_path, capsys, monkeypatch, name):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    things = raw()
    files = things[0]["maildir"]["files"]
    things[0]["maildir"]["files"] = {name: next(iter(files.values())), **files}
    refused(written(tmp_path, things), capsys)
    assert os.listdir(tmp_path / "tmp") == []
    assert sorted(os.listdir(tmp_path)) == ["tmp", "x.rec"]


@pytest.mark.parametrize(
    "file",
    [
        {"data": b"x", "mtime": float("nan")},
        {"data": b"x", "mtime": "x"},
        {"data": "x", "mtime": 0},
        {},
        7,
    ],
    ids=repr,
)
def test_mail_that_is_none(tmp_path, capsys, file):
    things = raw()
    things[0]["maildir"]["files"][b"cur/1.x:2,"] = file
    refused(written(tmp_path, things), capsys, "the recorded maildir")


def test_a_maildir_of_too_many_files(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(snapshots, "_MOST_FILES", 10)
    things = raw()
    files = things[0]["maildir"]["files"]
    files.update({b"cur/%d.x:2," % n: next(iter(files.values())) for n in range(11)})
    refused(written(tmp_path, things), capsys, "more than 10 files")
    for part in ("cur", "new", "tmp"):
        (tmp_path / part).mkdir()
    for n in range(6):
        (tmp_path / "cur" / f"{n}").touch()
        (tmp_path / "new" / f"{n}").touch()
    with pytest.raises(snapshots.SnapshotError, match="more than 10 files"):
        snapshots.take(os.fsencode(tmp_path))


def test_a_delivery_under_way_names_another_file(tmp_path, capsys):
    """Its file would be truncated to the length in the recording."""
    other = tmp_path / "precious"
    other.write_bytes(b"precious")
    for name in (os.fsencode(other), b"../" * 20 + os.fsencode(other)[1:]):
        things = raw("delivery")
        settings_of(things, "maildir").update(
            received=True, sweep=-1.0, mda=[{"told": False, "open": [[7, "s", "r", True, 0, 3, name]]}]
        )
        refused(written(tmp_path, things), capsys, "none of the maildir's")
        assert other.read_bytes() == b"precious"


def test_settings_name_no_other_maildir(tmp_path, monkeypatch, capsys):
    seen = []
    begin = maildir_replay.MaildirActor.__init__
    monkeypatch.setattr(
        maildir_replay.MaildirActor,
        "__init__",
        lambda actor, boot: (seen.append(boot.config["maildir"]), begin(actor, boot))[1],
    )
    things = raw()
    settings_of(things, "maildir")["maildir"] = os.fsencode(tmp_path)
    main(["replay", written(tmp_path, things)])
    assert seen and os.fsencode(tmp_path) not in seen
    capsys.readouterr()


def test_headers_that_are_none(tmp_path, capsys):
    for key, value in (
        ("watches", 7),
        ("watches", None),
        ("monotonic", "x"),
        ("monotonic", None),
        ("maildir_taken", [1]),
        ("maildir_taken", ["a", "b"]),
    ):
        things = raw()
        things[0][key] = value
        refused(written(tmp_path, things), capsys, "its header is none")
    with pytest.raises(rec.RecordingError):
        rec.read(b"")


def test_recording_into_a_pipe_that_nobody_reads(tmp_path):
    """Opening it would block, and the server's place for a viewer would stay taken."""
    from types import SimpleNamespace

    from popkernel.cli import trace

    path = str(tmp_path / "pipe")
    os.mkfifo(path)
    with pytest.raises(trace._StopError, match="with --record"):
        trace.Recorder(path, SimpleNamespace(), {})
