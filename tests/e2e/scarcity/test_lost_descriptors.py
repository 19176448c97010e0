"""Lose a descriptor between init and kernel for lack of room: its request fails, nothing ends."""

import resource
import signal
import sys

import pytest

from tests.support.pop3 import RawPop3
from tests.support.processes import kill, pid_of
from tests.support.service import serve
from tests.support.waiting import wait_for

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits of another process: prlimit(2)")


class Full:
    """Leave a process no further descriptor while the context is active."""

    def __init__(self, pid):
        self.pid = pid

    def __enter__(self):
        self.before = resource.prlimit(self.pid, resource.RLIMIT_NOFILE)
        # 0 to 2 are taken; open ones above stay
        resource.prlimit(self.pid, resource.RLIMIT_NOFILE, (3, self.before[1]))

    def __exit__(self, *_):
        resource.prlimit(self.pid, resource.RLIMIT_NOFILE, self.before)


def test_the_user_table_in_the_kernel():
    with serve(mail=()) as service, RawPop3(service) as client:
        assert client.login("bob").startswith(b"+OK")
        with Full(pid_of(service, "kernel")):
            service.signal(signal.SIGHUP)
            service.wait_log(
                "not reloaded, what is in force stays: no room for the user table's descriptor: "
            )
        assert client.ask(b"STAT").startswith(b"+OK")
        assert service.command("reload").stdout.startswith("reloaded\n")
        assert service.stop() == 0


def test_the_channel_of_an_actor_in_init():
    with serve(mail=()) as service, RawPop3(service) as client:
        assert client.login("bob").startswith(b"+OK")
        with Full(service.process.pid):
            kill(pid_of(service, "auth"))
            service.wait_log("auth could not be started: no room for its channel in init: ")
        wait_for(lambda: service.actor("auth"), until=lambda row: row and row["state"] == "serving")
        assert client.ask(b"STAT").startswith(b"+OK")
        assert service.stop() == 0
