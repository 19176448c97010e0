"""Test what one auth hands over to the next: what goes over, what is cut, and what is refused."""

from collections import deque

import bcrypt
import pytest
from popkernel.actors.auth import guessing, hand_over
from popkernel.actors.auth.hand_over import Memory, Receiver, Sender, Settings, Taken
from popkernel.actors.auth.passwords import Table
from popkernel.kernel.replay.loop import ReplayLoop
from popkernel.proto import messages as m
from popkernel.proto.codec import Codec

SETTINGS = Settings(600, 15, 64)
HASH, OTHER = (bcrypt.hashpw(word, bcrypt.gensalt(4)) for word in (b"secret", b"other"))
USERS = {f"user{n}": HASH for n in range(1000)}


class Channel:
    """Keep what is sent; takes four frames before it says that more would wait."""

    def __init__(self):
        self.sent = deque()
        self.closed = False
        self.on_drained = None

    @property
    def waiting(self):
        return len(self.sent) > 3

    def send(self, message):
        if not self.closed:
            self.sent.append(Codec("auth", "auth").encode(message))

    def close(self):
        self.closed = True


class Pair:
    """Join a sender with a receiver that has another table and perhaps other settings."""

    def __init__(self, before, after, settings=SETTINGS, after_settings=SETTINGS):
        self.loop = ReplayLoop()
        self.loop.now = 1000.0
        self.memory = Memory(settings)
        self.channel = Channel()
        self.table, self.new_table = (Table(t) for t in (before, after))
        self.sender = Sender(self.channel, self.memory, self.table, settings.prefix, lambda: self.loop.now)
        self.over = []
        self.receiver = Receiver(self.loop, after_settings, self.new_table, lambda *o: self.over.append(o))

    def run(self):
        """Carry all messages over; return the new memory and what was counted."""
        self.sender.begin()
        self.carry()
        ((memory, taken, why),) = self.over
        assert not why
        return memory, taken

    def carry(self):
        while self.channel.sent:
            self.receiver.take(Codec("auth", "auth").decode(self.channel.sent.popleft()))
            if not self.channel.waiting and self.channel.on_drained:
                self.channel.on_drained()

    def refused(self, *messages):
        with pytest.raises(ValueError, match="[a-z]") as caught:
            for message in messages:
                self.receiver.take(message)
        return str(caught.value)


def login(user, secret=b"wrong", address="192.0.2.7:1"):
    return m.LoginRequest(1, user, secret, address, "PASS")


def test_verified_passwords_of_lines_that_are_the_same():
    after = {name: hashed for name, hashed in USERS.items() if name != "user3"}
    pair = Pair(USERS, {**after, "user2": OTHER, "new": HASH})
    for name in USERS:
        pair.memory.cache.put(name, b"secret", HASH, 990.0)
    memory, taken = pair.run()
    assert taken == Taken(999, 0, added=1, removed=1, changed=1)
    assert memory.cache.holds("user1", b"secret", HASH, 1000.0)
    assert not memory.cache.holds("user1", b"secreT", HASH, 1000.0)
    assert not memory.cache.holds("user2", b"secret", OTHER, 1000.0), "its line has changed"
    assert not memory.cache.holds("user3", b"secret", HASH, 1000.0), "it was removed"
    assert memory.cache.holds("user4", b"secret", HASH, 1589.0)
    assert not memory.cache.holds("user5", b"secret", HASH, 1591.0), "its time goes on"


def test_the_longest_unused_still_goes_first(monkeypatch):
    pair = Pair(USERS, USERS)
    for name in USERS:
        pair.memory.cache.put(name, b"secret", HASH, 990.0)
    assert pair.memory.cache.holds("user0", b"secret", HASH, 991.0)
    memory, _ = pair.run()
    assert memory.cache.users() == [*list(USERS)[1:], "user0"]


@pytest.mark.parametrize(("seconds", "kept"), [(0, 0), (5, 1), (86400, 1)])
def test_another_auth_cache_seconds(seconds, kept):
    pair = Pair(USERS, USERS, after_settings=Settings(seconds, 15, 64))
    pair.memory.cache.put("user1", b"secret", HASH, 1000.0)
    memory, taken = pair.run()
    assert taken.passwords == kept
    assert memory.cache.holds("user1", b"secret", HASH, 1004.0) == bool(kept)
    if seconds == 5:
        assert not memory.cache.holds("user1", b"secret", HASH, 1010.0)


def guess(memory, many=8, address="192.0.2.7:1"):
    for number in range(many):
        memory.guard.failed(f"nobody{number}", address, 1000.0)


def test_penalties_and_trust():
    pair = Pair(USERS, USERS)
    pair.memory.guard.succeeded("user1", "192.0.2.7:1", 1000.0)
    guess(pair.memory)
    pair.memory.wrong.put(login("user2"), "192.0.2.7", HASH, 1000.0)
    expected = pair.memory.guard.admit("user9", "192.0.2.7:1", 1000.0)
    memory, taken = pair.run()
    assert len(memory.guard) == len(pair.memory.guard) > 1
    assert taken.penalties == 1, "an address; scores of users who are not delayed are no penalties"
    assert memory.guard.admit("user1", "192.0.2.7:2", 1000.0) == 0, "trusted there"
    assert memory.guard.admit("user1", "192.0.2.8:2", 1000.0) == 0, "another address"
    assert memory.guard.admit("user9", "192.0.2.7:1", 1000.0) > expected > 1, "behind the one that waits"
    assert memory.wrong.holds(login("user2"), "192.0.2.7", HASH, 1029.0)
    assert not memory.wrong.holds(login("user2"), "192.0.2.7", HASH, 1031.0)
    assert not memory.wrong.holds(login("user2", b"other"), "192.0.2.7", HASH, 1001.0)


def test_a_wrong_password_of_a_line_that_has_changed():
    """A user who was added or unlocked, or has a new password, can log in at once after the reload."""
    pair = Pair(USERS, {**USERS, "user2": OTHER, "new": OTHER})
    pair.memory.wrong.put(login("user2", b"other"), "192.0.2.7", HASH, 1000.0)
    pair.memory.wrong.put(login("new", b"other"), "192.0.2.7", b"", 1000.0)
    pair.memory.wrong.put(login("nobody", b"other"), "192.0.2.7", b"", 1000.0)
    memory, _ = pair.run()
    assert not memory.wrong.holds(login("user2", b"other"), "192.0.2.7", OTHER, 1001.0)
    assert not memory.wrong.holds(login("new", b"other"), "192.0.2.7", OTHER, 1001.0)
    assert memory.wrong.holds(login("nobody", b"other"), "192.0.2.7", b"", 1001.0)


def test_a_wrong_token():
    """The issuer's keys may have changed with the reload."""
    pair = Pair(USERS, USERS)
    token = login("user2")._replace(mechanism="XOAUTH2")
    pair.memory.wrong.put(token, "192.0.2.7", HASH, 1000.0)
    assert pair.memory.wrong.holds(token, "192.0.2.7", HASH, 1001.0)
    memory, _ = pair.run()
    assert not memory.wrong.holds(token, "192.0.2.7", HASH, 1001.0)


def test_penalties_under_other_settings():
    pair = Pair(USERS, USERS, after_settings=Settings(600, 0, 64))
    guess(pair.memory)
    assert pair.run()[1].penalties == 0, "turned off"
    pair = Pair(USERS, USERS, after_settings=Settings(600, 15, 56))
    guess(pair.memory)
    guess(pair.memory, address="[2001:db8::1]:5")
    memory, _ = pair.run()
    assert memory.guard.admit("user9", "192.0.2.7:1", 1000.0) > 1
    assert memory.guard.admit("user9", "[2001:db8::1]:5", 1000.0) == 0, "another prefix is another client"
    pair = Pair(USERS, USERS, after_settings=Settings(600, 2, 64))
    guess(pair.memory, 30)
    for _ in range(9):
        pair.memory.guard.admit("user9", "192.0.2.7:1", 1000.0)
    assert pair.run()[0].guard.admit("user9", "192.0.2.7:1", 1000.0) <= 4, "no longer queue than its own"


def test_changes_follow_until_the_end():
    pair = Pair(USERS, USERS)
    pair.sender.begin()
    pair.memory.cache.put("user1", b"secret", HASH, 1000.0)
    pair.sender.verified("user1")
    pair.carry()
    ((memory, _, _),) = pair.over
    guess(pair.memory)
    for number in range(8):
        pair.sender.checked(f"nobody{number}", "192.0.2.7:1")
    pair.memory.wrong.put(login("user2"), "192.0.2.7", HASH, 1000.0)
    pair.sender.failed()
    pair.carry()
    assert memory.cache.holds("user1", b"secret", HASH, 1000.0)
    assert memory.guard.admit("user9", "192.0.2.7:1", 1000.0) > 1
    assert memory.wrong.holds(login("user2"), "192.0.2.7", HASH, 1000.0)
    assert len(pair.over) == 1


BEGIN = m.LoginMemoryBegin(b"k" * 32, 64)
UNTRUE = {
    "no beginning": [m.LoginMemoryEnd()],
    "a second beginning": [BEGIN, BEGIN],
    "a short key": [m.LoginMemoryBegin(b"k" * 31, 64)],
    "a digest too few": [BEGIN, m.KnownAccounts(["user1"], [])],
    "a time too many": [BEGIN, m.VerifiedPasswords(["user1"], [b"d" * 32], [1, 2])],
    "a short digest": [BEGIN, m.VerifiedPasswords(["user1"], [b"d"], [1])],
    "a number too few": [BEGIN, m.LoginPenalties(["192.0.2.1"], [b""], [1] * 4)],
    "a user too few": [BEGIN, m.LoginPenalties(["192.0.2.1"], [], [1] * 5)],
    "a long client": [BEGIN, m.LoginPenalties(["192" * 30], [b""], [1] * 5)],
    "a short user": [BEGIN, m.LoginPenalties([""], [b"u"], [1] * 5)],
    "a short wrong one": [BEGIN, m.FailedPasswords([b"d"], [1])],
    "no time": [BEGIN, m.FailedPasswords([b"d" * 32], [])],
    "a second end": [BEGIN, m.LoginMemoryEnd(), m.LoginMemoryEnd()],
}


@pytest.mark.parametrize("how", UNTRUE)
def test_what_cannot_be_true_is_refused(how):
    text = Pair(USERS, USERS).refused(*UNTRUE[how])
    assert "user" not in text and "192" not in text


def test_no_end_of_entries(monkeypatch):
    monkeypatch.setattr(hand_over, "_MOST_ENTRIES", 10)
    Pair(USERS, USERS).refused(BEGIN, *[m.FailedPasswords([b"d" * 32], [1])] * 11)
    Pair(USERS, USERS).refused(BEGIN, *[m.FailedPasswords([], [])] * 11)


def test_false_scores_are_cut():
    """A hostile auth can't shut an address out for long."""
    pair = Pair(USERS, USERS)
    pair.receiver.take(BEGIN)
    pair.receiver.take(m.LoginPenalties(["192.0.2.7", ""], [b"", b"u" * 8], [2**62, 0, 0, 0, 0] * 2))
    pair.receiver.take(m.LoginPenalties(["192.0.2.7"], [b"u" * 8], [2**62] * 5))
    pair.receiver.take(m.LoginMemoryEnd())
    ((memory, _, _),) = pair.over
    assert memory.guard.admit("user1", "192.0.2.7:1", 1000.0) == 15
    assert memory.guard.admit("user1", "192.0.2.7:1", 1000.0 + 2400) <= 1


def test_invented_credit_is_cut():
    """With it an address, or whoever guesses one user's password, could fail 10,000 times undelayed."""
    pair = Pair(USERS, dict(list(USERS.items())[:5]))
    pair.receiver.take(BEGIN)
    client, user = pair.memory.guard.keys("user1", "192.0.2.7:1")
    row = [0, 2**62, 0, 0, 0]
    pair.receiver.take(m.LoginPenalties([client, ""], [b"", user], row * 2))
    pair.receiver.take(m.LoginMemoryEnd())
    ((memory, _, _),) = pair.over
    for n in range(20):
        memory.guard.failed(f"no user {n}", "192.0.2.7:1", 1000.0)
        memory.guard.failed("user1", f"198.51.100.{n}:1", 1000.0)
    assert memory.guard.wait("nobody", "192.0.2.7:1", 1000.0) > 10
    assert memory.guard.wait("user1", "203.0.113.9:1", 1000.0) > 10


def test_penalised_addresses_are_bounded(monkeypatch):
    """Two million of them, each of 300 characters, took more memory than the new auth may have."""
    monkeypatch.setattr(guessing, "_MOST", 10)
    pair = Pair(USERS, USERS)
    pair.receiver.take(BEGIN)
    clients = [f"192.0.2.{n}" for n in range(200)]
    pair.receiver.take(m.LoginPenalties(clients, [b""] * 200, [60_000, 0, 0, 0, 0] * 200))
    pair.receiver.take(m.LoginMemoryEnd())
    ((memory, _, _),) = pair.over
    assert len(memory.guard._penalised) == len(memory.guard) == 10


def test_an_old_auth_that_says_nothing_or_goes_on_for_ever():
    for every, seconds in ((9.0, 2.1), (1.0, 11.0)):
        pair = Pair(USERS, USERS)
        while pair.loop.now < 1000 + seconds and not pair.over:
            pair.loop.advance(pair.loop.now + min(every, seconds))
            if not pair.over:
                pair.receiver.take(
                    m.FailedPasswords([], []) if pair.receiver._memory else m.LoginMemoryBegin(b"k" * 32, 64)
                )
        assert pair.over == [(None, Taken(), "it did not hand them over in time")]


def test_an_end_in_the_middle():
    pair = Pair(USERS, USERS)
    pair.receiver.take(BEGIN)
    pair.receiver.take(m.VerifiedPasswords(["user1"], [b"d" * 32], [1000]))
    pair.receiver.fail("it ended")
    assert pair.over == [(None, Taken(), "it ended")]
    pair.receiver.fail("again")
    assert len(pair.over) == 1


def test_no_key_and_no_digest_in_what_is_shown():
    from popkernel.proto.trace.redaction import SECRET, shown

    pair = Pair(USERS, USERS)
    pair.memory.cache.put("user1", b"secret", HASH, 1000.0)
    guess(pair.memory)
    pair.memory.wrong.put(login("user2"), "192.0.2.7", HASH, 1000.0)
    for message in pair.sender._all():
        fields, _ = shown(message, payload=True)
        assert set(fields.values()) <= {SECRET, 64}
