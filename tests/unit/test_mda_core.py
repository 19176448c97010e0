"""Test actors/mda/transaction.py: a copy for each recipient, credit, one reply each in any order."""

from collections import defaultdict

import pytest
from popkernel.actors.mda.route import MOST_POSTS, Route
from popkernel.actors.mda.transaction import (
    AT_ONCE,
    FRAME,
    MOST_STREAMS,
    SMALL,
    WINDOW,
    Answer,
    FindRoute,
    Resume,
    Send,
    Transaction,
)
from popkernel.proto import messages as m


class World:
    """Run a transaction for users u0, u1 ..., with routes that record what they are sent."""

    def __init__(self, users, held=()):
        self.answers = {}
        self.sent = defaultdict(list)
        self.wanted = []
        self.held = set(held)
        self.routes = {}
        self.count = self.resumed = 0
        self.transaction = Transaction(None, "s@x", self.number)
        for i, user in enumerate(users):
            self.transaction.add(f"{user}+{i}@x", user)

    def number(self):
        self.count += 1
        return self.count

    def route(self, user):
        if user not in self.routes:
            self.routes[user] = Route(user)
        return self.routes[user]

    def do(self, actions):
        for action in actions:
            match action:
                case FindRoute(copy) if copy.user in self.held:
                    self.wanted.append(copy)
                case FindRoute(copy):
                    route = self.route(copy.user)
                    self.go(route, route.ask(copy))
                case Send(route, message, bulk):
                    self.sent[route.user].append((message, bytes(bulk)))
                case Answer(_, index, text, taken):
                    assert index not in self.answers
                    self.answers[index] = (text[:5], taken)
                case Resume():
                    self.resumed += 1

    def go(self, route, actions):
        while actions:
            self.do(actions)
            actions = route.go()

    def __getattr__(self, name):
        """Pass an event to the transaction and carry out its actions."""
        told = getattr(self.transaction, name)
        return lambda *given: self.do(told(*given))

    def safe(self, user, octets=0):
        for copy in list(self.route(user).copies.values()):
            self.accepted(copy, m.DeliveryAccepted(copy.number, octets, safe=True))


def test_a_small_message_goes_in_one():
    world = World(["a", "b"])
    world.content(b"one\n")
    world.content(b"two\n")
    assert not world.sent
    world.done()
    assert world.sent == {
        "a": [(m.DeliveryWhole(1, "s@x", "a+0@x", b""), b"one\ntwo\n")],
        "b": [(m.DeliveryWhole(2, "s@x", "b+1@x", b""), b"one\ntwo\n")],
    }
    world.safe("b", 8)
    world.failed(world.transaction.copies[0], "4.3.1 full")
    assert world.answers == {1: ("2.0.0", True), 0: ("4.3.1", False)}


def test_an_empty_message():
    world = World(["a"])
    world.done()
    assert world.sent["a"] == [(m.DeliveryWhole(1, "s@x", "a+0@x", b""), b"")]


def test_few_copies_are_under_way_together():
    users = [f"u{i}" for i in range(50)]
    world = World(users)
    world.content(b"x\n")
    world.done()
    assert len(world.sent) == AT_ONCE
    for user in users:
        assert world.transaction.active <= AT_ONCE
        world.safe(user)
    assert len(world.sent) == len(world.answers) == 50


def test_a_mailbox_is_given_few_at_a_time_and_the_others_in_their_order():
    world = World(["a"] * 50)
    world.content(b"x\n")
    world.done()
    route = world.route("a")
    while len(world.answers) < 50:
        assert len(route.copies) == min(MOST_POSTS, 50 - len(world.answers))
        world.accepted(next(iter(route.copies.values())), m.DeliveryAccepted(0, 2, safe=True))
        world.go(route, route.go())
    assert [s[0].recipient for s in world.sent["a"]] == [f"a+{i}@x" for i in range(50)]
    assert (route.posts, route.streams) == (0, 0)


class Stuck:
    waiting = True


def test_nothing_new_while_the_actor_has_unread_messages():
    world = World(["a", "b"])
    world.route("a").channel = Stuck()
    world.content(b"x\n")
    world.done()
    assert (world.sent["a"], len(world.sent["b"])) == ([], 1)
    assert world.route("a").owes
    world.route("a").channel = None
    assert [a.route.user for a in world.route("a").go()] == ["a"]


def large(world):
    world.content(b"x" * (SMALL + 1))
    return world


def test_small_messages_do_not_wait_for_large_ones():
    worlds = [World(["a"]) for _ in range(MOST_STREAMS + 2)]
    route = worlds[0].route("a")
    for world in worlds:
        world.routes["a"] = route
        large(world)
    assert [w.transaction.paused for w in worlds] == [False] * MOST_STREAMS + [True] * 2
    small = World(["a"])
    small.routes["a"] = route
    small.content(b"small")
    small.done()
    assert type(small.sent["a"][-1][0]) is m.DeliveryWhole
    worlds[3].cancel()
    worlds[-2].cancel()  # gives up while it waits
    actions = route.go()
    assert actions[0].message == m.DeliveryBegin(worlds[-1].count, "s@x", "a+0@x", 0)
    worlds[-1].go(route, actions)
    assert not worlds[-1].transaction.paused
    assert route.streams == MOST_STREAMS


def kinds(world, user):
    return [type(s[0]).__name__ for s in world.sent[user]]


def test_a_large_message_goes_to_each_address_of_a_user():
    world = large(World(["a", "b", "a"]))
    transaction = world.transaction
    world.content(b"y" * FRAME)
    world.done()
    assert kinds(world, "b") == ["DeliveryBegin", "DeliveryContent", "DeliveryContent", "DeliveryCommit"]
    for number, address in ((1, "a+0@x"), (2, "a+2@x")):
        sent = [s for s in world.sent["a"] if s[0][0] == number]
        assert sent[0][0].recipient == address
        assert b"".join(s[1] for s in sent) == b"x" * (SMALL + 1) + b"y" * FRAME
        assert type(sent[-1][0]) is m.DeliveryCommit
    world.safe("a")
    world.safe("b")
    assert world.answers == {i: ("2.0.0", True) for i in range(3)}
    assert not transaction.open
    assert (world.route("a").copies, world.route("a").streams) == ({}, 0)


def test_the_addresses_of_a_user_share_one_window():
    """Together no more than one address may have, except for the frame that exceeds it."""
    for many in (1, 2, MOST_STREAMS):
        world = World(["a"] * many)
        world.content(b"x" * (SMALL + 1))
        for copy in world.transaction.copies:
            world.accepted(copy, m.DeliveryAccepted(copy.number, copy.unwritten, safe=False))
        sent = 0
        while not world.transaction.paused:
            world.content(b"y" * FRAME)
            sent += many * FRAME
        assert sum(copy.unwritten for copy in world.transaction.copies) == sent
        assert WINDOW < sent <= WINDOW + many * FRAME
        for copy in world.transaction.copies:
            assert world.transaction.paused
            world.accepted(copy, m.DeliveryAccepted(copy.number, FRAME, safe=False))
        assert not world.transaction.paused


def test_more_addresses_of_a_user_than_may_be_under_way():
    """Further addresses of one user would never have their turn.

    Copies in flight wait for the rest of the message.
    """
    world = large(World(["a"] * (MOST_STREAMS + 3) + ["b"]))
    for copy in world.transaction.open:
        world.accepted(copy, m.DeliveryAccepted(copy.number, copy.unwritten, safe=False))
    assert not world.transaction.paused
    world.done()
    assert world.answers == dict.fromkeys(range(MOST_STREAMS, MOST_STREAMS + 3), ("4.5.3", False))
    world.safe("a")
    world.safe("b")
    assert sum(taken for _, taken in world.answers.values()) == MOST_STREAMS + 1
    assert not world.transaction.open


def test_one_refused_copy_is_one_refused_copy():
    world = large(World(["a", "a", "a"]))
    world.failed(world.transaction.copies[0], "4.3.1 full")
    assert not world.answers
    world.done()
    world.failed(world.transaction.copies[1], "5.2.2 full")
    world.safe("a")
    assert world.answers == {0: ("4.3.1", False), 1: ("5.2.2", False), 2: ("2.0.0", True)}


def test_late_with_several_addresses_of_one_user():
    world = large(World(["a", "a", "b"]))
    for copy in world.transaction.copies:
        world.accepted(copy, m.DeliveryAccepted(copy.number, copy.unwritten, safe=False))
    world.late()
    assert len(world.transaction.open) == 3, "the client causes the delay"
    world.done()
    world.safe("b")
    world.late()
    assert kinds(world, "a")[-2:] == ["DeliveryAbort"] * 2
    assert world.answers == {0: ("4.4.1", False), 1: ("4.4.1", False), 2: ("2.0.0", True)}
    assert world.route("a").copies == {}


def test_a_large_message_is_passed_on_within_the_window():
    world = World(["a", "b"], held={"b"})
    transaction = world.transaction
    world.content(b"x" * (SMALL + 1))
    assert transaction.large
    assert transaction.paused, "b has no route yet"
    assert [type(s[0]) for s in world.sent["a"]] == [m.DeliveryBegin, m.DeliveryContent]
    world.routed(world.wanted[0], world.route("b"))
    assert not transaction.paused
    world.content(b"y" * (WINDOW - SMALL))
    assert transaction.paused
    for user in "ab":
        for copy in list(world.route(user).copies.values()):
            world.accepted(copy, m.DeliveryAccepted(copy.number, SMALL, safe=False))
    assert not transaction.paused
    world.done()
    for user in "ab":
        assert type(world.sent[user][-1][0]) is m.DeliveryCommit
        assert b"".join(s[1] for s in world.sent[user]) == b"x" * (SMALL + 1) + b"y" * (WINDOW - SMALL)
        world.safe(user)
    assert world.answers == {0: ("2.0.0", True), 1: ("2.0.0", True)}


def test_single_octets_fill_neither_memory_nor_queues():
    world = World(["a", "b"])
    transaction = world.transaction
    for i in range(SMALL + 3 * FRAME + 5):
        world.content(b"%d" % (i % 10))
        assert len(transaction._chunks) <= 64
        for user in world.sent:
            for copy in world.route(user).copies.values():
                world.accepted(copy, m.DeliveryAccepted(copy.number, copy.unwritten, safe=False))
    world.done()
    for user in "ab":
        contents = [s[1] for s in world.sent[user] if type(s[0]) is m.DeliveryContent]
        assert b"".join(contents) == (b"0123456789" * 30000)[: SMALL + 3 * FRAME + 5]
        assert len(contents) <= 70
        assert kinds(world, user)[-1] == "DeliveryCommit"


def test_an_early_failure_is_answered_at_the_end():
    world = World(["a", "b"])
    transaction = world.transaction
    world.content(b"x" * (SMALL + 1))
    world.failed(transaction.copies[0], "4.3.1 full")
    assert world.answers == {}
    world.content(b"more")
    assert [type(s[0]) for s in world.sent["a"]] == [m.DeliveryBegin, m.DeliveryContent]
    world.done()
    assert world.answers == {0: ("4.3.1", False)}
    world.safe("b")
    assert world.answers[1] == ("2.0.0", True)
    assert not transaction.open


def test_no_route_at_all():
    world = World(["a"], held={"a"})
    transaction = world.transaction
    world.content(b"x" * (SMALL + 1))
    world.failed(world.wanted[0])
    assert not transaction.paused
    world.content(b"dropped")
    world.done()
    assert world.answers == {0: ("4.3.0", False)}


@pytest.mark.parametrize("size", [10, SMALL + 1])
def test_cancelled(size):
    world = World(["a", "b"], held={"b"})
    world.content(b"x" * size)
    world.cancel()
    assert world.route("a").copies == {}
    assert [type(s[0]) for s in world.sent["a"]] == (
        [m.DeliveryBegin, m.DeliveryContent, m.DeliveryAbort] if size > 10 else []
    )
    for copy in world.wanted:
        world.routed(copy, world.route("b"))
    assert "b" not in world.sent or world.sent["b"] == []
    assert world.answers == {}


def test_too_late():
    world = World(["a", "b"])
    world.content(b"x")
    world.done()
    world.safe("a")
    world.late()
    assert world.answers == {0: ("2.0.0", True), 1: ("4.4.1", False)}
    assert world.route("b").copies == {}


def test_copies_that_have_not_begun_are_not_sent_when_it_is_too_late():
    """Each recipient gets a temporary error."""
    users = [f"u{i}" for i in range(AT_ONCE + 20)]
    world = World(users)
    world.content(b"x")
    world.done()
    world.late()
    assert len(world.sent) == AT_ONCE
    assert world.answers == dict.fromkeys(range(len(users)), ("4.4.1", False))


@pytest.mark.parametrize("size", [10, SMALL + 1], ids=["small", "large"])
def test_the_same_recipient_twice_is_one_copy_and_two_answers(size):
    world = World([])
    for address in ("a@x", "a@X", "a+1@x", "a@x"):
        world.transaction.add(address, "a")
    world.content(b"m" * size)
    world.done()
    assert [copy.address for copy in world.transaction.copies] == ["a@x", "a+1@x"]
    while len(world.answers) < 4:
        world.safe("a", 0)
    assert set(world.answers.values()) == {("2.0.0", True)}


def test_the_same_recipient_twice_is_refused_twice():
    world = World([])
    for _ in range(2):
        world.transaction.add("a@x", "a")
    world.content(b"m")
    world.done()
    world.failed(world.transaction.copies[0], "4.3.1 full")
    assert world.answers == {0: ("4.3.1", False), 1: ("4.3.1", False)}


def test_a_small_message_refused_by_an_actor_that_goes_is_for_the_next_one_once():
    """The actor announced its leaving before it refused: the copy waits for another route."""
    world = World(("a", "b"))
    transaction = world.transaction
    world.content(b"mail")
    world.done()
    copy = world.route("a").copies[next(iter(world.route("a").copies))]
    before, route = transaction.active, copy.route
    assert transaction.again(copy)
    assert copy.route is None and copy.number not in route.copies
    assert transaction.active == before
    world.routed(copy, world.route("a"))
    assert not transaction.again(copy)
    world.failed(copy, "4.3.2 no")
    assert transaction.active == before - 1
    assert not transaction.again(copy)
