"""Test the auth actor with a test clock and fake channels: checks, penalties, replies and the cache."""

from types import SimpleNamespace

import bcrypt
import pytest
from popkernel.actors.auth import main, repeated_failures
from popkernel.actors.auth.passwords import DENIED, Table, usable
from popkernel.actors.auth.repeated_failures import Repeats, WrongPasswords
from popkernel.actors.auth.verified_passwords import Verified
from popkernel.kernel.replay.harness import Harness, no_socket
from popkernel.proto import messages as m
from popkernel.proto.log_levels import NOTICE

HASH = bcrypt.hashpw(b"secret", bcrypt.gensalt(4))


class Shell:
    """Run auth under the replay harness: the test sets its clock, `work` stands for its threads."""

    def __init__(self, harness, auth, channel):
        self.harness, self.auth, self.channel = harness, auth, channel
        self.serial = 0

    def login(self, user="alice", secret=b"secret", address="192.0.2.7:1", mechanism="PASS"):
        self.serial += 1
        self.auth._on_login(self.channel, m.LoginRequest(self.serial, user, secret, address, mechanism), [])
        return self.serial

    def work(self):
        """Check the queued logins as a single thread would; return their number.

        Each result is known before the next check.
        """
        many = 0
        while not self.auth.work.empty():
            many += 1
            attempt = self.auth.work.get_nowait()
            expected, known = self.auth.table.hash_of(attempt.login.user)
            good = (
                known
                and usable(attempt.login.secret, expected)
                and self.auth.check(attempt.login.secret, expected)
            )
            self.auth.done.append((attempt, good))
            self.auth.wake_up()
        return many

    def rest(self, seconds):
        self.harness.loop.advance(self.harness.loop.now + seconds)

    def said(self):
        """Return what was sent, sorted by session, without what only the log gets.

        A turn's messages to the kernel go out after those to listeners.
        """
        self.harness.loop.settle()
        said, self.harness.said = self.harness.said, []
        return sorted(
            (one.session, one.name, one.fields.get("code", one.fields.get("user")))
            for one in said
            if one.name != "LoginDenied"
        )

    def denied(self):
        """Return what the log gets about refused logins."""
        self.harness.loop.settle()
        return [one for one in self.harness.said if one.name == "LoginDenied"]


@pytest.fixture
def shell(tmp_path, monkeypatch):
    table = tmp_path / "auth"
    table.write_bytes(b"alice " + HASH + b"\nbob " + HASH + b"\n")
    harness = Harness(payload=False)
    config = {"auth_table": str(table), "penalty_seconds": 15, "auth_cache_seconds": 600}
    auth = main.Auth(harness.boot("auth", config, 100.0))
    harness.enter(auth)
    auth.join("listener.0", no_socket())
    monkeypatch.setattr(main.os, "read", lambda *_: b"")
    auth.wake_up = lambda: auth._answers(1)
    return Shell(harness, auth, auth.listeners["listener.0"])


def test_right_and_wrong(shell):
    right, wrong, nobody = shell.login(), shell.login(secret=b"wrong"), shell.login("nobody")
    assert shell.work() == 3
    assert shell.said() == [
        (right, "LoginGranted", "alice"),
        (wrong, "LoginRefused", "AUTH"),
        (nobody, "LoginRefused", "AUTH"),
    ]


def test_the_second_time_costs_no_hashing(shell):
    shell.login()
    assert shell.work() == 1
    again, wrong = shell.login(), shell.login(secret=b"wrong")
    assert shell.said()[-1] == (again, "LoginGranted", "alice")
    assert shell.work() == 1  # the wrong one
    assert shell.said() == [(wrong, "LoginRefused", "AUTH")]
    shell.rest(590)
    shell.login()
    shell.rest(590)
    shell.login()
    assert shell.work() == 0  # the last use counts
    shell.rest(601)
    shell.login()
    assert shell.work() == 1


def guess(shell, many):
    for n in range(many):
        shell.login(f"user{n}", b"wrong", "203.0.113.9:1")
        shell.rest(16)
        shell.work()
        shell.rest(16)
    shell.said()


def test_a_guesser_s_answer_waits(shell):
    guess(shell, 7)
    last = shell.login("user99", b"wrong", "203.0.113.9:1")
    assert shell.work() == 0 and shell.said() == []  # not checked yet
    shell.rest(3.5)
    shell.work()
    assert shell.said() == []  # it failed, but the reply is delayed
    shell.rest(5)
    assert shell.said() == [(last, "LoginRefused", "AUTH")]


def test_a_guesser_in_a_hurry_costs_no_hashing(shell):
    guess(shell, 12)
    sessions = [shell.login(f"user{n}", b"wrong again", "203.0.113.9:1") for n in range(50)]
    assert {(one.fields["reason"], one.fields["seconds"]) for one in shell.denied()} == {("guard", 30)}
    text = "too many failed logins from your address, try again in 30 seconds"
    assert {one.fields["text"] for one in shell.harness.said if one.name == "LoginRefused"} == {text}
    said = shell.said()
    assert [code for _, _, code in said] == ["SYS/TEMP"] * 49 and sessions[0] not in {
        session for session, _, _ in said
    }
    shell.rest(16)
    assert shell.work() == 1


def test_others_do_not_wait_for_a_guesser(shell):
    guess(shell, 12)
    session = shell.login()
    shell.work()
    assert shell.said() == [(session, "LoginGranted", "alice")]


def test_a_user_known_at_the_address_does_not_wait(shell):
    shell.login("alice", b"secret", "203.0.113.9:77")
    shell.work()
    guess(shell, 12)
    known = shell.login("alice", b"secret", "203.0.113.9:78")
    assert shell.said() == [(known, "LoginGranted", "alice")]
    shell.login("bob", b"secret", "203.0.113.9:79")
    assert shell.said() == [] and shell.auth.work.empty()


def test_nothing_is_checked_for_a_lost_listener(shell):
    guess(shell, 7)
    shell.login("user99", b"secret", "203.0.113.9:1")
    shell.auth._on_listener_gone(shell.channel, "")
    shell.rest(16)
    assert shell.work() == 0


def test_a_full_queue_refuses_the_latest_of_the_largest_address(shell):
    """Only a listener that sends more logins than it may have sessions fills it."""
    shell.auth.hashers, shell.auth.most = 1, 3  # and the thread has four
    sessions = [shell.login(f"user{n}", b"x", "192.0.2.1:1") for n in range(9)]
    assert shell.said() == [
        (sessions[7], "LoginRefused", "SYS/TEMP"),
        (sessions[8], "LoginRefused", "SYS/TEMP"),
    ]
    other = shell.login(address="192.0.2.2:1")
    assert shell.said() == [(sessions[6], "LoginRefused", "SYS/TEMP")]
    shell.rest(1.1)
    told = [one.fields for one in shell.harness.said if one.name == "PlacesRefused"]
    assert told == [{"bound": "max_sessions", "clients": 3}]
    shell.work()
    assert (other, "LoginGranted", "alice") in shell.said()


def queued(shell, *logins):
    """Let one thread have four logins, so that these wait; return their sessions."""
    shell.auth.hashers = 1
    for n in range(4):
        shell.login(f"other{n}", b"x", f"198.51.100.{n}:1")
    return [shell.login(*login) for login in logins]


def granted(shell):
    return [user for _, name, user in shell.said() if name == "LoginGranted"]


def test_an_address_with_many_logins_waiting_delays_no_other(shell):
    shell.auth.table._hashes |= {f"user{n}": HASH for n in range(100)}
    queued(shell, *((f"user{n}", b"secret", "203.0.113.9:1") for n in range(100)))
    shell.login("alice", b"secret", "192.0.2.1:1")
    order = []
    shell.auth.check = lambda secret, _: order.append(secret) or secret.startswith(b"secret")
    shell.auth.table._hashes["alice"] = HASH
    while len(order) < 16:
        attempt = shell.auth.work.get_nowait()
        order.append(attempt.login.user)
        shell.auth.done.append((attempt, True))
        shell.auth.wake_up()
    assert order.index("alice") == 14  # the thread's four, ten of the crowd


def test_a_user_with_many_logins_waiting_delays_no_other_at_the_same_address(shell):
    queued(shell, *(("alice", b"%d" % n, "203.0.113.9:1") for n in range(50)))
    shell.login("bob", b"secret", "203.0.113.9:2")
    order = []
    for _ in range(6):
        attempt = shell.auth.work.get_nowait()
        order.append(attempt.login.user)
        shell.auth.done.append((attempt, True))
        shell.auth.wake_up()
    assert order[4:] == ["alice", "bob"]


def test_a_waiting_login_whose_password_was_found_right_meanwhile_costs_no_hashing(shell):
    others = [(f"more{n}", b"x", "192.0.2.1:1") for n in range(4)]
    first, *_, second = queued(
        shell, ("alice", b"secret", "192.0.2.1:1"), *others, ("alice", b"secret", "192.0.2.1:2")
    )
    assert shell.work() == 9
    assert {(first, "LoginGranted", "alice"), (second, "LoginGranted", "alice")} <= set(shell.said())


def test_a_waiting_login_whose_password_was_found_wrong_meanwhile_costs_no_hashing(shell):
    others = [(f"more{n}", b"x", "192.0.2.1:1") for n in range(4)]
    first, *_, second = queued(
        shell, ("alice", b"old", "192.0.2.1:1"), *others, ("alice", b"old", "192.0.2.1:2")
    )
    assert shell.work() == 9
    assert {(first, "LoginRefused", "AUTH"), (second, "LoginRefused", "AUTH")} <= set(shell.said())


def withdraw(shell, session, *, answer=False):
    shell.auth._on_listener(shell.channel, m.LoginWithdrawn(session, answer), [])


def test_a_waiting_login_whose_client_is_gone_is_not_checked(shell):
    gone, stays = queued(shell, ("alice", b"secret", "192.0.2.1:1"), ("bob", b"secret", "192.0.2.1:2"))
    withdraw(shell, gone)
    assert shell.work() == 5
    said = shell.said()
    assert (stays, "LoginGranted", "bob") in said and gone not in [session for session, *_ in said]


def test_a_login_that_is_withdrawn_while_it_is_checked_gets_no_answer(shell):
    """But its result is remembered, and counts."""
    gone = shell.login()
    withdraw(shell, gone)
    assert shell.work() == 1 and shell.said() == []
    again = shell.login()
    assert shell.said() == [(again, "LoginGranted", "alice")]


def test_an_old_answer_is_none_to_the_next_login_of_the_session(shell):
    first = shell.login()
    withdraw(shell, first)
    shell.serial -= 1
    second = shell.login("bob", b"wrong")
    assert first == second and shell.work() == 2
    assert shell.said() == [(second, "LoginRefused", "AUTH")]


def test_a_client_that_closed_its_sending_side_is_answered(shell):
    """At once if its turn has not come; else as usual."""
    begun = shell.login()
    (waiting,) = queued(shell, ("bob", b"secret", "192.0.2.1:2"))
    shell.login("bob", b"secret", "192.0.2.1:3")
    for session in (begun, waiting):
        withdraw(shell, session, answer=True)
    assert shell.said() == [(waiting, "LoginRefused", "SYS/TEMP")]
    shell.work()
    assert (begun, "LoginGranted", "alice") in shell.said()


def test_what_waited_too_long_is_refused_and_not_checked(shell):
    late, in_time = queued(shell, ("alice", b"secret", "192.0.2.1:1"), ("bob", b"secret", "192.0.2.1:2"))
    shell.auth.live["listener.0"].pop(in_time)
    shell.rest(176)  # of login_seconds, 180
    in_time = shell.login("bob", b"secret", "192.0.2.1:2")
    assert shell.work() == 5
    said = shell.said()
    assert (late, "LoginRefused", "SYS/TEMP") in said and (in_time, "LoginGranted", "bob") in said


def reports(shell):
    shell.harness.loop.settle()
    said, shell.harness.said = shell.harness.said, []
    return [one.fields for one in said if one.name == "LoginLoad"]


def test_the_kernel_is_told_while_logins_wait_and_once_when_none_does(shell):
    shell.rest(100)
    assert reports(shell) == []  # an idle auth has no timer
    queued(shell, *((f"user{n}", b"x", f"192.0.2.{n}:1") for n in range(3)))
    shell.rest(0.9)
    assert reports(shell) == []
    shell.rest(0.2)
    (told,) = reports(shell)
    assert (told["waiting"], told["checks"], told["misses"]) == (3, 0, 7) and 1000 <= told["oldest"] <= 1200
    shell.rest(10.1)
    assert reports(shell)[0]["oldest"] >= 11_000
    shell.work()
    shell.rest(10.1)
    (told,) = reports(shell)
    assert (told["waiting"], told["oldest"], told["checks"]) == (0, 0, 7)
    shell.rest(100)
    assert reports(shell) == []


def crowd(shell, many, secret=b"secret"):
    return [shell.login(f"user{n}", secret, "203.0.113.9:1") for n in range(many)]


def test_ten_thousand_users_behind_one_address_are_let_in_while_some_have_old_passwords(shell):
    """After a start, when nobody is known. Four in a hundred have an old password, and try it again."""
    users = {f"user{n}": HASH for n in range(10_000)}
    shell.auth.table._hashes |= users
    shell.auth.check = lambda secret, expected: secret == b"secret"
    refused = set()
    for n, user in enumerate(users):
        shell.login(user, b"old" if n % 25 == 7 else b"secret", "203.0.113.9:1")
        if n >= 2000 and n % 25 == 7:
            shell.login(f"user{n - 2000}", b"old", "203.0.113.9:1")
        shell.rest(0.03)
        shell.work()
        refused |= {(name, code) for _, name, code in shell.said() if name == "LoginRefused"}
    assert refused == {("LoginRefused", "AUTH")}


@pytest.mark.parametrize("many", [95, 300, 1000])
def test_a_crowd_behind_one_address_right_after_a_start_is_let_in(shell, many):
    """No password is wrong, so nobody is refused or waits for more than the hashing."""
    shell.auth.table._hashes |= {f"user{n}": HASH for n in range(many)}
    shell.auth.check = lambda secret, expected: secret == b"secret"
    sessions = crowd(shell, many)
    assert shell.said() == [] and shell.work() == many
    assert shell.said() == [(session, "LoginGranted", f"user{n}") for n, session in enumerate(sessions)]


def test_a_burst_of_guesses_is_checked_until_the_first_have_failed(shell):
    sessions = crowd(shell, 300, b"guess")
    # the checks that threads had already begun at the fifth failure
    assert shell.work() == 5 + 4 * shell.auth.hashers - 1
    refused = [session for session, name, code in shell.said() if code == "SYS/TEMP"]
    assert len(refused) > 280 - 4 * shell.auth.hashers and set(refused) < set(sessions)
    shell.rest(16)
    assert shell.work() <= 15  # one a second after the fifth failure


def test_the_same_failure_again_counts_once(shell):
    """A client that knows three ways to log in tries a mistyped password three times."""
    sessions = [shell.login(secret=b"mistyped", mechanism=way) for way in ("PLAIN", "LOGIN", "PASS")]
    assert shell.work() == 3  # all three came before the first had failed
    again = shell.login(secret=b"mistyped", address="192.0.2.7:2")
    assert shell.work() == 0
    assert [(one.session, one.fields["reason"]) for one in shell.denied()] == [
        (sessions[0], "password"),
        (sessions[1], "repeat"),
        (sessions[2], "repeat"),
        (again, "repeat"),
    ]
    assert {code for _, _, code in shell.said()} == {"AUTH"}
    assert shell.auth.guard._addresses["192.0.2.7"].value == 1.0
    others = (
        shell.login(secret=b"another"),
        shell.login("bob", b"mistyped"),
        shell.login(secret=b"mistyped", address="192.0.2.8:1"),
    )
    assert shell.work() == 3
    assert {(one.session, one.fields["reason"]) for one in shell.denied()} == {
        (session, "password") for session in others
    }
    shell.rest(31)
    shell.login(secret=b"mistyped")
    assert shell.work() == 1 and shell.denied()[-1].fields["reason"] == "password"
    assert shell.auth.guard._addresses["192.0.2.7"].value > 2.0


def test_the_same_failure_again_is_answered_at_once_in_penalty_too(shell):
    """Each delayed reply holds one of max_logins, so repeated failures must not delay other users' logins."""
    guess(shell, 7)
    shell.login("user99", b"wrong", "203.0.113.9:1")
    shell.rest(16)
    shell.work()
    shell.rest(16)
    shell.said()
    again = shell.login("user99", b"wrong", "203.0.113.9:1")
    assert shell.said() == [(again, "LoginRefused", "AUTH")] and shell.auth.work.empty()


def test_an_address_with_many_repeated_failures_is_logged_once_a_minute(shell):
    shell.login(secret=b"wrong")
    shell.work()
    shell.said()
    for _ in range(100):
        shell.login(secret=b"wrong")
    said = [one.fields for one in shell.harness.said if one.name == "LogEvent"]
    fields = {"address": "192.0.2.7", "times": 21, "seconds": 60}
    assert said == [{"level": NOTICE, "event": "login.repeated", "fields": fields}]


def test_many_addresses_that_repeat_are_few_lines_and_little_memory():
    told = Repeats()
    lines = [
        told.count(f"192.0.{n // 256}.{n % 256}", 100.0 + n / 200) for n in range(2000) for _ in range(30)
    ]
    assert len(told._clients) == 1000 and 1 <= sum(map(bool, lines)) <= 3
    assert not any(told.count("203.0.113.9", 200.0 + 3 * n) for n in range(200)), (
        "the telephone with an old password"
    )


def test_failures_are_remembered_as_digests_and_bounded(monkeypatch):
    wrong = WrongPasswords()
    monkeypatch.setattr(repeated_failures, "_MOST", 10)
    for n in range(50):
        assert not wrong.put(
            m.LoginRequest(n, f"user{n}", b"a wrong secret", "192.0.2.7:1", "PASS"), "192.0.2.7", HASH, 0.0
        )
    assert len(wrong._digests) == 10 and b"secret" not in repr(wrong._digests).encode()
    assert wrong._key != WrongPasswords()._key


def test_a_name_in_another_case(shell):
    """The name in the table is granted, and the guard counts all spellings as one."""
    shell.auth.table = Table({"alice": HASH, "Bob": HASH, "carol": HASH, "Carol": HASH})
    sessions = [shell.login(name) for name in ("Alice", "ALICE", "bob", "BOB", "Bob", "carol", "Carol")]
    twin, nobody = shell.login("CAROL"), shell.login("Nobody")
    shell.work()
    names = ["alice", "alice", "Bob", "Bob", "Bob", "carol", "Carol"]
    assert shell.said() == [
        *((s, "LoginGranted", name) for s, name in zip(sessions, names)),
        (twin, "LoginRefused", "AUTH"),
        (nobody, "LoginRefused", "AUTH"),
    ]
    before = len(shell.auth.guard._users)
    for name in ("mallory", "Mallory", "MALLORY"):
        shell.login(name, b"a guess of " + name.encode())
    shell.work()
    assert len(shell.auth.guard._users) == before + 1


def test_case_exact(shell):
    shell.auth.table = Table({"alice": HASH}, fold=False)
    right, other = shell.login(), shell.login("Alice")
    shell.work()
    assert shell.said() == [(right, "LoginGranted", "alice"), (other, "LoginRefused", "AUTH")]


def test_a_table_with_names_that_differ_in_case_only_is_warned_of(tmp_path):
    table = tmp_path / "auth"
    table.write_bytes(b"".join(b"%b %b\n" % (name, HASH) for name in (b"alice", b"bob", b"Alice")))
    warning = (
        f"{table}:3: users alice and Alice differ in case only: each is found only as it is written here; "
        "have one name for each user, or tell your users"
    )
    for case, said in (("fold", [warning]), ("exact", [])):
        boot = Harness(payload=False).boot("auth", {"auth_table": str(table), "login_case": case}, 0.0)
        assert main.Auth(boot).doubts == said


@pytest.mark.parametrize("mechanism", ["", "PASS", "PLAIN", "LOGIN"])
def test_mechanisms_with_passwords(shell, mechanism):
    session = shell.login(mechanism=mechanism)
    shell.work()
    assert shell.said() == [(session, "LoginGranted", "alice")]


@pytest.mark.parametrize("mechanism", ["XOAUTH2", "OAUTHBEARER"])
def test_tokens_where_none_are_configured(shell, mechanism):
    session = shell.login(mechanism=mechanism)
    assert shell.work() == 0
    assert shell.said() == [(session, "LoginRefused", "AUTH")]


def test_tokens(shell):
    class Tokens:
        def user_of(self, token):
            return {b"alice's": "alice", b"Alice's": "Alice", b"bob's": "bob", b"carol's": "carol"}.get(token)

    shell.auth.tokens = Tokens()
    right, other, bad, not_in_table, password = (
        shell.login("alice", b"alice's", mechanism="XOAUTH2"),
        shell.login("alice", b"bob's", mechanism="OAUTHBEARER"),
        shell.login("alice", b"secret", mechanism="XOAUTH2"),
        shell.login("carol", b"carol's", mechanism="XOAUTH2"),
        shell.login("alice", b"alice's"),
    )
    assert shell.work() == 1
    assert shell.said() == [
        (right, "LoginGranted", "alice"),
        *((s, "LoginRefused", "AUTH") for s in (other, bad, not_in_table, password)),
    ]
    typed = shell.login("Alice", b"alice's", mechanism="XOAUTH2")
    assert shell.said() == [(typed, "LoginGranted", "alice")]
    shell.login("alice", b"alice's", "192.0.2.8:1")
    assert shell.work() == 1  # a valid token is no password, and not in the cache either


@pytest.mark.parametrize("name", ["alice", "Alice"])
def test_a_claim_is_compared_to_the_letter(shell, name):
    """The issuer may have both Alice and alice; only typed names are folded."""

    class Tokens:
        def user_of(self, token):
            return token.decode()

    shell.auth.tokens = Tokens()
    session = shell.login(name, b"Alice", mechanism="XOAUTH2")
    assert shell.said() == [(session, "LoginRefused", "AUTH")]


def test_a_mechanism_that_there_is_not_costs_the_listener_its_channel(shell):
    shell.login(mechanism="NTLM")
    assert [one.name for one in shell.harness.said] == ["PeerRefused"]
    assert shell.channel.closed and not shell.auth.listeners


def test_one_answer_for_every_reason(shell):
    (
        shell.login(secret=b"wrong"),
        shell.login("nobody"),
        shell.login(secret=b"x" * 73),
        shell.login(secret=b"secret\0"),
        shell.login(secret=b""),
    )
    shell.login(mechanism="XOAUTH2")
    shell.work()
    assert {one.fields["reason"] for one in shell.denied()} == {"password", "unknown", "token"}
    refused = [one for one in shell.harness.said if one.name == "LoginRefused"]
    assert {(one.fields["code"], one.fields["text"]) for one in refused} == {DENIED}


def test_no_secret_is_kept_after_a_check(shell):
    guess(shell, 7)
    shell.login("alice", b"a wrong secret", "203.0.113.9:1")
    shell.rest(3.5)
    assert shell.work() == 1 and shell.said() == []
    assert "a wrong secret" not in repr(
        [cell.cell_contents for _, _, timer in shell.harness.loop._timers for cell in timer.call.__closure__]
    )


def test_passwords_that_bcrypt_cannot_check():
    assert usable(b"x" * 72, HASH)
    assert not any(usable(secret, HASH) for secret in (b"x" * 73, b"", b"a\0"))


def test_the_cache():
    cache = Verified(600)
    cache.put("alice", b"secret", HASH, 0.0)
    assert cache.holds("alice", b"secret", HASH, 599.0)
    assert cache.holds("alice", b"secret", HASH, 1198.0)  # each use renews it
    assert not cache.holds("alice", b"secreT", HASH, 1.0)
    assert not cache.holds("bob", b"secret", HASH, 1.0)
    # the table's line has changed
    assert not cache.holds("alice", b"secret", HASH.replace(b"$2b$04", b"$2b$05"), 1.0)
    assert not cache.holds("alice", b"secret", HASH, 1799.0)
    assert not cache._digests  # removed when it has expired
    assert b"secret" not in repr(cache._digests).encode()


def test_the_cache_has_a_key_of_its_own():
    one, other = Verified(600), Verified(600)
    assert one._digest("alice", b"secret", HASH) != other._digest("alice", b"secret", HASH)


def test_the_cache_off_and_its_bound(monkeypatch):
    off = Verified(0)
    off.put("alice", b"secret", HASH, 0.0)
    assert not off.holds("alice", b"secret", HASH, 0.0) and not off._digests
    monkeypatch.setattr(Verified, "_MOST", 10)
    cache = Verified(600)
    for n in range(50):
        cache.put(f"user{n}", b"secret", HASH, 0.0)
    cache.put("user49", b"secret", HASH, 1.0)
    assert (
        len(cache._digests) == 10
        and cache.holds("user49", b"secret", HASH, 1.0)
        and not cache.holds("user1", b"secret", HASH, 1.0)
    )
    assert cache.holds("user40", b"secret", HASH, 1.0)  # the oldest, and just used
    cache.put("another", b"secret", HASH, 1.0)
    assert cache.holds("user40", b"secret", HASH, 1.0) and not cache.holds("user41", b"secret", HASH, 1.0)


@pytest.fixture
def domain(tmp_path, monkeypatch):
    """Run auth with a default domain over a table that has both kinds of names."""
    table = tmp_path / "auth"
    names = (b"alice", b"bob@example.org", b"carol", b"carol@example.org")
    table.write_bytes(b"".join(b"%b %b\n" % (name, HASH) for name in names))
    harness = Harness(payload=False)
    config = {"auth_table": str(table), "penalty_seconds": 15, "default_domain": "example.org"}
    auth = main.Auth(harness.boot("auth", config, 100.0))
    harness.enter(auth)
    auth.join("listener.0", no_socket())
    monkeypatch.setattr(main.os, "read", lambda *_: b"")
    auth.wake_up = lambda: auth._answers(1)
    return Shell(harness, auth, auth.listeners["listener.0"])


@pytest.mark.parametrize(
    ("typed", "user"),
    [
        ("alice", "alice"),
        ("Alice@Example.Org", "alice"),
        ("bob", "bob@example.org"),
        ("carol", "carol"),
        ("carol@example.org", "carol@example.org"),
    ],
)
@pytest.mark.parametrize("mechanism", ["PASS", "PLAIN", "LOGIN"])
def test_a_login_with_or_without_the_default_domain(domain, typed, user, mechanism):
    domain.login(typed, mechanism=mechanism)
    domain.work()
    assert granted(domain) == [user]
    assert [text.partition(": ")[2].partition(" differ")[0] for text in domain.auth.doubts] == [
        "users carol and carol@example.org"
    ]


@pytest.mark.parametrize(
    ("typed", "claim", "user"),
    [
        ("alice", "alice@example.org", "alice"),
        ("alice@example.org", "alice", "alice"),
        ("bob", "bob", "bob@example.org"),
        ("bob@example.org", "bob@example.org", "bob@example.org"),
        ("carol", "carol@example.org", ""),  # two users
        ("carol@example.org", "carol", ""),
        ("alice", "alice@other.example", ""),
        ("alice", "Alice@example.org", ""),
    ],
)
def test_a_token_with_or_without_the_default_domain(domain, typed, claim, user):
    domain.auth.tokens = SimpleNamespace(user_of=bytes.decode)
    domain.login(typed, claim.encode(), mechanism="XOAUTH2")
    domain.work()
    assert granted(domain) == [user] * bool(user)


def test_all_spellings_of_an_unknown_name_are_one_user_for_penalties(domain):
    for n, name in enumerate(("nobody", "Nobody", "nobody@example.org", "NOBODY@Example.org")):
        domain.login(name, b"%d" % n)
    domain.work()
    assert len(domain.auth.guard._users) == 1


def test_a_locked_user_is_found_in_no_other_form(tmp_path):
    """Else the locked alice@example.org would be taken for alice."""
    table = tmp_path / "auth"
    table.write_bytes(b"alice " + HASH + b"\nalice@example.org !" + HASH + b"\n")
    config = {"auth_table": str(table), "default_domain": "example.org"}
    auth = main.Auth(Harness(payload=False).boot("auth", config, 0.0))
    assert auth.table.name_of("Alice@example.org") == "alice@example.org"
    assert not auth.table.hash_of("alice@example.org")[1]


def test_logins_that_wait_for_a_penalty_are_bounded(shell):
    """A listener that lied, with another address for each, filled auth's memory and ended it."""
    shell.auth.most = 5
    for n in range(8):
        shell.login("alice", b"wrong%d" % n, f"203.0.113.{n}:1")
        shell.rest(16)
        shell.work()
        shell.rest(16)
    shell.said()
    waiting = [shell.login("alice", b"guess", f"198.51.100.{n}:1") for n in range(8)]
    assert shell.said() == [(session, "LoginRefused", "SYS/TEMP") for session in waiting[5:]]
    shell.rest(16)
    assert shell.work() == 5 and not shell.auth.delayed
    shell.said()
    shell.login("alice", b"guess", "198.51.100.77:1")
    assert len(shell.auth.delayed) == 1


def of_listener(shell, name):
    """Return a shell whose logins come from another listener; `shell` takes the rest."""
    shell.auth.join(name, no_socket())
    return Shell(shell.harness, shell.auth, shell.auth.listeners[name])


def test_a_listener_that_invents_addresses_delays_no_other_s_first_logins(shell):
    """Its logins had a turn each: a thousand of them came before the first client of another listener."""
    shell.auth.table._hashes |= {f"user{n}": HASH for n in range(5)}
    other = of_listener(shell, "listener.1")
    queued(shell, *((f"nobody{n}", b"x", f"198.51.{n >> 8}.{n & 255}:1") for n in range(1000)))
    for n in range(5):
        other.login(f"user{n}", b"secret", "192.0.2.1:1")
    order = []
    for _ in range(14):
        attempt = shell.auth.work.get_nowait()
        order.append(attempt.login.user)
        shell.auth.done.append((attempt, True))
        shell.auth.wake_up()
    assert order[4:] == [name for n in range(5) for name in (f"nobody{n}", f"user{n}")]


def test_a_listener_that_fills_the_queue_takes_no_other_s_room(shell):
    shell.auth.most = 8
    other = of_listener(shell, "listener.1")
    waiting = queued(shell, *((f"nobody{n}", b"x", f"198.51.100.{n}:1") for n in range(8)))
    for n in range(4):
        other.login(f"user{n}", b"x", "192.0.2.1:1")
    said = shell.said()
    assert [code for *_, code in said] == ["SYS/TEMP"] * 4
    assert {session for session, *_ in said} < set(waiting)
    assert shell.work() == 12


def test_a_listener_with_many_logins_that_wait_for_their_penalty_takes_no_other_s_room(shell):
    shell.auth.most = 4
    for n in range(8):
        shell.login("alice", b"wrong%d" % n, f"203.0.113.{n}:1")
        shell.rest(16)
        shell.work()
        shell.rest(16)
    shell.said()
    other = of_listener(shell, "listener.1")
    waiting = [shell.login("alice", b"guess", f"198.51.100.{n}:1") for n in range(4)]
    other.login("alice", b"secret", "192.0.2.1:1")
    ((session, _, code),) = shell.said()
    assert code == "SYS/TEMP" and session in waiting
    shell.rest(16)
    assert shell.work() == 4
    assert (other.serial, "LoginGranted", "alice") in shell.said()


def test_another_login_of_a_session_takes_the_place_of_the_one_that_waits(shell):
    """A listener of one connection could fill the queue, or the memory, with logins of its one session."""
    queued(shell)
    for n in range(20):
        shell.serial = 99
        shell.login(f"nobody{n}", b"x", f"198.51.100.{n}:1")
    assert len(shell.auth.queue) == 1 and shell.work() == 5


def test_the_listeners_of_a_gate_share_as_one(shell):
    """An address with many connections has the turn of one, as in a listener that serves them all."""
    gate = 5 << 40
    office = [of_listener(shell, f"listener.5.{n}") for n in range(1, 31)]
    home = of_listener(shell, "listener.5.77")
    queued(shell)
    for n, child in enumerate(office, gate):
        child.serial = n
        child.login(f"office{n - gate}", b"x", "192.0.2.1:1")
    home.serial = gate + 76
    home.login("home", b"x", "192.0.2.2:1")
    order = []
    for _ in range(16):
        attempt = shell.auth.work.get_nowait()
        order.append(attempt.login.user)
        shell.auth.done.append((attempt, True))
        shell.auth.wake_up()
    assert order.index("home") == 14  # the thread's four, ten of the office


def test_a_listener_of_one_connection_may_log_in_to_its_own_session_alone(shell):
    child = of_listener(shell, "listener.5.7")
    child.serial = (5 << 40) + 6
    child.login()
    assert "listener.5.7" in shell.auth.listeners
    child.serial = 8
    child.login()
    (refused,) = [one for one in shell.harness.said if one.name == "PeerRefused"]
    assert refused.fields["reason"] == "LoginRequest.session: it is not its own"
    assert "listener.5.7" not in shell.auth.listeners
    shell.work()
    assert [name for _, name, _ in shell.said()] == ["PeerRefused"]


def test_a_listener_of_one_connection_guesses_no_more_often_than_a_client(shell):
    """It lies about its address, so no penalty slows it: without hashing it made all others' forgotten."""
    child = of_listener(shell, "listener.5.7")
    for n in range(200):
        child.serial = (5 << 40) + 6
        child.login(f"user{n}", b"x", f"198.51.100.{n}:1", "XOAUTH2")
        shell.rest(16)
    assert len(shell.auth.guard._addresses) == 100
    codes = [code for _, name, code in shell.said() if name == "LoginRefused"]
    assert codes == ["AUTH"] * 100 + ["SYS/TEMP"] * 100
    shell.auth._on_listener_gone(child.channel, "")
    assert not shell.auth.alone
