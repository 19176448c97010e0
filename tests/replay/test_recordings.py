"""Replay every recording in this folder; every known-bad one must fail.

A recording that is put here is a test.
"""

import pathlib
import shlex
import subprocess

import pytest
from popkernel.actors.listener.connections import Connections
from popkernel.actors.listener.session import transaction as listener_maildrop
from popkernel.actors.maildir import session as maildir_core
from popkernel.cli.main import main
from popkernel.kernel.operator import tracing
from popkernel.kernel.replay.comparison import Difference
from popkernel.kernel.replay.runner import replay, updated
from popkernel.proto.trace.recording import RecordingError, end, pack, read
from popkernel.proto.trace.redaction import recut

from tests.replay import make
from tests.support.programs import mail_clients
from tests.support.service import POPKERNEL

HERE = pathlib.Path(__file__).parent
GOOD = sorted(HERE.glob("*.rec"))
BAD = sorted((HERE / "bad").glob("*.rec"))


def name(path):
    return path.stem


def results_of(path):
    return replay(read(path.read_bytes()))


def text_of(results):
    return "\n".join(f"{r.actor}: {d.title} {' '.join(d.lines)}" for r in results for d in r.differences)


@pytest.fixture(scope="session")
def remade(request):
    """With --replay-update: write the recordings anew."""
    if request.config.getoption("--replay-update"):
        for path in GOOD:
            scenario = make.SCENARIOS.get(path.stem)
            if scenario is None:
                assert main(["replay", str(path), "--update"]) == 0
            elif not mail_clients.missing(scenario.needs):
                make.make(path.stem)
        make.make_bad()


@pytest.mark.parametrize("path", GOOD, ids=name)
def test_as_recorded(path, remade):
    results = results_of(path)
    assert not text_of(results)
    assert sum(r.compared for r in results) > 5


def test_all_scenarios_are_recorded():
    assert {p.stem for p in GOOD} >= set(make.SCENARIOS)


def test_every_kind_of_actor_is_replayed():
    played = {
        r.actor.partition(".")[0].partition("~")[0] for path in GOOD for r in results_of(path) if r.compared
    }
    assert played == {"listener", "auth", "maildir", "mda", "kernel"}


def test_every_decision_of_the_kernel_is_replayed():
    made = {
        f.fields["method"] for path in GOOD for f in read(path.read_bytes()).frames if f.name == "Decision"
    }
    assert {name for names in tracing._DECISIONS.values() for name in names} - made <= {
        "busy",  # needs a delivery at that very moment
        "let_go",  # needs a system short of memory or processes
        "login_over",
        "stuck",  # needs a listener that ignores a kick
        "short",  # newer than these recordings; the latter needs a limit of descriptors
    }


@pytest.mark.parametrize("path", BAD, ids=name)
def test_known_bad(path, remade):
    assert text_of(results_of(path))


def test_all_known_bad_are_there():
    assert {p.stem for p in BAD} == set(make.BAD)


# -- a fault in the program, not in the recording
POPLIB = HERE / "poplib.rec"


def test_a_changed_reply_text_is_caught(monkeypatch):
    monkeypatch.setattr(listener_maildrop, "ok", lambda text="": b"+OK fine\r\n")
    assert "recorded [b'+OK bye\\r\\n']" in text_of(results_of(POPLIB))


def test_the_last_messages_of_a_single_session_listener_are_compared(monkeypatch):
    monkeypatch.setattr(listener_maildrop, "ok", lambda text="": b"+OK fine\r\n")
    assert "recorded [b'+OK bye\\r\\n']" in text_of(results_of(HERE / "lone.rec"))


def test_a_lost_dele_is_caught(monkeypatch):
    def forgets(self, first, many):
        yield maildir_core.m.MessagesMarked(first, many, [], self.messages - many, self.octets)

    monkeypatch.setattr(maildir_core.Session, "_delete", forgets)
    assert "removed: recorded 2" in text_of(results_of(POPLIB))


def test_a_wrong_octet_count_is_caught(monkeypatch):
    ready = maildir_core.Session.ready
    monkeypatch.setattr(
        maildir_core.Session, "ready", lambda self: ready(self)._replace(octets=ready(self).octets + 1)
    )
    assert "octets: recorded 429" in text_of(results_of(POPLIB))


def test_a_lease_given_twice_is_caught(monkeypatch):
    from popkernel.kernel.decisions import leases

    opens = leases.Core._open

    def forgets(self, user, row, key, now):
        self.maildirs.get(user) and setattr(self.maildirs[user], "key", None)
        return opens(self, user, row, key, now)

    monkeypatch.setattr(leases.Core, "_open", forgets)
    assert "Core.granted returns other actions" in text_of(results_of(HERE / "guesses.rec"))


def test_a_login_timer_that_runs_longer_is_caught(monkeypatch):
    arm = Connections.arm
    monkeypatch.setattr(Connections, "arm", lambda self, client, seconds: arm(self, client, seconds + 0.02))
    text = text_of(results_of(HERE / "timeouts.rec"))
    assert "ConnectionEnded to kernel is no longer sent" in text


def test_a_session_parks_where_its_maildrop_took_long_to_be_listed():
    """Add 8 ms between Open, which makes the timer, and its effect; the timer itself is unchanged."""
    recording, frames, longer, opened = read((HERE / "parked.rec").read_bytes()), [], 0, 0
    for frame in recording.frames:
        if frame.actor == "maildir.alice" and frame.name in ("SessionOpen", "Timer"):
            longer, opened = (8_000_000 if frame.name == "SessionOpen" else 0), frame.turn
        elif frame.actor == "maildir.alice":
            frame = frame._replace(
                time=frame.time + longer, turn=frame.turn + (longer if frame.turn != opened else 0)
            )
        frames.append(frame)
    assert frames != recording.frames
    assert not text_of(replay(recording._replace(frames=frames), actor="maildir.alice"))


# -- the command
def test_exit_codes(capsys, tmp_path):
    assert main(["replay", str(POPLIB)]) == 0
    assert "maildir.alice: 16 messages, as recorded" in capsys.readouterr().out
    assert main(["replay", str(POPLIB), str(HERE / "bad" / "lost-dele.rec")]) == 1
    assert "recorded: MessagesMarked" in capsys.readouterr().out
    assert main(["replay", str(POPLIB), "--actor", "carol"]) == 65
    assert "there are: auth, kernel, listener.0" in capsys.readouterr().err
    assert main(["replay", str(tmp_path / "none.rec")]) == 66


def test_arguments_of_replay(capsys, tmp_path):
    """Judge each file by itself; the exit code is the worst."""
    assert main(["replay", str(tmp_path)]) == 66
    assert (
        f"{tmp_path}: a directory; name the recordings in it, as {tmp_path}/*.rec" in capsys.readouterr().err
    )
    empty, text = tmp_path / "empty.rec", tmp_path / "text.rec"
    empty.write_bytes(b"")
    text.write_bytes(b"Subject: no recording\n" * 100)
    assert main(["replay", str(empty), str(POPLIB), str(text), str(tmp_path / "none.rec")]) == 66
    told = capsys.readouterr()
    assert "poplib.rec: listener.0: 42 messages, as recorded" in told.out
    assert [line.rpartition(": ")[2] for line in told.err.splitlines()] == ["no popkernel recording"] * 2 + [
        "No such file or directory; name a file that `popkernel trace --record` wrote",
    ]


def test_from_a_pipe(tmp_path):
    with POPLIB.open("rb") as file, (HERE / "bad" / "lost-dele.rec").open("rb") as bad:
        good = subprocess.run(
            f"cat | {shlex.join(POPKERNEL)} replay /dev/stdin",
            shell=True,
            stdin=file,
            capture_output=True,
            check=False,
        )
        worse = subprocess.run(
            f"cat | {shlex.join(POPKERNEL)} replay --update /dev/stdin",
            shell=True,
            stdin=bad,
            capture_output=True,
            check=False,
        )
    assert (good.returncode, good.stderr) == (0, b"")
    assert worse.returncode == 73
    assert b"/dev/stdin: no file that could be updated" in worse.stderr


def test_an_update_leaves_a_recording_as_private_as_it_was(capsys, tmp_path):
    real, link = tmp_path / "real.rec", tmp_path / "link.rec"
    real.write_bytes((HERE / "bad" / "lost-dele.rec").read_bytes())
    real.chmod(0o600)
    link.symlink_to(real)
    (tmp_path / "real.rec.new").write_bytes(b"somebody's")
    assert main(["replay", "--update", str(link)]) == 73
    assert "real.rec.new: is there already" in capsys.readouterr().err
    (tmp_path / "real.rec.new").unlink()
    assert main(["replay", "--update", str(link)]) == 0
    assert link.is_symlink()
    assert real.stat().st_mode & 0o777 == 0o600
    assert main(["replay", str(link)]) == 0


def test_update_writes_the_new_output(tmp_path):
    for how in make.BAD:
        copy = tmp_path / f"{how}.rec"
        copy.write_bytes((HERE / "bad" / f"{how}.rec").read_bytes())
        assert main(["replay", str(copy)]) == 1
        assert main(["replay", str(copy), "--update"]) == 0
        assert main(["replay", str(copy)]) == 0


def test_a_maildir_can_be_given(tmp_path):
    from popkernel.kernel.replay.snapshots import put

    recording = read(POPLIB.read_bytes())
    put(recording.header["maildir"], str(tmp_path))
    bare = recording._replace(header={k: v for k, v in recording.header.items() if k != "maildir"})
    assert [r.notes for r in replay(bare, actor="maildir")][0][0].startswith("no maildir")
    before = sorted(p.name for p in (tmp_path / "new").iterdir())
    assert [
        (r.compared, r.differences) for r in replay(bare, actor="maildir.alice", maildir=str(tmp_path))
    ] == [(16, [])]
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == before


def test_a_maildir_that_changed_while_it_was_copied():
    recording = read((HERE / "delivery.rec").read_bytes())
    frames = [f for f in recording.frames if f.actor == "maildir.alice"]
    at = next(f.time for f in frames if f.name == "DeliveryWhole")
    for taken, notes in (([at - 2, at - 1], 0), ([at - 2, at], 2)):
        other = recording._replace(header={**recording.header, "maildir_taken": taken})
        result = next(r for r in replay(other) if r.actor == "maildir.alice")
        assert not result.differences
        assert len(result.notes) == notes
        assert result.compared


def test_what_cannot_be_replayed_stays_as_recorded():
    """Replay a quota, and a delivery of unknown size: nothing after it is played, compared or updated."""
    recording = read((HERE / "delivery.rec").read_bytes())
    cut = [
        f._replace(fields={**f.fields, "quota": "1000000S"} if f.name == "Settings" else recut(f.fields))
        for f in recording.frames
    ]
    header = {**recording.header, "watches": {"user": "alice"}}
    other = recording._replace(frames=cut, header=header)
    result = next(r for r in replay(other) if r.actor == "maildir.alice")
    post = next(i for i, f in enumerate(result.frames) if f.name == "DeliveryWhole")
    assert not result.differences
    assert "a delivery to a maildir with a quota" in result.notes[-1]
    assert result.unjudged == frozenset(range(post, len(result.frames)))
    changed = result._replace(differences=[Difference("maildir.alice", 0, "", [], [])])
    assert [f.name for f in updated(other, [changed]) if f.actor == "maildir.alice"] == [
        f.name for f in result.frames
    ]


def test_sessions_whose_user_was_known_late():
    """Their first frames stand after other sessions' frames."""
    recording = read((HERE / "timeouts.rec").read_bytes())
    for session in {f.session for f in recording.frames} - {0}:
        frames = sorted(recording.frames, key=lambda f: f.session == session)  # noqa: B023
        held = recording._replace(frames=frames)
        assert held.frames != recording.frames
        assert not text_of(replay(held))


@pytest.mark.parametrize(
    "wish",
    [{"types": ["LoginRequest", "LoginGranted"]}, {"edge": "auth:kernel"}],
    ids=lambda wish: next(iter(wish)),
)
def test_chosen_messages_are_not_replayed(wish):
    """The recording has what an actor sent and not what it received."""
    recording = read(POPLIB.read_bytes())
    frames = [f for f in recording.frames if f.name in ("Settings", "LoginRequest", "LoginGranted")]
    results = replay(recording._replace(header={**recording.header, "watches": wish}, frames=frames))
    assert results and not text_of(results)
    assert all(
        r.notes
        == ["chosen messages only (--type, --edge), not all that the actor received: nothing can be replayed"]
        for r in results
    )


def test_settings_that_were_too_large():
    recording = read(POPLIB.read_bytes())
    cut = [
        f._replace(fields={"octets cut": 500_000}) if f.name == "Settings" else f for f in recording.frames
    ]
    assert all("too large to be recorded" in r.notes[0] for r in replay(recording._replace(frames=cut)))


# -- damage
def test_cut_off_anywhere():
    data = POPLIB.read_bytes()
    whole = read(data)
    for cut in [*range(len(data) - 2000, len(data), 37), len(data) - 1]:
        recording = read(data[:cut])
        assert recording.damage.startswith("cut off at octet"), cut
        assert len(recording.frames) <= len(whole.frames)
        assert not text_of(replay(recording))


def test_damaged(capsys, tmp_path):
    data = bytearray(POPLIB.read_bytes())
    frames = read(bytes(data)).frames
    at = len(data) - sum(len(pack(f)) for f in frames[20:]) - len(pack(end(len(frames), 0)))
    data[at] = 0xC1  # never used in msgpack
    (tmp_path / "d.rec").write_bytes(data)
    assert main(["replay", str(tmp_path / "d.rec")]) == 0
    assert f"damaged at octet {at}, behind 20 frames" in capsys.readouterr().err


@pytest.mark.parametrize("data", [b"", b"\xc1", b"hello", pack({"a": 1}), b"\xdf\xff\xff\xff\xff"])
def test_no_recording(data):
    with pytest.raises(RecordingError, match="no popkernel recording"):
        read(data)


def test_another_format():
    head = {**read(POPLIB.read_bytes()).header, "popkernel recording": 99}
    with pytest.raises(RecordingError, match="format 99; this program reads format 1"):
        read(pack(head))


def test_another_topology():
    recording = read(POPLIB.read_bytes())
    renamed = [f._replace(name="Fetch") if f.name == "Retrieve" else f for f in recording.frames]
    other = recording._replace(frames=renamed, header={**recording.header, "topology": "0123"})
    with pytest.raises(
        RecordingError, match=r"Fetch may not go .* any more: record it anew .*made with topology 0123"
    ):
        replay(other)
    fields = [f._replace(fields={"number": 1}) if f.name == "Retrieve" else f for f in recording.frames]
    with pytest.raises(RecordingError, match="Retrieve has other fields now"):
        replay(recording._replace(frames=fields))
    # One whose messages all still exist is played, whatever the digest is.
    assert not text_of(replay(recording._replace(header={**recording.header, "topology": "0123"})))


def test_frames_that_were_lost():
    recording = read(POPLIB.read_bytes())
    at = [i for i, f in enumerate(recording.frames) if f.actor == "listener.0"][20]
    frames = [f._replace(lost=3) if i == at else f for i, f in enumerate(recording.frames)]
    listener = next(r for r in replay(recording._replace(frames=frames)) if r.actor == "listener.0")
    assert "3 frames are missing behind frame 20" in listener.notes[0]
    assert not listener.differences


def test_a_recording_can_name_no_class_of_its_own():
    recording = read((HERE / "guesses.rec").read_bytes())
    evil = [
        f._replace(fields={**f.fields, "core": {"is": "Popen", "of": [["id"]]}}) if f.name == "State" else f
        for f in recording.frames
    ]
    with pytest.raises(RecordingError, match="record it anew"):
        replay(recording._replace(frames=evil))
