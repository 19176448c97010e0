"""Deliver to full, read-only or locked mailboxes: temporary errors with a reason, recovery, others served."""

import contextlib
import fcntl
import os
import subprocess
import time

import pytest

from tests.support.lmtp import MAIL, RawLmtp, deliver
from tests.support.maildirs import left_in_tmp, messages, on_file_system, pop_all
from tests.support.service import Service
from tests.support.waiting import wait_for

root_only = pytest.mark.root("only root can mount a file system")


def refusal(service, user="alice", mail=MAIL):
    """Return the reply for that recipient; others are served meanwhile."""
    with RawLmtp(service) as raw:
        raw.envelope(user, "bob")
        raw.say(b"DATA\r\n", b"354")
        raw.send(mail + b".\r\n")
        answers = [raw.answer(), raw.answer()]
    assert answers[1].startswith(b"250"), answers
    return answers[0]


def accepted(service, user="alice", mail=MAIL):
    return deliver(service, user, mail).startswith(b"250")


@root_only
@pytest.mark.parametrize("lines", [2000, 20000], ids=["small", "large"])
def test_disk_full(lines):
    with Service(mail=()) as service, on_file_system(service, "alice", "200k") as maildir:
        mail = MAIL + b"a line of thirty octets or so\r\n" * lines
        answer = refusal(service, mail=mail) if lines > 10000 else None
        while answer is None:
            got = deliver(service, mail=mail)
            answer = None if got.startswith(b"250") else got
        assert answer.startswith(b"452 4.3.1 "), answer
        assert b"No space left" in answer
        assert left_in_tmp(service, "alice") == []
        assert accepted(service) or lines < 10000
        whole = [t for t in messages(service, "alice").values() if t.endswith((b"so\n", b"body\n"))]
        assert len(whole) == len(messages(service, "alice"))
        subprocess.run(["mount", "-o", "remount,size=10m", maildir], check=True)
        assert accepted(service, mail=mail)
        assert len(pop_all(service, "alice")) == len(messages(service, "alice"))


@root_only
def test_read_only():
    with Service(mail=()) as service, on_file_system(service, "alice", "1m") as maildir:
        assert accepted(service)
        subprocess.run(["mount", "-o", "remount,ro", maildir], check=True)
        answer = refusal(service)
        assert answer[:9] == b"451 4.3.0", answer
        assert b"Read-only" in answer
        subprocess.run(["mount", "-o", "remount,rw", maildir], check=True)
        assert accepted(service)
        assert len(messages(service, "alice")) == 2


def test_permission_lost():
    with Service(mail=()) as service:
        maildir = service.site.mail_users["alice"].maildir
        assert accepted(service)
        for part in ("tmp", "new", ""):
            os.chmod(f"{maildir}/{part}", 0o000)
            if part:
                assert refusal(service)[:9] == b"451 4.3.0"
            else:
                wait_for(lambda: refusal(service)[:9] == b"451 4.3.0" or service.actor("maildir.alice"))
            os.chmod(f"{maildir}/{part}", 0o700)
            assert accepted(service)
            assert left_in_tmp(service, "alice") == [] or part == "new"
        names = messages(service, "alice")
        assert all(t.endswith(b"body\n") for t in names.values())


def test_maildir_moved_away_and_back():
    with Service(mail=()) as service:
        maildir = service.site.mail_users["alice"].maildir
        assert accepted(service)
        os.rename(f"{maildir}/tmp", f"{maildir}/gone")
        os.rename(f"{maildir}/new", f"{maildir}/old")
        os.rmdir(f"{maildir}/gone")
        assert accepted(service), "tmp and new are made again"
        assert len(os.listdir(f"{maildir}/new")) == 1
        os.rename(maildir, f"{maildir}.away")
        with open(maildir, "w"):
            pass  # no directory
        service.command("reload")
        assert refusal(service)[:9] == b"451 4.3.0"
        os.unlink(maildir)
        os.rename(f"{maildir}.away", maildir)
        assert accepted(service)
        assert len(os.listdir(f"{maildir}/new")) == 2


def test_popcache_locked_by_another_program():
    """It is locked for longer than a delivery waits: bob gets his mail, alice hers after the lock is free."""
    with Service(mail=()) as service:
        assert accepted(service)
        with open(f"{service.site.mail_users['alice'].maildir}/popcache", "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            began = time.monotonic()
            answer = refusal(service)
            assert answer[:9] == b"451 4.3.0", answer
            assert b"locked by another program" in answer
            assert time.monotonic() - began < 8
            assert len(messages(service, "alice")) == 1
            assert left_in_tmp(service, "alice") == []
        assert accepted(service)


@pytest.mark.slow
def test_popcache_locked_for_half_a_minute():
    """Each attempt gets a reply with a reason, and the mail arrives soon after the lock is free."""
    with Service(mail=()) as service:
        assert accepted(service)
        with open(f"{service.site.mail_users['alice'].maildir}/popcache", "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            began, tries = time.monotonic(), 0
            while time.monotonic() - began < 30:
                tried = time.monotonic()
                answer = refusal(service)
                tries += 1
                assert answer[:9] == b"451 4.3.0", answer
                assert b"locked by another program" in answer
                assert time.monotonic() - tried < 8, "the sender must not wait as long as the lock is held"
            assert tries >= 4
            assert len(messages(service, "alice")) == 1
            assert left_in_tmp(service, "alice") == []
            pid = service.actor("maildir.alice")["pid"]
        freed = time.monotonic()
        assert accepted(service)
        assert time.monotonic() - freed < 5
        assert service.actor("maildir.alice")["pid"] == pid, "an actor that waits for a lock is not hung"
        assert len(messages(service, "alice")) == 2
        assert len(messages(service, "bob")) == tries


@pytest.mark.slow
def test_many_wait_for_a_locked_popcache():
    """Small messages wait for the lock and are answered one by one; the actor does not count as hung."""
    with Service(mail=()) as service:
        assert accepted(service)
        with (
            open(f"{service.site.mail_users['alice'].maildir}/popcache", "rb") as file,
            RawLmtp(service) as raw,
        ):
            fcntl.flock(file, fcntl.LOCK_EX)
            raw.envelope(*[f"alice+{i}" for i in range(6)])
            raw.say(b"DATA\r\n", b"354")
            raw.send(MAIL + b".\r\n")
            answers = [raw.answer() for _ in range(6)]
            assert {a[:9] for a in answers} == {b"451 4.3.0"}
        assert accepted(service)
        assert "is not alive" not in service.read_log()
        assert left_in_tmp(service, "alice") == []


def test_garbage_popcache():
    with Service(mail=()) as service:
        assert accepted(service)
        path = f"{service.site.mail_users['alice'].maildir}/popcache"
        with open(path, "wb") as file:
            file.write(b"\xff\0garbage without a line end")
        assert accepted(service)
        assert len(pop_all(service, "alice")) == 2
        os.unlink(path)
        os.symlink("/etc/passwd", path)
        assert refusal(service)[:9] == b"451 4.3.0"
        os.unlink(path)
        assert accepted(service)


def sizes(service, user="alice"):
    with open(f"{service.site.mail_users[user].maildir}/maildirsize") as file:
        return file.read().splitlines()


def used(lines):
    return [sum(int(line.split()[i]) for line in lines[1:]) for i in (0, 1)]


def test_quota():
    with Service(mail=(), quota="10000,5C", quota_users=["bob=none", "carol=300"]) as service:
        big = MAIL + b"x" * 70 + b"\r\n"
        for _ in range(5):
            assert accepted(service, mail=big)
        answer = refusal(service, mail=big)
        assert answer.startswith(b"552 5.2.2 mailbox full"), answer
        assert b"5 messages" in answer
        lines = sizes(service)
        assert lines[0] == "10000S,5C"
        assert used(lines) == [sum(map(len, messages(service, "alice").values())), 5]
        session = service.pop3("alice")
        session.dele(1)
        session.dele(2)
        session.quit()
        assert used(sizes(service)) == [sum(map(len, messages(service, "alice").values())), 3]
        assert accepted(service, mail=big)
        assert accepted(service, "bob", big * 200)
        assert accepted(service, "carol", MAIL)
        assert refusal(service, "carol", MAIL + b"y" * 300 + b"\r\n").startswith(b"552 5.2.2")
        assert refusal(service, "alice", MAIL + b"a large one\r\n" * 20000).startswith(b"552 5.2.2")
        assert left_in_tmp(service, "alice") == []


def test_quota_of_maildirsize_and_temporary():
    """Another program's quota counts if the configuration has none; its byte count is verified."""
    with Service(mail=(), quota_temporary=True) as service:
        row = service.site.mail_users["alice"]
        assert accepted(service)
        assert not os.path.exists(f"{row.maildir}/maildirsize")
        with open(f"{row.maildir}/maildirsize", "w") as file:
            file.write("1000S\n100 1\n")
        os.chown(file.name, row.uid, row.gid)
        assert refusal(service, mail=MAIL + b"z" * 900 + b"\r\n").startswith(b"452 4.2.2")
        assert accepted(service)
        with open(f"{row.maildir}/maildirsize", "w") as file:
            file.write("1000S\n999999 1\nnonsense\n")
        assert accepted(service), "a damaged count is computed again"
        with open(f"{row.maildir}/maildirsize", "w") as file:
            file.write("1000S\n999999 1\n")
        os.utime(file.name, (time.time() - 1000,) * 2)
        assert accepted(service), "so is an old one that says full"
        assert used(sizes(service)) == [
            sum(map(len, messages(service, "alice").values())),
            len(messages(service, "alice")),
        ]


def in_tmp(service, user="alice"):
    """Return the octets in tmp/."""
    path = f"{service.site.mail_users[user].maildir}/tmp"
    sizes = []
    for name in os.listdir(path):
        with contextlib.suppress(FileNotFoundError):
            sizes.append(os.stat(f"{path}/{name}").st_size)
    return sum(sizes)


def test_unfinished_messages_hold_no_more_than_the_quota_leaves():
    """Ten senders that never end: each has room alone, but not all together.

    Those without room get a temporary error, a message that is too large a final one.
    """
    with (
        Service(mail=(), quota="1000000", message_octets=20_000_000) as service,
        contextlib.ExitStack() as stack,
    ):
        for _ in range(10):
            raw = stack.enter_context(RawLmtp(service))
            raw.envelope("alice")
            raw.say(b"DATA\r\n", b"354")
            raw.send(MAIL + b"x" * 300_000)
        wait_for(lambda: in_tmp(service) > 600_000)
        # sent after their content, so all of it has been processed
        raw = stack.enter_context(RawLmtp(service))
        answer = raw.deliver(MAIL + b"y" * 500_000, "alice")[0]
        assert answer.startswith(b"452 4.2.2 "), answer
        assert 600_000 < in_tmp(service) <= 1_000_000
        assert accepted(service), "a small message is delivered at once"
        stack.close()
        wait_for(lambda: left_in_tmp(service, "alice") == [])
        with RawLmtp(service) as endless:
            endless.envelope("alice")
            endless.say(b"DATA\r\n", b"354")
            for _ in range(30):
                endless.send(b"z" * 100_000)
                assert in_tmp(service) <= 1_000_000
            endless.send(b"\r\n.\r\n")
            endless.expect(b"552")
        assert accepted(service, mail=MAIL + b"y" * 500_000 + b"\r\n")


def test_announced_size_and_quota():
    """A message announced at twice the quota or more is refused before an octet is written."""
    with Service(mail=(), quota="1000000", quota_users=["bob=none"]) as service, RawLmtp(service) as raw:
        raw.say(
            b"LHLO t\r\nMAIL FROM:<s@example.org> SIZE=2100000\r\nRCPT TO:<alice>\r\nRCPT TO:<bob>\r\n",
            *[b"250"] * 4,
        )
        raw.say(b"DATA\r\n", b"354")
        raw.send(MAIL + b"x" * 500_000)
        wait_for(lambda: in_tmp(service, "bob") > 400_000)
        assert left_in_tmp(service, "alice") == []
        raw.send(b"\r\n.\r\n")
        assert [raw.answer()[:9] for _ in range(2)] == [b"552 5.2.2", b"250 2.0.0"]
        raw.say(b"MAIL FROM:<s@example.org>\r\nRCPT TO:<alice>\r\nDATA\r\n", b"250", b"250", b"354")
        raw.send(MAIL + b"x" * 500_000 + b"\r\n.\r\n")
        raw.expect(b"250")  # the announced size was of that message only
