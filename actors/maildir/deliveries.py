"""Mail on its way into one maildir: what the mda sends, what it is answered. "Safe" is said once the disk has it, and not before.

`Return-Path` and `Delivered-To` are put on where the mail server did not: where neither stands among the fields above its first
`Received`. A message that came before its sender broke off is forgotten; what a crash leaves is in tmp/, and swept.
"""

import errno
from collections.abc import Callable
from typing import Any

from popkernel.actors.maildir.store.errors import TEMP, MovedError
from popkernel.actors.maildir.store.maildrop import Delivery, Maildrop, StoreError
from popkernel.actors.maildir.store.quota import FULL, Quota
from popkernel.kernel.runtime.channel import Channel, Message
from popkernel.proto import messages as m

__all__ = ["Deliveries", "trace_fields"]

# Perhaps another directory lies there by now.
_AWAY = frozenset((errno.ENOENT, errno.ENOTDIR, errno.ESTALE, errno.EACCES, errno.EPERM))
_MOVED = "4.3.2", "the mailbox has moved, try again later"
_FAILED = "4.3.0", "the mailbox can't be opened, try again later"
_MOST_FIELDS = 64


class _Open:
    """A large message that is coming in."""

    __slots__ = ("channel", "delivery", "octets", "recipient", "sender", "started")

    def __init__(self, channel: Channel, delivery: Delivery, sender: str, recipient: str) -> None:
        self.channel = channel
        self.delivery = delivery
        self.sender = sender
        self.recipient = recipient
        self.started = False
        self.octets = 0


class Deliveries:
    """All deliveries of a maildir actor. `full`: the status for a mailbox without room. `stale`: open the maildir anew.

    `leave` is called where the maildir is found to have been moved, before anybody is told.
    """

    def __init__(
        self, drop: Maildrop | None, trouble: StoreError, quota: Quota | None, *, full: str, log: Callable[[int, str], None],
        leave: Callable[[], None] = lambda: None,
    ) -> None:
        self._drop = drop
        self._trouble = trouble
        self._quota = quota
        self._full = full
        self._log = log
        self._leave = leave
        self.open: dict[tuple[int, int], _Open] = {}  # (channel's descriptor, delivery)
        self.stale = drop is None
        self._over = False  # nothing more that takes time: the actor is to go

    def take(self, channel: Channel, message: Message) -> None:
        """A message of the mda. ValueError for one that makes no sense."""
        if type(message) is m.Post:
            channel.send(self._post(message))
            return
        key = (channel.fd, message[0])
        match message:
            case m.Deliver():
                if key in self.open:
                    raise ValueError("two deliveries of one number")
                self._begin(channel, key, message)
            case m.Content():
                self._content(channel, key, message)
            case m.Commit(number):
                if key in self.open:
                    channel.send(self._finish(number, self.open.pop(key)))
            case m.Abort():
                if key in self.open:
                    self.open.pop(key).delivery.abort()

    def settings(self, channel: Channel) -> list[list[Any]]:
        """What is coming in on a channel, for who watches, and for `resume`."""
        return [
            [number, one.sender, one.recipient, one.started, one.octets, one.delivery.name]
            for (fd, number), one in self.open.items() if fd == channel.fd
        ]

    def resume(self, channel: Channel, delivery: Delivery, row: list[Any]) -> None:
        """Go on with a delivery where `settings` told of it; a replay does."""
        number, sender, recipient, started, octets, _ = row
        one = self.open[channel.fd, number] = _Open(channel, delivery, sender, recipient)
        one.started, one.octets = started, octets

    def gone(self, channel: Channel) -> None:
        """A channel has ended: what was under way on it will never be whole."""
        for key in [key for key in self.open if key[0] == channel.fd]:
            self.open.pop(key).delivery.abort()

    def moved(self) -> None:
        """The maildir is another now: what is coming in would end up in the one before."""
        self._end(_MOVED)

    def failed(self) -> None:
        """The maildir could not be read: the next actor may, and must not wait until the last large message is whole."""
        self._over = True
        self._end(_FAILED)

    def _end(self, why: tuple[str, str]) -> None:
        self.stale = True
        self._leave()
        for key, one in list(self.open.items()):
            del self.open[key]
            one.delivery.abort()
            one.channel.send(m.Rejected(key[1], *why))

    def _post(self, message: m.Post) -> m.Accepted | m.Rejected:
        delivery: Delivery | None = None
        try:
            data = trace_fields(message.sender, message.recipient, message.data) + message.data
            self._room(len(data), len(data))
            delivery = self._new()
            delivery.write(data)
            self._commit(delivery, len(data))
        except StoreError as error:
            return self._rejected(message.delivery, delivery, error)
        return m.Accepted(message.delivery, len(message.data), safe=True)

    def _new(self) -> Delivery:
        if self._drop is None:
            raise self._trouble
        return self._drop.deliver_begin()

    def _room(self, size: int, more: int) -> None:
        """Before `more` octets are written of a message that has `size` with them. StoreError where it has no room, or not now.

        Unfinished messages together hold no more than the quota leaves. It is asked each time: others write and remove as well.
        """
        if self._quota is None:
            return
        try:
            left = self._quota.room(size)
        except StoreError as error:
            if error.code == FULL and self._drop is not None and self._drop.moved():
                raise MovedError from None  # another one is full, which is no reason for mail to bounce
            raise
        if 0 <= left < sum(one.octets for one in self.open.values()) + more:
            raise StoreError(TEMP, "no room beside the other messages on their way in", errno.EDQUOT)

    def _commit(self, delivery: Delivery, octets: int) -> None:
        delivery.commit()
        if self._quota is not None:
            self._quota.add(octets, 1)

    def _begin(self, channel: Channel, key: tuple[int, int], message: m.Deliver) -> None:
        if self._over:
            channel.send(m.Rejected(message.delivery, *_FAILED))
            return
        try:
            # What the client says is with CR LF, and a guess (RFC 1870): refused is what can't fit however short its lines are.
            self._room((message.octets + 1) // 2, 0)
            self.open[key] = _Open(channel, self._new(), message.sender, message.recipient)
        except StoreError as error:
            channel.send(self._rejected(message.delivery, None, error))

    def _content(self, channel: Channel, key: tuple[int, int], message: m.Content) -> None:
        one = self.open.get(key)
        if one is None:
            return  # rejected before: the mda has not heard of it yet
        data = message.data
        if not one.started:
            one.started = True
            data = trace_fields(one.sender, one.recipient, data) + data
        try:
            self._room(one.octets + len(data), len(data))
            one.delivery.write(data)
            one.octets += len(data)
        except StoreError as error:
            del self.open[key]
            channel.send(self._rejected(message.delivery, one.delivery, error))
            return
        channel.send(m.Accepted(message.delivery, len(message.data), safe=False))

    def _finish(self, number: int, one: _Open) -> m.Accepted | m.Rejected:
        try:
            if not one.started:
                fields = trace_fields(one.sender, one.recipient, b"")
                one.delivery.write(fields)
                one.octets = len(fields)
            self._room(one.octets, 0)
            self._commit(one.delivery, one.octets)
        except StoreError as error:
            return self._rejected(number, one.delivery, error)
        return m.Accepted(number, 0, safe=True)

    def _rejected(self, number: int, delivery: Delivery | None, error: StoreError) -> m.Rejected:
        """All but a full mailbox is worth another try: somebody may mend it, and mail had better wait than bounce."""
        if delivery is not None:
            delivery.abort()
        if isinstance(error, MovedError):
            self.moved()
            return m.Rejected(number, *_MOVED)
        if error.code == FULL:
            return m.Rejected(number, self._full, error.text[:500])
        self._log(4, f"a message was not taken: {error}")
        if error.number in _AWAY:
            self.stale = True
        status = {errno.ENOSPC: "4.3.1", errno.EDQUOT: "4.2.2"}.get(error.number, "4.3.0")
        return m.Rejected(number, status, f"{error.text[:500]}; try again later")


def trace_fields(sender: str, recipient: str, head: bytes) -> bytes:
    """The fields that the top of a message lacks, LF line ends (RFC 5321 section 4.4; Delivered-To as all MTAs write it)."""
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
