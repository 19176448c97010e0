"""Fail each system call of init once, as for lack of a resource: the service goes on, or its start fails.

A failed start prints a line. docs/scarcity.md has the table; failing_calls.py makes the calls fail.
"""

import os
import subprocess

import pytest
from popkernel.kernel.client import Client, ClientError

from tests.support.faults.failing_calls import COMMAND, FILE, Faults
from tests.support.pop3 import RawPop3
from tests.support.processes import kill, wait_all_ended
from tests.support.service import serve
from tests.support.waiting import wait_for

_MOST = 400  # points of one walk; an endless walk is a fault itself


@pytest.fixture
def faults(tmp_path):
    return Faults(tmp_path / "faults")


def scarce(faults, **site):
    return serve(mail=(), command=COMMAND, env={**os.environ, FILE: faults.path}, **site)


def walk(faults, process="init"):
    """Count points until one is beyond the last; the call of each is known afterwards."""
    for number in range(1, _MOST):
        faults.ask(process, number)
        yield number
        fault = faults.failed(process)
        faults.ask(process, 0)
        if not fault.call:
            return
    raise AssertionError("no end")


def reload(service):
    """Reload all actors that a reload may replace; return its exit code and error text."""
    service.change_files()
    while True:
        try:
            Client(service.config.run_dir).ask("reload", 30)
        except ClientError as error:
            if "not now" not in str(error):
                return error.code, str(error)
        else:
            return 0, ""


@pytest.mark.parametrize("process", ["init", pytest.param("child", marks=pytest.mark.slow)])
def test_at_a_reload(faults, process):
    with scarce(faults) as service, RawPop3(service) as client:
        assert client.login("bob").startswith(b"+OK")
        seen = []
        for number in walk(faults, process):
            code, said = reload(service)
            call = faults.failed(process).call
            seen.append(call)
            assert code in (0, 66, 74, 75, 78), (number, call, said)
            assert client.ask(b"NOOP").startswith(b"+OK"), (number, call)
        assert (
            {"fork", "pipe"} <= set(seen)
            if process == "init"
            else {"read", "open", "stat", "write"} <= set(seen)
        ), seen
        assert reload(service) == (0, "")
        with RawPop3(service) as other:
            assert other.login().startswith(b"+OK")
            assert other.ask(b"QUIT").startswith(b"+OK")
        assert "Traceback" not in service.read_log()
        # the serving four; the session's listener, spawner and bob; alice is warm
        wait_for(
            lambda: sorted(a["name"] for a in service.status()["actors"]), until=lambda names: len(names) <= 8
        )
        assert service.stop() == 0


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["auth", "listener"])
def test_when_one_is_started_again(faults, victim):
    with scarce(faults, restart_intensity=1000) as service:
        for number in walk(faults):
            row = wait_for(lambda: service.actor(victim), until=lambda row: row and row["state"] == "serving")
            kill(row["pid"])
            wait_for(
                lambda row=row: service.actor(victim),
                until=lambda now, row=row: now and now["state"] == "serving" and now["pid"] != row["pid"],
                seconds=30,
            )
            assert service.process.poll() is None, number
        assert "Traceback" not in service.read_log()


def serves(service):
    """Return whether every actor serves."""
    try:
        actors = service.status()["actors"]
    except (ClientError, OSError):
        return False
    return {"auth", "spawner"} <= {a["name"] for a in actors} and all(
        a["state"] in ("serving", "running") for a in actors
    )


@pytest.mark.slow
def test_at_a_start(faults):
    """It serves, or says in a line or two what is short, and leaves nothing."""
    with serve(mail=()) as service:
        assert service.stop() == 0
        for number in walk(faults):
            command = [*COMMAND, "start", "-f", service.toml, "--log", "stderr"]
            with subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                env={**os.environ, FILE: faults.path},
            ) as start:
                # Not by its "ready" line: the write of that line is one of the calls that fail.
                wait_for(lambda start=start: start.poll() is not None or serves(service), seconds=60)
                serving = start.poll() is None
                start.terminate()
                said = start.stderr.read()
            call = faults.failed("init")
            assert "Traceback" not in said, (number, call, said)
            assert start.returncode in ((0,) if serving else (66, 69, 73, 74, 75, 77)), (number, call, said)
            assert said.count("\n") <= 8 and (said or call.call == "write"), (number, call, said)
            assert not os.path.exists(service.config.run_dir), (number, call, said)


@pytest.mark.slow
def test_at_the_end(faults):
    """It ends, leaves nothing, and does not hang."""
    seen = set()
    for number in range(1, _MOST):
        with scarce(faults) as service:
            pids = service.pids()
            faults.ask("init", number)
            assert service.stop() == 0, (number, faults.failed("init"))
            assert "Traceback" not in service.read_log()
            wait_all_ended(pids)
            assert not os.path.exists(service.config.run_dir), faults.failed("init")
            if not faults.failed("init").call:
                break
            seen.add(faults.failed("init").call)
