"""Test a read-only mailbox: mail is listed and read, and a failed change is reported."""

import contextlib
import os
import poplib
import subprocess

import pytest

from tests.support.lmtp import deliver
from tests.support.maildirs import on_file_system
from tests.support.service import Service

pytestmark = pytest.mark.root("only root can mount and chown")


@pytest.fixture(scope="module")
def service():
    with Service(users=("alice", "bob", "carol"), mail=()) as running:
        yield running


def read_all(client):
    many = client.stat()[0]
    rows = client.uidl()[1]
    assert len(rows) == many
    assert all(client.retr(n + 1)[1][-1] == b"body" for n in range(many))
    return rows


@pytest.mark.parametrize("warm", [True, False])
def test_mail_on_a_file_system_that_was_made_read_only(service, warm):
    user = "alice" if warm else "bob"
    with on_file_system(service, user, "1m") as maildir:
        assert deliver(service, user).startswith(b"250")
        if warm:
            with contextlib.closing(service.pop3(user)) as client:
                before = read_all(client)
                client.quit()
        assert deliver(service, user).startswith(b"250")
        subprocess.run(["mount", "-o", "remount,ro", maildir], check=True)
        for _ in range(2):
            with contextlib.closing(service.pop3(user)) as client:
                rows = read_all(client)
                assert len(rows) == 2
                assert not warm or rows[0] == before[0]
                client.dele(1)
                with pytest.raises(poplib.error_proto, match=r"\[SYS/TEMP\] 1 messages could not be removed"):
                    client.quit()
        service.wait_log(f"maildir.{user}: 1 messages not removed: ")
        assert "Read-only file system" in service.read_log()
        assert deliver(service, user).startswith(b"451 4.3.0 ")
        subprocess.run(["mount", "-o", "remount,rw", maildir], check=True)
        with contextlib.closing(service.pop3(user)) as client:
            assert read_all(client) == rows
            client.dele(1)
            client.quit()
        assert deliver(service, user).startswith(b"250")


@pytest.mark.parametrize("mode", [0o644, 0o600])
def test_a_popcache_that_belongs_to_root(service, mode):
    maildir = service.site.mail_users["carol"].maildir
    assert deliver(service, "carol").startswith(b"250")
    with contextlib.closing(service.pop3("carol")) as client:
        before = read_all(client)
        client.quit()
    os.chown(f"{maildir}/popcache", 0, 0)
    os.chmod(f"{maildir}/popcache", mode)
    assert deliver(service, "carol").startswith(b"250")
    with contextlib.closing(service.pop3("carol")) as client:
        assert read_all(client)[: len(before)] == before
        client.dele(1)
        client.quit()
    with contextlib.closing(service.pop3("carol")) as client:
        assert len(read_all(client)) == len(before)
        client.quit()
    service.wait_log("maildir.carol: popcache: not brought up to date: Permission denied")
    os.chown(f"{maildir}/popcache", service.site.mail_users["carol"].uid, -1)
    with contextlib.closing(service.pop3("carol")) as client:
        assert len(read_all(client)) == len(before)
        client.quit()
