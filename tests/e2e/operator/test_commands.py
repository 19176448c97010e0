"""Test the operator's commands: mailbox faults, exit codes, finding the server, session names."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile

import pytest
from popkernel.cli.common.sample_site import make_site

from tests.support.pop3 import RawPop3
from tests.support.ports import free_ports
from tests.support.service import POPKERNEL, ROOT, Service, serve

USERS = [f"user{n:02d}" for n in range(15)]


def run(*arguments, **options):
    return subprocess.run(
        [*POPKERNEL, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=40,
        check=False,
        **options,
    )


@pytest.fixture
def site():
    """Make a site without a server, in a directory with a short path."""
    with tempfile.TemporaryDirectory(prefix="pk") as directory:
        os.chmod(directory, 0o711)
        yield make_site(directory, lmtp=False, mail=(), ports=free_ports())


def toml(site):
    return os.path.join(site.directory, "popkernel.toml")


def change(site, before, after):
    with open(toml(site)) as file:
        text = file.read()
    assert before in text
    with open(toml(site), "w") as file:
        file.write(text.replace(before, after))


def break_mailboxes(site, users):
    for user in users:
        shutil.rmtree(site.mail_users[user].maildir)


# -- mailboxes
def test_a_reload_names_broken_mailboxes():
    with serve(mail=(), users=USERS) as service:
        assert "warning: user" not in service.read_log()
        assert service.command("reload").stderr == ""
        break_mailboxes(service.site, USERS[:2])
        wide = service.site.mail_users[USERS[2]].maildir
        os.chmod(wide, 0o777)
        result = service.command("reload")
        assert result.stdout.startswith("reloaded\n")
        for user, line in zip(USERS[:2], result.stderr.splitlines(), strict=False):
            path = service.site.mail_users[user].maildir
            assert line.startswith(
                f"warning: user {user}: {path}: there is no such directory; install -d -o "
            )
        (last,) = result.stderr.splitlines()[2:]
        assert (
            f": user {USERS[2]}: {wide}: mode 0777 lets others write to the mail; chmod go-w {wide}, as uid "
            in last
        )
        checked = run("check", "-f", service.toml)
        assert last in checked.stdout.splitlines()
        service.wait_log(f"popkernel: {last}")
        service.wait_log("popkernel: warning: user user01: ")
        with RawPop3(service) as client:  # the others are served
            assert client.login("user05").startswith(b"+OK")


@pytest.mark.parametrize("daemon", [False, True])
def test_a_start_names_broken_mailboxes(site, daemon):
    """They come after ready, on standard error too if the log goes to syslog, unless --daemon detaches."""
    os.rename(site.mail_users["bob"].maildir, site.mail_users["bob"].maildir + ".away")
    said = (
        f"popkernel: warning: user bob: {site.mail_users['bob'].maildir}: there is no such directory; "
        f"install -d "
    )
    if daemon:
        result = run("start", "-f", toml(site), "--daemon", "--log", "syslog")
        assert result.returncode == 0
        assert ("there is no syslog here" in result.stderr) != os.path.exists("/dev/log")
        assert result.stderr.index("popkernel: ready: ") < result.stderr.index(said)
        assert run("stop", "-f", toml(site)).stdout == "stopped\n"
        return
    with subprocess.Popen(
        [*POPKERNEL, "start", "-f", toml(site), "--log", "syslog"], stderr=subprocess.PIPE, text=True
    ) as server:
        assert server.stderr.readline().startswith("popkernel: ready: ")
        if not os.path.exists("/dev/log"):  # it said so with --daemon only
            assert server.stderr.readline().startswith(
                "popkernel: warning: log: there is no syslog here (/dev/log), so the log will be lost; "
            )
        assert server.stderr.readline().startswith(said)
        server.terminate()
        assert server.stderr.read() == ""
        assert server.wait(20) == 0


def test_a_start_names_ten_and_counts_the_others():
    with tempfile.TemporaryDirectory(prefix="pk") as directory:
        os.chmod(directory, 0o711)
        site = make_site(directory, lmtp=False, mail=(), users=USERS, ports=free_ports())
        break_mailboxes(site, USERS)
        result = run("start", "-f", toml(site), "--daemon", "--log", "syslog")
        lines = [line for line in result.stderr.splitlines() if "mail" in line and "ready: " not in line]
        assert len(lines) == 11
        assert lines[-1] == "popkernel: warning: and 5 more mailboxes can't be served; see `popkernel check`"
        assert run("stop", "-f", toml(site)).returncode == 0
        checked = run("check", "-f", toml(site))
        assert checked.returncode == 65 and checked.stdout.count("there is no such directory") == 15


@pytest.mark.parametrize("which", ["users", "auth", "popkernel.toml"])
def test_a_start_and_a_reload_name_files_that_others_can_change(site, which):
    path = os.path.join(site.directory, which)
    os.chmod(path, 0o666)
    said = (
        f"warning: {path}: mode 0666 lets others change whom popkernel serves, and as whom; chmod go-w {path}"
    )
    result = run("start", "-f", toml(site), "--daemon", "--log", "syslog")
    assert result.returncode == 0
    assert f"popkernel: {said}" in result.stderr.splitlines()
    assert run("reload", "-f", toml(site)).stderr == said + "\n"
    os.chmod(path, 0o644)
    assert run("reload", "-f", toml(site)).stderr == ""
    assert run("stop", "-f", toml(site)).returncode == 0


# -- one fault, one code
def taken(site):
    sock = socket.create_server(("127.0.0.1", site.config.listen[0].port))
    return sock.close


def run_dir_is_a_file(site):
    with open(site.config.run_dir, "w"):
        return None


def run_dir_of_everybody(site):
    os.mkdir(site.config.run_dir)
    os.chmod(site.config.run_dir, 0o777)


def run_dir_too_long(site):
    change(site, site.config.run_dir, "/tmp/" + "r" * 100)


def not_this_machine_s(site):
    change(site, f'"{site.config.listen[0]}"', '"192.0.2.77:995"')


def gone(which):
    return lambda site: os.unlink(getattr(site, which))


def garbage(which):
    def spoil(site):
        with open(getattr(site, which), "w") as file:
            file.write("garbage\n")

    return spoil


def no_toml(site):
    change(site, "hostname", "= =\nhostname")


FAULTS = {
    "port taken": (taken, 69),
    "not this machine's": (not_this_machine_s, 69),
    "run_dir a file": (run_dir_is_a_file, 73),
    "run_dir everybody's": (run_dir_of_everybody, 77),
    "run_dir too long": (run_dir_too_long, 78),
    "user table gone": (gone("user_table"), 66),
    "authorization table gone": (gone("auth_table"), 66),
    "user table garbage": (garbage("user_table"), 65),
    "authorization table garbage": (garbage("auth_table"), 65),
    "certificate gone": (gone("cert"), 78),
    "key garbage": (garbage("key"), 78),
    "no TOML": (no_toml, 78),
}
ON_RELOAD = {
    name for name in FAULTS if "table" in name or name in ("certificate gone", "key garbage", "no TOML")
}


@pytest.mark.parametrize("fault", FAULTS)
def test_one_fault_has_one_code(site, fault):
    make, code = FAULTS[fault]
    if fault in ON_RELOAD:
        with subprocess.Popen(
            [*POPKERNEL, "start", "-f", toml(site)], stderr=subprocess.PIPE, text=True
        ) as server:
            assert "ready" in server.stderr.readline()
            make(site)
            assert run("reload", "--run-dir", site.config.run_dir).returncode == code
            server.terminate()
            server.stderr.read()
    else:
        undo = make(site)
    try:
        started, checked = run("start", "-f", toml(site)), run("check", "-f", toml(site))
        assert (started.returncode, checked.returncode) == (code, code), (started.stderr, checked.stdout)
    finally:
        if fault == "port taken":
            undo()


@pytest.mark.parametrize("key", ["listen", "listen_starttls", "lmtp_listen"])
@pytest.mark.parametrize("address", ["taken", "192.0.2.77:9995", "127.0.0.1:1"])
def test_start_reports_what_check_reports(site, key, address):
    """Key, address, fault and mend are the same."""
    if key == "lmtp_listen" and address.startswith("192"):
        pytest.skip("refused for another reason")
    if address.endswith(":1") and ROOT:
        pytest.skip("root may do it")
    with socket.create_server(("127.0.0.1", 0)) as sock:
        if address == "taken":
            address = f"127.0.0.1:{sock.getsockname()[1]}"
        with open(toml(site)) as file:
            lines = [line for line in file if not line.startswith(f"{key} = ")]
        with open(toml(site), "w") as file:
            file.write("".join(lines) + f'{key} = ["{address}"]\n')
        started, checked = run("start", "-f", toml(site)), run("check", "-f", toml(site))
    (line,) = started.stderr.splitlines()
    assert line.removeprefix("popkernel: ") in checked.stdout.splitlines()
    assert line.startswith(f"popkernel: {key}: {address}: ") and "; " in line
    assert started.returncode == checked.returncode


@pytest.mark.root("files of root and another user")
def test_root_s_run_directory_is_not_another_s(site):
    """check and a start report it, with exit code 77."""
    os.mkdir(site.config.run_dir)
    code = (
        "import sys; from popkernel.kernel.init import run_directory; import os; os.setgroups([]); "
        "os.setgid(64198); os.setuid(64198)\n"
        "print(*run_directory.problem(sys.argv[1]), sep='; ')\n"
        "try: run_directory.RunDir(sys.argv[1])\nexcept run_directory.StartError as error: "
        "print(error.status, error, sep='; ')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, site.config.run_dir],
        capture_output=True,
        text=True,
        timeout=20,
        check=True,
    )
    what = "belongs to uid 0 and is not yours to write in; give a directory of your own with --run-dir"
    assert done.stdout.splitlines() == [f"77; {what}", f"77; {site.config.run_dir}: {what}"]


def test_a_port_taken_ends_demo_the_same_way():
    with socket.create_server(("127.0.0.1", 0)) as sock:
        assert run("demo", "--tls-port", str(sock.getsockname()[1])).returncode == 69


def test_commands_without_a_server(tmp_path):
    for command in ("status", "stop", "reload", "trace"):
        assert run(command, "--run-dir", str(tmp_path)).returncode == 69, command
    with serve(mail=()) as service:
        assert run("start", "-f", service.toml, "-l", "127.0.0.1:0", "-L", "127.0.0.1:0").returncode == 69


def test_check_continues_after_a_fault(site):
    """It reports what is no TOML and a wrong value, and still checks tables, run directory and key."""
    change(site, "hostname", "= =\nverbose = 77\nlisteners = \nhostname")
    run_dir_of_everybody(site)
    os.chmod(site.key, 0o644)
    garbage("auth_table")(site)
    shutil.rmtree(site.mail_users["bob"].maildir)
    result = run("check", "-f", toml(site))
    assert result.returncode == 78
    assert result.stdout.count(f"{toml(site)}:") == 3, result.stdout
    for said in (
        "verbose: 77 is no",
        f"{site.config.run_dir}: can be written by everybody; chmod o-w",
        f"{site.auth_table}:1: ",
        "leaves the private key open",
        "user bob: ",
    ):
        assert said in result.stdout, said


# -- which server
def test_every_command_takes_the_configuration(site):
    broken = site.directory + "/other.toml"
    with open(broken, "w") as file:  # nothing else in it counts
        file.write(f'run_dir = "{site.config.run_dir}"\nnonsense = 5\n')
    change(site, "lmtp = false", "lmtp = true")
    with subprocess.Popen(
        [*POPKERNEL, "start", "-f", toml(site)], stderr=subprocess.PIPE, text=True
    ) as server:
        assert "ready" in server.stderr.readline()
        assert json.loads(run("status", "--json", "-f", toml(site)).stdout)["users"] == 3
        assert run("status", "-f", broken).returncode == 0
        assert run("reload", "-f", broken).stdout.startswith("reloaded\n")
        assert run("trace", "-f", broken, "--for", "0.1").returncode == 0
        assert run("status", "-f", toml(site), "--run-dir", site.directory).returncode == 69  # the flag wins
        assert run("deliver", "-f", broken, "-u", "alice").returncode == 0
        assert len(os.listdir(site.mail_users["alice"].maildir + "/new")) == 1
        assert run("stop", "-f", broken).stdout == "stopped\n"
        server.stderr.read()
        assert server.wait(20) == 0
    for command, code in (("status", 78), ("stop", 78), ("reload", 78), ("trace", 78), ("deliver", 75)):
        result = run(command, "-f", site.directory + "/none.toml")
        assert result.returncode == code and "none.toml" in result.stderr, command
        with open(broken, "w") as file:
            file.write("run_dir = 7\n")
        assert run(command, "-f", broken).returncode == code


def test_created_directories_go_with_the_service(site):
    run_dir = site.directory + "/a/b/run"
    with subprocess.Popen(
        [*POPKERNEL, "start", "-f", toml(site), "--run-dir", run_dir], stderr=subprocess.PIPE, text=True
    ) as server:
        assert "ready" in server.stderr.readline() and os.path.exists(run_dir)
        server.terminate()
        server.stderr.read()
    assert not os.path.exists(site.directory + "/a")


# -- sessions
def test_a_session_has_one_name():
    with Service(mail=[b"Subject: 1\n\nx\n"], lmtp=False) as service, RawPop3(service) as client:
        assert client.login("bob").startswith(b"+OK")
        status = service.status()
        name = status["sessions"][0]["session"]
        assert status["leases"] == [{"user": "bob", "session": name, "listener": "listener.0"}]
        with subprocess.Popen(
            [*POPKERNEL, "trace", "--session", name, "--format", "json", "--run-dir", service.config.run_dir],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as trace:
            try:
                assert "attached" in trace.stderr.readline()
                assert client.ask(b"QUIT").startswith(b"+OK")
                log = service.wait_log("session over: ")
                seen = [json.loads(trace.stdout.readline()) for _ in range(4)]
            finally:
                trace.terminate()
                trace.communicate(timeout=20)
        assert (
            f" session={name} why=quit user=bob listener=listener.0 tls=1.3 mechanism=PASS commands=3 " in log
        )
        assert {row["session"] for row in seen if row["session"]} == {name}
        assert {row["fields"]["session"] for row in seen if "session" in row["fields"]} <= {name}


@pytest.mark.root("a mailbox of another user")
def test_a_mailbox_of_another(site):
    path = site.mail_users["bob"].maildir
    os.chown(path, 64199, 64199)
    result = run("start", "-f", toml(site), "--daemon", "--log", "syslog")
    assert f"user bob: {path}: belongs to uid 64199, not " in result.stderr
    assert run("stop", "-f", toml(site)).returncode == 0
