"""A message that is not what was listed, or a mailbox that can't be opened: the client is told, in words for a user, and goes on; the log has the mend."""

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
MEDIUM = b"Subject: one read\n\n" + b"a line of thirty octets or so\n" * 6700  # some 200,000 octets
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
            with contextlib.suppress(FileNotFoundError):  # the session before it may still be setting flags
                os.rmdir(path) if os.path.isdir(path) and not os.path.islink(path) else os.unlink(path)
    for number, octets in enumerate(mail, 1):
        path = f"{row.maildir}/new/{number}.{next(serial)}.put.there"  # a name is one message's for ever
        with open(path, "wb") as file:
            file.write(octets)
        os.chown(path, row.uid, row.gid)
    return row.maildir


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("mail", [SMALL, MEDIUM], ids=["small", "medium"])
def test_a_message_that_is_not_what_was_listed_costs_neither_the_session_nor_its_deletions(service, mail, change):
    maildir = put(service, "alice", mail, OTHER, mail)
    with contextlib.closing(service.pop3("alice")) as client:
        client.dele(2)
        change(glob.glob(f"{maildir}/cur/1.*")[0])
        with pytest.raises(poplib.error_proto, match=r"^b.-ERR \[SYS/(TEMP|PERM)\] the message (has changed|is gone|can)") as caught:
            client.retr(1)
        assert b"there" not in caught.value.args[0]
        assert b"\n".join(client.retr(3)[1]) + b"\n" == mail
        client.quit()
    assert [name for name in os.listdir(f"{maildir}/cur") if name.startswith("2.")] == []


def test_a_message_of_several_reads_that_has_become_one_is_refused_before_an_octet_of_it(service):
    maildir = put(service, "alice", LARGE, OTHER)
    client = service.pop3("alice")
    os.truncate(glob.glob(f"{maildir}/cur/1.*")[0], 100_000)
    with pytest.raises(poplib.error_proto, match="has changed"):
        client.retr(1)
    assert client.noop().startswith(b"+OK")
    client.quit()
    client = service.pop3("alice")
    assert len(b"\n".join(client.retr(1)[1])) == 100_000, "the last line is cut, and given its end"
    client.quit()


def refused(service, user):
    with pytest.raises(poplib.error_proto) as caught:
        service.pop3(user)
    return caught.value.args[0].decode()


@pytest.mark.root("a directory that its user may not write to needs root")
def test_a_maildir_that_is_missing_is_away_for_its_user_and_the_log_says_the_mend(service):
    maildir = put(service, "bob", OTHER)
    os.rename(maildir, f"{maildir}.away")
    assert refused(service, "bob") == "-ERR [SYS/TEMP] the mailbox is not available now, try again later"
    log = service.wait_log("the maildir is not there, and its user may not make it: mount its file system, or make it, owned by that user")
    assert maildir in log
    os.rename(f"{maildir}.away", maildir)
    client = service.pop3("bob")
    assert client.stat()[0] == 1
    client.quit()


@pytest.mark.root("a directory of another user's needs root")
@pytest.mark.parametrize("mode", [0o755, 0o700])
def test_a_mount_point_without_its_file_system_is_away_for_its_user(service, mode):
    maildir = put(service, "carol", OTHER)
    os.rename(maildir, f"{maildir}.away")
    os.mkdir(maildir)
    os.chmod(maildir, mode)
    assert refused(service, "carol") == "-ERR [SYS/TEMP] the mailbox is not available now, try again later"
    service.wait_log("maildir.carol: maildir: it belongs to uid 0: mount its file system, or give it to its user")
    os.rmdir(maildir)
    os.rename(f"{maildir}.away", maildir)
    client = service.pop3("carol")
    assert client.stat()[0] == 1
    client.quit()


def test_what_must_be_mended_is_said_to_the_log_and_not_to_the_user(service):
    maildir = put(service, "dave", OTHER)
    shutil.rmtree(f"{maildir}/new")
    os.symlink("cur", f"{maildir}/new")
    assert refused(service, "dave") == "-ERR [SYS/PERM] the mailbox can't be opened"
    service.wait_log("maildir.dave: new is no directory, or a symbolic link: put a directory there")
    os.unlink(f"{maildir}/new")
    client = wait_for(lambda: service.pop3("dave"))
    assert client.stat()[0] == 0
    client.quit()
