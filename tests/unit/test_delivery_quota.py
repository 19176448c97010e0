"""Test how much a message may write before its mailbox is known to have room.

Runs the actor's side of the mda's channel alone.
"""

import os
import time

import pytest
from popkernel.actors.maildir.actions import Delivered, Note
from popkernel.actors.maildir.deliveries import Deliveries
from popkernel.actors.maildir.store.errors import StoreError
from popkernel.actors.maildir.store.maildrop import Maildrop
from popkernel.actors.maildir.store.quota import Quota
from popkernel.proto import messages as m

QUOTA = 200_000


class Channel:
    fd = 5


@pytest.fixture
def box(tmp_path):
    class Box:
        path = tmp_path / "m"
        channel = Channel()

        def __init__(self):
            self.drop = Maildrop(os.fsencode(self.path))
            self.deliveries = self.made(f"{QUOTA}S")

        def made(self, quota):
            return Deliveries(
                self.drop,
                StoreError("SYS/TEMP", "none"),
                Quota(self.drop.root, quota, time.time),
                full="5.2.2",
            )

        def take(self, *messages):
            """Deliver messages; return the replies."""
            said = [
                action
                for message in messages
                for action in self.deliveries.take(self.channel, message)
                if type(action) not in (Delivered, Note)
            ]
            return [
                one.status if type(one) is m.DeliveryRejected else "safe" if one.safe else "credit"
                for one in said
            ]

        def held(self):
            return sum(file.stat().st_size for file in (self.path / "tmp").iterdir())

    os.mkdir(Box.path, 0o700)
    box = Box()
    yield box
    box.drop.close()


def test_nothing_is_written_of_an_announced_large_message(box):
    assert box.take(m.DeliveryBegin(1, "s", "a", 2 * QUOTA + 2)) == ["5.2.2"]
    assert os.listdir(box.path / "tmp") == []
    assert box.take(m.DeliveryContent(1, b"x" * 1000), m.DeliveryCommit(1)) == []


def test_size_on_the_wire_alone_refuses_nothing(box):
    lines = b"ab\n" * 65_000
    assert box.take(
        m.DeliveryBegin(1, "s", "a", 4 * 65_000), m.DeliveryContent(1, lines), m.DeliveryCommit(1)
    ) == ["credit", "safe"]


def test_room_taken_meanwhile_counts(box):
    box.take(m.DeliveryBegin(1, "s", "a", 0))
    assert box.take(m.DeliveryWhole(2, "s", "a", b"x" * 180_000)) == ["safe"]
    assert box.take(m.DeliveryContent(1, b"x" * 180_000)) == ["5.2.2"]
    assert os.listdir(box.path / "tmp") == []


def test_writing_stops_where_the_room_ends(box):
    box.take(m.DeliveryBegin(1, "s", "a", 0))
    answers = []
    while answers[-1:] != ["5.2.2"]:
        answers += box.take(m.DeliveryContent(1, b"x" * 30_000))
        assert box.held() <= QUOTA
    assert answers == ["credit"] * 6 + ["5.2.2"]
    assert os.listdir(box.path / "tmp") == [] and not box.deliveries.open


def test_many_together(box):
    for number in range(1, 6):
        assert box.take(m.DeliveryBegin(number, "s", "a", 0)) == []
    answers = box.take(*[m.DeliveryContent(number, b"x" * 60_000) for number in range(1, 6)])
    assert answers == ["credit"] * 3 + ["4.2.2"] * 2
    assert box.held() <= QUOTA
    assert box.take(
        m.DeliveryAbort(1),
        m.DeliveryBegin(6, "s", "a", 60_000),
        m.DeliveryContent(6, b"x" * 60_000),
        m.DeliveryCommit(6),
    ) == ["credit", "safe"]


def test_room_that_came_meanwhile_counts(box):
    old = box.path / "cur" / "1.old:2,"
    old.write_bytes(b"x" * 150_000)
    box.take(m.DeliveryBegin(1, "s", "a", 0))
    assert box.take(m.DeliveryContent(1, b"x" * 40_000)) == ["credit"]
    old.unlink()
    (box.path / "maildirsize").unlink()
    assert box.take(m.DeliveryContent(1, b"x" * 40_000), m.DeliveryCommit(1)) == ["credit", "safe"]


def test_small_messages_are_checked_before_writing(box, monkeypatch):
    made = []
    monkeypatch.setattr(type(box.drop), "deliver_begin", lambda _: made.append(1))
    assert box.take(m.DeliveryWhole(1, "s", "a", b"x" * (QUOTA + 1))) == ["5.2.2"]
    assert not made


def test_two_addresses_of_one_message(box):
    """With room for one, the other gets a temporary error, and a final one at the next attempt."""
    box.take(m.DeliveryBegin(1, "s", "a+b", 0), m.DeliveryBegin(2, "s", "a+c", 0))
    assert box.take(
        *[m.DeliveryContent(number, b"\n" + b"x" * 60_000) for _ in range(2) for number in (1, 2)]
    ) == ["credit"] * 3 + ["4.2.2"]
    assert box.take(m.DeliveryCommit(1), m.DeliveryCommit(2)) == ["safe"]
    assert box.take(m.DeliveryBegin(3, "s", "a+c", 0), m.DeliveryContent(3, b"x" * 120_000)) == ["5.2.2"]
    assert [file.read_bytes()[:36] for file in (box.path / "new").iterdir()] == [
        b"Return-Path: <s>\nDelivered-To: a+b\n\n"
    ]
    assert os.listdir(box.path / "tmp") == []


def test_no_quota_no_bound(box):
    box.deliveries = box.made("")
    assert box.take(
        m.DeliveryBegin(1, "s", "a", 1 << 40), m.DeliveryContent(1, b"x" * QUOTA * 2), m.DeliveryCommit(1)
    ) == ["credit", "safe"]
