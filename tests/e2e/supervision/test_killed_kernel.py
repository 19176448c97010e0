"""End the service: kernel or init killed, an actor that dies too often, a clean stop.

Nothing is left behind.
"""

import os
import signal
import subprocess

import pytest

from tests.support.awkward import BIG, sent
from tests.support.maildirs import mail_of
from tests.support.pop3 import RawPop3
from tests.support.processes import kill, pid_of, wait_all_ended
from tests.support.service import POPKERNEL, Service, serve
from tests.support.waiting import wait_for

MAIL = {"alice": [b"Subject: 1\n\nsmall\n", BIG]}


@pytest.mark.parametrize("moment", ["RETR", "DELE"])
@pytest.mark.parametrize("victims", [("kernel",), ("init",), ("init", "kernel")])
def test_killed(victims, moment):
    with serve(mail=MAIL, expect_ready=True) as service, RawPop3(service, buffer=65536) as client:
        mail = mail_of(service)
        assert client.login().startswith(b"+OK")
        if moment == "DELE":
            assert client.ask(b"DELE 1").startswith(b"+OK")
        if moment == "RETR":
            assert client.ask(b"RETR 2").startswith(b"+OK")
            client.some(100_000)
        pids = service.pids()
        assert len(pids) >= 6  # init, kernel, spawner, auth, listener, alice's
        targets = [service.process.pid if v == "init" else pid_of(service, v) for v in victims]
        for pid in targets:
            kill(pid)
        said = client.end()
        if moment == "RETR":
            assert b"-ERR" not in said and not said.endswith(b"\r\n.\r\n")
        else:  # the listener may see the end of the kernel or of the maildir actor first
            assert said == b"" or said.startswith(b"-ERR [SYS/TEMP]")
        assert service.process.wait(10) == (70 if victims == ("kernel",) else -signal.SIGKILL)
        wait_all_ended(pids)
        assert mail_of(service) == mail
        run_dir = service.config.run_dir
        if victims == ("kernel",):
            assert not os.path.exists(run_dir)
            assert "kernel" in service.read_log()
        elif victims == ("init",):  # the kernel may not remove the directory itself
            wait_for(lambda: os.listdir(run_dir) == [])
        starts_again(service, mail)


def starts_again(service, mail):
    """Start on what the killed processes left."""
    command = [*POPKERNEL, "start", "-f", service.toml, "--log", "stderr"]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE) as again:
        try:
            for line in again.stderr:
                if b"ready: " in line:
                    break
            with RawPop3(service) as client:
                assert client.login().startswith(b"+OK")
                assert client.ask(b"QUIT").startswith(b"+OK")
            assert mail_of(service) == mail
        finally:
            again.terminate()
            again.stderr.read()
        assert again.wait(20) == 0
    assert not os.path.exists(service.config.run_dir)


@pytest.mark.parametrize("victim", ["auth", "listener", "spawner"])
def test_gives_up_loudly(victim):
    """Beyond the intensity: exit code 70, a clear line, nothing left behind."""
    with serve(mail=(), restart_intensity=2, restart_seconds=60) as service:
        pids = service.pids()
        for n in range(3):
            row = wait_for(
                lambda n=n: service.actor(victim),
                until=lambda r, n=n: r and r["state"] == "serving" and r["restarts"] == n,
            )
            pids += service.pids()
            kill(row["pid"])
        assert service.process.wait(15) == 70
        log = service.read_log()
        assert "ended again and again" in log and "giving up" in log and victim in log
        assert "again in 0.0 s" in log and "again in 0.1 s" in log  # the pause grows
        wait_all_ended(pids)
        assert not os.path.exists(service.config.run_dir)


def test_sigterm_is_polite():
    """An idle session is told, a message in transfer is finished or cut, a QUIT is completed; exit code 0."""
    with serve(mail={"alice": MAIL["alice"], "bob": [b"Subject: x\n\n"] * 5}) as service:
        mail = mail_of(service)
        with RawPop3(service) as idle, RawPop3(service, buffer=65536) as slow, RawPop3(service) as outside:
            assert idle.login("bob").startswith(b"+OK")
            assert idle.ask(b"DELE 1").startswith(b"+OK")
            assert slow.login().startswith(b"+OK")
            assert slow.ask(b"RETR 2").startswith(b"+OK")
            slow.some(50_000)
            pids = service.pids()
            service.signal(signal.SIGTERM)
            assert idle.end().startswith(b"-ERR [SYS/TEMP]")
            assert outside.end().startswith(b"-ERR [SYS/TEMP]")
            said = slow.end()
            whole = sent(BIG) + b".\r\n"
            assert said == whole or (whole.startswith(said) and not said.endswith(b"\r\n.\r\n"))
        assert service.stop() == 0
        wait_all_ended(pids)
        assert mail_of(service) == mail and len(mail_of(service, "bob")) == 5
        assert not os.path.exists(service.config.run_dir)


def test_sigterm_at_any_moment_of_the_start():
    """However early it comes: exit code 0 or the signal itself, and nothing is left behind."""
    for hundredths in (5, 12, 15, 18, 21, 25, 30, 40):
        with Service(mail=(), lmtp=False, expect_ready=False) as service:
            wait_for(lambda h=hundredths: seconds_of(service.process.pid) >= h / 100)  # noqa: B023
            service.signal(signal.SIGTERM)
            assert service.process.wait(15) in (0, -signal.SIGTERM)
            assert not os.path.exists(service.config.run_dir), service.read_log()


def seconds_of(pid):
    """Return the seconds since the process began."""
    with open(f"/proc/{pid}/stat") as file, open("/proc/uptime") as up:
        began = int(file.read().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
        return float(up.read().split()[0]) - began
