"""Stop a service with halted actors: silent actors get little time, actors with a session get all of it."""

import contextlib
import os
import signal
import sys
import time

from tests.support.processes import continue_process, stop_process
from tests.support.service import Service
from tests.support.waiting import wait_for

MAIL = [b"Subject: %d\n\nx\n" % n for n in range(3)]
SILENT = "is not alive: it has not answered for 4 s; ended"


def halt(service, *names):
    pids = [service.actor(name)["pid"] for name in names]
    for pid in pids:
        stop_process(pid)
    return pids


def test_all_are_halted():
    """The spawner too, which then reports none of its children's ends."""
    with Service(mail=MAIL, warm_seconds=60) as service:
        service.pop3().quit()
        wait_for(lambda: not service.status()["leases"])
        halt(service, "mda", "listener", "auth", "maildir.alice", "spawner")
        began = time.monotonic()
        assert service.stop(60) == 0
        assert time.monotonic() - began < 20
        log = service.read_log()
        assert all(f"{name} {SILENT}" in log for name in ("mda", "listener.0", "auth"))
        assert "stopped" in log


def test_a_spawner_that_is_halted_behind_a_session():
    short = (
        "from popkernel.proto import topology as t; t.ACTORS = tuple(row._replace(shutdown=1) for row in "
        "t.ACTORS)"
    )
    with Service(
        command=[
            sys.executable,
            "-c",
            f"{short}; from popkernel.cli.main import main; raise SystemExit(main())",
        ],
        mail=MAIL,
    ) as service:
        client = service.pop3()
        halt(service, "spawner", "maildir.alice")
        with contextlib.closing(client):
            assert service.stop(60) == 0
        assert f"spawner {SILENT}" in service.read_log()


def test_a_running_quit_is_not_cut_short():
    with Service(mail=MAIL) as service:
        with contextlib.closing(service.pop3()) as client:
            client.dele(1)
            halted, _ = halt(service, "maildir.alice", "auth")
            client._putcmd("QUIT")
            wait_for(lambda: service.actor("listener")["messages_in"])  # it answered after QUIT came
            service.signal(signal.SIGTERM)
            service.wait_log(f"auth {SILENT}")
            continue_process(halted)
            assert client._getresp().startswith(b"+OK")
        assert service.stop(60) == 0
        maildir = service.site.mail_users["alice"].maildir
        assert sum(len(os.listdir(f"{maildir}/{part}")) for part in ("cur", "new")) == 2
        assert f"maildir.alice {SILENT}" not in service.read_log()


def test_a_stop_in_the_middle_of_a_reload():
    """A closing terminal sends SIGHUP to all, and somebody sends SIGTERM.

    The new actors' hellos are ignored.
    """
    with Service(mail=MAIL) as service:
        service.change_files()
        service.signal(signal.SIGHUP)
        service.wait_log("~2 serves")
        assert service.stop() == 0
        log = service.read_log()
        assert "Traceback" not in log and "the kernel is gone" not in log
        assert (
            "not reloaded, what is in force stays: the service is stopping" in log
            or "reloaded: 3 users" in log
        )
        assert not os.path.exists(service.config.run_dir)
