"""The auth actor's shell with channels that are none: what it looks at, when, and whom it tells. And its cache."""

import bcrypt
import pytest
from popkernel.actors.auth import main, repeated_failures
from popkernel.actors.auth.main import Verified
from popkernel.actors.auth.passwords import DENIED, Table, decoys, usable
from popkernel.actors.auth.repeated_failures import Repeats, Wrong
from popkernel.kernel.replay.harness import Stage, boot_of
from popkernel.proto import messages as m

HASH = bcrypt.hashpw(b"secret", bcrypt.gensalt(4))


class Shell:
    """Auth on a stage: its clock is the test's, its threads are `work`."""

    def __init__(self, stage, auth, channel):
        self.stage, self.auth, self.channel = stage, auth, channel
        self.serial = 0

    def login(self, user="alice", secret=b"secret", address="192.0.2.7:1", mechanism="PASS"):
        self.serial += 1
        self.auth._on_login(self.channel, m.Login(self.serial, user, secret, address, mechanism), [])
        return self.serial

    def work(self):
        """What the threads do; how many logins they had. One after the other, as on one core: what each comes to is known to the next."""
        many = 0
        while self.auth.work:
            many += 1
            attempt = self.auth.work.popleft()
            expected, known = self.auth.table.hash_of(attempt.login.user)
            good = known and usable(attempt.login.secret) and self.auth.check(attempt.login.secret, expected)
            self.auth.done.append((attempt, good))
            self.auth.wake_up()
        return many

    def rest(self, seconds):
        self.stage.loop.advance(self.stage.loop.now + seconds)

    def said(self):
        """By session: what a turn of the loop says to the kernel it says at its end, behind what it says to listeners."""
        self.stage.loop.settle()
        said, self.stage.said = self.stage.said, []
        return sorted((one.session, one.name, one.fields.get("code", one.fields.get("user"))) for one in said)


@pytest.fixture
def shell(tmp_path, monkeypatch):
    table = tmp_path / "auth"
    table.write_bytes(b"alice " + HASH + b"\nbob " + HASH + b"\n")
    stage = Stage(payload=False)
    with stage.set_up(main):
        auth = main.Auth(boot_of("auth", {"auth_table": str(table), "penalty_seconds": 15, "auth_cache_seconds": 600}))
        stage.enter(auth, 100.0)
        channel = stage.channel(stage.loop, None, "auth", "listener.0", auth._on_login, auth._on_listener_gone)
        auth.listeners["listener.0"] = channel
        monkeypatch.setattr(main.os, "read", lambda *_: b"")
        auth.wake_up = lambda: auth._answers(1)
        yield Shell(stage, auth, channel)


def test_right_and_wrong(shell):
    right, wrong, nobody = shell.login(), shell.login(secret=b"wrong"), shell.login("nobody")
    assert shell.work() == 3
    assert shell.said() == [(right, "Granted", "alice"), (wrong, "Denied", "AUTH"), (nobody, "Denied", "AUTH")]


def test_the_second_time_costs_no_hashing(shell):
    shell.login()
    assert shell.work() == 1
    again, wrong = shell.login(), shell.login(secret=b"wrong")
    assert shell.said()[-1] == (again, "Granted", "alice")
    assert shell.work() == 1  # the wrong one
    assert shell.said() == [(wrong, "Denied", "AUTH")]
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
    assert shell.work() == 0 and shell.said() == []  # not looked at yet
    shell.rest(3.5)
    shell.work()
    assert shell.said() == []  # it failed, and is not told yet
    shell.rest(5)
    assert shell.said() == [(last, "Denied", "AUTH")]


def test_a_guesser_in_a_hurry_costs_no_hashing(shell):
    guess(shell, 12)
    sessions = [shell.login(f"user{n}", b"wrong again", "203.0.113.9:1") for n in range(50)]
    why = {(one.fields["why"], one.fields["text"], one.fields["seconds"]) for one in shell.stage.said}
    assert why == {("guard", "too many failed logins from your address, try again in 30 seconds", 30)}
    said = shell.said()
    assert [code for _, _, code in said] == ["SYS/TEMP"] * 49 and sessions[0] not in {session for session, _, _ in said}
    shell.rest(16)
    assert shell.work() == 1


def test_others_do_not_wait_for_a_guesser(shell):
    guess(shell, 12)
    session = shell.login()
    shell.work()
    assert shell.said() == [(session, "Granted", "alice")]


def test_who_is_known_there_does_not_wait_either(shell):
    shell.login("alice", b"secret", "203.0.113.9:77")
    shell.work()
    guess(shell, 12)
    known = shell.login("alice", b"secret", "203.0.113.9:78")
    assert shell.said() == [(known, "Granted", "alice")]
    shell.login("bob", b"secret", "203.0.113.9:79")
    assert shell.said() == [] and not shell.auth.work


def test_nothing_is_looked_at_for_a_listener_that_is_gone(shell):
    guess(shell, 7)
    shell.login("user99", b"secret", "203.0.113.9:1")
    shell.auth._on_listener_gone(shell.channel, "")
    shell.rest(16)
    assert shell.work() == 0


def test_a_full_queue_is_told_as_such(shell, monkeypatch):
    shell.auth.hashers = 1
    monkeypatch.setattr(main, "_MOST_WAITING", 7)  # and four of them are with the thread
    sessions = [shell.login(f"user{n}", b"x", "192.0.2.1:1") for n in range(9)]
    assert shell.said() == [(0, "Log", None), (sessions[7], "Denied", "SYS/TEMP"), (sessions[8], "Denied", "SYS/TEMP")]
    other = shell.login(address="192.0.2.2:1")  # for whom the one with most waiting makes room
    assert shell.said() == [(sessions[6], "Denied", "SYS/TEMP")]
    shell.work()
    assert (other, "Granted", "alice") in shell.said()


def crowd(shell, many, secret=b"secret"):
    return [shell.login(f"user{n}", secret, "203.0.113.9:1") for n in range(many)]


@pytest.mark.parametrize("many", [95, 300, 1000])
def test_a_crowd_behind_one_address_right_after_a_start_is_let_in(shell, many):
    """A8: no password of it is wrong, so nobody is refused, and nobody waits for more than hashing takes."""
    shell.auth.table._hashes |= {f"user{n}": HASH for n in range(many)}
    shell.auth.check = lambda secret, expected: secret == b"secret"
    sessions = crowd(shell, many)
    assert shell.said() == [] and shell.work() == many
    assert shell.said() == [(session, "Granted", f"user{n}") for n, session in enumerate(sessions)]


def test_a_crowd_of_guesses_is_looked_at_until_the_first_have_failed(shell):
    sessions = crowd(shell, 300, b"guess")
    assert shell.work() == 5 + 4 * shell.auth.hashers - 1  # those that the threads had already when the fifth failed
    refused = [session for session, name, code in shell.said() if code == "SYS/TEMP"]
    assert len(refused) > 280 - 4 * shell.auth.hashers and set(refused) < set(sessions)
    shell.rest(16)
    assert shell.work() <= 15  # one a second, from when the fifth failed


def test_the_same_failure_again_counts_once(shell):
    """E9: a client that knows three ways to log in tries a mistyped password three times."""
    sessions = [shell.login(secret=b"mistyped", mechanism=way) for way in ("PLAIN", "LOGIN", "PASS")]
    assert shell.work() == 3  # they came before the first had failed
    again = shell.login(secret=b"mistyped", address="192.0.2.7:2")
    assert shell.work() == 0
    assert [(one.session, one.fields["code"], one.fields["why"]) for one in shell.stage.said] == [
        (sessions[0], "AUTH", ""), (sessions[1], "AUTH", "repeat"), (sessions[2], "AUTH", "repeat"), (again, "AUTH", "repeat")]
    shell.stage.said = []
    assert shell.auth.guard._addresses["192.0.2.7"].value == 1.0
    others = shell.login(secret=b"another"), shell.login("bob", b"mistyped"), shell.login(secret=b"mistyped", address="192.0.2.8:1")
    assert shell.work() == 3
    assert {(one.session, one.fields["why"]) for one in shell.stage.said} == {(session, "") for session in others}
    shell.rest(31)
    shell.login(secret=b"mistyped")
    assert shell.work() == 1 and shell.stage.said[-1].fields["why"] == ""
    assert shell.auth.guard._addresses["192.0.2.7"].value > 2.0


def test_the_same_failure_again_is_answered_at_once_in_penalty_too(shell):
    """Each that is held keeps one of max_logins: an address that repeats one failure kept everybody's login waiting."""
    guess(shell, 7)
    shell.login("user99", b"wrong", "203.0.113.9:1")
    shell.rest(16)
    shell.work()
    shell.rest(16)
    shell.said()
    again = shell.login("user99", b"wrong", "203.0.113.9:1")
    assert shell.said() == [(again, "Denied", "AUTH")] and not shell.auth.work


def test_an_address_that_repeats_a_failure_very_often_is_told_of_once_a_minute(shell):
    shell.login(secret=b"wrong")
    shell.work()
    shell.said()
    for _ in range(100):
        shell.login(secret=b"wrong")
    said = [one.fields for one in shell.stage.said if one.name == "Log"]
    assert [one["level"] for one in said] == [5] and "192.0.2.7 repeats passwords found wrong a moment ago: 21 times" in said[0]["text"]


def test_many_addresses_that_repeat_are_few_lines_and_little_memory():
    told = Repeats()
    lines = [told.count(f"192.0.{n // 256}.{n % 256}", 100.0 + n / 200) for n in range(2000) for _ in range(30)]
    assert len(told._clients) == 1000 and 1 <= sum(map(bool, lines)) <= 3
    assert not any(told.count("203.0.113.9", 200.0 + 3 * n) for n in range(200)), "the telephone with an old password"


def test_failures_are_remembered_as_digests_and_bounded(monkeypatch):
    wrong = Wrong()
    monkeypatch.setattr(repeated_failures, "_MOST", 10)
    for n in range(50):
        assert not wrong.put(m.Login(n, f"user{n}", b"a wrong secret", "192.0.2.7:1", "PASS"), "192.0.2.7", 0.0)
    assert len(wrong._digests) == 10 and b"secret" not in repr(wrong._digests).encode()
    assert wrong._key != Wrong()._key


def test_a_name_in_another_case(shell):
    """D15: granted under the table's name; the guard counts it as one."""
    shell.auth.table = Table({"alice": HASH, "Bob": HASH, "carol": HASH, "Carol": HASH}, decoys())
    sessions = [shell.login(name) for name in ("Alice", "ALICE", "bob", "BOB", "Bob", "carol", "Carol")]
    twin, nobody = shell.login("CAROL"), shell.login("Nobody")
    shell.work()
    names = ["alice", "alice", "Bob", "Bob", "Bob", "carol", "Carol"]
    assert shell.said() == [*((s, "Granted", name) for s, name in zip(sessions, names)), (twin, "Denied", "AUTH"), (nobody, "Denied", "AUTH")]
    before = len(shell.auth.guard._users)
    for name in ("mallory", "Mallory", "MALLORY"):
        shell.login(name, b"a guess of " + name.encode())
    shell.work()
    assert len(shell.auth.guard._users) == before + 1


def test_case_exact(shell):
    shell.auth.table = Table({"alice": HASH}, decoys(), fold=False)
    right, other = shell.login(), shell.login("Alice")
    shell.work()
    assert shell.said() == [(right, "Granted", "alice"), (other, "Denied", "AUTH")]


def test_a_table_with_names_that_differ_in_case_only_is_warned_of(tmp_path):
    table = tmp_path / "auth"
    table.write_bytes(b"".join(b"%b %b\n" % (name, HASH) for name in (b"alice", b"bob", b"Alice")))
    warning = (
        f"{table}:3: users alice and Alice differ in case only: each is found only as it is written here; "
        "have one name for each user, or tell your users"
    )
    assert main.Auth(boot_of("auth", {"auth_table": str(table)})).shut_out == [(4, warning)]
    assert main.Auth(boot_of("auth", {"auth_table": str(table), "login_case": "exact"})).shut_out == []


@pytest.mark.parametrize("mechanism", ["", "PASS", "PLAIN", "LOGIN"])
def test_mechanisms_with_passwords(shell, mechanism):
    session = shell.login(mechanism=mechanism)
    shell.work()
    assert shell.said() == [(session, "Granted", "alice")]


@pytest.mark.parametrize("mechanism", ["XOAUTH2", "OAUTHBEARER"])
def test_tokens_where_none_are_configured(shell, mechanism):
    session = shell.login(mechanism=mechanism)
    assert shell.work() == 0
    assert shell.said() == [(session, "Denied", "AUTH")]


def test_tokens(shell):
    class Tokens:
        def user_of(self, token):
            return {b"alice's": "alice", b"Alice's": "Alice", b"bob's": "bob", b"carol's": "carol"}.get(token)

    shell.auth.tokens = Tokens()
    right, other, bad, not_in_table, password = (
        shell.login("alice", b"alice's", mechanism="XOAUTH2"), shell.login("alice", b"bob's", mechanism="OAUTHBEARER"),
        shell.login("alice", b"secret", mechanism="XOAUTH2"), shell.login("carol", b"carol's", mechanism="XOAUTH2"),
        shell.login("alice", b"alice's"),
    )
    assert shell.work() == 1
    assert shell.said() == [(right, "Granted", "alice"), *((s, "Denied", "AUTH") for s in (other, bad, not_in_table, password))]
    typed = shell.login("Alice", b"alice's", mechanism="XOAUTH2")
    assert shell.said() == [(typed, "Granted", "alice")]
    shell.login("alice", b"alice's", "192.0.2.8:1")
    assert shell.work() == 1  # a token that was good is no password, in the cache neither


@pytest.mark.parametrize("name", ["alice", "Alice"])
def test_a_claim_is_compared_to_the_letter(shell, name):
    """To the issuer Alice and alice may be two people; what is typed alone is folded."""
    class Tokens:
        def user_of(self, token):
            return token.decode()

    shell.auth.tokens = Tokens()
    session = shell.login(name, b"Alice", mechanism="XOAUTH2")
    assert shell.said() == [(session, "Denied", "AUTH")]


def test_a_mechanism_that_there_is_not_costs_the_listener_its_channel(shell):
    shell.login(mechanism="NTLM")
    assert [one.name for one in shell.stage.said] == ["Refused"]
    assert shell.channel.gone and not shell.auth.listeners


def test_one_answer_for_every_reason(shell):
    shell.login(secret=b"wrong"), shell.login("nobody"), shell.login(secret=b"x" * 73), shell.login(secret=b"secret\0"), shell.login(secret=b"")
    shell.login(mechanism="XOAUTH2")
    shell.work()
    assert {(one.fields["code"], one.fields["text"]) for one in shell.stage.said} == {DENIED}


def test_no_secret_is_kept_by_what_waits(shell):
    guess(shell, 7)
    shell.login("alice", b"a wrong secret", "203.0.113.9:1")
    shell.rest(3.5)
    assert shell.work() == 1 and shell.said() == []
    assert "a wrong secret" not in repr([cell.cell_contents for _, _, timer in shell.stage.loop._timers for cell in timer.call.__closure__])


def test_passwords_that_bcrypt_cannot_judge():
    assert usable(b"x" * 72) and not usable(b"x" * 73) and not usable(b"") and not usable(b"a\0")


def test_the_cache():
    cache = Verified(600)
    cache.put("alice", b"secret", HASH, 0.0)
    assert cache.holds("alice", b"secret", HASH, 599.0)
    assert not cache.holds("alice", b"secreT", HASH, 1.0)
    assert not cache.holds("bob", b"secret", HASH, 1.0)
    assert not cache.holds("alice", b"secret", HASH.replace(b"$2b$04", b"$2b$05"), 1.0)  # the table's line has changed
    assert not cache.holds("alice", b"secret", HASH, 601.0)
    assert not cache._digests  # forgotten when its time is over
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
    assert len(cache._digests) == 10 and cache.holds("user49", b"secret", HASH, 1.0) and not cache.holds("user1", b"secret", HASH, 1.0)
