"""Stop processes with SIGSTOP: each is found, ended and replaced, waiting clients are told, others go on."""

import os
import poplib
import re
import socket
import struct
import sys
import time

import pytest

from tests.support.lmtp import deliver
from tests.support.processes import gone, kill, stopped
from tests.support.service import Service, serve_with_short_deadlines
from tests.support.waiting import wait_for


def logs_in(service, user, seconds=30, *, in_use=False):
    """Return the seconds until that user has a session.

    Until then only [SYS/TEMP] or disconnections are allowed.
    """
    began, answers = time.monotonic(), []
    while True:
        try:
            service.pop3(user).quit()
            return time.monotonic() - began, answers
        except (OSError, EOFError, poplib.error_proto) as error:
            answers.append(str(error))
            assert (
                "SYS/TEMP" in str(error)
                or (in_use and "IN-USE" in str(error))
                or not isinstance(error, poplib.error_proto)
                or "EOF" in str(error)
            ), answers
            assert time.monotonic() - began < seconds, answers


def gives_up(service, *, reset=False):
    """Disconnect while a login is in progress; with unread octets, or `reset`, the system resets."""
    client = service.pop3("alice", login=False)
    client.user("alice")
    client._putcmd(f"PASS {service.site.passwords['alice']}")
    wait_for(lambda: service.status()["leases"])
    if reset:
        client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


@pytest.mark.parametrize("name", ["spawner", "auth", "listener.0", "mda"])
def test_a_singleton(name):
    with serve_with_short_deadlines(listeners=1, users=("alice", "bob")) as service:
        pid = service.actor(name)["pid"]
        with stopped(pid):
            wait_for(lambda: gone(pid))
        service.wait_log(f"{name} is not alive")
        service.wait_log(f"{name} ended: signal SIGKILL; again in")
        logs_in(service, "alice")
        assert deliver(service, "bob")[:3] == b"250"
        assert service.actor(name)["restarts"] == 1


@pytest.mark.parametrize("reset", [False, True], ids=["closes", "resets"])
def test_a_spawner_leaves_no_session_in_use(reset):
    """A client that gave up must not leave [IN-USE] behind."""
    with serve_with_short_deadlines(users=("alice", "bob")) as service:
        pid = service.actor("spawner")["pid"]
        with stopped(pid):
            gives_up(service, reset=reset)
            took, answers = logs_in(service, "alice")
        assert took < 15 and not [x for x in answers if "IN-USE" in x], (took, answers)
        wait_for(lambda: not service.status()["leases"])


def test_a_warm_maildir_actor():
    """Its user must not wait for login_seconds, nor get [IN-USE] afterwards."""
    with serve_with_short_deadlines(users=("alice", "bob")) as service:
        service.pop3("alice").quit()
        pid = service.actor("maildir.alice")["pid"]
        with stopped(pid):
            took, _ = logs_in(service, "alice")
        assert took < 15 and gone(pid)
        assert "maildir.alice is not alive" in service.read_log()
        assert service.actor("listener.0")["restarts"] == 0


def test_a_warm_maildir_actor_whose_client_gave_up():
    with serve_with_short_deadlines(users=("alice",)) as service:
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
    with serve_with_short_deadlines(
        users=("alice", "bob"), isolation="connection", listeners=1, login_seconds=3
    ) as service:
        client = service.pop3("bob", login=False)
        name = wait_for(
            lambda: next((a for a in service.status()["actors"] if a["name"].startswith("listener.")), None)
        )
        with stopped(name["pid"]):
            # its gate ends it when its time to log in is over
            wait_for(lambda: gone(name["pid"]), seconds=30)
            logs_in(service, "alice")
        client.close()
        holder = service.pop3("bob")
        name = wait_for(lambda: next((s["listener"] for s in service.status()["sessions"]), None))
        pid = service.actor(name)["pid"]
        with stopped(pid):
            answers = logs_in(service, "bob", in_use=True)[1]
            assert [x for x in answers if "IN-USE" in x]
            # An actor that blocks a login is asked whether it lives. Its gate may reap it after the login.
            wait_for(lambda: gone(pid))
        holder.close()
        pid = service.actor("gate")["pid"]
        with stopped(pid):
            wait_for(lambda: gone(pid))
        service.wait_log("gate.0 is not alive")
        logs_in(service, "alice")


def test_init():
    """Nobody can end init: that is logged, and a reload is refused until init runs again.

    What needs no new process goes on.
    """
    with serve_with_short_deadlines(users=("alice", "bob")) as service:
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
        # init now does what was requested; another reload at this time is refused
        wait_for(
            lambda: service.command("reload", check=False),
            until=lambda answer: answer.returncode == 0,
            seconds=30,
        )
        logs_in(service, "bob")
        assert len(re.findall(r"init \(process \d+\) has not answered", service.read_log())) == 1
        assert sys.platform != "linux" or service.stop() == 0
