"""Somebody stops a process (SIGSTOP): it is found, ended and replaced, who waited is told, and the others go on (B5)."""

import os
import poplib
import re
import sys
import time

import pytest

from tests.support.lmtp import deliver
from tests.support.processes import gone, kill, stopped
from tests.support.service import Service, impatient
from tests.support.waiting import wait_for


def logs_in(service, user, seconds=30, *, in_use=False):
    """How long it takes until that user has a session; whatever else it is told on the way is [SYS/TEMP] or the end of a connection."""
    began, answers = time.monotonic(), []
    while True:
        try:
            service.pop3(user).quit()
            return time.monotonic() - began, answers
        except (OSError, EOFError, poplib.error_proto) as error:
            answers.append(str(error))
            assert "SYS/TEMP" in str(error) or (in_use and "IN-USE" in str(error)) or not isinstance(error, poplib.error_proto) or "EOF" in str(error), answers
            assert time.monotonic() - began < seconds, answers


def gives_up(service):
    """A client that goes while its login is under way."""
    client = service.pop3("alice", login=False)
    client._putcmd("USER alice")
    client._putcmd(f"PASS {service.site.passwords['alice']}")
    wait_for(lambda: service.status()["leases"])
    client.close()


@pytest.mark.parametrize("name", ["spawner", "auth", "listener.0", "mda"])
def test_a_singleton(name):
    with impatient(listeners=1, users=("alice", "bob")) as service:
        pid = service.actor(name)["pid"]
        with stopped(pid):
            wait_for(lambda: gone(pid))
        service.wait_log(f"{name} is not alive")
        service.wait_log(f"{name} ended: signal SIGKILL; again in")
        logs_in(service, "alice")
        assert deliver(service, "bob")[:3] == b"250"
        assert service.actor(name)["restarts"] == 1


def test_a_spawner_leaves_no_session_in_use():
    """The client that gave up left [IN-USE] behind."""
    with impatient(users=("alice", "bob")) as service:
        pid = service.actor("spawner")["pid"]
        with stopped(pid):
            gives_up(service)
            took, answers = logs_in(service, "alice")
        assert took < 15 and not [x for x in answers if "IN-USE" in x], (took, answers)
        wait_for(lambda: not service.status()["leases"])


def test_a_warm_maildir_actor():
    """Its user waited for as long as a client has to log in, and had [IN-USE] or nothing afterwards."""
    with impatient(users=("alice", "bob")) as service:
        service.pop3("alice").quit()
        pid = service.actor("maildir.alice")["pid"]
        with stopped(pid):
            took, _ = logs_in(service, "alice")
        assert took < 15 and gone(pid)
        assert "maildir.alice is not alive" in service.read_log()
        assert service.actor("listener.0")["restarts"] == 0


def test_a_warm_maildir_actor_whose_client_gave_up():
    with impatient(users=("alice",)) as service:
        service.pop3("alice").quit()
        pid = service.actor("maildir.alice")["pid"]
        with stopped(pid):
            gives_up(service)
            took, _ = logs_in(service, "alice")
        assert took < 15 and gone(pid)


def test_a_warm_maildir_actor_for_which_a_login_has_waited_its_time():
    with Service(mail=(), lmtp=True, login_seconds=2) as service:
        assert deliver(service)[:3] == b"250"
        pid = service.actor("maildir.alice")["pid"]
        with stopped(pid):
            client = service.pop3(login=False)
            client.user("alice")
            with pytest.raises((poplib.error_proto, OSError, EOFError)):
                client.pass_("secret")
            client.close()
            wait_for(lambda: gone(pid), seconds=30)
        client = service.pop3("alice")
        assert client.stat()[0] == 1
        client.quit()


def test_a_gate_and_a_listener_of_one_connection():
    with impatient(users=("alice", "bob"), isolation="connection", listeners=1, login_seconds=3) as service:
        client = service.pop3("bob", login=False)
        name = wait_for(lambda: next((a for a in service.status()["actors"] if a["name"].startswith("listener.")), None))
        with stopped(name["pid"]):
            wait_for(lambda: gone(name["pid"]), seconds=30)  # its gate ends it when its time to log in is over
            logs_in(service, "alice")
        client.close()
        holder = service.pop3("bob")
        name = wait_for(lambda: next((s["listener"] for s in service.status()["sessions"]), None))
        pid = service.actor(name)["pid"]
        with stopped(pid):
            answers = logs_in(service, "bob", in_use=True)[1]
            assert [x for x in answers if "IN-USE" in x] and gone(pid), "whoever keeps others out is asked whether it lives"
        holder.close()
        pid = service.actor("gate")["pid"]
        with stopped(pid):
            wait_for(lambda: gone(pid))
        service.wait_log("gate.0 is not alive")
        logs_in(service, "alice")


def test_init():
    """Nobody can end it: that is said, what needs no new process goes on, a reload is refused, and all goes on when it does."""
    with impatient(users=("alice", "bob")) as service:
        service.pop3("bob").quit()
        with stopped(service.process.pid):
            service.wait_log(f"init (process {service.process.pid}) has not answered")
            kill(service.actor("auth")["pid"])
            assert deliver(service, "alice")[:3] == b"250"
            answer = service.command("reload", check=False)
            assert answer.returncode == os.EX_TEMPFAIL and "init has not" in answer.stderr
        service.wait_log("init answers again")
        logs_in(service, "alice")
        assert "giving up" not in service.read_log()
        # Init does now what it was asked then; another reload at that time is refused.
        wait_for(lambda: service.command("reload", check=False), until=lambda answer: answer.returncode == 0, seconds=30)
        logs_in(service, "bob")
        assert len(re.findall(r"init \(process \d+\) has not answered", service.read_log())) == 1
        assert sys.platform != "linux" or service.stop() == 0
