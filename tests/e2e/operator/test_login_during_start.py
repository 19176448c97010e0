"""Log in before the last actor of a start serves: the service is ready all the same."""

import pytest

from tests.support.faults.patched import patched
from tests.support.pop3 import RawPop3
from tests.support.service import serve
from tests.support.waiting import wait_for

LATE = """
def patch():
    import os, sys, time
    while sys.argv[1:2] == ["spawner"] and not os.path.exists({go!r}):
        time.sleep(0.01)
"""


@pytest.fixture
def go(tmp_path):
    """Name the file that the spawner waits for."""
    return tmp_path / "go"


def test_a_login_during_a_start_does_not_keep_it_from_its_end(tmp_path, go):
    command = patched(tmp_path, LATE.format(go=str(go)))
    with serve(command=command, expect_ready=False, users=("alice",)) as service:
        service.wait_log("listener.0 serves")
        client = service.keep(RawPop3(service))
        assert client.ask(b"USER alice").startswith(b"+OK")
        client.send(b"PASS secret\r\n")
        wait_for(lambda: service.actor("maildir.alice"))
        assert "ready: " not in service.read_log()
        go.touch()
        service.wait_ready()
        assert client.line().startswith(b"+OK")
        assert service.command("health").returncode == 0
        assert service.command("reload").returncode == 0
