"""Replace or mount the directory above a maildir: its users go on without a reload."""

import contextlib
import os
import poplib
import re
import shutil
import subprocess

import pytest

from tests.support.lmtp import deliver
from tests.support.maildirs import chown_tree, stat
from tests.support.service import Service
from tests.support.waiting import wait_for


@contextlib.contextmanager
def homes(**settings):
    """Run a service with each maildir in its user's home, so that the spawner holds each home open."""
    with Service(users=("alice", "bob"), mail=(), subdir="Maildir", **settings) as running:
        yield running


def replace(service, user):
    """Replace a user's home by a copy; return its path."""
    home = service.site.mail_users[user].maildir
    shutil.copytree(home, f"{home}.copy")
    chown_tree(service, user, f"{home}.copy")
    shutil.copystat(home, f"{home}.copy")
    os.rename(home, f"{home}.old")
    os.rename(f"{home}.copy", home)
    return home


def logs_in(service, user):
    """Log in, with retries after temporary refusals, and return the number of messages."""

    def tried():
        try:
            return [stat(service, user)]
        except poplib.error_proto as error:
            # the latter if the kernel has not yet heard of the last actor's end
            assert re.search(r"\[SYS/TEMP\] the mailbox is not available now|\[IN-USE\]", str(error))
            return []

    return wait_for(tried)[0]


def delivered(service, user):
    """Return whether mail is accepted; until then it gets temporary errors."""

    def tried():
        answer = deliver(service, user)
        assert answer[:6] in (b"250 2.", b"451 4.")
        return answer.startswith(b"250")

    return wait_for(tried)


def stop(service):
    """Stop a spawner, which is started again."""
    assert service.stop() == 0
    service.process.stderr.close()


def spawners(service):
    return [a["name"] for a in service.status()["actors"] if a["name"].startswith("spawner")]


def test_a_home_that_was_replaced():
    with homes() as service:
        for user in ("alice", "bob"):
            assert deliver(service, user).startswith(b"250")
        open_all_the_time = service.pop3("bob")
        home = replace(service, "alice")
        assert logs_in(service, "alice") == 1
        assert deliver(service, "alice").startswith(b"250")
        assert (len(os.listdir(f"{home}/Maildir/new")) + len(os.listdir(f"{home}/Maildir/cur"))) == 2
        assert re.search(
            r"/alice' was replaced, or something was mounted over it or above it, since spawner began; "
            r"spawner~2 takes over",
            service.read_log(),
        )
        assert spawners(service) == ["spawner", "spawner~2"]
        open_all_the_time.dele(1)
        open_all_the_time.quit()
        wait_for(lambda: spawners(service) == ["spawner~2"])
        assert stat(service, "bob") == 0
        assert service.command("reload").stdout.startswith("reloaded\n")
        assert stat(service, "alice") == 2
        assert service.stop() == 0


def test_mail_for_a_home_that_was_replaced_twice():
    """The second replacement waits until another is due.

    The replaced spawners end with the actors that they forked.
    """
    with homes() as service:
        assert deliver(service, "alice").startswith(b"250")
        replace(service, "alice")
        assert delivered(service, "alice")
        home = service.site.mail_users["alice"].maildir
        os.rename(f"{home}.old", f"{home}.first")
        replace(service, "alice")
        assert delivered(service, "alice")
        assert service.read_log().count("takes over\n") == 2
        assert stat(service, "alice") == 3
        wait_for(lambda: spawners(service), until=lambda names: names == ["spawner~3"])


def test_a_home_that_was_missing_when_the_service_began():
    with homes() as service:
        home = service.site.mail_users["alice"].maildir
        stop(service)
        os.rename(home, f"{home}.away")
        service.start()
        service.wait_ready()
        for answer in (deliver(service, "alice"), deliver(service, "alice")):
            assert answer.startswith(b"451 4.3.0")
        with pytest.raises(poplib.error_proto, match="SYS/TEMP"):
            stat(service, "alice")
        service.wait_log("the directory above the maildir is not there: mount its file system, or make it")
        assert spawners(service) == ["spawner"]
        os.rename(f"{home}.away", home)
        assert logs_in(service, "alice") == 0
        assert deliver(service, "alice").startswith(b"250")


@pytest.mark.root("root's spawner alone cannot enter another user's directory")
def test_a_maildir_below_a_private_directory():
    """The spawner lacks the capability to enter it; its user does not need it."""
    with homes() as service:
        home = service.site.mail_users["alice"].maildir
        stop(service)
        with open(service.site.user_table) as file:
            table = file.read()
        with open(service.site.user_table, "w") as file:
            file.write(table.replace("/alice\n", "/alice/mail\n"))
        os.mkdir(f"{home}/mail", 0o700)
        chown_tree(service, "alice", home)
        service.start()
        service.wait_ready()
        assert deliver(service, "alice").startswith(b"250")
        os.rename(f"{home}/mail", f"{home}/mail.old")
        shutil.copytree(f"{home}/mail.old", f"{home}/mail")
        chown_tree(service, "alice", home)
        assert logs_in(service, "alice") == 1


@pytest.mark.root("only root can mount")
def test_a_file_system_mounted_above():
    with Service(users=("alice", "bob"), mail=()) as service:
        assert deliver(service, "alice").startswith(b"250")
        path = service.site.mail_users["alice"].maildir
        above = os.path.dirname(path)
        session = service.pop3("bob")
        if subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=1m,mode=0711", "none", above],
            capture_output=True,
            check=False,
        ).returncode:
            pytest.skip("cannot mount here")
        try:
            os.mkdir(path, 0o700)
            chown_tree(service, "alice", path)
            assert logs_in(service, "alice") == 0
            assert delivered(service, "alice")
            assert stat(service, "alice") == 1
            assert session.stat() == (0, 0)
        finally:
            subprocess.run(["umount", "-l", above], check=True)
        session.quit()
        assert logs_in(service, "alice") == 1
