"""Test auth's threads: each login is checked against its own hash, on all cores."""

import contextlib
import os
import queue
import threading

import bcrypt
import pytest
from popkernel.actors.auth import main, passwords
from popkernel.kernel.replay.harness import Harness, no_socket
from popkernel.proto import messages as m

CHEAP = bcrypt.hashpw(b"secret", bcrypt.gensalt(4))
DEAR = bcrypt.hashpw(b"secret", bcrypt.gensalt(5))
BROKEN = CHEAP[:28] + bytes([CHEAP[28] + 1]) + CHEAP[29:]  # well-formed, but no bcrypt produces it
SOON = 30  # seconds to wait for what comes at once


@pytest.fixture
def auth(tmp_path):
    table = tmp_path / "auth"
    table.write_bytes(
        b"".join(
            b"%b %b\n" % line
            for line in ((b"alice", CHEAP), (b"bob", CHEAP), (b"dear", DEAR), (b"broken", BROKEN))
        )
    )
    harness = Harness(payload=False)
    auth = main.Auth(harness.boot("auth", {"auth_table": str(table)}, 100.0))
    harness.enter(auth)
    auth.join("listener.0", no_socket())
    return auth


def login(auth, *users, secret=b"secret"):
    for user in users:
        auth._on_login(
            auth.listeners["listener.0"], m.LoginRequest(1, user, secret, "192.0.2.7:1", "PASS"), []
        )


def judged(auth, *users, secret=b"secret"):
    return [
        auth._judge(main.Attempt("listener.0", m.LoginRequest(1, user, secret, "192.0.2.7:1", "PASS"), 0.0))
        for user in users
    ]


def test_each_login_is_checked_against_its_own_hash(auth):
    users = ("alice", "bob", "dear", "nobody", "broken")
    assert judged(auth, *users) == [True, True, True, False, False]
    assert judged(auth, *users, secret=b"wrong") == [False] * 5


@pytest.mark.parametrize("secret", [b"", b"x" * 73, b"secret\0", b"\xff"])
def test_a_password_that_bcrypt_refuses_is_wrong_and_takes_as_long(auth, secret):
    asked = []
    auth.check = lambda *one: asked.append(one)
    assert not any(judged(auth, "alice", "nobody", secret=secret))
    assert asked == [(b"\xff", CHEAP), (b"\xff", auth.table.hash_of("nobody")[0])]


def test_the_decoy_hash_lets_no_unknown_user_in(auth):
    auth.check = lambda *_: True
    assert judged(auth, "nobody", "alice") == [False, True]
    assert judged(auth, "alice", secret=b"") == [False]


@pytest.mark.parametrize("prefix", [b"$2a$", b"$2b$", b"$2y$"])
def test_any_octets_and_any_length_fit_their_hash_alone(prefix):
    secrets = [
        bytes(range(1, 73)),
        bytes(range(184, 256)),
        b"\xff\xff\xa3",
        b"\xff\xa334\xff\xff\xff\xa3345",
        b"x",
        "geheim\u00e4\u20ac".encode(),
    ]
    for secret in secrets:
        hashed = prefix + bcrypt.hashpw(secret, bcrypt.gensalt(4))[4:]
        assert passwords.fits(secret, hashed)
        assert not passwords.fits(secret[:-1] + bytes([secret[-1] % 255 + 1]), hashed)


def test_a_malformed_hash_takes_a_whole_check(monkeypatch):
    """A check that is quicker than others would reveal that the user exists."""
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
    """End a thread."""


class Threads:
    """Run two hashing threads as auth does; each check waits until the test releases it."""

    def __init__(self, auth):
        self.auth = auth
        self.under_way = queue.Queue()  # (password, event that releases its check)
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

    def results(self, many):
        """Wait for `many` results; return (user, good) of each."""
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
    second = threads.next()  # while the first check is running
    login(auth, "nobody")
    login(auth, "alice", secret=b"wrong")
    assert threads.under_way.empty()
    second[1].set()
    third = threads.next()
    first[1].set()
    fourth = threads.next()
    assert [third[0], fourth[0]] == [b"secret", b"wrong"]  # in order
    third[1].set()
    fourth[1].set()
    assert threads.results(4) == [("alice", False), ("alice", True), ("bob", True), ("nobody", False)]
