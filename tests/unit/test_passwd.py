"""Test passwd: what it changes, what it leaves, and what it refuses."""

import contextlib
import fcntl
import io
import os
import pty
import socket
import stat
import subprocess
import sys
import threading

import bcrypt
import pytest
from popkernel.cli import passwd
from popkernel.cli.common import table_files
from popkernel.cli.main import main
from popkernel.proto.files.tables import parse_auth

HASH = b"$2b$04$" + b"." * 53


@pytest.fixture
def table(tmp_path):
    return tmp_path / "auth"


@pytest.fixture
def run(table, monkeypatch):
    def run(password, *arguments):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(password)))
        return main(["passwd", "-a", str(table), "--stdin", "--cost", "4", *arguments])

    return run


def test_a_new_file(run, table, capsys):
    old = os.umask(0)
    try:
        assert run(b"geheim\n", "alice") == 0
    finally:
        os.umask(old)
    hashes, findings = parse_auth(table.read_bytes(), "t")[:2]
    assert findings == []
    assert bcrypt.checkpw(b"geheim", hashes["alice"])
    assert hashes["alice"].startswith(b"$2b$04$")
    assert stat.S_IMODE(table.stat().st_mode) == 0o600
    assert "made with mode 0600" in capsys.readouterr().err
    assert os.listdir(table.parent) == ["auth"]


def test_a_name_that_differs_from_another_in_case_only_is_warned_of(run, table, capsys):
    table.write_bytes(b"bob " + HASH + b"\nBob " + HASH + b"\nalice " + HASH + b"\n")
    assert run(b"pw\n", "carol") == 0
    assert "warning" not in capsys.readouterr().err
    assert run(b"pw\n", "Alice") == 0
    said = capsys.readouterr().err
    assert (
        f"warning: {table}:5: users alice and Alice differ in case only: each is found only as it is "
        f"written here; "
    ) in said and "bob" not in said


def test_the_other_lines_stay_octet_for_octet(run, table):
    before, after = b"# \xff comment\n\n \tbob:\t", b"\nalice2  " + HASH + b" \nbroken\n#alice x\n"
    table.write_bytes(before + HASH + after)
    table.chmod(0o640)
    assert run(b"pw\r\n", "bob") == 0
    now = table.read_bytes()
    assert now.startswith(before)
    assert now.endswith(after)
    assert bcrypt.checkpw(b"pw", now[len(before) : -len(after)])
    assert stat.S_IMODE(table.stat().st_mode) == 0o640
    assert run(b"pw", "alice") == 0
    assert table.read_bytes().startswith(now + b"alice $2b$04$")


def test_a_line_with_a_foreign_hash_is_mended(run, table):
    table.write_bytes(b"alice $6$x$y\nbob\n")
    assert run(b"pw", "alice") == 0
    assert run(b"pw", "bob") == 0
    assert parse_auth(table.read_bytes(), "t")[1] == []


def test_delete(run, table, capsys):
    table.write_bytes(b"a " + HASH + b"\n# c\nb " + HASH + b"\n")
    assert main(["passwd", "-a", str(table), "--delete", "a"]) == 0
    assert table.read_bytes() == b"# c\nb " + HASH + b"\n"
    assert main(["passwd", "-a", str(table), "--delete", "a"]) == os.EX_NOUSER
    assert "there is no user a" in capsys.readouterr().err


def test_delete_makes_no_file(table):
    assert main(["passwd", "-a", str(table), "--delete", "a"]) == os.EX_NOINPUT
    assert not table.exists()


@pytest.mark.parametrize(
    "password", [b"", b"\n", b"SECRET\nSECRET\n", b"SEC\0RET", b"SECRET" * 12 + b"S", b"SEC\rRET"]
)
def test_passwords_that_are_refused(run, table, capsys, password):
    table.write_bytes(b"alice " + HASH + b"\n")
    assert run(password, "alice") == os.EX_DATAERR
    assert table.read_bytes() == b"alice " + HASH + b"\n"
    assert "SEC" not in capsys.readouterr().err


def test_seventy_two_octets_are_taken(run, table):
    assert run(b"x" * 72, "alice") == 0


@pytest.mark.parametrize(
    "name", ["", "a b", "a\tb", "a:b", "#a", "$2b$", "a\nb", "a\x7f", "\udcff", "n" * 249]
)
def test_names_that_are_refused(run, table, name):
    assert run(b"pw", "--", name) == os.EX_USAGE
    assert not table.exists()


@pytest.mark.parametrize("content", [b"alice " + HASH, b"a b\r\n", b"a\0b\n", b"\xef\xbb\xbfa b\n"])
def test_damaged_tables_are_left_alone(run, table, capsys, content):
    table.write_bytes(content)
    assert run(b"pw", "bob") == os.EX_DATAERR
    assert table.read_bytes() == content
    assert f"{table}:1: " in capsys.readouterr().err


def test_a_user_that_stands_twice(run, table, capsys):
    table.write_bytes(2 * (b"a " + HASH + b"\n"))
    assert run(b"pw", "a") == os.EX_DATAERR
    assert f"{table}:2: user a again, first on line 1" in capsys.readouterr().err


def test_other_lines_stay_as_they_are_whatever_hash_they_have(run, table):
    others = b"# c\nx {BLF-CRYPT}" + HASH + b"\n y : !" + HASH + b" \nz {SSHA}abc\nw *\n"
    table.write_bytes(others + b"a {BLF-CRYPT}" + HASH + b"\n")
    assert run(b"pw", "a") == 0
    after = table.read_bytes()
    assert after.startswith(others + b"a $2b$04$") and after.count(b"\n") == 6


def test_a_user_is_locked_and_unlocked(run, table, capsys):
    before = b"# c\nalice\t:  " + HASH + b"\nbob {BLF-CRYPT}" + HASH + b"\ncarol {SSHA}x\n"
    table.write_bytes(before)
    for name, start in (("alice", b"alice\t:  !$2"), ("bob", b"bob !{BLF-CRYPT}$2")):
        assert main(["passwd", "-a", str(table), "--lock", name]) == 0
        assert b"\n" + start in table.read_bytes()
        assert parse_auth(table.read_bytes(), "t").locked == [name]
        assert main(["passwd", "-a", str(table), "--lock", name]) == os.EX_DATAERR
        assert main(["passwd", "-a", str(table), "--unlock", name]) == 0
        assert table.read_bytes() == before
        assert main(["passwd", "-a", str(table), "--unlock", name]) == os.EX_DATAERR
    capsys.readouterr()
    assert main(["passwd", "-a", str(table), "--lock", "carol"]) == os.EX_DATAERR
    assert (
        capsys.readouterr().err
        == f"popkernel: {table}:4: user carol is locked already, or has no usable hash; nothing is changed\n"
    )
    assert main(["passwd", "-a", str(table), "--lock", "dave"]) == os.EX_NOUSER
    assert main(["passwd", "-a", str(table), "--lock", "--delete", "bob"]) == os.EX_USAGE
    table.write_bytes(b"a !\nb " + HASH + b"\n")
    assert main(["passwd", "-a", str(table), "--unlock", "a"]) == os.EX_DATAERR
    assert run(b"pw", "a") == 0  # a new password unlocks
    assert parse_auth(table.read_bytes(), "t").locked == []


def test_a_reload_is_advised_where_a_server_runs_and_nowhere_else(run, table, capsys, monkeypatch, tmp_path):
    """Without a running server the advice to run `popkernel reload` would be wrong."""
    monkeypatch.setattr("popkernel.cli.passwd.default_run_dir", lambda: str(tmp_path))
    assert run(b"pw", "a") == 0
    said = capsys.readouterr().err
    assert (
        "a set; no server runs at the usual place; a server uses it from its next start or reload on\n"
        in said
    )
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "control.sock"))
        server.listen()
        assert main(["passwd", "-a", str(table), "--delete", "a"]) == 0
    assert (
        capsys.readouterr().err
        == "popkernel: a removed; `popkernel reload` puts it in force\n".removeprefix("popkernel: ")
    )


@pytest.mark.parametrize(
    "arguments", [["--cost", "3"], ["--cost", "19"], ["--delete"], ["--lock"], ["--unlock"]]
)
def test_wrong_usage(run, arguments):
    assert run(b"pw", *arguments, "a") == os.EX_USAGE


def test_files_that_are_none(run, table, tmp_path, capsys):
    table.mkdir()
    assert run(b"pw", "a") == os.EX_CANTCREAT
    assert (
        capsys.readouterr().err
        == f"popkernel: {table}: Is a directory; name the table itself, a file, with -a\n"
    )
    assert run(b"pw", "-a", f"{tmp_path}/no/auth", "a") == os.EX_CANTCREAT
    assert "No such file or directory; make its directory first" in capsys.readouterr().err
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    assert main(["passwd", "-a", str(fifo), "--delete", "a"]) == os.EX_DATAERR
    assert main(["passwd", "-a", str(tmp_path / "no" / "auth"), "--delete", "a"]) == os.EX_NOINPUT


def test_a_link_stays_a_link(run, table, tmp_path):
    real = tmp_path / "real"
    real.write_bytes(b"")
    table.symlink_to(real)
    assert run(b"pw", "a") == 0
    assert table.is_symlink()
    assert list(parse_auth(real.read_bytes(), "t")[0]) == ["a"]


def test_passwd_waits_for_the_lock_and_sees_the_other_s_change(table, monkeypatch):
    table.write_bytes(b"a " + HASH + b"\n")
    tried = threading.Event()
    flock = fcntl.flock

    def watched(descriptor, operation):
        try:
            flock(descriptor, operation)
        except BlockingIOError:
            tried.set()
            raise

    monkeypatch.setattr(table_files.fcntl, "flock", watched)
    with open(table, "rb") as held:
        flock(held, fcntl.LOCK_EX)
        writer = threading.Thread(target=passwd.replace_entry, args=(str(table), b"c", HASH))
        writer.start()
        assert tried.wait(10)
        # The other program replaces the file under its lock: ours must not be written into the old one.
        table.with_suffix(".new").write_bytes(b"b " + HASH + b"\n")
        os.rename(table.with_suffix(".new"), table)
    writer.join(10)
    assert table.read_bytes() == b"b " + HASH + b"\nc " + HASH + b"\n"


def test_a_lock_that_is_never_released(run, table, monkeypatch, capsys):
    monkeypatch.setattr(table_files, "LOCK_SECONDS", 0.05)
    table.write_bytes(b"")
    with open(table, "rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert run(b"pw", "a") == os.EX_TEMPFAIL
    assert "locked by another program" in capsys.readouterr().err


def test_two_at_a_time_lose_nothing(table):
    names = [b"u%d" % number for number in range(12)]
    threads = [threading.Thread(target=passwd.replace_entry, args=(str(table), name, HASH)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(parse_auth(table.read_bytes(), "t")[0]) == sorted(name.decode() for name in names)


def test_an_error_while_writing_leaves_the_table(run, table, monkeypatch):
    table.write_bytes(b"a " + HASH + b"\n")

    def full(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(table_files.os, "fsync", full)
    assert run(b"pw", "b") == os.EX_CANTCREAT
    assert table.read_bytes() == b"a " + HASH + b"\n"
    assert os.listdir(table.parent) == ["auth"]


@pytest.mark.root("only root can chown")
def test_the_owner_stays(run, table):
    table.write_bytes(b"")
    os.chown(table, 64101, 64102)
    assert run(b"pw", "a") == 0
    assert (table.stat().st_uid, table.stat().st_gid) == (64101, 64102)


def _on_a_terminal(table, typed):
    """Run passwd on a terminal of its own and type; return the exit code and the terminal's output."""
    command = [sys.executable, "-m", "popkernel", "passwd", "-a", str(table), "--cost", "4", "alice"]
    pid, master = pty.fork()
    if pid == 0:
        os.execv(command[0], command)
    shown = b""
    try:
        for prompt, line in typed:
            while prompt not in shown:
                shown += os.read(master, 1024)
            os.write(master, line)
        with contextlib.suppress(OSError):  # EIO: the other side has closed
            while data := os.read(master, 1024):
                shown += data
    finally:
        os.close(master)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), shown


# forkpty, with threads of earlier tests
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_on_a_terminal(table):
    code, shown = _on_a_terminal(
        table, [(b"New password for alice: ", b"geheim\n"), (b"Once more: ", b"geheim\n")]
    )
    assert code == 0, shown
    assert b"geheim" not in shown
    assert bcrypt.checkpw(b"geheim", parse_auth(table.read_bytes(), "t")[0]["alice"])
    code, shown = _on_a_terminal(table, [(b"New password for alice: ", b"one\n"), (b"Once more: ", b"two\n")])
    assert code == os.EX_DATAERR
    assert b"differ" in shown


def test_without_a_terminal(table):
    command = [sys.executable, "-m", "popkernel", "passwd", "-a", str(table), "alice"]
    ended = subprocess.run(
        command, start_new_session=True, stdin=subprocess.DEVNULL, capture_output=True, check=False
    )
    assert ended.returncode == os.EX_NOINPUT
    assert b"use --stdin" in ended.stderr
    assert not table.exists()
