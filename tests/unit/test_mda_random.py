"""Deliver at random, with accidents: each recipient gets one true reply, and nothing is left over."""

import random

import pytest
from popkernel.actors.mda.route import MOST_POSTS, Route
from popkernel.actors.mda.transaction import MOST_STREAMS, SMALL, Answer, FindRoute, Send, Transaction
from popkernel.proto import messages as m


class Mailbox:
    """Stand for a maildir actor: take messages in order, and reply at random times."""

    def __init__(self, world, user):
        self.world, self.user = world, user
        self.waiting = False  # as in a channel
        self.todo = []
        self.open = {}
        self.safe = set()  # addresses
        self.route = Route(user)
        self.route.channel = self

    def step(self):
        if not self.todo:
            return
        message, bulk = self.todo.pop(0)
        match message:
            case m.DeliveryWhole(number, _, address):
                self.answer(number, address, len(bulk))
            case m.DeliveryBegin(number, _, address):
                assert number not in self.open
                self.open[number] = [address, 0]
                assert len(self.open) <= MOST_STREAMS
            case m.DeliveryContent(number):
                if number in self.open:
                    self.open[number][1] += len(bulk)
                    self.hear(m.DeliveryAccepted(number, len(bulk), safe=False))
            case m.DeliveryCommit(number):
                if number in self.open:
                    self.answer(number, self.open.pop(number)[0], 0)
            case m.DeliveryAbort(number):
                self.open.pop(number, None)

    def answer(self, number, address, octets):
        if self.world.dice.random() < 0.1:
            self.hear(m.DeliveryRejected(number, "4.3.1", "full"))
        else:
            self.safe.add(address)
            self.hear(m.DeliveryAccepted(number, octets, safe=True))

    def hear(self, message):
        copy = self.route.copies.get(message[0])
        if copy is not None and type(message) is m.DeliveryAccepted:
            self.world.do(copy.transaction.accepted(copy, message))
        elif copy is not None:
            self.world.do(copy.transaction.failed(copy, "4.3.1 full"))
        self.go(self.route.go())

    def go(self, actions):
        while actions:
            self.world.do(actions)
            actions = self.route.go()


class World:
    def __init__(self, seed):
        self.dice = random.Random(seed)
        self.count = 0
        self.boxes = {}
        self.gone = []  # mailboxes that died
        self.all = []

    def number(self):
        self.count += 1
        return self.count

    def want(self, copy):
        box = self.boxes.get(copy.user)
        if box is None:
            box = self.boxes[copy.user] = Mailbox(self, copy.user)
        box.go(box.route.ask(copy))

    def do(self, actions):
        for action in actions:
            match action:
                case FindRoute(copy):
                    self.want(copy)
                case Send(route, message, bulk):
                    route.channel.todo.append((message, bulk))
                case Answer(answers, index, _, taken):
                    assert index not in answers
                    answers[index] = taken

    def die(self, user):
        """Do what routing.py does when a channel ends."""
        box = self.boxes.pop(user)
        self.gone.append(box)
        for copy in box.route.dismiss():
            if copy in copy.transaction.open:
                self.want(copy)
        for copy in list(box.route.copies.values()):
            self.do(copy.transaction.failed(copy))

    def message(self):
        large = self.dice.random() < 0.4
        users = [f"u{self.dice.randrange(4)}" for _ in range(self.dice.randrange(1, 40))]
        answers = {}
        transaction = Transaction(answers, "s", self.number)
        number = len(self.all)
        for i, user in enumerate(users):
            transaction.add(f"{user}+{number}.{i}", user)
        self.all.append((transaction, users, answers, [SMALL // 2 + 7] * 6 if large else [100, 100]))


@pytest.mark.parametrize("seed", range(25))
def test_random_deliveries(seed):
    world = World(seed)
    dice = world.dice
    cancelled = set()
    for _ in range(60):
        world.message()
    running = set(range(60))
    for turn in range(40_000):
        accidents = turn < 4000  # from then on nothing unblocks a stuck delivery
        if dice.random() < 0.3 and running:
            number = dice.choice(sorted(running))
            transaction, _, _, left = world.all[number]
            roll = dice.random()
            if roll < 0.01 and accidents:
                world.do(transaction.cancel())
                cancelled.add(number)
                running.discard(number)
            elif roll < 0.012 and transaction.paused and accidents:
                world.do(transaction.late())
            elif not transaction.paused:
                if left:
                    world.do(transaction.content(b"x" * left.pop()))
                else:
                    world.do(transaction.done())
                    running.discard(number)
        elif world.boxes:
            box = world.boxes[dice.choice(sorted(world.boxes))]
            if dice.random() < 0.002 and accidents:
                world.die(box.user)
            else:
                box.waiting = dice.random() < 0.1
                box.step()
            assert box.route.posts <= MOST_POSTS
            box.go(box.route.go())
        if not running and turn % 50 == 0 and all(not t.open for t, *_ in world.all):
            break
    boxes = [*world.boxes.values(), *world.gone]
    for number, (transaction, users, answers, _) in enumerate(world.all):
        assert not transaction.open, (number, transaction.large, transaction.routing, transaction.active)
        if number not in cancelled:
            assert len(answers) == len(users)
        for index, taken in answers.items():
            if taken:
                assert any(f"{users[index]}+{number}.{index}" in box.safe for box in boxes), (
                    '"safe" was answered for a message that is not'
                )
    for box in world.boxes.values():
        assert (box.route.copies, box.route.posts, box.route.streams) == ({}, 0, 0)
