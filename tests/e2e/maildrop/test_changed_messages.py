"""Change messages after they were listed, and break mailboxes: the client gets a clear error and goes on.

The log has the mend.
"""

import contextlib
import glob
import itertools
import os
import poplib
import shutil

import pytest

from tests.support.service import Service
from tests.support.waiting import wait_for

SMALL = b"Subject: a message\n\nof forty-two octets\n"
MEDIUM = b"Subject: one read\n\n" + b"a line of thirty octets or so\n" * 6700  # 200,000 octets
LARGE = b"Subject: several reads\n\n" + b"a line of thirty octets or so\n" * 40_000
OTHER = b"Subject: other\n\nother\n"


serial = itertools.count()


def shorter(path):
    os.truncate(path, os.stat(path).st_size // 2)


def a_little_shorter(path):
    os.truncate(path, os.stat(path).st_size - 3)


def longer(path):
    with open(path, "ab") as file:
        file.write(b"more\n")


def gone(path):
    os.unlink(path)


def a_directory(path):
    os.unlink(path)
    os.mkdir(path)


def a_fifo(path):
    os.unlink(path)
    os.mkfifo(path, 0o666)


def a_link(path):
    os.unlink(path)
    os.symlink("/etc/passwd", path)


def nothing(path):
    os.truncate(path, 0)


CHANGES = [shorter, a_little_shorter, longer, gone, a_directory, a_fifo, a_link, nothing]


@pytest.fixture(scope="module")
def service():
    with Service(users=("alice", "bob", "carol", "dave"), mail=()) as running:
        yield running


def put(service, user, *mail):
    row = service.site.mail_users[user]
    for part in ("", "new", "cur", "tmp"):
        os.makedirs(f"{row.maildir}/{part}", 0o700, exist_ok=True)
        while part and (names := os.listdir(f"{row.maildir}/{part}")):
            path = f"{row.maildir}/{part}/{names[0]}"
            with contextlib.suppress(FileNotFoundError):  # the session before may still be setting flags
                os.rmdir(path) if os.path.isdir(path) and not os.path.islink(path) else os.unlink(path)
    for number, octets in enumerate(mail, 1):
        path = f"{row.maildir}/new/{number}.{next(serial)}.put.there"  # names are never reused
        with open(path, "wb") as file:
            file.write(octets)
        os.chown(path, row.uid, row.gid)
    return row.maildir


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("mail", [SMALL, MEDIUM], ids=["small", "medium"])
def test_a_changed_message_ends_neither_the_session_nor_its_deletions(service, mail, change):
    maildir = put(service, "alice", mail, OTHER, mail)
    with contextlib.closing(service.pop3("alice")) as client:
        client.dele(2)
        change(glob.glob(f"{maildir}/cur/1.*")[0])
        with pytest.raises(
            poplib.error_proto, match=r"^b.-ERR \[SYS/(TEMP|PERM)\] the message (has changed|is gone|can)"
        ) as caught:
            client.retr(1)
        assert b"there" not in caught.value.args[0]
        assert b"\n".join(client.retr(3)[1]) + b"\n" == mail
        client.quit()
    assert [name for name in os.listdir(f"{maildir}/cur") if name.startswith("2.")] == []


def test_a_shrunken_large_message_is_refused_before_an_octet(service):
    maildir = put(service, "alice", LARGE, OTHER)
    client = service.pop3("alice")
    os.truncate(glob.glob(f"{maildir}/cur/1.*")[0], 100_000)
    with pytest.raises(poplib.error_proto, match="has changed"):
        client.retr(1)
    assert client.noop().startswith(b"+OK")
    client.quit()
    client = service.pop3("alice")
    assert len(b"\n".join(client.retr(1)[1])) == 100_000, "the last line is cut and gets a line end"
    client.quit()


def refused(service, user):
    with pytest.raises(poplib.error_proto) as caught:
        service.pop3(user)
    return caught.value.args[0].decode()


@pytest.mark.root("needs a directory of root")
def test_a_missing_maildir_is_temporary_and_the_log_has_the_mend(service):
    maildir = put(service, "bob", OTHER)
    os.rename(maildir, f"{maildir}.away")
    assert refused(service, "bob") == "-ERR [SYS/TEMP] the mailbox is not available now, try again later"
    log = service.wait_log(
        "the maildir is not there, and its user may not make it: mount its file system, or make it, "
        "owned by that user"
    )
    assert maildir in log
    os.rename(f"{maildir}.away", maildir)
    client = service.pop3("bob")
    assert client.stat()[0] == 1
    client.quit()


@pytest.mark.root("needs a directory of another user")
@pytest.mark.parametrize("mode", [0o755, 0o700])
def test_an_unmounted_maildir_is_temporary(service, mode):
    maildir = put(service, "carol", OTHER)
    os.rename(maildir, f"{maildir}.away")
    os.mkdir(maildir)
    os.chmod(maildir, mode)
    assert refused(service, "carol") == "-ERR [SYS/TEMP] the mailbox is not available now, try again later"
    service.wait_log(
        "maildir.carol: maildir: it belongs to uid 0: mount its file system, or give it to its user"
    )
    os.rmdir(maildir)
    os.rename(f"{maildir}.away", maildir)
    client = service.pop3("carol")
    assert client.stat()[0] == 1
    client.quit()


def test_faults_are_logged_and_not_shown_to_the_user(service):
    maildir = put(service, "dave", OTHER)
    shutil.rmtree(f"{maildir}/new")
    os.symlink("cur", f"{maildir}/new")
    assert refused(service, "dave") == "-ERR [SYS/PERM] the mailbox can't be opened"
    service.wait_log("maildir.dave: new is no directory, or a symbolic link: put a directory there")
    os.unlink(f"{maildir}/new")
    client = wait_for(lambda: service.pop3("dave"))
    assert client.stat()[0] == 0
    client.quit()
