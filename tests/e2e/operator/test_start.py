"""Test start and end: a second start, taken ports, an ordinary user, --daemon, sd_notify(3)."""

import contextlib
import os
import re
import select
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
import tomllib

import pytest
from popkernel.cli.common.sample_site import make_site
from popkernel.kernel.config.keys import keys

from tests.support.pop3 import RawPop3
from tests.support.ports import free_ports
from tests.support.processes import wait_all_ended
from tests.support.service import POPKERNEL, serve
from tests.support.waiting import wait_for

PACKAGING = os.path.join(os.path.dirname(__file__), "..", "..", "..", "packaging")


def start(site_toml, *arguments, **options):
    """Run a start that must end by itself."""
    return subprocess.run(
        [*POPKERNEL, "start", "-f", site_toml, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
        **options,
    )


@pytest.fixture
def site(tmp_path):
    """Make a site without a server, in a directory with a short path."""
    with tempfile.TemporaryDirectory(prefix="pk") as directory:
        os.chmod(directory, 0o711)
        yield make_site(directory, lmtp=False, ports=free_ports())


def toml(site):
    return os.path.join(site.directory, "popkernel.toml")


def test_second_start_on_the_same_run_directory():
    with serve(mail=()) as service:
        before = service.pids()
        result = start(service.toml, "--log", "stderr", "-l", "127.0.0.1:0", "-L", "127.0.0.1:0")
        assert result.returncode == 69
        assert (
            f"a popkernel (process {service.process.pid}) already runs on {service.config.run_dir}"
            in result.stderr
        )
        assert "--run-dir" in result.stderr
        assert service.pids() == before and service.command("status").returncode == 0
        with RawPop3(service) as client:
            assert client.login().startswith(b"+OK")


def test_ports_taken(site):
    with socket.create_server(("127.0.0.1", site.config.listen[0].port)):
        result = start(toml(site))
    assert result.returncode == 69
    assert f"listen: {site.config.listen[0]}: the port is taken by another program; end it" in result.stderr
    assert not os.path.exists(site.config.run_dir)


def test_run_directory_of_everybody(site):
    os.mkdir(site.config.run_dir)
    os.chmod(site.config.run_dir, 0o777)
    result = start(toml(site))
    assert (
        result.returncode == 77
        and f"chmod o-w {site.config.run_dir}, or give a directory of its own" in result.stderr
    )
    result = start(toml(site), "--run-dir", "/tmp")
    assert (
        result.returncode == 77
        and "give a directory of its own" in result.stderr
        and "chmod" not in result.stderr
    )


@pytest.mark.root("another user's directory")
def test_run_directory_of_another(site):
    os.mkdir(site.config.run_dir)
    os.chown(site.config.run_dir, 65534, 65534)
    result = start(toml(site))
    assert result.returncode == 77 and "belongs to uid 65534" in result.stderr


BROKEN = {
    "authorization table gone": ("auth_table", None, 66),
    "authorization table half-edited": ("auth_table", b"alice", 65),
    "user table gone": ("user_table", None, 66),
    "user table with root": ("user_table", b"alice 0:0:/root\n", 65),
    "certificate gone": ("cert", None, 78),
    "key is garbage": ("key", b"garbage\n", 78),
    "configuration with an unknown key": ("toml", b"lissten = 3\n", 78),
}


@pytest.mark.parametrize(
    ("what", "daemon"),
    [*((what, False) for what in BROKEN), *((what, True) for what in list(BROKEN)[::2])],
)
def test_start_that_fails(site, what, daemon):
    """Exit code and text are the same, detached or not; nothing is left behind."""
    which, data, code = BROKEN[what]
    path = toml(site) if which == "toml" else getattr(site, which)
    if data is None:
        os.unlink(path)
    else:
        with open(path, "wb") as file:
            file.write(data)
    result = start(toml(site), *(["--daemon", "--log", "syslog"] if daemon else []))
    assert result.returncode == code, result
    assert path in result.stderr
    assert not os.path.exists(site.config.run_dir)


@pytest.mark.parametrize("log", ["auto", "syslog", "stderr"])
@pytest.mark.parametrize(
    ("which", "data"),
    [("user_table", b"alice 0:0:/root\n"), ("user_table", None), ("auth_table", b"alice $6$x$y\n")],
)
def test_a_fault_is_reported_once_and_alone(site, which, data, log):
    path = getattr(site, which)
    os.unlink(path)
    if data:
        with open(path, "wb") as file:
            file.write(data)
    said = start(toml(site), "--log", log).stderr.splitlines()
    assert len(said) == 1, said
    assert said[0].startswith(f"popkernel: {path}:" + ("1: " if data else " "))


@pytest.mark.parametrize("log", ["syslog", "stderr"])
def test_daemon(site, log):
    """It exits with 0 once the service is ready, in its own session, without the caller's descriptors.

    Only a log on standard error stays open.
    """
    # a file, which the service keeps open; it closes the pipe of start(), which could not return otherwise
    if log == "stderr":
        with open(f"{site.directory}/log", "w+") as file:
            command = [*POPKERNEL, "start", "-f", toml(site), "--daemon", "--log", log]
            code = subprocess.run(
                command, stdin=subprocess.DEVNULL, stderr=file, timeout=30, check=False
            ).returncode
            file.seek(0)
            said = file.read()
    else:
        result = start(toml(site), "--daemon", "--log", log)
        code, said = result.returncode, result.stderr
    assert code == 0, said
    assert "popkernel: ready: pop3s 127.0.0.1:" in said
    with open(f"{site.config.run_dir}/lock") as file:
        pid = int(file.read())
    try:
        assert os.getsid(pid) == pid and os.readlink(f"/proc/{pid}/cwd") == "/"
        assert [os.readlink(f"/proc/{pid}/fd/{n}") for n in (0, 1)] == ["/dev/null"] * 2
        with RawPop3(served(site), verify=False) as client:
            assert client.login().startswith(b"+OK")
            reload = subprocess.run(
                [*POPKERNEL, "reload", "--run-dir", site.config.run_dir],
                capture_output=True,
                text=True,
                check=False,
            )
            assert reload.stdout.startswith("reloaded\n"), reload
            assert client.ask(b"QUIT").startswith(b"+OK")
    finally:
        stopped = subprocess.run(
            [*POPKERNEL, "stop", "--run-dir", site.config.run_dir],
            capture_output=True,
            text=True,
            check=False,
        )
    assert stopped.returncode == 0, stopped
    wait_for(lambda: not os.path.exists(site.config.run_dir))
    wait_all_ended([pid])


class served:
    """Hold what RawPop3 needs of a site."""

    def __init__(self, site):
        self.tls = site.config.listen[0]
        self.plain = site.config.listen_starttls[0]


def test_notifies_the_service_manager():
    with (
        tempfile.TemporaryDirectory(prefix="pk") as directory,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager,
    ):
        manager.bind(f"{directory}/notify")
        manager.settimeout(10)
        with serve(mail=(), env={**os.environ, "NOTIFY_SOCKET": f"{directory}/notify"}) as service:
            said = manager.recv(4096).decode().split("\n")
            assert (
                said[0] == "READY=1"
                and said[1].startswith("STATUS=popkernel: ready: ")
                and said[2] == f"MAINPID={service.process.pid}"
            )
            service.command("reload")
            said = manager.recv(4096).decode().split("\n")
            assert said[0] == "RELOADING=1" and said[1].startswith("MONOTONIC_USEC=")
            assert manager.recv(4096) == b"READY=1"
            os.rename(service.site.cert, service.site.cert + ".away")
            service.signal(signal.SIGHUP)  # a failed reload ends with READY too
            assert manager.recv(4096).startswith(b"RELOADING=1\n")
            assert manager.recv(4096) == b"READY=1"
            assert service.stop() == 0
            assert manager.recv(4096) == b"STOPPING=1"
            assert not select.select([manager], [], [], 0)[0]


def watchdog_signs(manager, seconds):
    """Return the number of signs of life within `seconds`."""
    end, many = time.monotonic() + seconds, 0
    while select.select([manager], [], [], max(0.0, end - time.monotonic()))[0]:
        many += manager.recv(4096) == b"WATCHDOG=1"
    return many


def test_the_watchdog_is_fed_while_the_kernel_answers():
    with (
        tempfile.TemporaryDirectory(prefix="pk") as directory,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager,
    ):
        manager.bind(f"{directory}/notify")
        manager.settimeout(10)
        env = {**os.environ, "NOTIFY_SOCKET": f"{directory}/notify", "WATCHDOG_USEC": "300000"}
        env.pop("WATCHDOG_PID", None)
        with serve(mail=(), env=env) as service:
            assert manager.recv(4096).startswith(b"READY=1")
            for _ in range(3):
                assert manager.recv(4096) == b"WATCHDOG=1"
            kernel = service.actor("kernel")["pid"]
            os.kill(kernel, signal.SIGSTOP)
            try:
                wait_for(lambda: not watchdog_signs(manager, 0.5))  # first those that came before
            finally:
                os.kill(kernel, signal.SIGCONT)
            assert manager.recv(4096) == b"WATCHDOG=1"
            assert service.stop() == 0


def test_a_watchdog_of_another_process_is_not_fed():
    with (
        tempfile.TemporaryDirectory(prefix="pk") as directory,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager,
    ):
        manager.bind(f"{directory}/notify")
        manager.settimeout(10)
        env = {**os.environ, "NOTIFY_SOCKET": f"{directory}/notify", "WATCHDOG_USEC": "100000"}
        with serve(mail=(), env={**env, "WATCHDOG_PID": str(os.getpid())}):
            assert manager.recv(4096).startswith(b"READY=1")
            assert watchdog_signs(manager, 0.4) == 0


def reachable(path):
    """Return whether every directory above may be entered by everyone."""
    while path != "/":
        if not os.stat(path).st_mode & (stat.S_IXOTH if os.path.isdir(path) else stat.S_IROTH):
            return False
        path = os.path.dirname(path)
    return True


MAKE_AND_SERVE = """
import sys
from popkernel.cli.common.sample_site import make_site
from popkernel.cli.main import main
site = make_site(sys.argv[1], lmtp=False, ports=(int(sys.argv[2]), int(sys.argv[3])))
sys.exit(main(["start", "-f", sys.argv[1] + "/popkernel.toml", "--log", "stderr", "-v"]))
"""


def interpreter(directory):
    """Return a Python that everyone may run, with this one's packages.

    It is this one, or the system's of the same version in a new environment.
    """
    import popkernel

    home = os.path.dirname(os.path.dirname(popkernel.__file__))
    for needed in (os.path.realpath(popkernel.__file__), os.path.realpath(make_site.__code__.co_filename)):
        if not reachable(needed):
            pytest.skip(f"uid 65534 can't reach {needed}")
    if reachable(os.path.realpath(sys.executable)):
        return sys.executable
    name = "python{}.{}".format(*sys.version_info)
    if not os.path.exists(f"/usr/bin/{name}"):
        pytest.skip(
            f"uid 65534 can't reach {os.path.realpath(sys.executable)}, and there is no /usr/bin/{name}"
        )
    os.makedirs(f"{directory}/bin")
    os.makedirs(f"{directory}/lib/{name}/site-packages")
    os.symlink(f"/usr/bin/{name}", f"{directory}/bin/python")
    with open(f"{directory}/pyvenv.cfg", "w") as file:
        file.write("home = /usr/bin\ninclude-system-site-packages = false\n")
    with open(f"{directory}/lib/{name}/site-packages/these.pth", "w") as file:
        file.write("\n".join([home, *(p for p in sys.path if p.endswith("site-packages"))]) + "\n")
    return f"{directory}/bin/python"


@pytest.mark.root("other users run every other test here as an ordinary user")
def test_as_an_ordinary_user():
    """Everything works under the caller's own ids."""
    directory = tempfile.mkdtemp(prefix="pk")
    try:
        python = interpreter(f"{directory}/python")
        os.chmod(directory, 0o711)
        os.mkdir(f"{directory}/site")
        os.chown(f"{directory}/site", 65534, 65534)
        serve_as_ordinary_user(python, f"{directory}/site")
    finally:
        shutil.rmtree(directory)


def serve_as_ordinary_user(python, directory):
    process = subprocess.Popen(
        [python, "-c", MAKE_AND_SERVE, directory, *map(str, free_ports())],
        user=65534,
        group=65534,
        extra_groups=[],
        cwd="/",
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        for line in process.stderr:
            if b"ready: " in line:
                break
        else:
            raise AssertionError(process.wait())
        config = load_site(directory)
        with RawPop3(served(config), verify=False) as client:
            assert client.login().startswith(b"+OK 6 ")
            assert client.ask(b"RETR 1").startswith(b"+OK")
            assert b"Welcome" in client.message()
            assert client.ask(b"DELE 1").startswith(b"+OK")
            rows = ask_status(config)["actors"]
            assert {a["name"].partition(".")[0] for a in rows} == {
                "kernel",
                "spawner",
                "auth",
                "listener",
                "maildir",
            }
            for row in rows:
                assert (row["uid"], row["gid"]) == (65534, 65534), row
                with open(f"/proc/{row['pid']}/status") as file:
                    ids = [line.split()[1:] for line in file if line.startswith(("Uid:", "Gid:"))]
                assert ids == [["65534"] * 4] * 2
            assert client.ask(b"QUIT").startswith(b"+OK")
        with RawPop3(served(config), verify=False) as client:
            assert client.login().startswith(b"+OK 5 ")
        process.terminate()
        process.stderr.read()
        assert process.wait(20) == 0
        assert not os.path.exists(config.config.run_dir)
    finally:
        if process.poll() is None:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
        process.stderr.close()


class load_site:
    def __init__(self, directory):
        from popkernel.kernel.config.loading import load

        self.config = load({}, f"{directory}/popkernel.toml")


def ask_status(site):
    from popkernel.kernel.client import Client

    return Client(site.config.run_dir).ask("status")


def test_sample_configuration_has_every_key():
    """Each key occurs once, commented out with its default or an example.

    The file is TOML that the loader accepts.
    """
    with open(os.path.join(PACKAGING, "popkernel.toml")) as file:
        lines = file.read().split("\n")
    settings = [
        line.removeprefix("#") for line in lines if line and not line.startswith("# ") and line != "#"
    ]
    values = tomllib.loads("\n".join(settings))
    assert list(values) == [key.name for key in keys()]
    assert len(settings) == len(values)
    for key in keys():
        if key.metadata["kind"] in ("int", "bool", "choice"):
            assert values[key.name] == key.default, key.name
    from popkernel.kernel.config.loading import load

    with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
        file.write("\n".join(settings))
        file.flush()
        load({}, file.name)


@pytest.mark.root("only root has capabilities to drop")
@pytest.mark.skipif(shutil.which("setpriv") is None, reason="needs setpriv(1)")
def test_the_units_capabilities_suffice():
    """Logins, reloads, a failing reload and a clean end work with the systemd unit's capabilities."""
    with open(os.path.join(PACKAGING, "popkernel.service")) as file:
        line = next(line for line in file if line.startswith("CapabilityBoundingSet="))
    kept = ",".join("+" + name.removeprefix("CAP_").lower() for name in line.partition("=")[2].split())
    command = [
        "setpriv",
        "--no-new-privs",
        "--bounding-set",
        f"-all,{kept}",
        "--inh-caps",
        "-all",
        *POPKERNEL,
    ]
    with serve(command=command) as service:
        with open(f"/proc/{service.process.pid}/status") as file:
            effective = next(int(line.split()[1], 16) for line in file if line.startswith("CapEff:"))
        assert effective.bit_count() == kept.count("+")
        assert service.command("reload").stdout.startswith("reloaded\n")
        with RawPop3(service) as client:
            assert client.login().startswith(b"+OK")
            assert client.ask(b"DELE 1").startswith(b"+OK")
            assert client.ask(b"QUIT").startswith(b"+OK")
        with RawPop3(service) as client:
            assert client.login().startswith(b"+OK 5 ")
            assert client.ask(b"QUIT").startswith(b"+OK")
        before = len(service.pids())
        os.rename(service.site.cert, service.site.cert + ".away")
        assert service.command("reload", check=False).returncode == 78
        # the new ones were killed, by a parent of another uid
        wait_for(lambda: len(service.pids()) == before)
        assert service.stop() == 0


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze(1)")
def test_systemd_accepts_the_unit(tmp_path):
    with open(os.path.join(PACKAGING, "popkernel.service")) as file:
        text = file.read()
    text = re.sub(r"(?m)^(Exec\w+=-?)popkernel ", rf"\1{sys.executable} ", text)
    (tmp_path / "popkernel.service").write_text(text)
    result = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", tmp_path / "popkernel.service"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "popkernel.service" not in result.stderr, result.stderr


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze(1)")
def test_the_unit_leaves_little_open():
    result = subprocess.run(
        [
            "systemd-analyze",
            "security",
            "--offline=true",
            "--threshold=30",  # 3.0
            os.path.join(PACKAGING, "popkernel.service"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.skipif(shutil.which("mandoc") is None, reason="needs mandoc(1)")
def test_the_manual_page_is_clean():
    page = os.path.join(PACKAGING, "..", "docs", "popkernel.8")
    result = subprocess.run(
        ["mandoc", "-Tlint", "-Wwarning", page], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_manual_page_names_every_key_and_command():
    from popkernel.cli.registry import build_parser

    with open(os.path.join(PACKAGING, "..", "docs", "popkernel.8")) as file:
        page = file.read()
    for key in keys():
        assert f".It Cm {key.name}\n" in page, key.name
    commands = next(a.choices for a in build_parser()._actions if a.choices)
    for name in commands:
        assert f".It Cm {name}" in page, name
        for action in commands[name]._actions:
            for flag in action.option_strings:
                assert f"Fl {flag[1:]}" in page or flag == "-h", (name, flag)
