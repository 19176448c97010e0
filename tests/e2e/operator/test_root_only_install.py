"""Run from an installation of root's alone: nothing is imported or opened after the ids are dropped."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, distribution

import popkernel
import pytest

from tests.support.pop3 import RawPop3
from tests.support.ports import free_ports
from tests.support.processes import kill
from tests.support.service import Service
from tests.support.waiting import wait_for

pytestmark = pytest.mark.root("only root's actors have other ids")


def needed(name, found):
    """Return that distribution and everything it needs, without extras."""
    with suppress(PackageNotFoundError):  # it is for another system
        found[name] = distribution(name)
        for wanted in found[name].requires or ():
            other = re.match(r"[\w.-]+", wanted)[0].replace("_", "-").lower()
            if "extra ==" not in wanted and other not in found:
                needed(other, found)
    return found


def link_or_copy(source, target):
    try:
        os.link(os.path.realpath(source), target)
    except OSError:
        shutil.copy(source, target)


@pytest.fixture(scope="module")
def python():
    """Make an environment that contains every package, below a directory of mode 0700; return its Python."""
    with tempfile.TemporaryDirectory(prefix="pkclosed") as place:
        assert os.stat(place).st_mode & 0o777 == 0o700
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", f"{place}/v"], check=True)
        packages = f"{place}/v/lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"
        for name, one in needed("popkernel", {}).items():
            for file in one.files if name != "popkernel" else ():
                target = os.path.normpath(os.path.join(packages, file))
                if target.startswith(packages) and "__pycache__" not in target:
                    os.makedirs(os.path.dirname(target), exist_ok=True)
                    link_or_copy(file.locate(), target)
        shutil.copytree(popkernel.__path__[0], f"{packages}/popkernel", copy_function=link_or_copy)
        yield f"{place}/v/bin/python"


def messages_in_a_whole_session(service):
    with RawPop3(service) as client:
        answer = client.login()
        assert answer.startswith(b"+OK"), answer
        number = int(answer.split()[1])
        for command in (b"RETR %d" % number, b"TOP %d 1" % number, b"UIDL", b"LIST"):
            client.many(command)
        assert client.ask(b"QUIT").startswith(b"+OK")
        return number


def test_a_session_a_delivery_a_reload_and_a_restart_of_each(python):
    with Service(command=[python, "-m", "popkernel"], restart_intensity=1000, restart_seconds=2) as service:

        def command(*arguments, data=b""):
            subprocess.run(
                [python, "-m", "popkernel", *arguments, "--run-dir", service.config.run_dir],
                input=data,
                check=True,
                timeout=60,
            )

        assert messages_in_a_whole_session(service) == 6
        command("deliver", "-u", "alice", data=b"Subject: new\n\nmail\n")
        command("deliver", "-u", "bob", data=b"Subject: new\n\nmail\n")  # whose actor does not exist yet
        assert messages_in_a_whole_session(service) == 7
        command("reload")
        assert messages_in_a_whole_session(service) == 7
        for name in ("listener.0", "auth", "mda", "spawner"):
            before = service.actor(name)["pid"]
            kill(before)
            wait_for(
                lambda: service.actor(name),
                until=lambda row: row and row["state"] == "serving" and row["pid"] != before,
            )  # noqa: B023
        command("deliver", "-u", "alice", data=b"Subject: new\n\nmail\n")
        assert messages_in_a_whole_session(service) == 8
        assert service.stop() == 0
        assert "Traceback" not in service.log.decode() and "fault of its own" not in service.log.decode()


def test_a_listener_for_each_connection(python):
    with Service(command=[python, "-m", "popkernel"], isolation="connection") as service:
        assert messages_in_a_whole_session(service) == 6
        assert service.stop() == 0
        assert "Traceback" not in service.log.decode() and "fault of its own" not in service.log.decode()


def test_the_demo(python):
    tls, stls = free_ports()
    demo = [python, "-m", "popkernel", "demo", "--tls-port", str(tls), "--stls-port", str(stls)]
    with subprocess.Popen(demo, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd="/") as server:
        try:
            for line in server.stderr:
                if b"ready: " in line:
                    break
            reading = f"""import poplib, ssl
client = poplib.POP3_SSL("127.0.0.1", {tls}, context=ssl._create_unverified_context())
client.user("alice"); client.pass_("secret"); print(client.stat()[0]); client.quit()"""
            assert (
                subprocess.run([python, "-c", reading], capture_output=True, check=False, timeout=60).stdout
                == b"6\n"
            )
        finally:
            server.send_signal(signal.SIGINT)
            server.communicate(timeout=20)
    assert server.returncode == 0
