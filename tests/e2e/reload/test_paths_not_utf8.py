"""Use paths that are not UTF-8: faults are reported in a line, and the service goes on."""

import os
import shutil
import signal
import subprocess
import sys

import pytest

from tests.support.pop3 import RawPop3
from tests.support.service import POPKERNEL, serve

FILES = {"-f": "popkernel.toml", "-u": "user_table", "-a": "auth_table", "-c": "cert"}
NAME = b"x\xff"
SHOWN = r"x\udcff"  # as the log shows it

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="elsewhere a file's name may have to be UTF-8"
)


def renamed(service, option):
    """Give a file of the site, or the run directory, such a name; return its path."""
    assert service.stop() == 0
    service.process.stderr.close()
    path = os.fsencode(service.site.directory) + b"/" + NAME
    if option == "-f":
        shutil.copy2(service.toml, path)
        service.command_line = [path if word == service.toml else word for word in service.command_line]
    else:
        if option != "--run-dir":
            old = getattr(service.config, FILES[option])
            shutil.copy2(old, path)
            os.chown(path, os.stat(old).st_uid, os.stat(old).st_gid)
        service.command_line = [*service.command_line, option, path]
    return path


def spoil(path, how):
    if how == "away":
        os.rename(path, path + b".away")
    else:
        shutil.copy2(path, path + b".away")
        with open(path, "w") as file:
            file.write("nonsense\n")


def mend(path):
    os.replace(path + b".away", path)


def ask(command, run_dir):
    return subprocess.run(
        [*POPKERNEL, command, "--run-dir", run_dir], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize("option", FILES)
def test_a_file_that_is_bad(option):
    with serve(mail=()) as service:
        path = renamed(service, option)
        service.start()
        service.wait_ready()
        with RawPop3(service) as client:
            assert client.login("bob").startswith(b"+OK")
            for number, how in enumerate(("away", "nonsense"), 1):
                spoil(path, how)
                service.signal(signal.SIGHUP)
                service.wait_log("not reloaded, what is in force stays: ", count=2 * number - 1)
                answer = ask("reload", service.config.run_dir)
                assert answer.returncode in (65, 66, 78), answer
                assert SHOWN in answer.stderr, answer
                service.wait_log(SHOWN, count=2 * number)
                mend(path)
            assert client.ask(b"STAT").startswith(b"+OK")
        assert ask("reload", service.config.run_dir).stdout.startswith("reloaded\n")
        assert service.stop() == 0
        assert "ended before it served" not in service.read_log()
        for how in ("away", "nonsense"):
            spoil(path, how)
            command = [word for word in service.command_line if word != "-v"]
            result = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=20, check=False
            )
            assert result.returncode in (65, 66, 78), result
            assert SHOWN in result.stderr, result
            assert "Traceback" not in result.stderr, result
            mend(path)


def test_a_run_directory():
    with serve(mail=()) as service:
        run_dir = renamed(service, "--run-dir")
        service.start()
        service.wait_ready()
        assert SHOWN not in ask("reload", run_dir).stderr
        service.wait_log("reloaded: ")
        assert "bob" not in ask("status", run_dir).stdout
        with RawPop3(service) as client:
            assert client.login("bob").startswith(b"+OK")
            status = ask("status", run_dir)
            assert status.returncode == 0, status
            assert "bob" in status.stdout
        assert ask("stop", run_dir).returncode == 0
        assert service.process.wait(20) == 0


def test_a_maildir_of_such_a_name_that_is_watched(tmp_path):
    """A viewer of everything gets the user table, with such a path in it."""
    with serve(mail=()) as service:
        with open(service.site.user_table, "rb") as file:
            table = file.read()
        old = table.split(b"\n")[0].rsplit(b":", 1)[1]
        os.rename(old, old + NAME)
        with open(service.site.user_table, "wb") as file:
            file.write(table.replace(old + b"\n", old + NAME + b"\n"))
        service.command("reload")
        recording = str(tmp_path / "all")
        command = [*POPKERNEL, "trace", "--run-dir", service.config.run_dir, "--record", recording]
        with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as trace:
            try:
                assert "attached" in trace.stderr.readline()
                with RawPop3(service) as client:
                    assert client.login("alice").startswith(b"+OK")
                    assert client.ask(b"QUIT").startswith(b"+OK")
                service.command("reload")
            finally:
                trace.send_signal(signal.SIGINT)
            assert "Traceback" not in trace.stderr.read()
        assert trace.returncode == 0
        replay = subprocess.run(
            [*POPKERNEL, "replay", recording], capture_output=True, text=True, timeout=60, check=False
        )
        assert replay.returncode == 0, replay
        assert service.stop() == 0
