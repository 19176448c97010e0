"""Auth's threads: when one takes two logins at once, and that each is answered as if it were alone."""

import contextlib
import os
import queue
import threading

import bcrypt
import pytest
from popkernel.actors.auth import main
from popkernel.kernel.stage import Stage, boot_of
from popkernel.proto import messages as m

CHEAP = bcrypt.hashpw(b"secret", bcrypt.gensalt(4))
DEAR = bcrypt.hashpw(b"secret", bcrypt.gensalt(5))
BROKEN = CHEAP[:28] + bytes([CHEAP[28] + 1]) + CHEAP[29:]  # looks right, and no bcrypt writes it
SOON = 30  # seconds to wait for what comes at once


@pytest.fixture
def auth(tmp_path, monkeypatch):
    monkeypatch.setattr(main, "_SHORT", b"")  # hashes here are cheap, to be quick; what they stand for is not
    table = tmp_path / "auth"
    table.write_bytes(b"".join(b"%b %b\n" % line for line in (
        (b"alice", CHEAP), (b"bob", CHEAP), (b"carol", CHEAP), (b"dear", DEAR), (b"broken", BROKEN))))
    stage = Stage(payload=False)
    with stage.set_up(main):
        auth = main.Auth(boot_of("auth", {"auth_table": str(table)}))
        stage.enter(auth, 100.0)
        auth.listeners["listener.0"] = stage.channel(stage.loop, None, "auth", "listener.0", auth._on_login, auth._on_listener_gone)
        auth.pair = both(auth)
        yield auth


def both(auth):
    """A pair check that needs no C compiler; it keeps what it was asked."""
    def pair(*two):
        pair.asked.append(two)
        return tuple(auth._fits_alone(*one) for one in two)
    pair.asked = []
    return pair


def login(auth, *users, secret=b"secret"):
    for user in users:
        auth._on_login(auth.listeners["listener.0"], m.Login(1, user, secret, "192.0.2.7:1", "PASS"), [])


def takes(auth, idle=0):
    """What one thread takes while `idle` others wait."""
    auth.idle = idle
    assert auth.work  # else it would wait
    taken = [attempt.login.user for attempt in auth._take()]
    assert auth.idle == idle
    return taken


def test_two_at_once_where_no_thread_is_idle(auth):
    login(auth, "alice", "bob", "carol")
    assert [takes(auth), takes(auth)] == [["alice", "bob"], ["carol"]]


def test_one_at_a_time_where_idle_threads_take_the_rest(auth):
    login(auth, "alice", "bob", "carol")
    assert takes(auth, idle=2) == ["alice"]
    assert takes(auth, idle=1) == ["bob"]
    assert takes(auth, idle=0) == ["carol"]


def test_two_at_once_where_more_wait_than_idle_threads(auth):
    login(auth, "alice", "bob", "carol", "alice")
    assert takes(auth, idle=2) == ["alice", "bob"]


def test_two_short_ones_at_once_whoever_is_idle(auth, monkeypatch):
    monkeypatch.setattr(main, "_SHORT", b"04")
    login(auth, "alice", "bob", "dear", "dear")
    assert [takes(auth, idle=5) for _ in range(3)] == [["alice", "bob"], ["dear"], ["dear"]]


def test_one_at_a_time_without_a_pair_check(auth):
    auth.pair = None
    login(auth, "alice", "bob", "carol")
    assert [takes(auth) for _ in range(3)] == [["alice"], ["bob"], ["carol"]]


def test_another_cost_keeps_its_place(auth):
    login(auth, "alice", "dear", "bob", "carol", "dear", "dear")
    assert [takes(auth) for _ in range(4)] == [["alice"], ["dear"], ["bob", "carol"], ["dear", "dear"]]
    assert not auth.work


def test_who_is_not_there_goes_with_who_is(auth):
    login(auth, "nobody", "alice")
    assert takes(auth) == ["nobody", "alice"]


def judged(auth, *users, secret=b"secret"):
    return auth._judge([main.Attempt("listener.0", m.Login(1, user, secret, "192.0.2.7:1", "PASS"), 0.0) for user in users])


@pytest.mark.parametrize("real", [True, False], ids=["lanes", "bothalone"])
def test_each_is_judged_for_itself(auth, real):
    if real:
        auth.pair = main.pairs(auth.check)
        if auth.pair is None:
            pytest.skip("no pair check here: tests/unit/test_lanes.py says why")
    assert judged(auth, "alice", "bob") == [True, True]
    assert judged(auth, "alice", "nobody") == [True, False]
    assert judged(auth, "nobody", "bob") == [False, True]
    assert judged(auth, "broken", "alice") == [False, True]
    assert judged(auth, "alice", "broken") == [True, False]
    assert judged(auth, "dear", "dear") == [True, True]
    assert judged(auth, "alice", "bob", secret=b"wrong") == [False, False]


@pytest.mark.parametrize("secret", [b"", b"x" * 73, b"secret\0", b"\xff"])
def test_what_bcrypt_cannot_judge_goes_the_same_way_and_is_wrong(auth, secret):
    assert judged(auth, "alice", "nobody", secret=secret) == [False, False]
    assert auth.pair.asked == [((b"\xff", CHEAP), (b"\xff", auth.table.hash_of("nobody")[0]))]


def test_whom_nobody_knows_is_not_let_in_by_the_password_that_stands_in(auth):
    auth.pair = lambda *_: (True, True)
    assert judged(auth, "nobody", "alice") == [False, True]
    assert judged(auth, "alice", "alice", secret=b"") == [False, False]


def test_an_error_leaves_each_to_itself(auth):
    def refuses(*_):
        raise ValueError
    auth.pair = refuses
    assert judged(auth, "alice", "broken") == [True, False]

    def refuses_broken(secret, expected):
        if expected == BROKEN:
            raise ValueError("Invalid salt")
        return bcrypt.checkpw(secret, expected)
    auth.check = refuses_broken
    assert judged(auth, "broken", "alice") == [False, True]
    assert judged(auth, "broken") == [False]


class _End(Exception):
    """Ends a thread."""


class Threads:
    """Two that hash as auth's do, but each check waits until the test lets it go on."""

    def __init__(self, auth):
        self.auth = auth
        self.under_way = queue.Queue()  # of passwords, and what lets their check go on
        auth.woken, auth.wake = os.pipe()
        auth.check = lambda secret, _: self.held(secret)[0]
        auth.pair = lambda one, other: self.held(one[0], other[0])
        self.threads = [threading.Thread(target=self.hash, daemon=True) for _ in range(2)]
        for one in self.threads:
            one.start()

    def hash(self):
        with contextlib.suppress(_End):
            self.auth._hash()

    def held(self, *secrets):
        if secrets[0] == b"end":
            raise _End
        go_on = threading.Event()
        self.under_way.put((secrets, go_on))
        assert go_on.wait(SOON)
        return tuple(secret == b"secret" for secret in secrets)

    def next(self):
        return self.under_way.get(timeout=SOON)

    def told(self, many):
        """Once so many are done: who, and whether it was good."""
        while len(self.auth.done) < many:
            os.read(self.auth.woken, 1)
        return sorted((attempt.login.user, good) for attempt, good in self.auth.done)

    def close(self):
        self.auth.pair = None
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


def test_threads_fill_all_cores_first_and_then_share_them(auth, threads):
    login(auth, "alice")
    first = threads.next()
    login(auth, "bob")
    second = threads.next()
    assert [first[0], second[0]] == [(b"secret",), (b"secret",)]  # a core each
    login(auth, "carol", "nobody")
    login(auth, "alice", secret=b"wrong")
    first[1].set()
    third = threads.next()
    assert third[0] == (b"secret", b"secret")  # all cores are busy: carol and nobody share one
    second[1].set()
    fourth = threads.next()
    assert fourth[0] == (b"wrong",)
    third[1].set()
    fourth[1].set()
    assert threads.told(5) == [("alice", False), ("alice", True), ("bob", True), ("carol", True), ("nobody", False)]


def test_a_pair_counts_as_two(auth, monkeypatch):
    clock = iter((0.0, 8.0))
    monkeypatch.setattr(main.time, "monotonic", lambda: next(clock))
    auth.woken, auth.wake = os.pipe()
    monkeypatch.setattr(auth, "_take", lambda rounds=iter([["a", "b"]]): next(rounds))
    monkeypatch.setattr(auth, "_judge", lambda taken: [True, False])
    with pytest.raises(StopIteration):
        auth._hash()
    os.close(auth.woken)
    os.close(auth.wake)
    assert list(auth.done) == [("a", True), ("b", False)]
    assert auth.seconds == pytest.approx(4 * (1 - (15 / 16) ** 2))
