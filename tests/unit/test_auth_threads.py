"""Auth's threads: which hash each login is checked against, and that all cores hash."""

import contextlib
import os
import queue
import threading

import bcrypt
import pytest
from popkernel.actors.auth import main, passwords
from popkernel.kernel.replay.harness import Stage, boot_of
from popkernel.proto import messages as m

CHEAP = bcrypt.hashpw(b"secret", bcrypt.gensalt(4))
DEAR = bcrypt.hashpw(b"secret", bcrypt.gensalt(5))
BROKEN = CHEAP[:28] + bytes([CHEAP[28] + 1]) + CHEAP[29:]  # looks right, and no bcrypt writes it
SOON = 30  # seconds to wait for what comes at once


@pytest.fixture
def auth(tmp_path):
    table = tmp_path / "auth"
    table.write_bytes(b"".join(b"%b %b\n" % line for line in (
        (b"alice", CHEAP), (b"bob", CHEAP), (b"dear", DEAR), (b"broken", BROKEN))))
    stage = Stage(payload=False)
    with stage.set_up(main):
        auth = main.Auth(boot_of("auth", {"auth_table": str(table)}))
        stage.enter(auth, 100.0)
        auth.listeners["listener.0"] = stage.channel(stage.loop, None, "auth", "listener.0", auth._on_login, auth._on_listener_gone)
        yield auth


def login(auth, *users, secret=b"secret"):
    for user in users:
        auth._on_login(auth.listeners["listener.0"], m.Login(1, user, secret, "192.0.2.7:1", "PASS"), [])


def judged(auth, *users, secret=b"secret"):
    return [auth._judge(main.Attempt("listener.0", m.Login(1, user, secret, "192.0.2.7:1", "PASS"), 0.0)) for user in users]


def test_each_is_judged_by_the_hash_of_the_table(auth):
    users = ("alice", "bob", "dear", "nobody", "broken")
    assert judged(auth, *users) == [True, True, True, False, False]
    assert judged(auth, *users, secret=b"wrong") == [False] * 5


@pytest.mark.parametrize("secret", [b"", b"x" * 73, b"secret\0", b"\xff"])
def test_what_bcrypt_cannot_judge_is_wrong_and_takes_as_long(auth, secret):
    asked = []
    auth.check = lambda *one: asked.append(one)
    assert not any(judged(auth, "alice", "nobody", secret=secret))
    assert asked == [(b"\xff", CHEAP), (b"\xff", auth.table.hash_of("nobody")[0])]


def test_whom_nobody_knows_is_not_let_in_by_the_password_that_stands_in(auth):
    auth.check = lambda *_: True
    assert judged(auth, "nobody", "alice") == [False, True]
    assert judged(auth, "alice", secret=b"") == [False]


@pytest.mark.parametrize("prefix", [b"$2a$", b"$2b$", b"$2y$"])
def test_any_octets_and_any_length_fit_their_hash_alone(prefix):
    secrets = [bytes(range(1, 73)), bytes(range(184, 256)), b"\xff\xff\xa3", b"\xff\xa334\xff\xff\xff\xa3345", b"x", "geheim\u00e4\u20ac".encode()]
    for secret in secrets:
        hashed = prefix + bcrypt.hashpw(secret, bcrypt.gensalt(4))[4:]
        assert passwords.fits(secret, hashed)
        assert not passwords.fits(secret[:-1] + bytes([secret[-1] % 255 + 1]), hashed)


def test_a_hash_that_only_looks_right_costs_a_whole_check(monkeypatch):
    """A user's hash whose answer came sooner than that of others would tell that there is such a user."""
    asked, check = [], bcrypt.checkpw

    def checkpw(secret, expected):
        good = check(secret, expected)  # ValueError at once
        asked.append(expected[:7])
        return good

    monkeypatch.setattr(bcrypt, "checkpw", checkpw)
    broken = BROKEN[:4] + b"05" + BROKEN[6:]
    assert not passwords.fits(b"secret", broken)
    assert asked == [b"$2b$05$"]


class _End(Exception):
    """Ends a thread."""


class Threads:
    """Two that hash as auth's do, but each check waits until the test lets it go on."""

    def __init__(self, auth):
        self.auth = auth
        self.under_way = queue.Queue()  # of passwords, and what lets their check go on
        auth.woken, auth.wake = os.pipe()
        auth.check = self.held
        self.threads = [threading.Thread(target=self.hash, daemon=True) for _ in range(2)]
        for one in self.threads:
            one.start()

    def hash(self):
        with contextlib.suppress(_End):
            self.auth._hash()

    def held(self, secret, _):
        if secret == b"end":
            raise _End
        go_on = threading.Event()
        self.under_way.put((secret, go_on))
        assert go_on.wait(SOON)
        return secret == b"secret"

    def next(self):
        return self.under_way.get(timeout=SOON)

    def told(self, many):
        """Once so many are done: who, and whether it was good."""
        while len(self.auth.done) < many:
            os.read(self.auth.woken, 1)
        return sorted((attempt.login.user, good) for attempt, good in self.auth.done)

    def close(self):
        login(self.auth, "alice", "alice", secret=b"end")
        for one in self.threads:
            one.join(SOON)
        os.close(self.auth.woken)
        os.close(self.auth.wake)
        assert not any(one.is_alive() for one in self.threads)


@pytest.fixture
def threads(auth):
    with contextlib.closing(Threads(auth)) as threads:
        yield threads


def test_each_thread_checks_one_login_and_then_the_next(auth, threads):
    login(auth, "alice")
    first = threads.next()
    login(auth, "bob")
    second = threads.next()  # though the first check is under way
    login(auth, "nobody")
    login(auth, "alice", secret=b"wrong")
    assert threads.under_way.empty()
    second[1].set()
    third = threads.next()
    first[1].set()
    fourth = threads.next()
    assert [third[0], fourth[0]] == [b"secret", b"wrong"]  # in their order
    third[1].set()
    fourth[1].set()
    assert threads.told(4) == [("alice", False), ("alice", True), ("bob", True), ("nobody", False)]


def test_how_long_a_check_takes_is_a_sliding_mean(auth, monkeypatch):
    clock = iter((0.0, 4.0))
    monkeypatch.setattr(main.time, "monotonic", lambda: next(clock))
    auth.woken, auth.wake = os.pipe()
    auth.check = lambda *_: True
    login(auth, "alice")
    monkeypatch.setattr(auth.ready, "wait_for", lambda there: there() or pytest.fail("no work"))
    with pytest.raises(pytest.fail.Exception):
        auth._hash()
    os.close(auth.woken)
    os.close(auth.wake)
    assert auth.seconds == pytest.approx(4 / 16)
