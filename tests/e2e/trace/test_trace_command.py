"""Test `popkernel trace` on a real server: output, permissions, and viewers that are slow, wrong, or gone."""

import io
import json
import os
import pty
import re
import resource
import select
import subprocess
import sys

import msgpack
import pytest
from popkernel.kernel.client import Client, ClientError
from popkernel.kernel.replay.runner import replay
from popkernel.proto.trace.recording import read
from popkernel.proto.trace.session_names import session_number

from tests.support.bus import RawControl
from tests.support.processes import kill
from tests.support.service import POPKERNEL, Service
from tests.support.tracing.trace_command import Trace, frames_of, session, watcher
from tests.support.waiting import wait_for

needs_root = pytest.mark.root("other uids")


@pytest.fixture(scope="module")
def service():
    with Service(mail=[b"Subject: one\n\nWORDS OF MAIL\n", b"Subject: two\n\n" + b"x\n" * 100]) as running:
        yield running


def over(frame):
    return frame.name == "ConnectionEnded" and frame.actor == "kernel"


def test_one_session_as_one_story(service):
    trace = Trace(service, "--user", "alice")
    session(service)
    session(service, "bob")
    text = trace.until("ConnectionEnded ")
    told = trace.stop()
    for part in (
        "client → listener.0        Connected",
        "Typed            USER alice",
        "PASS [secret]",
        "listener.0 → auth          LoginRequest",
        "secret=[secret]",
        "auth → kernel              LoginGranted",
        "lease given",
        "↩ LoginStarted",
        "maildir.alice → listener.0 MaildropReady",
        "↩ Retrieve",
        "<31 octets>",
        "+OK bye",
        "lease of session",
    ):
        assert part in told, part
    # as a word: part of one may be chance, in the name of a temporary directory
    assert re.findall(r".*\bbob\b.*", told) == []
    assert "WORDS OF MAIL" not in told
    assert told.count(" Quit ") == 1 + told.count("↩ Quit")
    assert [line[:10] for line in text.splitlines()] == sorted(line[:10] for line in text.splitlines())
    assert "\x1b" not in told


def test_json_lines(service):
    trace = Trace(
        service, "--format", "json", "--type", "loginrequest,LoginRefused,LoginGranted", "--count", "4"
    )
    session(service)
    session(service, "bob")
    out, _ = trace.process.communicate(timeout=20)
    rows = [json.loads(line) for line in out.splitlines()]
    assert [r["name"] for r in rows] == ["LoginRequest", "LoginGranted"] * 2
    assert rows[0]["fields"]["secret"] == "[secret]"
    assert rows[0]["from"] == "listener.0"
    assert rows[0]["to"] == "auth"
    assert trace.process.returncode == 0


def test_mermaid(service):
    trace = Trace(service, "--user", "alice", "--format", "mermaid")
    session(service)
    trace.until("ConnectionEnded")
    lines = trace.stop().splitlines()
    assert lines[0] == "sequenceDiagram"
    assert "    participant listener_0 as listener.0" in lines
    assert any(line.startswith("    maildir_alice-->>listener_0: MailContent") for line in lines)
    known = set()
    for line in lines[1:]:
        words = line.split()
        if words[0] == "participant":
            known.add(words[1])
        elif words[0] != "Note":
            ends = words[0].rstrip(":").replace("-->>", " ").replace("->>", " ").split()
            assert set(ends) <= known, line


def test_filters(service):
    with (
        watcher(service, actor="auth") as auth,
        watcher(service, edge="listener:auth") as edge,
        watcher(service, types=["MaildropReady"]) as ready,
    ):
        session(service)
        assert {f.actor for f in frames_of(auth, lambda f: f.name == "LoginGranted")} == {"auth"}
        assert {f.name for f in frames_of(edge, lambda f: f.way == "in" and f.name == "LoginRequest")} <= {
            "Settings",
            "LoginRequest",
        }
        assert {f.name for f in frames_of(ready, lambda f: f.way == "in" and f.name == "MaildropReady")} <= {
            "Settings",
            "MaildropReady",
        }
    pop = service.pop3()
    number = session_number(service.status()["sessions"][0]["session"])
    with watcher(service, session=number) as one:
        session(service, "bob")
        pop.noop()
        frames_of(one, lambda f: f.name == "Reply")
        pop.quit()
        found = frames_of(one, over)
        assert {f.session for f in found if f.way != "note" or f.session} == {number}
        of_all = [f for f in found if not f.session]  # timers of a listener or an mda belong to every session
        assert {f.name for f in of_all} <= {"Timer", "Clock"} and "maildir.bob" not in {
            f.actor for f in found
        }, of_all


@needs_root
def test_no_viewer_no_tap(service):
    """The actors' open descriptors show that the tap's channel exists only while somebody watches."""
    pids = [service.actor(name)["pid"] for name in ("listener", "auth")]

    def held():
        return [len(os.listdir(f"/proc/{pid}/fd")) for pid in pids]

    before = wait_for(held, until=lambda now: now == held())
    with watcher(service):
        assert held() == [many + 1 for many in before]
        with watcher(service):
            assert held() == [many + 1 for many in before]  # one tap, however many watch
        session(service)
    wait_for(held, until=lambda now: now == before)


def test_many_viewers_see_the_same(service):
    viewers = [
        service.keep(watcher(service, types=["LoginRequest", "MaildropReady", "QuitDone"])) for _ in range(6)
    ]
    session(service)
    seen = []
    for viewer in viewers:
        frames = frames_of(viewer, lambda f: f.way == "in" and f.name == "QuitDone")
        seen.append(
            [(f.actor, f.name, f.time) for f in sorted(frames, key=lambda f: f.time) if f.way == "in"]
        )
        viewer.close()
    assert all(s == seen[0] for s in seen)
    assert len(seen[0]) == 3


def test_events_that_are_no_messages_are_shown(service):
    """A killed actor and its lease, and the listener's restart."""
    with watcher(service) as viewer:
        pop = service.pop3()
        kill(service.actor("maildir.alice")["pid"])
        found = frames_of(viewer, lambda f: f.name == "LeaseOver")
        notes = {f.name: f for f in found if f.way == "note"}
        assert notes["Lease"].fields["user"] == "alice"
        assert notes["Ended"].fields["how"] == "signal SIGKILL"
        assert notes["Ended"].peer == "maildir.alice"
        pop.close()
        kill(service.actor("auth")["pid"])
        found = frames_of(viewer, lambda f: f.name == "Began" and f.peer.startswith("auth"))
        assert any(f.name == "Restart" and f.peer == "auth" for f in found)
        session(service)  # the new one is watched as the old one was
        assert any(f.actor.startswith("auth") for f in frames_of(viewer, lambda f: f.name == "MaildropReady"))


# -- bad input
def test_an_actor_that_is_not_there(service):
    result = service.command("trace", "maildir.nobody", check=False)
    assert result.returncode == 67
    assert "no user 'nobody' in the user table, so no actor 'maildir.nobody'" in result.stderr
    result = service.command("trace", "--user", "nobody", check=False)
    assert result.returncode == 67
    assert "no user 'nobody' in the user table" in result.stderr
    result = service.command("trace", "nothing", check=False)
    assert result.returncode == 64
    assert "no actor 'nothing' here; there are: auth, init, kernel, listener.0" in result.stderr


def test_an_edge_to_clients(service):
    """Clients are not offered as an edge."""
    trace = Trace(service, "--edge", "client:listener")
    session(service)
    text = trace.until("QUIT")
    trace.stop()
    assert "RETR 1" in text and "Reply" not in text


def test_a_session_that_is_not_there_is_not_waited_for(service):
    """It must not wait without end."""
    for number in ("99.99", "1.999", "77"):
        result = service.command("trace", "--session", number, check=False)
        assert (result.returncode, result.stdout) == (64, "")
        assert (
            f"there is no session {number} now; `popkernel status` shows those that are logged in"
            in result.stderr
        )
    pop = service.pop3()
    trace = Trace(service, "--session", service.status()["sessions"][0]["session"])
    pop.noop()
    trace.until("NOOP")
    pop.quit()
    trace.stop()


@needs_root
def test_a_recording_goes_into_a_file_of_the_callers_own_and_no_other(service, tmp_path):
    """As root, another user's file or a link must not be written: its owner could read the recording."""
    mine, others, link, twin, pipe = (tmp_path / name for name in ("mine", "others", "link", "twin", "pipe"))
    for path in (mine, others, twin):
        path.touch(mode=0o600)
    os.chown(others, 64301, 64301)
    os.mkfifo(pipe)
    os.chown(pipe, 64301, 64301)
    link.symlink_to("new")
    (tmp_path / "linked").symlink_to(mine)
    os.link(twin, tmp_path / "second")
    for path, why in (
        (others, "belongs to uid 64301, who could read the recording"),
        (link, "is a symbolic link"),
        (tmp_path / "linked", "is a symbolic link"),
        (twin, "has another hard link"),
        (pipe, ""),
    ):
        result = service.command(
            "trace", "auth", "--for", "0.1", "--record", str(path), "--force", check=False
        )
        assert result.returncode == 73
        assert f"{path}: {why}" in result.stderr and "; give another file with --record" in result.stderr
    assert (
        not (tmp_path / "new").exists()
        and not others.stat().st_size + mine.stat().st_size + twin.stat().st_size
    )
    service.command("trace", "auth", "--for", "0.1", "--record", str(mine))
    assert not read(mine.read_bytes()).damage


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--edge", "auth:maildir"], "no edge 'auth:maildir'; there are: "),
        (["--edge", "client:auth"], ", client:listener, listener:client, client:mda, mda:client"),
        (["--edge", "auth"], "an edge is FROM:TO"),
        (["--type", "Loginn"], "no message 'Loginn'; there are: "),
        (["--session", "x"], "'x' is no session"),
        (["--session", "99999999999999999999"], "'99999999999999999999' is no session"),
        (["--user", ""], "--user is empty; name one, or leave it out"),
        (["auth", "--user", "alice"], "give one of them"),
        (["--with-maildir"], "give --record FILE"),
        (["--force"], "give --record FILE"),
    ],
)
def test_wrong_wishes(service, arguments, says):
    result = service.command("trace", *arguments, check=False)
    assert result.returncode == 64
    assert says in result.stderr
    assert not result.stdout


def test_no_server(tmp_path):
    result = subprocess.run(
        [*POPKERNEL, "trace", "--run-dir", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert result.returncode == 69
    assert "no popkernel runs on" in result.stderr


def test_the_server_ends_while_it_is_watched():
    with Service() as service:
        trace = Trace(service)
        service.stop()
        out, error = trace.process.communicate(timeout=20)
    assert trace.process.returncode == 69
    assert b"the server has ended" in error
    assert b"Stop " in out


@needs_root
def test_others_are_refused(service):
    code = (  # imported as root: others may be unable to read this tree
        "import os, sys, locale, popkernel.cli.trace, zmq.utils.monitor; from popkernel.cli.main import "
        "build_parser, main; build_parser().format_help()\n"
        "os.setgroups([]); os.setresgid(64101, 64101, 64101); os.setresuid(64101, 64101, 64101)\n"
        f"sys.exit(main(['trace', '--run-dir', {service.config.run_dir!r}]))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=20, check=False
    )
    assert result.returncode == 77
    assert "only root, or the user who runs the server, may watch it" in result.stderr


@needs_root
def test_payload_is_for_root(service):
    with watcher(service, payload=True) as all_, watcher(service) as plain:
        session(service)
        whole = frames_of(all_, lambda f: f.name == "MailContent" and f.way == "in")[-1]
        assert whole.fields["data"] == {"content": b"Subject: one\r\n\r\nWORDS OF MAIL\r\n"}
        for frame in frames_of(plain, over):  # together with a viewer that may see it
            assert b"WORDS OF MAIL" not in msgpack.packb(frame.fields)


def test_a_viewer_that_does_not_read_loses_frames_and_slows_nobody(service):
    with watcher(service, types=["Typed"]) as slow:
        pop = service.pop3()
        many = 60_000
        raw = pop.sock
        raw.settimeout(30)
        got = 0
        for _ in range(many // 500):
            raw.sendall(b"NOOP\r\n" * 500)
            want = got + 500
            data = b""
            while data.count(b"\n") < 500:
                data += raw.recv(1 << 16)
            got = want
        pop.close()
        assert got == many
        frames = 0
        while slow.next_frame(0.5) is not None:
            frames += 1
    assert frames


def test_lost_frames_are_counted(service):
    """A viewer that stops reading for a while gets the number of lost frames, and then goes on."""
    sock = service.keep(
        RawControl(service, {"command": "trace", "types": ["Reply", "MessageSizes", "MessageUidls"]})
    ).sock
    pop = service.pop3()
    for _ in range(120):
        pop.sock.sendall(b"UIDL\r\nLIST\r\nCAPA\r\n" * 100)
        lines = 0
        while lines < 100 * 3:  # three replies that end with a dot
            lines += pop.sock.recv(1 << 16).count(b"\n.\r") or 1
            if lines > 290:
                break
    pop.close()
    received = b""
    sock.settimeout(1)
    try:
        while data := sock.recv(1 << 20):
            received += data
    except TimeoutError:
        pass
    session(service)
    try:
        while data := sock.recv(1 << 20):
            received += data
    except TimeoutError:
        pass
    sock.close()
    assert b"\x81\xa4lost" in received


@pytest.mark.parametrize(
    "request_map",
    [
        {"command": "trace", "actor": 7},
        {"command": "trace", "types": "LoginRequest"},
        {"command": "trace", "session": -1},
        {"command": "trace", "payload": 1},
        {"command": "trace", "edge": ":::"},
        {"command": "trace", "user": "x" * 300},
        {"command": "trace", "types": [[]]},
    ],
)
def test_malformed_requests(service, request_map):
    sock = service.keep(RawControl(service, request_map, timeout=10)).sock
    data = b""
    while b"error" not in data:
        part = sock.recv(4096)
        assert part, data
        data += part
    sock.close()
    session(service)


# -- recordings
def test_a_full_disk(service):
    trace = (
        Trace(service, "--record", "/dev/full")
        if os.path.exists("/dev/full")
        else pytest.skip("no /dev/full")
    )
    session(service)
    trace.until("ConnectionEnded ")
    trace.process.terminate()
    trace.process.communicate(timeout=20)
    assert trace.process.returncode == 74
    assert trace.first.count("No space left on device; the recording ends here") == 1
    session(service)


def test_a_disk_that_is_full_in_the_middle(service, tmp_path):
    """RLIMIT_FSIZE stands for a full disk.

    The recording is cut off and can be replayed; the watching goes on; the server is not affected.
    """
    path = tmp_path / "cut.rec"
    trace = Trace(
        service,
        "--user",
        "alice",
        "--record",
        str(path),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000)),
    )
    session(service)
    session(service)
    trace.until("why=quit", 2)
    trace.process.terminate()
    error = trace.process.communicate(timeout=20)[1].decode()
    assert trace.process.returncode == 74
    assert error.count("the recording ends here, behind ") == 1
    assert path.stat().st_size == 4000
    recording = read(path.read_bytes())
    assert recording.damage.startswith("cut off at octet")
    assert recording.frames
    assert not [d for r in replay(recording) for d in r.differences]
    session(service)


@needs_root
def test_a_disk_that_is_really_full(service, tmp_path):
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8k", "none", str(tmp_path)], capture_output=True, check=False
    ).returncode:
        pytest.skip("cannot mount here")
    try:
        trace = Trace(service, "--record", str(tmp_path / "a.rec"))
        for _ in range(3):
            session(service)
        trace.until("why=quit", 3)
        trace.process.terminate()
        error = trace.process.communicate(timeout=20)[1].decode()
        assert trace.process.returncode == 74
        assert "No space left on device; the recording ends here" in error
        assert read((tmp_path / "a.rec").read_bytes()).frames
        session(service)
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_recording_over_a_file_that_all_can_read_is_private(service, tmp_path):
    """It replaces an existing file only on request."""
    path = tmp_path / "open.rec"
    path.write_bytes(b"x" * 100000)
    path.chmod(0o644)
    result = service.command("trace", "auth", "--for", "0.1", "--record", str(path), check=False)
    assert result.returncode == 73
    assert (
        f"{path}: there is a file already; give another with --record, or --force to lose it" in result.stderr
    )
    assert path.read_bytes() == b"x" * 100000 and path.stat().st_mode & 0o777 == 0o644
    Trace(service, "auth", "--record", str(path), "--force").stop()
    assert path.stat().st_mode & 0o777 == 0o600
    assert not read(path.read_bytes()).damage


def test_a_lost_reader_of_the_pipe_ends_trace_with_a_whole_recording(service, tmp_path):
    path = tmp_path / "a.rec"
    trace = Trace(service, "--record", str(path))
    session(service)
    trace.until("Connected")
    trace.process.stdout.close()
    session(service)
    assert trace.process.wait(20) == 74
    with trace.process.stderr as error:
        assert error.read() == b""
    assert not read(path.read_bytes()).damage
    session(service)


def test_a_recording_is_msgpack_and_private(service, tmp_path):
    path = tmp_path / "a.rec"
    trace = Trace(service, "auth", "--record", str(path))
    session(service)
    wait_for(lambda: any(f.name == "LoginGranted" for f in read(path.read_bytes()).frames))
    assert read(path.read_bytes()).damage.startswith("cut off")  # it goes on
    trace.stop()
    objects = list(msgpack.Unpacker(io.BytesIO(path.read_bytes())))
    assert objects[0]["popkernel recording"] == 1
    assert objects[0]["watches"] == {"actor": "auth"}
    assert objects[-1] == {"end": len(objects) - 2, "lost": 0}
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_file_that_cannot_be_made(service):
    result = service.command("trace", "--record", "/nowhere/a.rec", check=False)
    assert result.returncode == 73
    assert "give another file with --record" in result.stderr


# -- terminals
def on_terminal(service, columns, **environment):
    """Return the output of `trace` on a terminal of that width."""
    leader, follower = pty.openpty()
    import fcntl
    import struct
    import termios

    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("4H", 24, columns, 0, 0))
    env = {
        **{k: v for k, v in os.environ.items() if k not in ("COLUMNS", "NO_COLOR")},
        "TERM": "xterm",
        "LC_ALL": "C.UTF-8",
        **environment,
    }
    trace = Trace(service, "--user", "alice", stdout=follower, env=env)
    os.close(follower)
    session(service)
    data = b""
    while b"ConnectionEnded" not in data or b"why=quit" not in data:
        assert select.select([leader], [], [], 15)[0], data
        data += os.read(leader, 1 << 16)
    trace.stop()
    os.close(leader)
    return data.decode()


def test_colour_and_width(service):
    assert "\x1b[" in on_terminal(service, 100)
    assert "\x1b" not in on_terminal(service, 100, NO_COLOR="1")
    assert "\x1b" not in on_terminal(service, 100, TERM="dumb")
    for columns in (30, 60):
        text = on_terminal(service, columns, NO_COLOR="1")
        assert max(len(line.rstrip("\r")) for line in text.split("\n")) <= columns


def test_a_terminal_without_unicode(service):
    text = on_terminal(
        service,
        200,
        LC_ALL="POSIX",
        PYTHONUTF8="0",
        PYTHONCOERCECLOCALE="0",
        PYTHONIOENCODING="ascii",
        NO_COLOR="1",
    )
    assert text.isascii()
    assert "listener.0 -> auth" in text


# -- the library
def test_ten_lines_are_a_watcher(service):
    seen = []
    with Client(service.config.run_dir).follow(types=["LoginGranted"]) as viewer:
        session(service)
        for frame in viewer:
            if frame.name == "LoginGranted":
                seen.append(frame.fields["user"])
                break
    assert seen == ["alice"]


def test_nobody_is_there(tmp_path):
    with pytest.raises(ClientError, match="no popkernel runs on"):
        Client(str(tmp_path)).follow()
