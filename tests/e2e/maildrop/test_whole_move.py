"""Test a whole move from Dovecot and back, with 200 users, by the commands of docs/migration.md.

Passwords, mail and UIDLs are compared with what Debian's Dovecot gave before and gives afterwards.
"""

import base64
import concurrent.futures
import contextlib
import hashlib
import os
import poplib
import pwd
import re
import shlex
import signal
import subprocess

import bcrypt
import pytest
from popkernel.cli.common.sample_site import FIRST_UID

from benchmarks import peer
from tests.e2e.maildrop.test_migration import CONF, uidls_of
from tests.support.ports import free_ports
from tests.support.service import POPKERNEL, Service
from tests.support.waiting import wait_for

PAGE = os.path.join(os.path.dirname(__file__), "..", "..", "..", "docs", "migration.md")
USERS = [f"user{n}@example.org" for n in range(200)]
MAILS = 5
# Commands that this test does in another way, or not: other machines and the clients' way.
ELSEWHERE = ("rsync ", "grep ", "popkernel passwd ")


def commands_of_the_page():
    """Return the commands by step, of the move from Dovecot."""
    with open(PAGE, encoding="utf-8") as file:
        text = file.read()
    section = text.partition("## A whole move from Dovecot\n")[2].partition("\n## ")[0]
    steps = re.split(r"(?m)^### (\d)\. .*$", section)[1:]
    return {
        int(number): re.findall(r"(?m)^    (\S.*)$", step)
        for number, step in zip(steps[::2], steps[1::2], strict=True)
    }


def hashed(n, word):
    """Return a hash in one of the schemes that Dovecot's users have. The last ten cannot be kept."""
    if n >= 190:
        salt = b"salt"
        digest = base64.b64encode(hashlib.sha1(word.encode() + salt, usedforsecurity=False).digest() + salt)
        return "{SSHA}" + digest.decode()
    if n % 3 == 1:
        from passlib.hash import sha512_crypt

        return "{SHA512-CRYPT}" + sha512_crypt.using(rounds=1000).hash(word)
    if n % 3 == 2:
        from argon2.low_level import Type, hash_secret

        found = hash_secret(word.encode(), os.urandom(16), 1, 1024, 1, 32, Type.ID)
        return "{ARGON2ID}" + found.decode()
    return "{BLF-CRYPT}" + bcrypt.hashpw(word.encode(), bcrypt.gensalt(4)).decode().replace("$2b$", "$2y$")


def password(user):
    return "word of " + user


class Dovecot:
    """Run Debian's Dovecot on the site; its users file is the administrator's."""

    def __init__(self, directory, location="maildir:~/Maildir", more=""):
        self.directory, self.port = directory, free_ports(1)[0]
        text = CONF.format(dir=directory, port=self.port, extra=more)
        text = text.replace("mail_location = maildir:~\n", f"mail_location = {location}\n")
        text = peer.in_words_of(peer.version(), text)
        if peer.version().startswith("2.4."):
            text = text.replace(
                "mail_location = mbox:~/mail\n",
                "mail_driver = mbox\nmail_path = ~/mail\nmail_inbox_path = ~/mail/inbox\n",
            )
        with open(f"{directory}/conf", "w") as file:
            file.write(text)

    def start(self):
        with open(f"{self.directory}/said", "ab") as said:
            self.process = subprocess.Popen(
                [peer.program(), "-F", "-c", f"{self.directory}/conf"],
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
            )
        wait_for(self.greets)

    def greets(self):
        assert self.process.poll() is None, self.said()
        with contextlib.suppress(OSError):
            poplib.POP3("127.0.0.1", self.port, timeout=20).quit()
            return True

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(20)

    def said(self):
        with open(f"{self.directory}/said", errors="replace") as file:
            return file.read()[-2000:]

    def login(self, user, secret):
        client = poplib.POP3("127.0.0.1", self.port, timeout=60)
        try:
            client.user(user)
            client.pass_(secret)
        except poplib.error_proto:
            client.close()
            raise
        return client


class Moved(Service):
    """A service that is started when the page says so."""

    begun = False

    def start(self):
        if self.begun:
            super().start()
        else:
            self.log, self.process = b"", subprocess.Popen(["true"], stderr=subprocess.PIPE)
            self.process.wait(10)


@pytest.fixture
def root():
    if peer.missing():
        pytest.skip(peer.missing())
    try:
        pwd.getpwnam("dovecot")
    except KeyError:
        pytest.skip("there is no user dovecot")


def own(path, uid):
    os.chown(path, uid, uid)
    return path


def make_site(place):
    """Make Dovecot's users file, and their mail: cur, new, a folder, and a hole in the numbers."""
    os.makedirs(f"{place}/dovecot")
    os.makedirs(f"{place}/vmail", 0o755)
    lines = []
    for n, user in enumerate(USERS):
        uid, home = FIRST_UID + n, f"{place}/vmail/{user}"
        lines.append(f"{user}:{hashed(n, password(user))}:{uid}:{uid}::{home}::\n")
        for part in ("", "/Maildir", "/Maildir/.Sent"):
            own(os.mkdir(home + part, 0o700) or home + part, uid)
        for part in ("cur", "new", "tmp", ".Sent/cur", ".Sent/new", ".Sent/tmp"):
            own(os.mkdir(f"{home}/Maildir/{part}", 0o700) or f"{home}/Maildir/{part}", uid)
        for number in range(MAILS):
            where = "new" if number >= 3 else "cur"
            write_mail(f"{home}/Maildir/{where}/{1_700_000_000 + number}.{n}.host", uid, number)
        write_mail(f"{home}/Maildir/.Sent/cur/1700000000.sent.host:2,S", uid, 99)
    with open(f"{place}/dovecot/users", "w") as file:
        file.write("".join(lines))


def write_mail(path, uid, number):
    with open(path, "w") as file:
        file.write(f"Subject: number {number}\n\nbody {number} of {uid}\n")
    own(path, uid)


def each(work, users=USERS):
    """Call work(user) for all users, several at a time. Returns the results by user."""
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        return dict(zip(users, pool.map(work, users), strict=True))


def folders(place):
    """Return the content of all folders' mail."""
    found = {}
    for user in USERS:
        top = f"{place}/vmail/{user}/Maildir/.Sent/cur"
        for name in os.listdir(top):
            with open(f"{top}/{name}", "rb") as file:
                found[user, name] = file.read()
    return found


@pytest.mark.slow
def test_two_hundred_users_move_and_come_back(root):
    steps, done = commands_of_the_page(), []
    with Moved(users=["nobody"], mail=(), expect_ready=False, max_logins=50) as service:
        place = service.temporary.name
        make_site(place)
        dovecot = Dovecot(f"{place}/dovecot")
        paths = {
            "/etc/popkernel/popkernel.toml": service.toml,
            "/etc/popkernel/auth": service.site.auth_table,
            "/etc/popkernel/users": service.site.user_table,
            "/etc/dovecot/": f"{place}/dovecot/",
        }
        os.unlink(service.site.auth_table)
        os.unlink(service.site.user_table)

        def start():
            service.process.stderr.close()
            service.begun = True
            service.start()
            service.wait_ready()

        services = {
            "systemctl stop dovecot": dovecot.stop,
            "systemctl start dovecot": dovecot.start,
            "systemctl stop popkernel": service.stop,
            "systemctl start popkernel": start,
        }

        def follow(step):
            """Do a step of the page. Returns what its commands printed."""
            said = []
            for command in steps[step]:
                done.append(command)
                if command in services:
                    services[command]()
                elif not command.startswith(ELSEWHERE):
                    for path, ours in paths.items():
                        command = command.replace(path, ours)
                    program = " ".join(map(shlex.quote, POPKERNEL))
                    result = subprocess.run(
                        ["sh", "-c", re.sub("^popkernel ", program.replace("\\", r"\\") + " ", command)],
                        capture_output=True,
                        text=True,
                        timeout=120,
                        check=False,
                    )
                    assert result.returncode == 0, f"{command}\n{result.stdout}{result.stderr}"
                    said.append((result.stdout, result.stderr))
            return said

        # before: the clients read with Dovecot, and delete one message
        dovecot.start()

        def first(user):
            client = dovecot.login(user, password(user))
            client.dele(2)
            client.quit()
            return uidls_of(dovecot.login(user, password(user)))

        before = each(first)
        assert all(len(uidls) == MAILS - 1 for uidls in before.values())
        sent = folders(place)

        ((out, err),) = follow(1)
        assert not os.path.exists(service.site.auth_table)
        assert "200 accounts: 190 keep their password (64 BLF-CRYPT, 63 ARGON2ID, 63 SHA512-CRYPT)" in (
            out.replace("63 ARGON2ID, 64 BLF-CRYPT", "64 BLF-CRYPT, 63 ARGON2ID")
        )
        assert "0 were locked, 10 need a new one" in out
        assert err.count("a {SSHA} hash") == 10 and f"{place}/dovecot/users:191: account {USERS[190]}" in err
        follow(2)
        _, dry, real, _ = follow(3)
        assert dry[0].splitlines()[:-1] == real[0].splitlines()[:-1]
        assert f"{len(USERS) * 4} unique ids taken over, 0 kept, 0 new" in real[0]
        follow(4)

        # with popkernel: the same passwords, UIDLs and mail
        kept, marked = USERS[:190], USERS[190:]
        after = each(lambda user: uidls_of(service.pop3(user, password(user))), kept)
        assert after == {user: before[user] for user in kept}
        for user in marked[:2]:
            with pytest.raises(poplib.error_proto):
                service.pop3(user, password(user))
        set_password(service, marked[0], "a new word")
        set_password(service, USERS[2], "another word")  # its ARGON2ID hash becomes a bcrypt one
        service.command("reload")
        assert uidls_of(service.pop3(marked[0], "a new word")) == before[marked[0]]

        # meanwhile: one message is deleted, one arrives, also for a user who has no new password yet
        def later(user):
            client = service.pop3(user, password(user))
            client.dele(1)
            client.quit()

        each(later, USERS[10:14])
        for user in (USERS[10], marked[5]):
            deliver(service, user, b"Subject: number 7\n\nnew\n")
        assert len(uidls_of(service.pop3(USERS[10], password(USERS[10])))) == 4

        follow(6)
        words = {marked[0]: "a new word", USERS[2]: "another word"}
        back = each(lambda user: uidls_of(dovecot.login(user, words.get(user, password(user)))))
        for user in USERS:
            gone = {b"Subject: number 0"} if user in USERS[10:14] else set()
            came = {b"Return-Path: <>"} if user in (USERS[10], marked[5]) else set()
            assert set(back[user]) == (set(before[user]) - gone) | came
            assert back[user].items() >= {(s, u) for s, u in before[user].items() if s not in gone}
        with pytest.raises(poplib.error_proto):
            dovecot.login(USERS[2], password(USERS[2]))  # the old one
        dovecot.stop()
        assert folders(place) == sent
    assert done == [command for step in (1, 2, 3, 4, 6) for command in steps[step]]
    assert steps[5] == []


def set_password(service, user, word):
    subprocess.run(
        [*POPKERNEL, "passwd", "-a", service.site.auth_table, "--stdin", "--cost", "4", user],
        input=word.encode() + b"\n",
        check=True,
        timeout=60,
        capture_output=True,
    )


def deliver(service, user, data):
    command = [*POPKERNEL, "deliver", "-u", user, "--run-dir", service.config.run_dir]
    subprocess.run(command, input=data, check=True, timeout=60, capture_output=True)


def test_an_mbox_is_converted_with_its_uidls(root, tmp_path_factory):
    """By the page's `doveadm backup`."""
    with open(PAGE, encoding="utf-8") as file:
        (command,) = re.findall(r"(?m)^      (doveadm backup .*)$", file.read())
    with Service(users=["alice"], mail=(), lmtp=False) as service:
        alice = service.site.mail_users["alice"]
        place, home = service.temporary.name, f"{service.temporary.name}/home"
        for path in (f"{place}/dovecot", home, f"{home}/mail"):
            own(os.mkdir(path) or path, alice.uid)
        with open(f"{home}/mail/inbox", "w") as file:
            for n in range(3):
                date = f"Tue Nov 14 22:13:2{n} 2023"
                file.write(f"From x@y {date}\nFrom: x@y\nSubject: number {n}\n\nbody\n\n")
        own(f"{home}/mail/inbox", alice.uid)
        with open(f"{place}/dovecot/users", "w") as file:
            file.write(f"alice:{{PLAIN}}secret:{alice.uid}:{alice.gid}::{home}::\n")
        dovecot = Dovecot(
            f"{place}/dovecot", "mbox:~/mail", "namespace inbox {\n inbox = yes\n separator = /\n}"
        )
        dovecot.start()
        try:
            client = dovecot.login("alice", "secret")
            expected = {line.split()[1] for line in client.uidl()[1]}
            client.quit()
            words = command.replace("USER", "alice").split()
            words[1:1] = ["-c", f"{place}/dovecot/conf"]
            done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
            assert done.returncode == 0, done.stderr
        finally:
            dovecot.stop()
        with open(service.site.user_table, "w") as file:
            file.write(f"alice {alice.uid}:{alice.gid}:{home}/Maildir\n")
        done = subprocess.run(
            [*POPKERNEL, "import-uidl", "-u", service.site.user_table],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        service.command("reload")
        client = service.pop3()
        assert {line.split()[1] for line in client.uidl()[1]} == expected and len(expected) == 3
        assert client.retr(2)[1][-1] == b"body"
        client.quit()
