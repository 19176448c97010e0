"""actors/mda/transaction.py: a copy a recipient, credit, answers once each and in whatever order they come."""

import pytest
from popkernel.actors.mda.route import MOST_POSTS, Route
from popkernel.actors.mda.transaction import AT_ONCE, FRAME, MOST_STREAMS, SMALL, WINDOW, Transaction
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
            self.route(copy.user).ask(copy)

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
    users = [f"u{i}" for i in range(50)]
    world = World(users)
    world.transaction.content(b"x\n")
    world.transaction.done()
    assert len(world.sent) == AT_ONCE
    for user in users:
        assert world.transaction.active <= AT_ONCE
        world.safe(user)
    assert len(world.sent) == len(world.answers) == 50


def test_a_mailbox_is_given_few_at_a_time_and_the_others_in_their_order():
    world = World(["a"] * 50)
    world.transaction.content(b"x\n")
    world.transaction.done()
    route = world.route("a")
    while len(world.answers) < 50:
        assert len(route.copies) == min(MOST_POSTS, 50 - len(world.answers))
        world.transaction.accepted(next(iter(route.copies.values())), m.Accepted(0, 2, safe=True))
        route.go()
    assert [s[0].recipient for s in world.sent["a"]] == [f"a+{i}@x" for i in range(50)]
    assert (route.posts, route.streams) == (0, 0)


class Stuck:
    waiting = True


def test_nothing_new_while_the_actor_has_not_taken_what_it_was_sent():
    world = World(["a", "b"])
    world.route("a").channel = Stuck()
    world.transaction.content(b"x\n")
    world.transaction.done()
    assert (world.sent["a"], len(world.sent["b"])) == ([], 1)
    assert world.route("a").owes
    world.route("a").channel = None
    assert [c.user for c in world.route("a").go()] == ["a"]


def large(world):
    world.transaction.content(b"x" * (SMALL + 1))
    return world


def test_large_ones_wait_for_their_turn_and_small_ones_not_for_them():
    worlds = [World(["a"]) for _ in range(MOST_STREAMS + 2)]
    route = worlds[0].route("a")
    for world in worlds:
        world.routes["a"] = route
        large(world)
    assert [w.transaction.paused for w in worlds] == [False] * MOST_STREAMS + [True] * 2
    small = World(["a"])
    small.routes["a"] = route
    small.transaction.content(b"small")
    small.transaction.done()
    assert type(worlds[0].sent["a"][-1][0]) is m.Post
    worlds[3].transaction.cancel()
    worlds[-2].transaction.cancel()  # gives up while it waits
    assert [c.transaction for c in route.go()] == [worlds[-1].transaction]
    assert not worlds[-1].transaction.paused
    assert route.streams == MOST_STREAMS


def kinds(world, user):
    return [type(s[0]).__name__ for s in world.sent[user]]


def test_a_large_message_goes_to_each_address_of_a_user():
    world = large(World(["a", "b", "a"]))
    transaction = world.transaction
    transaction.content(b"y" * FRAME)
    transaction.done()
    assert kinds(world, "b") == ["Deliver", "Content", "Content", "Commit"]
    for number, address in ((1, "a+0@x"), (2, "a+2@x")):
        sent = [s for s in world.sent["a"] if s[0][0] == number]
        assert sent[0][0].recipient == address
        assert b"".join(s[1] for s in sent) == b"x" * (SMALL + 1) + b"y" * FRAME
        assert type(sent[-1][0]) is m.Commit
    world.safe("a")
    world.safe("b")
    assert world.answers == {i: ("2.0.0", True) for i in range(3)}
    assert not transaction.open
    assert (world.route("a").copies, world.route("a").streams) == ({}, 0)


def test_the_addresses_of_a_user_share_what_its_actor_may_have_before_it():
    """However many they are, no more than for one, but for the frame that goes beyond it."""
    for many in (1, 2, MOST_STREAMS):
        world = World(["a"] * many)
        world.transaction.content(b"x" * (SMALL + 1))
        for copy in world.transaction.copies:
            world.transaction.accepted(copy, m.Accepted(copy.number, copy.unwritten, safe=False))
        sent = 0
        while not world.transaction.paused:
            world.transaction.content(b"y" * FRAME)
            sent += many * FRAME
        assert sum(copy.unwritten for copy in world.transaction.copies) == sent
        assert WINDOW < sent <= WINDOW + many * FRAME
        for copy in world.transaction.copies:
            assert world.transaction.paused
            world.transaction.accepted(copy, m.Accepted(copy.number, FRAME, safe=False))
        assert not world.transaction.paused


def test_more_addresses_of_a_user_than_may_be_under_way():
    """They could never be: what is under way waits for the rest of the message, and that for them."""
    world = large(World(["a"] * (MOST_STREAMS + 3) + ["b"]))
    for copy in world.transaction.open:
        world.transaction.accepted(copy, m.Accepted(copy.number, copy.unwritten, safe=False))
    assert not world.transaction.paused
    world.transaction.done()
    assert world.answers == dict.fromkeys(range(MOST_STREAMS, MOST_STREAMS + 3), ("4.5.3", False))
    world.safe("a")
    world.safe("b")
    assert sum(taken for _, taken in world.answers.values()) == MOST_STREAMS + 1
    assert not world.transaction.open


def test_one_refused_copy_is_one_refused_copy():
    world = large(World(["a", "a", "a"]))
    world.transaction.failed(world.transaction.copies[0], "4.3.1 full")
    assert not world.answers
    world.transaction.done()
    world.transaction.failed(world.transaction.copies[1], "5.2.2 full")
    world.safe("a")
    assert world.answers == {0: ("4.3.1", False), 1: ("5.2.2", False), 2: ("2.0.0", True)}


def test_late_with_several_addresses_of_one_user():
    world = large(World(["a", "a", "b"]))
    for copy in world.transaction.copies:
        world.transaction.accepted(copy, m.Accepted(copy.number, copy.unwritten, safe=False))
    world.transaction.late()
    assert len(world.transaction.open) == 3, "it is the client that lets wait"
    world.transaction.done()
    world.safe("b")
    world.transaction.late()
    assert kinds(world, "a")[-2:] == ["Abort"] * 2
    assert world.answers == {0: ("4.4.1", False), 1: ("4.4.1", False), 2: ("2.0.0", True)}
    assert world.route("a").copies == {}


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


def test_who_sends_octet_by_octet_fills_neither_memory_nor_queues():
    world = World(["a", "b"])
    transaction = world.transaction
    for i in range(SMALL + 3 * FRAME + 5):
        transaction.content(b"%d" % (i % 10))
        assert len(transaction._chunks) <= 64
        for user in world.sent:
            for copy in world.route(user).copies.values():
                transaction.accepted(copy, m.Accepted(copy.number, copy.unwritten, safe=False))
    transaction.done()
    for user in "ab":
        contents = [s[1] for s in world.sent[user] if type(s[0]) is m.Content]
        assert b"".join(contents) == (b"0123456789" * 30000)[: SMALL + 3 * FRAME + 5]
        assert len(contents) <= 70
        assert kinds(world, user)[-1] == "Commit"


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


@pytest.mark.parametrize("size", [10, SMALL + 1], ids=["small", "large"])
def test_the_same_recipient_twice_is_one_copy_and_two_answers(size):
    world = World([])
    for address in ("a@x", "a@X", "a+1@x", "a@x"):
        world.transaction.add(address, "a")
    world.transaction.content(b"m" * size)
    world.transaction.done()
    assert [copy.address for copy in world.transaction.copies] == ["a@x", "a+1@x"]
    while len(world.answers) < 4:
        world.safe("a", 0)
    assert set(world.answers.values()) == {("2.0.0", True)}


def test_the_same_recipient_twice_is_refused_twice():
    world = World([])
    for _ in range(2):
        world.transaction.add("a@x", "a")
    world.transaction.content(b"m")
    world.transaction.done()
    world.transaction.failed(world.transaction.copies[0], "4.3.1 full")
    assert world.answers == {0: ("4.3.1", False), 1: ("4.3.1", False)}


def test_a_small_message_refused_by_an_actor_that_goes_is_for_the_next_one_once():
    """It had taken its leave before it refused: the copy waits for another route, and is under way all the same."""
    world = World(("a", "b"))
    transaction = world.transaction
    transaction.content(b"mail")
    transaction.done()
    copy = world.route("a").copies[next(iter(world.route("a").copies))]
    before, route = transaction.active, copy.route
    assert transaction.again(copy)
    assert copy.route is None and copy.number not in route.copies
    assert transaction.active == before
    transaction.routed(copy, world.route("a"))
    assert not transaction.again(copy)
    transaction.failed(copy, "4.3.2 no")
    assert transaction.active == before - 1
    assert not transaction.again(copy)
