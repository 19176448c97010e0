"""Start with bad input, and serve bad maildirs: a clear error for the user concerned, others served."""

import os
import shutil
import socket
import stat

import pytest
from popkernel.cli.common.sample_site import make_certificate

from tests.support import awkward
from tests.support.pop3 import RawPop3
from tests.support.service import ROOT, Service
from tests.support.waiting import wait_for

MAIL = [awkward.head(f"number {n}") + b"body\n" for n in range(1, 4)]
WIRE = [awkward.on_the_wire(m) for m in MAIL]


class Broken(Service):
    """Spoil a site before its service starts."""

    def __init__(self, spoil, **site):
        self.spoil = spoil
        super().__init__(command=None, expect_ready=False, lmtp=False, **site)

    def __getattribute__(self, name):
        # read when the site exists and nothing runs yet
        if name == "toml" and (spoil := self.__dict__.pop("spoil", None)):
            spoil(object.__getattribute__(self, "site"))
        return object.__getattribute__(self, name)


def _write(path, data, mode=0o644):
    with open(path, "wb") as file:
        file.write(data)
    os.chmod(path, mode)


def _append(path, data):
    with open(path, "ab") as file:
        file.write(data)


def _first_line(path):
    with open(path, "rb") as file:
        return file.readline()


def _fails(spoil, code, *words, **site):
    with Broken(spoil, **site) as broken:
        assert broken.process.wait(20) == code, broken.read_log()
        log = broken.read_log()
        for word in words:
            assert word.format(site=broken.site) in log, (word, log)
        assert "Traceback" not in log and "fault of its own" not in log
        assert broken.pids() == [broken.process.pid]
        assert not os.path.exists(f"{broken.config.run_dir}/control.sock")
        return log


# The start


TABLES = {
    "NUL": (lambda path: _append(path, b"da\0ve x\n"), 65, ":4: "),
    "half a line": (lambda path: _append(path, b"dave"), 65, ":4: "),
    "a column missing": (lambda path: _append(path, b"dave\n"), 65, ":4: "),
    "not UTF-8": (lambda path: _append(path, b"d\xffve x\n"), 65, ":4: "),
    "one twice": (lambda path: _append(path, _first_line(path)), 65, ":4: "),
    "a directory": (lambda path: (os.unlink(path), os.mkdir(path)), 66, ": Is a directory"),
    "not there": (os.unlink, 66, ": No such file or directory"),
    "too large": (lambda path: os.truncate(path, 65 << 20), 65, ": "),
}


@pytest.mark.parametrize("which", ["auth_table", "user_table"])
@pytest.mark.parametrize("title", TABLES)
def test_table_that_is_broken(which, title):
    spoil, code, words = TABLES[title]
    log = _fails(lambda site: spoil(getattr(site, which)), code, "{site." + which + "}" + words)
    assert "$2" not in log, "a hash in the log"


@pytest.mark.parametrize("which", ["auth_table", "user_table"])
def test_an_empty_table_lets_nobody_in_or_is_reported(which):
    with Broken(lambda site: _write(getattr(site, which), b"")) as broken:
        wait_for(lambda: "ready" in broken.read_log(0.05) or broken.process.poll() is not None)
        if broken.process.poll() is None:
            with RawPop3(broken) as client:
                client.ask(b"USER alice")
                assert client.ask(b"PASS secret").startswith(b"-ERR [AUTH]")
        else:
            assert broken.process.poll() == 65 and getattr(broken.site, which) in broken.read_log()


def test_table_that_is_unreadable():
    if ROOT:
        pytest.skip("root reads every file")
    _fails(lambda site: os.chmod(site.auth_table, 0), 66, "{site.auth_table}: Permission denied")


def _other_key(site):
    _write(site.key, make_certificate()[1], 0o600)


CERTIFICATES = {
    "another key": (
        _other_key,
        "{site.key}: the private key does not belong to the certificate in {site.cert}",
    ),
    "no certificate": (lambda site: os.unlink(site.cert), "{site.cert}: No such file"),
    "no key": (lambda site: os.unlink(site.key), "{site.key}: No such file"),
    "empty": (lambda site: _write(site.cert, b""), "{site.cert}:1: no certificate in PEM form"),
    "garbage": (
        lambda site: _write(site.cert, b"-----BEGIN CERTIFICATE-----\n\0\xff\n-----END CERTIFICATE-----\n"),
        "{site.cert}",
    ),
    "half a key": (lambda site: os.truncate(site.key, 60), "{site.key}"),
    "a directory": (lambda site: (os.unlink(site.key), os.mkdir(site.key)), "{site.key}: Is a directory"),
}


@pytest.mark.parametrize("title", CERTIFICATES)
def test_certificate_and_key_that_are_broken(title):
    spoil, words = CERTIFICATES[title]
    log = _fails(spoil, 78, words)
    assert "PRIVATE" not in log


def test_port_that_is_taken():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        _fails(lambda site: None, 69, f"127.0.0.1:{port}: the port is taken", listen=[f"127.0.0.1:{port}"])


def test_run_directory_that_cannot_be():
    def spoil(site):
        _write(site.config.run_dir, b"a file")

    with Broken(spoil) as broken:
        assert broken.process.wait(20) == 73
        assert broken.config.run_dir in broken.read_log() and "--run-dir" in broken.read_log()


def test_actor_user_that_does_not_exist():
    if not ROOT:
        pytest.skip("needs root, to change users")
    _fails(
        lambda site: None,
        78,
        "there is no user _nobody-of-that-name; make it: useradd",
        listener_user="_nobody-of-that-name",
    )


# Maildirs


@pytest.fixture(scope="module")
def service():
    users = ("alice", *(f"user{n:02}" for n in range(12)))
    with Service(users=users, mail=MAIL, lmtp=False, warm_seconds=0) as running:
        yield running


@pytest.fixture
def user(service, request):
    """Provide a user for each test; alice must be served after it."""
    names = [item for item in dir(request.module) if item.startswith("test_maildir")]
    name = f"user{names.index(request.node.originalname):02}"
    yield name
    with RawPop3(service, user="alice") as client:
        assert client.many(b"RETR 1") == WIRE[0]


def _refused(service, user):
    with RawPop3(service) as client:
        client.ask(b"USER " + user.encode())
        return client.ask(b"PASS secret")


def _maildir(service, user):
    return service.site.mail_users[user].maildir


def _own(service, path, user):
    os.chown(
        path, service.site.mail_users[user].uid, service.site.mail_users[user].gid, follow_symlinks=False
    )


def test_maildir_that_is_a_file_and_is_mended(service, user):
    path = _maildir(service, user)
    os.rename(path, path + ".kept")
    _write(path, b"")
    for _ in range(12):  # each right after the other: none may meet an actor that is leaving
        assert _refused(service, user).startswith(b"-ERR [SYS/PERM] ")
    service.wait_log(f"maildir.{user}: maildir: Not a directory")
    os.unlink(path)
    os.rename(path + ".kept", path)
    wait_for(lambda: _refused(service, user), until=lambda answer: answer.startswith(b"+OK 3 "))


def test_maildir_that_is_not_readable(service, user):
    os.chmod(_maildir(service, user), 0)
    assert _refused(service, user).startswith(b"-ERR [SYS/PERM] ")
    os.chmod(_maildir(service, user), 0o700)
    wait_for(lambda: _refused(service, user), until=lambda answer: answer.startswith(b"+OK 3 "))


def test_maildir_that_is_missing(service, user):
    shutil.rmtree(_maildir(service, user))
    answer = _refused(service, user)  # made only where its user may make it, not below a directory of root's
    assert answer.startswith(b"-ERR [SYS/TEMP] " if ROOT else b"+OK 0 "), answer


def test_maildir_with_links_that_lead_out(service, user):
    path, other = _maildir(service, user), _maildir(service, "alice")
    for number, target in enumerate(
        ("/etc/passwd", "/etc/shadow", service.site.auth_table, f"{other}/cur", "/dev/zero", "nowhere")
    ):
        for part in ("cur", "new"):
            link = f"{path}/{part}/180000000{number}.{part}.localhost"
            os.symlink(target, link)
            _own(service, link, user)
    with RawPop3(service, user=user) as client:
        assert client.ask(b"STAT").startswith(b"+OK 3 ")
        assert [client.many(b"RETR %d" % n) for n in (1, 2, 3)] == WIRE


def test_maildir_whose_cur_is_a_link(service, user):
    path = _maildir(service, user)
    os.rename(f"{path}/cur", f"{path}/kept")
    os.symlink(f"{_maildir(service, 'alice')}/cur", f"{path}/cur")
    assert _refused(service, user).startswith(b"-ERR [SYS/PERM] ")
    service.wait_log(f"maildir.{user}: cur is no directory, or a symbolic link")


def test_maildir_with_directories_and_fifos_for_messages(service, user):
    path = _maildir(service, user)
    os.mkdir(f"{path}/cur/1800000000.dir.localhost")
    os.mkfifo(f"{path}/new/1800000001.fifo.localhost", 0o666)
    _own(service, f"{path}/new/1800000001.fifo.localhost", user)
    with RawPop3(service, user=user) as client:
        assert client.ask(b"STAT").startswith(b"+OK 3 ")


def test_maildir_with_odd_names(service, user):
    path = _maildir(service, user)
    names = [
        b"1800000000.new\nline",
        b"1800000001.\xff\xfe\x80",
        b"1800000002.a blank",
        b"1800000003.\x1b[2J\r",
        b"1800000004.x:2,\xff\n",
        b"1800000005." + b"n" * 200,
    ]
    for number, name in enumerate(names):
        _write(os.fsencode(path) + b"/cur/" + name, b"Subject: %d\n\n%d\n" % (number, number))
        _own(service, os.fsencode(path) + b"/cur/" + name, user)
    for _ in range(2):
        with RawPop3(service, user=user) as client:
            assert client.ask(b"STAT").startswith(b"+OK 9 ")
            rows = client.many(b"UIDL").split(b"\r\n")[:-2]
            assert len({row.split()[1] for row in rows}) == 9 and all(len(row) == 66 for row in rows)
            for number in range(6):
                assert client.many(b"RETR %d" % (4 + number)) == b"Subject: %d\r\n\r\n%d\r\n.\r\n" % (
                    number,
                    number,
                )
            assert client.ask(b"QUIT") == b"+OK bye\r\n"
    with RawPop3(service, user=user) as client:
        client.send(b"".join(b"DELE %d\r\n" % n for n in range(4, 10)) + b"QUIT\r\n")
        assert client.end() == b"+OK marked\r\n" * 6 + b"+OK bye\r\n"
    assert len(os.listdir(f"{path}/cur")) == 3


def test_maildir_with_a_message_that_is_not_readable(service, user):
    path = _maildir(service, user)
    name = sorted(os.listdir(f"{path}/new"))[1]
    os.chmod(f"{path}/new/{name}", 0)
    with RawPop3(service, user=user) as client:
        assert client.ask(b"STAT").startswith(b"+OK 2 ")
        assert [client.many(b"RETR %d" % n) for n in (1, 2)] == [WIRE[0], WIRE[2]]
        client.ask(b"DELE 1")
        assert client.ask(b"QUIT") == b"+OK bye\r\n"
    service.wait_log(f"cur/{name}:2,: Permission denied")
    os.chmod(f"{path}/cur/{name}:2,", 0o600)
    with RawPop3(service, user=user) as client:
        assert client.many(b"RETR 1") == WIRE[1]


def test_maildir_with_a_message_that_turns_unreadable(service, user):
    with RawPop3(service, user=user) as client:
        cur = f"{_maildir(service, user)}/cur"
        os.chmod(f"{cur}/{sorted(os.listdir(cur))[1]}", 0)
        assert client.many(b"RETR 1") == WIRE[0]
        assert client.ask(b"RETR 2").startswith(b"-ERR [SYS/PERM] ")
        assert client.ask(b"TOP 2 0").startswith(b"-ERR [SYS/PERM] ")
        assert client.many(b"RETR 3") == WIRE[2]


def test_maildir_with_a_popcache_that_is_garbage(service, user):
    path = f"{_maildir(service, user)}/popcache"
    for garbage in (
        b"",
        b"\0" * 10000,
        b"x\n" * 1000,
        os.urandom(5000),
        b"1.a 99999999999999999999 x\n",
        b"1.a -1 x\n",
    ):
        _write(path, garbage, 0o600)
        _own(service, path, user)
        with RawPop3(service, user=user) as client:
            assert [client.many(b"RETR %d" % n) for n in (1, 2, 3)] == WIRE
            client.ask(b"QUIT")
    os.unlink(path)
    os.symlink("/etc/passwd", path)
    answer = _refused(service, user)
    assert answer.startswith((b"+OK 3 ", b"-ERR [SYS/")), answer
    assert stat.S_ISLNK(os.lstat(path).st_mode) or answer.startswith(b"+OK")
