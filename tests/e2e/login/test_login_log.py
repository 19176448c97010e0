"""Test the log's lines about logins: the true reason, which the client never hears, and the phases."""

import os
import shutil
import time

import pytest

from tests.support.pop3 import RawPop3
from tests.support.service import Service

NAMES = ["alice", "bob", "carol", "dave"]
WRONG = b"-ERR [AUTH] wrong name or password\r\n"


@pytest.fixture(scope="module", params=["shared", "connection"])
def service(request):
    with Service(
        users=NAMES, mail=(), verbose=0, isolation=request.param, penalty_seconds=0, auth_cache_seconds=0
    ) as running:
        with open(running.config.auth_table) as file:
            lines = file.readlines()
        with open(running.config.auth_table, "w") as file:
            file.writelines("bob !\n" if line.startswith("bob ") else line for line in lines)
        with open(running.config.user_table) as file:
            lines = file.readlines()
        with open(running.config.user_table, "w") as file:
            file.writelines(line for line in lines if not line.startswith("carol "))
        running.command("reload")
        yield running


@pytest.mark.parametrize(
    ("user", "secret", "reason"),
    [
        (b"alice", b"wrong", "password"),
        (b"nobody", b"secret", "unknown"),
        (b"bob", b"secret", "locked"),
        (b"carol", b"secret", "no-maildrop"),
        (b'x" reason=password', b"secret", ""),
        (b"y\x1b[2J", b"secret", ""),
    ],
)
def test_the_client_hears_the_same_and_the_log_has_the_reason(service, user, secret, reason):
    with RawPop3(service) as client:
        named = client.ask(b"USER " + user)
        if not reason:
            assert named.startswith(b"-ERR")  # a name with blanks or control characters is none
            return
        assert client.ask(b"PASS " + secret) == WRONG
    log = service.wait_log(f" user={user.decode()}\n")
    (line,) = [line for line in log.splitlines() if line.endswith(f" user={user.decode()}")]
    assert "popkernel: login failed: address=127.0.0.1:" in line and f" reason={reason} waited_ms=" in line


def test_a_mailbox_in_use(service):
    with RawPop3(service) as one, RawPop3(service) as other:
        assert one.login().startswith(b"+OK") and other.login().startswith(b"-ERR [IN-USE]")
        assert " user=alice" in service.wait_log("reason=in-use")


def test_a_session_s_phases(service):
    """Hashing takes its time, and all phases together are no longer than the session."""
    began = time.monotonic()
    with RawPop3(service) as client:
        assert client.login("dave").startswith(b"+OK") and client.ask(b"QUIT").startswith(b"+OK")
        client.end()
    took = (time.monotonic() - began) * 1000
    log = service.wait_log(" why=quit user=dave ")
    (line,) = [line for line in log.splitlines() if " why=quit user=dave " in line]
    fields = dict(word.split("=", 1) for word in line.split() if "=" in word)
    assert fields["tls"] == "1.3" and fields["mechanism"] == "PASS"
    assert fields["listener"].startswith("listener.") and fields["commands"] == "3"
    phases = {name: int(value) for name, value in fields.items() if name.endswith("_ms")}
    assert phases.keys() == {"tls_ms", "queue_ms", "hash_ms", "penalty_ms", "lease_ms", "open_ms"}
    assert phases["penalty_ms"] == 0 and sum(phases.values()) <= int(fields["ms"]) + 6 <= took + 20


def test_a_missing_maildir_has_one_warning(service):
    with open(service.config.user_table) as file:
        path = next(line for line in file if line.startswith("dave ")).strip().rpartition(":")[2]
    shutil.rmtree(os.path.join(path, service.config.subdir))
    before = len(service.read_log())
    with RawPop3(service) as client:
        assert client.login("dave").startswith(b"-ERR [SYS/TEMP]")
    service.wait_log("reason=temp")
    log = service.read_log()[before:]
    assert log.count("warning: maildir.dave: the maildir is not there") == 1, log
