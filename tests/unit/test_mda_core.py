"""actors/mda/core.py: a copy a recipient, credit, answers once each and in whatever order they come."""

import pytest
from popkernel.actors.mda.core import AT_ONCE, SMALL, WINDOW, Route, Transaction
from popkernel.proto import messages as m


class World:
    """A transaction for users u0, u1 ... and routes that note what they are sent."""

    def __init__(self, users, held=()):
        self.answers = {}
        self.sent = {}
        self.wanted = []
        self.held = set(held)
        self.routes = {}
        self.count = 0
        self.transaction = Transaction(None, "s@x", self.number, self.want, self.answer)
        for i, user in enumerate(users):
            self.transaction.add(f"{user}+{i}@x", user)

    def number(self):
        self.count += 1
        return self.count

    def route(self, user):
        if user not in self.routes:
            log = self.sent.setdefault(user, [])
            self.routes[user] = Route(user, lambda message, bulk: log.append((message, bytes(bulk))))
        return self.routes[user]

    def want(self, copy):
        if copy.user in self.held:
            self.wanted.append(copy)
        else:
            self.transaction.routed(copy, self.route(copy.user))

    def answer(self, index, text, taken):
        assert index not in self.answers
        self.answers[index] = (text[:5], taken)

    def safe(self, user, octets=0):
        for copy in list(self.route(user).copies.values()):
            self.transaction.accepted(copy, m.Accepted(copy.number, octets, safe=True))


def test_a_small_message_goes_in_one():
    world = World(["a", "b"])
    world.transaction.content(b"one\n")
    world.transaction.content(b"two\n")
    assert not world.sent
    world.transaction.done()
    assert world.sent == {"a": [(m.Post(1, "s@x", "a+0@x", b""), b"one\ntwo\n")], "b": [(m.Post(2, "s@x", "b+1@x", b""), b"one\ntwo\n")]}
    world.safe("b", 8)
    world.transaction.failed(world.transaction.copies[0], "4.3.1 full")
    assert world.answers == {1: ("2.0.0", True), 0: ("4.3.1", False)}


def test_an_empty_message():
    world = World(["a"])
    world.transaction.done()
    assert world.sent["a"] == [(m.Post(1, "s@x", "a+0@x", b""), b"")]


def test_few_copies_are_under_way_together():
    world = World(["a"] * 50)
    world.transaction.content(b"x\n")
    world.transaction.done()
    assert len(world.sent["a"]) == AT_ONCE
    while len(world.answers) < 50:
        assert world.transaction.active <= AT_ONCE
        world.safe("a")
    assert len(world.sent["a"]) == 50


def test_a_large_message_is_passed_on_within_the_window():
    world = World(["a", "b"], held={"b"})
    transaction = world.transaction
    transaction.content(b"x" * (SMALL + 1))
    assert transaction.large
    assert transaction.paused, "b has no route yet"
    assert [type(s[0]) for s in world.sent["a"]] == [m.Deliver, m.Content]
    transaction.routed(world.wanted[0], world.route("b"))
    assert not transaction.paused
    transaction.content(b"y" * (WINDOW - SMALL))
    assert transaction.paused
    for user in "ab":
        for copy in list(world.route(user).copies.values()):
            transaction.accepted(copy, m.Accepted(copy.number, SMALL, safe=False))
    assert not transaction.paused
    transaction.done()
    for user in "ab":
        assert type(world.sent[user][-1][0]) is m.Commit
        assert b"".join(s[1] for s in world.sent[user]) == b"x" * (SMALL + 1) + b"y" * (WINDOW - SMALL)
        world.safe(user)
    assert world.answers == {0: ("2.0.0", True), 1: ("2.0.0", True)}


def test_one_that_fails_early_is_answered_at_the_end_and_sent_no_more():
    world = World(["a", "b"])
    transaction = world.transaction
    transaction.content(b"x" * (SMALL + 1))
    transaction.failed(transaction.copies[0], "4.3.1 full")
    assert world.answers == {}
    transaction.content(b"more")
    assert [type(s[0]) for s in world.sent["a"]] == [m.Deliver, m.Content]
    transaction.done()
    assert world.answers == {0: ("4.3.1", False)}
    world.safe("b")
    assert world.answers[1] == ("2.0.0", True)
    assert not transaction.open


def test_no_route_at_all():
    world = World(["a"], held={"a"})
    transaction = world.transaction
    transaction.content(b"x" * (SMALL + 1))
    transaction.failed(world.wanted[0])
    assert not transaction.paused
    transaction.content(b"dropped")
    transaction.done()
    assert world.answers == {0: ("4.3.0", False)}


@pytest.mark.parametrize("size", [10, SMALL + 1])
def test_cancelled(size):
    world = World(["a", "b"], held={"b"})
    world.transaction.content(b"x" * size)
    world.transaction.cancel()
    assert world.route("a").copies == {}
    assert [type(s[0]) for s in world.sent["a"]] == ([m.Deliver, m.Content, m.Abort] if size > 10 else [])
    for copy in world.wanted:
        world.transaction.routed(copy, world.route("b"))
    assert "b" not in world.sent or world.sent["b"] == []
    assert world.answers == {}


def test_too_late():
    world = World(["a", "b"])
    world.transaction.content(b"x")
    world.transaction.done()
    world.safe("a")
    world.transaction.late()
    assert world.answers == {0: ("2.0.0", True), 1: ("4.4.1", False)}
    assert world.route("b").copies == {}
