"""Replace a maildir, or a part of it, while its actor holds the old one."""

import contextlib
import os
import poplib
import shutil

import pytest
from popkernel.kernel.client import Client

from tests.support.lmtp import MAIL, RawLmtp, deliver
from tests.support.maildirs import chown_tree, on_file_system, stat
from tests.support.service import ROOT, Service
from tests.support.waiting import wait_for

ONE = b"From: one@example.org\nSubject: one\n\nhello\n"
root_only = pytest.mark.root("only root can mount and chown")


@pytest.fixture(scope="module")
def service():
    names = [
        "swapped",
        "listed",
        "part",
        "link",
        "mounted",
        "during",
        "asleep",
        "same",
        "half",
        "quit",
        "open",
        "gone",
        "cursession",
        "large",
        "woken",
    ]
    with Service(users=names, mail=(), park_seconds=1) as running:
        yield running


def make(service, user, path, *mail):
    """Make a maildir with these messages, owned by its user."""
    for part in ("cur", "new", "tmp"):
        os.makedirs(f"{path}/{part}", 0o700)
    os.chmod(path, 0o700)
    for number, octets in enumerate(mail, 1):
        with open(f"{path}/new/{number}.put.there", "wb") as file:
            file.write(octets)
    chown_tree(service, user, path)


def warm(service, user):
    """Run a session and a delivery, so that the actor holds all directories; return the maildir's path."""
    deliver(service, user)
    stat(service, user)
    return service.site.mail_users[user].maildir


def swap(service, user, *mail):
    """Replace the maildir by another; return the old one's new path."""
    path = service.site.mail_users[user].maildir
    os.rename(path, f"{path}.old")
    make(service, user, path, *mail)
    return f"{path}.old"


@contextlib.contextmanager
def large(service, user):
    """Begin a large delivery and leave it unfinished."""
    with RawLmtp(service) as raw:
        raw.envelope(user)
        raw.say(b"DATA\r\n", b"354")
        raw.send(MAIL + b"x" * 300_000)
        wait_for(lambda: os.listdir(f"{service.site.mail_users[user].maildir}/tmp"))
        yield raw


def count(path):
    return len(os.listdir(f"{path}/new")) + len(os.listdir(f"{path}/cur"))


def test_mail_goes_to_a_replacing_maildir(service):
    path = warm(service, "swapped")
    old = swap(service, "swapped")
    assert deliver(service, "swapped").startswith(b"250"), (
        "the next actor gets it without a second try of the mail server"
    )
    assert (count(path), count(old)) == (1, 1)
    assert deliver(service, "swapped").startswith(b"250")
    assert (count(path), count(old)) == (2, 1)
    assert stat(service, "swapped") == 2


def test_a_session_sees_a_replacing_maildir(service):
    path = warm(service, "listed")
    pid = service.actor("maildir.listed")["pid"]
    old = swap(service, "listed", ONE, ONE, ONE)
    assert stat(service, "listed") == 3
    assert service.actor("maildir.listed")["pid"] != pid
    assert (count(path), count(old)) == (3, 1)
    assert deliver(service, "listed").startswith(b"250")
    assert stat(service, "listed") == 4


@pytest.mark.parametrize("part", ["new", "tmp"])
def test_mail_goes_to_the_new_that_is_there(service, part):
    path = warm(service, "part")
    before = stat(service, "part")
    os.rename(f"{path}/{part}", f"{path}/{part}.old")
    os.mkdir(f"{path}/{part}", 0o700)
    chown_tree(service, "part", f"{path}/{part}")
    assert deliver(service, "part").startswith(b"250")
    assert os.listdir(f"{path}/{part}.old") == []
    assert len(os.listdir(f"{path}/new")) == 1
    assert stat(service, "part") == before + 1


def test_a_session_sees_the_cur_that_is_there(service):
    path = warm(service, "cursession")
    os.rename(f"{path}/cur", f"{path}/cur.old")
    os.mkdir(f"{path}/cur", 0o700)
    with open(f"{path}/cur/7.put.there:2,", "wb") as file:
        file.write(ONE)
    chown_tree(service, "cursession", f"{path}/cur")
    client = service.pop3("cursession")
    assert client.retr(1)[1][:2] == [b"From: one@example.org", b"Subject: one"]
    assert client.stat()[0] == 1
    client.quit()


def test_a_link_that_is_pointed_elsewhere(service):
    path = service.site.mail_users["link"].maildir
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(path)
    for name in ("one", "two"):
        make(service, "link", f"{path}.{name}", *([ONE] * (name == "two")))
    os.symlink(f"{path}.one", path)
    warm(service, "link")
    os.symlink(f"{path}.two", f"{path}.next")
    os.rename(f"{path}.next", path)
    assert deliver(service, "link").startswith(b"250")
    assert (count(f"{path}.one"), count(f"{path}.two")) == (1, 2)
    assert stat(service, "link") == 2


@root_only
def test_a_file_system_mounted_over_it(service):
    path = warm(service, "mounted")
    before = count(path)
    with on_file_system(service, "mounted", "1m"):
        assert deliver(service, "mounted").startswith(b"250")
        assert len(os.listdir(f"{path}/new")) == 1
        assert stat(service, "mounted") == 1
    assert deliver(service, "mounted").startswith(b"250"), "after it is unmounted"
    assert count(path) == before + 1
    assert stat(service, "mounted") == before + 1


def test_a_maildir_replaced_while_a_large_message_comes_in(service):
    path = warm(service, "during")
    with large(service, "during") as raw:
        old = swap(service, "during")
        raw.send(b"\r\n.\r\n")
        assert raw.answer().startswith(b"451 4.3.2 ")
    assert count(old) == 1
    assert os.listdir(f"{old}/tmp") == []
    assert deliver(service, "during").startswith(b"250")
    assert count(path) == 1


def test_a_session_in_a_replaced_maildir_does_not_wait_for_an_unfinished_message(service):
    warm(service, "open")
    with large(service, "open") as raw:
        swap(service, "open", ONE, ONE)
        assert stat(service, "open") == 2
        raw.send(b"\r\n.\r\n")
        assert raw.answer().startswith(b"451 4.3.2 ")


@contextlib.contextmanager
def parked(service, user):
    """Return a parked session whose actor stays."""
    kernel, actor = Client(service.config.run_dir), service.actor(f"maildir.{user}")["pid"]
    client = service.pop3(user)
    client.dele(1)
    wait_for(lambda: [row["state"] for row in kernel.ask("who", who=user)["sessions"]] == ["parked"])
    assert service.actor(f"maildir.{user}")["pid"] == actor
    yield client
    client.close()


def test_a_maildir_replaced_while_its_session_is_parked(service):
    warm(service, "asleep")
    with parked(service, "asleep") as client:
        old = swap(service, "asleep", ONE, ONE)
        with pytest.raises(poplib.error_proto, match="SYS/TEMP"):
            client.retr(1)
    assert count(old) == 1
    assert stat(service, "asleep") == 2


def test_a_parked_session_goes_on_in_a_copy_of_its_maildir(service):
    path = warm(service, "same")
    deliver(service, "same")
    with parked(service, "same") as client:
        os.rename(path, f"{path}.old")
        shutil.copytree(f"{path}.old", path)
        chown_tree(service, "same", path)
        assert len(client.list()[1]) == 1
        client.quit()
    assert (count(path), count(f"{path}.old")) == (1, 2)


@root_only
def test_a_cur_that_is_not_its_users_for_a_while(service):
    """Logins are refused meanwhile, and succeed afterwards."""
    path = warm(service, "half")
    os.rename(f"{path}/cur", f"{path}/cur.x")
    os.mkdir(f"{path}/cur", 0o700)
    with pytest.raises(poplib.error_proto, match="SYS/"):
        stat(service, "half")
    os.chown(f"{path}/cur", service.site.mail_users["half"].uid, -1)
    assert stat(service, "half") == 0
    assert deliver(service, "half").startswith(b"250")
    assert stat(service, "half") == 1
    assert "Bad file descriptor" not in service.read_log()


@root_only
def test_an_unfinished_message_keeps_no_login_out_of_a_mended_maildir(service):
    """Logins and mail must not wait until the large message is whole."""
    path = warm(service, "large")
    with large(service, "large") as raw:
        os.rename(f"{path}/cur", f"{path}/cur.x")
        os.mkdir(f"{path}/cur", 0o700)
        with pytest.raises(poplib.error_proto, match="SYS/"):
            stat(service, "large")
        os.chown(f"{path}/cur", service.site.mail_users["large"].uid, -1)
        assert stat(service, "large") == 0
        assert deliver(service, "large").startswith(b"250")
        assert stat(service, "large") == 1
        raw.send(b"\r\n.\r\n")
        assert raw.answer().startswith(b"451 4.3.0 ")
    assert os.listdir(f"{path}/tmp") == []


def test_a_session_that_cannot_wake_disturbs_no_delivery_and_no_login(service):
    """Another program may remove mail while a session is parked; the maildir has no fault then."""
    path = warm(service, "woken")
    deliver(service, "woken")
    with parked(service, "woken") as client, large(service, "woken") as raw:
        os.unlink(f"{path}/cur/{min(os.listdir(f'{path}/cur'))}")
        with pytest.raises(poplib.error_proto, match="SYS/TEMP"):
            client.list()
        client.close()
        assert stat(service, "woken") == 1
        assert deliver(service, "woken").startswith(b"250")
        raw.send(b"\r\n.\r\n")
        assert raw.answer().startswith(b"250 ")
    assert stat(service, "woken") == 3


def test_quit_removes_nothing_from_a_maildir_that_was_moved_away(service):
    path = warm(service, "quit")
    client = service.pop3("quit")
    client.dele(1)
    os.rename(path, f"{path}.old")
    shutil.copytree(f"{path}.old", path)
    chown_tree(service, "quit", path)
    with pytest.raises(poplib.error_proto, match="could not be removed"):
        client.quit()
    assert (count(path), count(f"{path}.old")) == (1, 1)
    assert stat(service, "quit") == 1


def test_a_maildir_that_is_missing_is_refused_until_it_is_back(service):
    """Tested as root, in whose directory the user cannot make a new maildir."""
    path = warm(service, "gone")
    os.rename(path, f"{path}.away")
    if ROOT:
        for _ in range(3):
            with pytest.raises(poplib.error_proto, match="SYS/TEMP"):
                stat(service, "gone")
            assert deliver(service, "gone").startswith(b"451 4.3.")
    else:
        assert stat(service, "gone") == 0
        shutil.rmtree(path)
    os.rename(f"{path}.away", path)
    assert deliver(service, "gone").startswith(b"250")
    assert stat(service, "gone") == 2
