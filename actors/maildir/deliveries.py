"""Take mail from the mda into one maildir: messages in, actions out (actions.py).

A delivery is confirmed as safe only after it is synced to disk.

`Return-Path` and `Delivered-To` are added if the mail server did not: if they are missing among the fields
above the first `Received`. An incomplete message is dropped when its sender gives up; a crash leaves it in
tmp/, which is swept.
"""

import errno
import time
from collections.abc import Callable
from typing import Any

from popkernel.actors.maildir.actions import Delivered, DeliveryAction, Leave, Note, Refuse
from popkernel.actors.maildir.store.delivery import Delivery
from popkernel.actors.maildir.store.errors import TEMP, MovedError, StoreError
from popkernel.actors.maildir.store.listing import uidl_of
from popkernel.actors.maildir.store.maildrop import Maildrop
from popkernel.actors.maildir.store.quota import FULL, Quota
from popkernel.kernel.runtime.channel import Channel, Message
from popkernel.proto import messages as m

__all__ = ["Deliveries", "message_id", "trace_fields"]

# errors that may mean that another directory is there now
_AWAY = frozenset((errno.ENOENT, errno.ENOTDIR, errno.ESTALE, errno.EACCES, errno.EPERM))
_MOVED = "4.3.2", "the mailbox has moved, try again later"
_FAILED = "4.3.0", "the mailbox can't be opened, try again later"
_MOST_FIELDS = 64
_MOST_HEAD = 32 * 1024  # octets of a message in which its Message-ID is looked for
_MOST_ID = 250  # octets of one


class _Open:
    """A large message whose content is still coming."""

    __slots__ = ("began", "channel", "delivery", "id", "octets", "recipient", "sender", "started")

    def __init__(self, channel: Channel, delivery: Delivery, sender: str, recipient: str) -> None:
        self.channel = channel
        self.delivery = delivery
        self.sender = sender
        self.recipient = recipient
        self.started = False
        self.octets = 0
        self.id = ""  # its Message-ID
        self.began = 0.0


class Deliveries:
    """All deliveries of a maildir actor.

    `full`: the status if the mailbox is full. `stale`: the maildir must be opened anew.
    """

    def __init__(
        self,
        drop: Maildrop | None,
        trouble: StoreError,
        quota: Quota | None,
        clock: Callable[[], float] = time.time,
        *,
        full: str,
    ) -> None:
        self._drop = drop
        self._clock = clock
        self._trouble = trouble
        self._quota = quota
        self._full = full
        self.open: dict[tuple[int, int], _Open] = {}  # (channel's descriptor, delivery)
        self.stale = drop is None
        self._over = False  # accept no more large messages: the actor leaves

    def take(self, channel: Channel, message: Message) -> list[DeliveryAction]:
        """Process a message from the mda. ValueError if it is invalid."""
        if type(message) is m.DeliveryWhole:
            return self._deliver_whole(message)
        key = (channel.fd, message[0])
        match message:
            case m.DeliveryBegin():
                if key in self.open:
                    raise ValueError("two deliveries with one number")
                return self._begin(channel, key, message)
            case m.DeliveryContent():
                return self._content(key, message)
            case m.DeliveryCommit(number):
                if key in self.open:
                    return self._finish(number, self.open.pop(key))
            case m.DeliveryAbort():
                if key in self.open:
                    self.open.pop(key).delivery.abort()
        return []

    def settings(self, channel: Channel) -> list[list[Any]]:
        """Return the large messages coming in on a channel, for traces and for `resume`."""
        return [
            [
                number,
                one.sender,
                one.recipient,
                one.started,
                one.id,
                one.began,
                one.octets,
                one.delivery.name,
            ]
            for (fd, number), one in self.open.items()
            if fd == channel.fd
        ]

    def resume(self, channel: Channel, delivery: Delivery, row: list[Any]) -> None:
        """Continue a delivery from its row of `settings`, in a replay."""
        number, sender, recipient, started, message, began, octets, _ = row
        one = self.open[channel.fd, number] = _Open(channel, delivery, sender, recipient)
        one.started, one.id, one.began, one.octets = started, message, began, octets

    def gone(self, channel: Channel) -> None:
        """Abort the messages of a channel that ended."""
        for key in [key for key in self.open if key[0] == channel.fd]:
            self.open.pop(key).delivery.abort()

    def moved(self) -> list[DeliveryAction]:
        """Abort all messages: the maildir was moved, and they would go to the old one."""
        return self._end(_MOVED)

    def failed(self) -> list[DeliveryAction]:
        """Abort all messages: the maildir could not be read.

        The next actor may be able to, and must not wait for the end of a large message.
        """
        self._over = True
        return self._end(_FAILED)

    def _end(self, why: tuple[str, str]) -> list[DeliveryAction]:
        self.stale = True
        actions: list[DeliveryAction] = [Leave()]
        for key, one in list(self.open.items()):
            del self.open[key]
            one.delivery.abort()
            actions.append(Refuse(one.channel, m.DeliveryRejected(key[1], *why)))
        return actions

    def _deliver_whole(self, message: m.DeliveryWhole) -> list[DeliveryAction]:
        delivery: Delivery | None = None
        began = self._clock()
        try:
            data = trace_fields(message.sender, message.recipient, message.data) + message.data
            self._room(len(data), len(data))
            delivery = self._new()
            delivery.write(data)
            name = self._commit(delivery, len(data))
        except StoreError as error:
            return self._rejected(message.delivery, delivery, error)
        return [
            m.DeliveryAccepted(message.delivery, len(message.data), safe=True),
            self._delivered(
                message.sender, message.recipient, message_id(message.data), name, len(data), began
            ),
        ]

    def _delivered(
        self, sender: str, recipient: str, message: str, name: str, octets: int, began: float
    ) -> Delivered:
        return Delivered(
            {
                "sender": sender,
                "recipient": recipient,
                "message_id": message,
                "file": name,
                "uidl": uidl_of(name.encode()).decode(),
                "octets": octets,
                "ms": max(0, int((self._clock() - began) * 1000)),
            }
        )

    def _new(self) -> Delivery:
        if self._drop is None:
            raise self._trouble
        return self._drop.deliver_begin()

    def _room(self, size: int, more: int) -> None:
        """Check the quota before `more` octets are written of a message that then has `size`.

        StoreError if there is no room, or none now.

        Unfinished messages together take no more than the quota leaves. It is read each time, for other
        programs write and remove too.
        """
        if self._quota is None:
            return
        try:
            left = self._quota.room(size)
        except StoreError as error:
            if error.code == FULL and self._drop is not None and self._drop.moved():
                raise MovedError from None  # the old maildir is full: no reason to bounce the mail
            raise
        if 0 <= left < sum(one.octets for one in self.open.values()) + more:
            raise StoreError(TEMP, "no room beside the other messages on their way in", errno.EDQUOT)

    def _commit(self, delivery: Delivery, octets: int) -> str:
        name = delivery.commit()
        if self._quota is not None:
            self._quota.add(octets, 1)
        return name

    def _begin(
        self, channel: Channel, key: tuple[int, int], message: m.DeliveryBegin
    ) -> list[DeliveryAction]:
        if self._over:
            return [m.DeliveryRejected(message.delivery, *_FAILED)]
        try:
            # The announced size counts CR LF, and is an estimate (RFC 1870). Refuse only a message that can't
            # fit even if all its lines are empty.
            self._room((message.octets + 1) // 2, 0)
            one = self.open[key] = _Open(channel, self._new(), message.sender, message.recipient)
            one.began = self._clock()
        except StoreError as error:
            return self._rejected(message.delivery, None, error)
        return []

    def _content(self, key: tuple[int, int], message: m.DeliveryContent) -> list[DeliveryAction]:
        one = self.open.get(key)
        if one is None:
            return []  # rejected already; the mda had not received that
        data = message.data
        if not one.started:
            one.started = True
            one.id = message_id(data)
            data = trace_fields(one.sender, one.recipient, data) + data
        try:
            self._room(one.octets + len(data), len(data))
            one.delivery.write(data)
            one.octets += len(data)
        except StoreError as error:
            del self.open[key]
            return self._rejected(message.delivery, one.delivery, error)
        return [m.DeliveryAccepted(message.delivery, len(message.data), safe=False)]

    def _finish(self, number: int, one: _Open) -> list[DeliveryAction]:
        try:
            if not one.started:
                fields = trace_fields(one.sender, one.recipient, b"")
                one.delivery.write(fields)
                one.octets = len(fields)
            self._room(one.octets, 0)
            name = self._commit(one.delivery, one.octets)
        except StoreError as error:
            return self._rejected(number, one.delivery, error)
        return [
            m.DeliveryAccepted(number, 0, safe=True),
            self._delivered(one.sender, one.recipient, one.id, name, one.octets, one.began),
        ]

    def _rejected(self, number: int, delivery: Delivery | None, error: StoreError) -> list[DeliveryAction]:
        """Reject a delivery.

        Only a full mailbox may be permanent. Anything else may be mended, so the mail should wait and not
        bounce.
        """
        if delivery is not None:
            delivery.abort()
        if isinstance(error, MovedError):
            return [*self.moved(), m.DeliveryRejected(number, *_MOVED)]
        if error.code == FULL:
            return [m.DeliveryRejected(number, self._full, error.text[:500])]
        if error.number in _AWAY:
            self.stale = True
        status = {errno.ENOSPC: "4.3.1", errno.EDQUOT: "4.2.2"}.get(error.number, "4.3.0")
        rejected = m.DeliveryRejected(number, status, f"{error.text[:500]}; try again later")
        if error is self._trouble:  # maildir.unusable has said it
            return [rejected]
        return [Note("maildir.delivery_failed", {"error": str(error)}), rejected]


def message_id(head: bytes) -> str:
    """Return a message's Message-ID (RFC 5322 section 3.6.4) for the log, "" if its head has none; cut."""
    end = 0 if head[:1] == b"\n" else head.find(b"\n\n", 0, _MOST_HEAD)
    head = b"\n" + head[: end if end >= 0 else _MOST_HEAD] + b"\n"
    at = head.lower().find(b"\nmessage-id:")
    if at < 0:
        return ""
    value = head[at + 12 : at + 12 + _MOST_ID]
    first, _, rest = value.partition(b"\n")
    if not first.strip() and rest[:1] in (b" ", b"\t"):  # folded
        first = rest.partition(b"\n")[0]
    return first.strip(b" \t\r<>").decode(errors="backslashreplace")


def trace_fields(sender: str, recipient: str, head: bytes) -> bytes:
    """Return the trace fields that a message's head lacks, with LF line ends (RFC 5321 section 4.4).

    `Delivered-To` is in no RFC; it is written as other MTAs write it.
    """
    has_return = has_delivered = False
    start = 0
    for _ in range(_MOST_FIELDS):
        name = head[start : start + 13].lower()
        if not name or name[:1] == b"\n" or name.startswith(b"received:"):
            break
        has_return |= name.startswith(b"return-path:")
        has_delivered |= name.startswith(b"delivered-to:")
        start = head.find(b"\n", start) + 1
        if not start:
            break
    fields = b"" if has_return else b"Return-Path: <%s>\n" % sender.encode()
    if not has_delivered:
        fields += b"Delivered-To: %s\n" % recipient.encode()
    return fields
