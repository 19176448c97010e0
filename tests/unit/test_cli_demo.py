"""Test the demo: what make_site() makes, and what the command refuses."""

import json
import os
import re
import shutil
import signal
import socket
import ssl
import stat
import subprocess
import sys
import types

import bcrypt
import pytest
from popkernel.cli import demo
from popkernel.cli.check import check
from popkernel.cli.common.program_name import as_typed
from popkernel.cli.common.sample_site import FIRST_UID, SAMPLE_MAIL, make_site
from popkernel.cli.main import main
from popkernel.proto.files.tables import parse_auth, parse_users

from tests.support.ports import free_ports


def test_a_site_has_all_files(tmp_path):
    site = make_site(str(tmp_path / "s"))
    with open(site.auth_table, "rb") as file:
        hashes, errors, *_ = parse_auth(file.read(), "a")
    assert not errors
    assert all(bcrypt.checkpw(site.passwords[name].encode(), value) for name, value in hashes.items())
    with open(site.user_table, "rb") as file:
        assert parse_users(file.read(), "u") == (site.mail_users, [])
    assert list(site.mail_users) == ["alice", "bob", "carol"]
    for user in site.mail_users.values():
        assert user.uid != 0
        new = os.path.join(user.maildir, "new")
        messages = [open(os.path.join(new, name), "rb") for name in sorted(os.listdir(new))]
        assert [(os.fstat(file.fileno()).st_uid, file.read()) for file in messages] == [
            (user.uid, message) for message in SAMPLE_MAIL
        ]
        for file in messages:
            file.close()
    assert stat.S_IMODE(os.stat(site.key).st_mode) == 0o600
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(site.cert, site.key)
    assert site.config.run_dir.startswith(str(tmp_path))


def test_the_certificate_is_for_this_machine(tmp_path):
    site = make_site(str(tmp_path / "s"))
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_side.load_cert_chain(site.cert, site.key)
    for name in ("localhost", "127.0.0.1", "::1"):
        one, two = ssl.MemoryBIO(), ssl.MemoryBIO()
        client = ssl.create_default_context(cafile=site.cert).wrap_bio(one, two, server_hostname=name)
        server = server_side.wrap_bio(two, one, server_side=True)
        for _ in range(4):
            for side in (client, server):
                try:
                    side.do_handshake()
                except ssl.SSLWantReadError:
                    continue
        assert client.version() == "TLSv1.3"


def test_options_of_make_site(tmp_path):
    site = make_site(
        str(tmp_path / "s"),
        users={"a": "one", "b": "two"},
        mail={"b": [b"x\n"]},
        ports=(2995, 2110),
        verbose=2,
        tls_min="1.2",
    )
    assert site.passwords == {"a": "one", "b": "two"}
    assert os.listdir(os.path.join(site.mail_users["a"].maildir, "new")) == []
    assert len(os.listdir(os.path.join(site.mail_users["b"].maildir, "new"))) == 1
    assert [address.port for address in site.config.listen + site.config.listen_starttls] == [2995, 2110]
    assert (site.config.verbose, site.config.tls_min) == (2, "1.2")


@pytest.mark.root("only root has other uids to give")
def test_many_users_stay_in_sixteen_bits(tmp_path):
    site = make_site(str(tmp_path / "s"), users=[f"user{number:04}" for number in range(1500)], mail=())
    uids = [user.uid for user in site.mail_users.values()]
    assert len(set(uids)) == len(set(uids[:1000])) <= 1000
    assert min(uids) >= FIRST_UID
    assert max(uids) < 65534
    assert len(set(uids[:900])) == 900


def test_check_finds_the_demo_sound(tmp_path):
    site = make_site(str(tmp_path / "s"), insecure_no_sandbox=True)
    # pytest's own directories are 0700, so as root the mail users cannot enter them.
    errors = [str(error) for error in check(site.config).errors if "cannot enter" not in error.what]
    assert errors == []


@pytest.fixture
def started(monkeypatch, tmp_path):
    """Replace the kernel in the process that demo forks; record each run()."""
    notes = tmp_path / "notes"
    notes.touch()
    module = types.ModuleType("popkernel.cli.common.serving")

    def run(config, _again, _toml, on_ready):
        with notes.open("a") as file:
            print(
                json.dumps([config.auth_table, config.cert, os.path.exists(config.auth_table), os.getppid()]),
                file=file,
            )
        on_ready()
        return 7

    module.serve = run
    monkeypatch.setitem(sys.modules, "popkernel.cli.common.serving", module)
    return lambda: [json.loads(line) for line in notes.read_text().splitlines()]


def ports():
    tls, stls = free_ports()
    return ["--tls-port", str(tls), "--stls-port", str(stls)]


def test_demo_makes_serves_and_removes(started, capfd):
    flags = ports()
    assert main(["demo", *flags]) == 7
    ((auth_table, _cert, there, parent),) = started()
    assert there
    assert parent == os.getpid()
    assert not os.path.exists(os.path.dirname(auth_table))
    shown = capfd.readouterr().out
    assert f"curl -k --user alice:secret pop3s://127.0.0.1:{flags[1]}/1 " in shown
    for command in ("status", "trace"):
        assert f" -m popkernel {command} --run-dir {os.path.dirname(auth_table)}/run" in shown


def test_demo_keeps_a_named_directory(started, tmp_path, monkeypatch):
    # pytest's own directory is 0700
    monkeypatch.setattr(demo, "_refuse_unreachable", lambda _directory: None)
    place = tmp_path / "site"
    assert main(["demo", "--dir", str(place), *ports()]) == 7
    certificate = (place / "cert.pem").read_bytes()
    for user in ("alice", "bob"):
        assert all(
            f"\nTo: {user}@localhost\n".encode() in path.read_bytes().replace(b"\r", b"")
            for path in (place / "mail" / user / "new").iterdir()
        )
    os.rename(place / "mail/alice/new", place / "mail/alice/cur/x")
    assert main(["demo", "--dir", str(place), *ports()]) == 7
    assert len(started()) == 2
    assert (place / "cert.pem").read_bytes() == certificate
    assert not (place / "mail/alice/new").exists()


def test_an_error_of_the_server_s_own_is_not_put_down_to_the_directory(started, monkeypatch, capfd):
    def run(_config, _again, _toml, on_ready):
        raise OSError(9, "Bad file descriptor")

    monkeypatch.setattr(sys.modules["popkernel.cli.common.serving"], "serve", run)
    assert main(["demo", *ports()]) == os.EX_SOFTWARE
    shown = capfd.readouterr().err
    assert "Bad file descriptor" in shown
    assert "--dir" not in shown


STAND_IN = """
import signal, sys, types
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # ours may have come to ignore it
module = types.ModuleType("popkernel.cli.common.serving")
def run(config, _again, _toml, on_ready):
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    print("serving", flush=True)
    return 0 if signal.sigwait([signal.SIGTERM]) else 1
module.serve = run
sys.modules["popkernel.cli.common.serving"] = module
from popkernel.cli.main import main
sys.exit(main(["demo", *sys.argv[1:]]))
"""


def _until(stream, text):
    lines = []
    while not any(text in line for line in lines):
        line = stream.readline()
        assert line, lines
        lines.append(line)
    return lines


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT])
def test_a_signal_ends_server_and_site(number):
    command = [sys.executable, "-c", STAND_IN, *ports()]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        first, *_ = _until(server.stdout, "serving")
        server.send_signal(number)
        assert server.wait(20) == 0
    directory = first.rsplit(" in ", 1)[1].strip()
    assert os.path.basename(directory).startswith("popkernel-demo.")
    assert not os.path.exists(directory)


def test_a_signal_while_the_site_is_made_leaves_nothing(tmp_path):
    script = """
import os, signal
signal.signal(signal.SIGHUP, signal.SIG_DFL)
from popkernel.cli import demo
demo._refuse_unreachable = lambda directory: None
demo.make_site = lambda *_, **__: os.kill(os.getpid(), signal.SIGHUP)
"""
    with subprocess.Popen(
        [sys.executable, "-c", script + STAND_IN, *ports()], env={**os.environ, "TMPDIR": str(tmp_path)}
    ) as server:
        assert server.wait(20) == 128 + signal.SIGHUP
    assert os.listdir(tmp_path) == []


def test_a_killed_demo_takes_its_server_along():
    command = [sys.executable, "-c", STAND_IN, *ports()]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        first, *_ = _until(server.stdout, "serving")
        server.kill()
        # The server process holds the other end of standard output, which closes when it ends.
        assert server.stdout.read() == ""
    shutil.rmtree(first.rsplit(" in ", 1)[1].strip())


def test_demo_leaves_a_strange_directory_alone(started, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "_refuse_unreachable", lambda _directory: None)
    strange = tmp_path / "strange"
    strange.mkdir()
    (strange / "mine").write_text("x")
    assert main(["demo", "--dir", str(strange), *ports()]) == os.EX_CANTCREAT
    assert "no demo site" in capsys.readouterr().err
    assert os.listdir(strange) == ["mine"]
    assert not started()


@pytest.mark.root("an ordinary user's demo has no other uids")
def test_demo_refuses_a_place_nobody_can_reach(started, tmp_path, capsys):
    tmp_path.chmod(0o700)
    assert main(["demo", "--dir", str(tmp_path / "s"), *ports()]) == os.EX_CANTCREAT
    assert f"{tmp_path}: other users cannot enter" in capsys.readouterr().err
    assert not started()


def test_a_port_that_is_taken(started, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["demo", "--tls-port", str(port)]) == os.EX_UNAVAILABLE
    said = capsys.readouterr().err
    assert re.fullmatch(
        rf"popkernel: 127.0.0.1:{port}: the port is taken; give another: .+ demo --tls-port PORT\n", said
    ), said
    assert main(["demo", "--tls-port", "0"]) == os.EX_USAGE
    assert not started()


def test_suggested_commands_work_as_typed(monkeypatch, tmp_path):
    program = tmp_path / "my bin" / "popkernel"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    monkeypatch.setattr(sys, "argv", [str(program)])
    assert as_typed().endswith(" -m popkernel")  # it cannot be run
    program.chmod(0o755)
    monkeypatch.setenv("PATH", "/nowhere")
    assert as_typed() == f"'{program}'"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["my bin/popkernel"])
    assert as_typed() == f"'{program}'"  # a terminal in another directory
    monkeypatch.setenv("PATH", str(program.parent))
    assert as_typed() == "popkernel"
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(program, other)
    monkeypatch.setenv("PATH", f"{other}:{program.parent}")  # another popkernel comes first
    assert as_typed() == f"'{program}'"


@pytest.mark.parametrize(
    "program",
    [[os.path.join(os.path.dirname(sys.executable), "popkernel")], [sys.executable, "-m", "popkernel"]],
)
def test_the_printed_status_command_runs(program, tmp_path):
    if not os.path.exists(program[0]):
        pytest.skip(f"no {program[0]}")
    env = {**os.environ, "PATH": "/usr/bin:/bin"}
    with subprocess.Popen(
        [*program, "demo", *ports()], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env
    ) as server:
        line = _until(server.stdout, " status ")[-1]
        _until(server.stderr, "ready: ")
        result = subprocess.run(
            ["sh", "-c", line], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=30, check=False
        )
        server.terminate()
        server.communicate(timeout=20)
    assert result.returncode == 0, result
    assert "listener.0" in result.stdout
