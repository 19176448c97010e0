"""Messages, mailboxes and accidents by the dice: each recipient is answered once, truthfully, and nothing is left of it."""

import random

import pytest
from popkernel.actors.mda.route import MOST_POSTS, Route
from popkernel.actors.mda.transaction import MOST_STREAMS, SMALL, Transaction
from popkernel.proto import messages as m


class Mailbox:
    """A maildir actor: takes what it is sent, in order, and answers when the dice say so."""

    def __init__(self, world, user):
        self.world, self.user = world, user
        self.waiting = False  # as a channel has it
        self.todo = []
        self.open = {}
        self.safe = set()  # addresses
        self.route = Route(user, lambda message, bulk: self.todo.append((message, bulk)))
        self.route.channel = self

    def step(self):
        if not self.todo:
            return
        message, bulk = self.todo.pop(0)
        match message:
            case m.Post(number, _, address):
                self.answer(number, address, len(bulk))
            case m.Deliver(number, _, address):
                assert number not in self.open
                self.open[number] = [address, 0]
                assert len(self.open) <= MOST_STREAMS
            case m.Content(number):
                if number in self.open:
                    self.open[number][1] += len(bulk)
                    self.hear(m.Accepted(number, len(bulk), safe=False))
            case m.Commit(number):
                if number in self.open:
                    self.answer(number, self.open.pop(number)[0], 0)
            case m.Abort(number):
                self.open.pop(number, None)

    def answer(self, number, address, octets):
        if self.world.dice.random() < 0.1:
            self.hear(m.Rejected(number, "4.3.1", "full"))
        else:
            self.safe.add(address)
            self.hear(m.Accepted(number, octets, safe=True))

    def hear(self, message):
        copy = self.route.copies.get(message[0])
        if copy is not None and type(message) is m.Accepted:
            copy.transaction.accepted(copy, message)
        elif copy is not None:
            copy.transaction.failed(copy, "4.3.1 full")
        self.route.go()


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
        box.route.ask(copy)

    def die(self, user):
        """What routing.py does when a channel ends."""
        box = self.boxes.pop(user)
        self.gone.append(box)
        for copy in box.route.dismiss():
            if copy in copy.transaction.open:
                self.want(copy)
        for copy in list(box.route.copies.values()):
            copy.transaction.failed(copy)

    def message(self):
        large = self.dice.random() < 0.4
        users = [f"u{self.dice.randrange(4)}" for _ in range(self.dice.randrange(1, 40))]
        answers = {}
        transaction = Transaction(None, "s", self.number, self.want, lambda index, text, taken: self.answered(answers, index, taken))
        number = len(self.all)
        for i, user in enumerate(users):
            transaction.add(f"{user}+{number}.{i}", user)
        self.all.append((transaction, users, answers, [SMALL // 2 + 7] * 6 if large else [100, 100]))

    @staticmethod
    def answered(answers, index, taken):
        assert index not in answers
        answers[index] = taken


@pytest.mark.parametrize("seed", range(25))
def test_by_the_dice(seed):
    world = World(seed)
    dice = world.dice
    cancelled = set()
    for _ in range(60):
        world.message()
    running = set(range(60))
    for turn in range(40_000):
        accidents = turn < 4000  # after that nothing helps along what has got stuck
        if dice.random() < 0.3 and running:
            number = dice.choice(sorted(running))
            transaction, _, _, left = world.all[number]
            roll = dice.random()
            if roll < 0.01 and accidents:
                transaction.cancel()
                cancelled.add(number)
                running.discard(number)
            elif roll < 0.012 and transaction.paused and accidents:
                transaction.late()
            elif not transaction.paused:
                if left:
                    transaction.content(b"x" * left.pop())
                else:
                    transaction.done()
                    running.discard(number)
        elif world.boxes:
            box = world.boxes[dice.choice(sorted(world.boxes))]
            if dice.random() < 0.002 and accidents:
                world.die(box.user)
            else:
                box.waiting = dice.random() < 0.1
                box.step()
            assert box.route.posts <= MOST_POSTS
            box.route.go()
        if not running and turn % 50 == 0 and all(not t.open for t, *_ in world.all):
            break
    boxes = [*world.boxes.values(), *world.gone]
    for number, (transaction, users, answers, _) in enumerate(world.all):
        assert not transaction.open, (number, transaction.large, transaction.routing, transaction.active)
        if number not in cancelled:
            assert len(answers) == len(users)
        for index, taken in answers.items():
            if taken:
                assert any(f"{users[index]}+{number}.{index}" in box.safe for box in boxes), "never said safe of what is not"
    for box in world.boxes.values():
        assert (box.route.copies, box.route.posts, box.route.streams) == ({}, 0, 0)
