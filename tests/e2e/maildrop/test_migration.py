"""Test migration from other servers: clients find their messages under the UIDLs they know.

UIDLs are compared with a real Dovecot's, octet for octet.
"""

import contextlib
import os
import poplib
import pwd
import re
import signal
import subprocess
import time

import pytest

from benchmarks import peer
from tests.support.ports import free_ports
from tests.support.service import POPKERNEL, Service
from tests.support.waiting import wait_for

MAIL = [b"Subject: number %d\n\nbody %d\n" % (n, n) for n in range(12)]
DAY = 86400

CONF = """\
base_dir = {dir}/run
state_dir = {dir}/state
log_path = {dir}/log
protocols = pop3
listen = 127.0.0.1
ssl = no
disable_plaintext_auth = no
mail_location = maildir:~
first_valid_uid = 1000
{extra}
passdb {{
  driver = passwd-file
  args = username_format=%u {dir}/users
}}
userdb {{
  driver = passwd-file
  args = username_format=%u {dir}/users
}}
service pop3-login {{
  inet_listener pop3 {{
    port = {port}
  }}
  inet_listener pop3s {{
    port = 0
  }}
}}
"""


class Dovecot:
    """Run Dovecot on loopback over the maildirs of a site; end it by its process id."""

    def __init__(self, site, directory, extra=""):
        self.directory, self.port = os.fspath(directory), free_ports(1)[0]
        os.makedirs(self.directory, exist_ok=True)
        lines = (
            f"{name}:{{PLAIN}}secret:{u.uid}:{u.gid}::{u.maildir}::\n" for name, u in site.mail_users.items()
        )
        self._write("users", "".join(lines))
        self._write(
            "conf",
            peer.in_words_of(peer.version(), CONF.format(dir=self.directory, port=self.port, extra=extra)),
        )
        with open(f"{self.directory}/said", "wb") as said:
            self.process = subprocess.Popen(
                [peer.program(), "-F", "-c", f"{self.directory}/conf"],
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
            )

    def _write(self, name, text):
        with open(f"{self.directory}/{name}", "w") as file:
            file.write(text)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(20)

    def uidls(self, user):
        def connected():
            assert self.process.poll() is None
            with contextlib.suppress(OSError):
                return poplib.POP3("127.0.0.1", self.port, timeout=20)

        try:
            client = wait_for(connected)
            client.user(user)
            client.pass_("secret")
            return uidls_of(client)
        except (AssertionError, OSError, EOFError, poplib.error_proto) as error:
            raise AssertionError(f"{error!r}; Dovecot says:\n{self.said()}") from error

    def said(self):
        """Return its log and its complaints about the configuration."""
        found = []
        for name in ("said", "log"):
            with contextlib.suppress(OSError), open(f"{self.directory}/{name}", errors="replace") as file:
                found.append(file.read()[-4000:])
        return "\n".join(found)


def uidls_of(client):
    """Return UIDLs by subject, and end the session."""
    numbers = dict(line.split(b" ") for line in client.uidl()[1])
    found = {client.retr(int(number))[1][0]: uidl for number, uidl in numbers.items()}
    client.quit()
    return found


@pytest.fixture
def site_of(tmp_path_factory):
    if peer.missing():
        pytest.skip(peer.missing())
    with contextlib.suppress(KeyError):
        pwd.getpwnam("dovecot")
        yield lambda service: os.path.join(service.temporary.name, "dovecot")
        return
    pytest.skip("there is no user dovecot")


def deliver(user, name, data, where="cur"):
    path = os.path.join(user.maildir, where, name)
    with open(path, "wb") as file:
        file.write(data)
    os.chown(path, user.uid, user.gid)


def import_uidl(service, *arguments):
    result = subprocess.run(
        [*POPKERNEL, "import-uidl", "-u", service.site.user_table, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return result.returncode, result.stdout, result.stderr


VERSION_1 = "1 1189000000 30\n" + "".join(
    f"{n + 7} {1_700_000_000 + n}.{2 << 16 | n:08x}.localhost\n" for n in range(6)
)


def test_uidls_equal_those_of_dovecot(site_of):
    """Tested with the current file format, with saved UIDLs, and with Dovecot 1.0's format."""
    with Service(mail=MAIL) as service:
        carol = service.site.mail_users["carol"]
        list_1 = os.path.join(carol.maildir, "dovecot-uidlist")
        with open(list_1, "w") as file:
            file.write(VERSION_1)
        os.chown(list_1, carol.uid, carol.gid)
        with Dovecot(service.site, site_of(service)) as dovecot:
            expected = {"alice": dovecot.uidls("alice"), "carol": dovecot.uidls("carol")}
        with Dovecot(
            service.site, site_of(service), "pop3_uidl_format = %v-%u\npop3_save_uidl = yes"
        ) as dovecot:
            expected["bob"] = dovecot.uidls("bob")
        assert len(set(expected["alice"].values())) == len(MAIL)
        assert all(re.fullmatch(rb"[0-9a-f]{16}", uidl) for uidl in expected["alice"].values())
        assert all(re.fullmatch(rb"[0-9]+-[0-9]+", uidl) for uidl in expected["bob"].values())
        assert expected["carol"][b"Subject: number 0"] == b"%08x%08x" % (7, 1189000000)

        with open(list_1, "w") as file:  # as an old Dovecot leaves it
            file.write(VERSION_1)
        code, out, err = import_uidl(service, "-n", "--from", "dovecot")
        assert (code, err) == (0, "")
        assert not os.path.exists(f"{carol.maildir}/popcache")
        assert "alice: 12 messages: 12 unique ids taken over, 0 kept, 0 new" in out
        code, again, err = import_uidl(service)
        assert (code, err) == (0, "")
        assert out.splitlines()[:3] == again.splitlines()[:3]
        for user in service.site.mail_users.values():
            status = os.stat(f"{user.maildir}/popcache")
            assert (status.st_uid, status.st_gid, status.st_mode & 0o777) == (user.uid, user.gid, 0o600)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{user.maildir}/dovecot-uidlist")
        of_old = {
            subject: uidl
            for subject, uidl in expected["carol"].items()
            if subject in {b"Subject: number %d" % n for n in range(6)}
        }
        assert uidls_of(service.pop3("carol")).items() >= of_old.items()
        for user in ("alice", "bob"):
            assert uidls_of(service.pop3(user)) == expected[user]
        assert "3 users, 0 with nothing to take over, 0 failed" in again


def test_import_reports_what_it_cannot_do(tmp_path):
    with Service(mail={"alice": MAIL[:2]}) as service:
        alice, bob = service.site.mail_users["alice"], service.site.mail_users["bob"]
        names = sorted(os.listdir(f"{alice.maildir}/new"))
        deliver(
            alice,
            "dovecot-uidlist",
            b"3 V1 N3\n1 Psame :%b\n2 Psame :%b\n" % tuple(map(os.fsencode, names)),
            "",
        )
        deliver(bob, "dovecot-uidlist", b"", "")
        deliver(bob, "courierpop3dsizelist", b"", "")
        code, out, err = import_uidl(service, "alice", "bob", "carol")
        assert code == 65
        assert "alice: 2 messages: 1 unique id taken over, 0 kept, 1 new" in out
        assert f"alice: {names[1]}: its UIDL is another message's too: it gets a new one" in err
        assert "bob: both dovecot-uidlist and courierpop3dsizelist are there; say which with --from" in err
        assert "carol: neither dovecot-uidlist nor courierpop3dsizelist is there" in out
        assert "3 users, 1 with nothing to take over, 1 failed" in out
        assert import_uidl(service, "dave")[0] == 67
        assert (
            subprocess.run(
                [*POPKERNEL, "import-uidl", "-u", f"{tmp_path}/none"], capture_output=True, check=False
            ).returncode
            == 66
        )


@pytest.mark.root("only root may work on other users' maildirs")
def test_import_runs_as_the_user():
    """A user's popcache may be a link to another user's file.

    It is not followed, and files that the user may not write stay.
    """
    with Service(mail=MAIL[:1]) as service:
        alice, bob = service.site.mail_users["alice"], service.site.mail_users["bob"]
        victim = f"{service.temporary.name}/victim"
        with open(victim, "w") as file:
            file.write("root's\n")
        os.symlink(victim, f"{alice.maildir}/popcache")
        os.rename(f"{bob.maildir}/cur", f"{bob.maildir}/aside")
        os.symlink("/etc", f"{bob.maildir}/cur")
        code, _, err = import_uidl(service, "--from", "filename", "alice", "bob")
        assert code == 77
        assert "alice: popcache is no regular file" in err
        assert "bob: cur is no directory, or a symbolic link" in err
        with open(victim) as file:
            assert file.read() == "root's\n"


def test_a_popcache_of_512_mib_locks_no_user_out():
    with Service(mail=MAIL) as service:
        path = f"{service.site.mail_users['alice'].maildir}/popcache"
        deliver(service.site.mail_users["alice"], "popcache", b"", "")
        os.truncate(path, 512 << 20)
        assert len(uidls_of(service.pop3())) == len(MAIL)
        service.wait_log("popcache: not believed, and made anew: more than 192 MiB")
        assert os.stat(path).st_size < 10_000
        lines = b"".join(
            b"%d.%08x.localhost 999999999999999999 u%d\n" % (1_700_000_000 + n, n, n) for n in range(12)
        )
        deliver(service.site.mail_users["bob"], "popcache", lines, "")
        assert len(uidls_of(service.pop3("bob"))) == len(MAIL)


def test_deletion_policies_reach_the_mailbox():
    with Service(
        mail=MAIL[:4], deletion="trash-flag", hide_trashed=True, set_seen=False, expire_days=0
    ) as service:
        client = service.pop3()
        client.dele(1)
        client.retr(2)
        client.quit()
        cur = f"{service.site.mail_users['alice'].maildir}/cur"
        assert [name.rpartition(":")[2] for name in sorted(os.listdir(cur))] == ["2,T", "2,T", "2,", "2,"]
        client = service.pop3()
        assert client.stat()[0] == 2
        client.quit()


def test_a_reload_puts_the_policy_in_force():
    with Service(mail=MAIL[:3], warm_seconds=0) as service:
        alice = service.site.mail_users["alice"]
        old = f"{int(time.time()) - 9 * DAY}.old.h:2,"
        deliver(alice, old, b"x\n")
        os.utime(f"{alice.maildir}/cur/{old}", (time.time() - 9 * DAY,) * 2)
        service.pop3().quit()
        assert len(os.listdir(f"{alice.maildir}/cur")) == 4
        with open(service.toml, "a") as file:
            file.write("expire_days = 8\n")
        service.command("reload")
        wait_for(lambda: not service.running("maildir.alice"))
        service.pop3().quit()
        assert old in os.listdir(f"{alice.maildir}/cur")  # the clock is not trusted yet
        wait_for(lambda: not service.running("maildir.alice"))
        os.utime(f"{alice.maildir}/popexpire", (time.time() - DAY,) * 2)
        service.pop3().quit()
        assert old not in os.listdir(f"{alice.maildir}/cur")
