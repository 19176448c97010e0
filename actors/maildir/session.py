"""Process one session of one user: the listener's requests, the answers, the marks. Sans I/O but for `drop`.

All files are reached through `drop`, an object with the methods of store.Maildrop; a test or a replay may
pass another. Answers are made only as credit allows: `step` returns the next action (actions.py), or None if
there is nothing to answer or no credit.
"""

import os
from collections import deque
from collections.abc import Iterator
from itertools import compress, count, islice
from typing import Any

import msgpack
from popkernel.actors.maildir.actions import Note, Over, SessionAction
from popkernel.actors.maildir.store.errors import CHANGED, StoreError
from popkernel.actors.maildir.store.listing import Listing
from popkernel.actors.maildir.store.maildrop import Maildrop
from popkernel.proto import messages as m
from popkernel.proto.pop3.octets import TopCutter, WireEncoder

__all__ = ["Session"]

_FRAME = 256 * 1024  # octets of mail in one frame, roughly
_SMALL = 160 * 1024  # largest message that is read at once, in octets
_STATE = 1  # version of the format of a parked session
_MOST_STATE = 200 * 1024  # octets of it that a message can carry
_MOST_PARTS = 4 * 1024  # numbers in a frame's head, four for each message
_ROWS = 2048  # sizes or unique ids in one frame

_OVER = Over()  # made once: each call in a child costs it pages


class Session:
    """A session from MaildropReady to QuitDone."""

    __slots__ = (
        "_deleted_octets",
        "_drop",
        "_jobs",
        "_listing",
        "credit",
        "deleted",
        "messages",
        "retrieved",
    )

    def __init__(
        self, drop: Maildrop, listing: Listing, *, deleted: bytes = b"", retrieved: bytes = b""
    ) -> None:
        """`deleted` and `retrieved`: one byte for each message, 1 for yes, as a parked session left them."""
        self._drop = drop
        self._listing = listing
        self._jobs: deque[Iterator[SessionAction]] = deque()
        self.credit = m.WINDOW
        self.deleted = bytearray(deleted or bytes(listing.count))
        self.retrieved = bytearray(retrieved or bytes(listing.count))
        self.messages = listing.count - sum(self.deleted)
        self._deleted_octets = sum(
            map(listing.size, compress(count(), deleted))
        )  # octets of deleted messages

    @property
    def octets(self) -> int:
        """Return the total octets of messages not deleted."""
        return self._listing.octets - self._deleted_octets

    def ready(self) -> m.MaildropReady:
        """Return the message that opens the session."""
        return m.MaildropReady(self.messages, self.octets)

    # -- parking
    def park(self) -> bytes | None:
        """Return the session's state, for `wake`.

        None if it can't be parked now: a request is open, or the state is too large.
        """
        if self._jobs:
            return None
        state: bytes = msgpack.packb(
            [
                _STATE,
                self._listing.count,
                self._listing.digest(),
                self.credit,
                runs(self.deleted),
                runs(self.retrieved),
            ],
        )
        return state if len(state) <= _MOST_STATE else None

    @classmethod
    def wake(cls, drop: Maildrop, listing: Listing, state: bytes) -> "Session":
        """Resume a session from the state that `park` returned.

        StoreError if the maildrop is no longer the one listed then.

        New mail after the old is left for the next session. If a listed message is gone, or mail came in
        between, the numbers mean other messages, and no guess is made.
        """
        version, count, digest, credit, deleted, retrieved = msgpack.unpackb(state)
        if version != _STATE or listing.count < count or listing.first(count).digest() != digest:
            text = "the mailbox was changed by another program, log in again"
            raise StoreError("SYS/TEMP", text, said=text)
        session = cls(
            drop, listing.first(count), deleted=marks(deleted, count), retrieved=marks(retrieved, count)
        )
        session.credit = credit
        return session

    # -- in
    def take(self, message: tuple[Any, ...]) -> None:
        """Queue a request of the listener. ValueError if it names messages that do not exist."""
        match message:
            case m.FlowCredit(octets):
                self.credit = min(m.WINDOW, self.credit + octets)
            case m.Retrieve(first, many, ahead):
                self._check(first, many)
                self._jobs.append(self._retrieve(first, many, ahead))
            case m.Top(number, lines):
                self._check(number, 1)
                self._jobs.append(self._top(number, lines))
            case m.List(first, many):
                self._check(first, many)
                self._jobs.append(self._sizes(first, many))
            case m.Uidl(first, many):
                self._check(first, many)
                self._jobs.append(self._uidls(first, many))
            case m.Delete(first, many):
                self._check(first, many)
                self._jobs.append(self._delete(first, many))
            case m.Reset():
                self._jobs.append(self._reset())
            case m.Quit(taken):
                self._jobs.append(self._quit(taken))
            case _:
                raise ValueError("not a request of a session")

    def _check(self, first: int, many: int) -> None:
        if first < 1 or many < 1 or first + many - 1 > self._listing.count:
            raise ValueError("a message number out of range")

    def marked(self) -> list[str]:
        """Return the unique ids of the first marked messages, for SessionClosed."""
        if 1 not in self.deleted:  # most sessions: the rest would copy pages of a new actor
            return []
        first = islice(compress(count(), self.deleted), m.MOST_UIDLS)
        return [self._listing.uidl(i).decode("ascii") for i in first]

    @property
    def idle(self) -> bool:
        """Return whether all requests are answered."""
        return not self._jobs

    # -- out
    def step(self) -> SessionAction | None:
        """Return the next action; answers come in the order of the requests."""
        while self._jobs and self.credit > 0:
            try:
                action = next(self._jobs[0])
            except StopIteration:
                self._jobs.popleft()
                continue
            # `bulk_octets` is not called for mail: each call in a child costs it pages
            self.credit -= len(action.data) if type(action) is m.MailContent else m.bulk_octets(action)
            return action
        return None

    def _retrieve(self, first: int, many: int, ahead: int) -> Iterator[SessionAction]:
        """Send messages: small ones share frames, a large one is streamed."""
        parts: list[int] = []
        chunks: list[bytes] = []
        size = 0
        number = first
        wanted = first + many
        last = min(wanted + ahead, self._listing.count + 1)
        while number < last:
            asked = number < wanted
            if size >= _FRAME or (size and not asked and size >= _FRAME // 2):
                yield m.MailContent(parts, b"".join(chunks))
                parts, chunks, size = [], [], 0
                if not asked:
                    return
            wire, octets = self._whole(number) if not self.deleted[number - 1] else (None, 0)
            if (
                parts
                and wire is not None
                and asked
                and (size + len(wire) > _FRAME or len(parts) >= _MOST_PARTS)
            ):
                yield m.MailContent(parts, b"".join(chunks))
                parts, chunks, size = [], [], 0
            if wire is not None and (asked or size + len(wire) <= _FRAME):
                parts += (number, octets, len(wire), 1 if asked else 2)
                chunks.append(wire)
                size += len(wire)
                if asked:
                    self.retrieved[number - 1] = 1
            elif not asked:
                break
            else:
                if parts:
                    yield m.MailContent(parts, b"".join(chunks))
                    parts, chunks, size = [], [], 0
                yield from self._large(number)
            number += 1
        if parts:
            yield m.MailContent(parts, b"".join(chunks))

    def _whole(self, number: int) -> tuple[bytes | None, int]:
        """Return a small message in wire form and its octets; None if it is large or can't be read."""
        index, sizes = number - 1, self._listing.sizes
        if sizes[index] > _SMALL:
            return None, 0
        try:
            return self._drop.read_wire(self._listing, index, _SMALL), sizes[index]
        except StoreError:
            return None, 0

    def _large(self, number: int) -> Iterator[SessionAction]:
        """Stream a large message, or say why a message can't be sent."""
        if self.deleted[number - 1]:
            yield m.MessageMissing(number, "", "no such message")
            return
        try:
            self._drop.verify(self._listing, number - 1)
            fd = self._drop.open_message(self._listing, number - 1)
        except StoreError as error:
            yield from self._missing(number, error)
            return
        try:
            yield from self._stream(number, fd, self._listing.size(number - 1))
        finally:
            os.close(fd)

    def _stream(self, number: int, fd: int, octets: int) -> Iterator[SessionAction]:
        """Stream a message. Only if it is sent whole does it count as retrieved: else it must not expire.

        Each piece is sent only after the next is read. So if a message of one read is not what was listed, no
        octet of it was sent, and the client gets an error. Later only the end of the connection tells it.
        """
        encoder = WireEncoder()
        wire, raw = b"", b"x"
        if os.fstat(fd).st_size > octets:  # CR LF line ends make a message larger, never smaller
            yield from self._changed(number)
            return
        while raw:
            try:
                raw = os.read(fd, _FRAME - 32 * 1024)
            except OSError as error:
                yield from self._unreadable(number, error)
                return
            behind = encoder.feed(raw) if raw else encoder.finish()
            if encoder.octets > octets or (not raw and encoder.octets != octets):
                yield from self._changed(number)
                return
            if not raw:
                wire += behind
            # wire form is larger than what was read: CR LF for LF, doubled dots
            for at in range(0, len(wire), _FRAME):
                piece = wire[at : at + _FRAME] if len(wire) > _FRAME else wire
                done = not raw and at + len(piece) >= len(wire)
                yield m.MailContent([number, octets, len(piece), int(done)], piece)
            if raw:
                wire = behind
        self.retrieved[number - 1] = 1
        if not wire:
            yield m.MailContent([number, octets, 0, 1], b"")

    def _missing(self, number: int, error: StoreError) -> Iterator[SessionAction]:
        yield Note("maildir.message_failed", {"number": number, "error": str(error)})
        yield m.MessageMissing(number, error.code, error.said)

    def _changed(self, number: int) -> Iterator[SessionAction]:
        self._drop.distrust(self._listing, number - 1)
        text = "it is not what was listed: another program changed it"
        return self._missing(number, StoreError("SYS/TEMP", text, said=CHANGED))

    def _unreadable(self, number: int, error: OSError) -> Iterator[SessionAction]:
        yield Note("maildir.message_failed", {"number": number, "error": error.strerror or ""})
        yield m.MessageMissing(number, "SYS/TEMP", f"the message can't be read: {error.strerror}")

    def _top(self, number: int, lines: int) -> Iterator[SessionAction]:
        if self.deleted[number - 1]:
            yield m.MessageMissing(number, "", "no such message")
            return
        try:
            fd = self._drop.open_message(self._listing, number - 1)
        except StoreError as error:
            yield from self._missing(number, error)
            return
        cutter, encoder = TopCutter(lines), WireEncoder()
        octets = self._listing.size(number - 1)
        try:
            while not cutter.done:
                raw = os.read(fd, 64 * 1024)
                if not raw:
                    break
                wire = encoder.feed(cutter.feed(raw))
                if wire:
                    yield m.MailContent([number, octets, len(wire), 0], wire)
            wire = encoder.finish()
            yield m.MailContent([number, octets, len(wire), 1], wire)
        except OSError as error:
            yield from self._unreadable(number, error)
        finally:
            os.close(fd)

    def _sizes(self, first: int, many: int) -> Iterator[SessionAction]:
        end = first + many
        for at in range(first, end, _ROWS):
            numbers = range(at, min(at + _ROWS, end))
            rows = [-1 if self.deleted[n - 1] else self._listing.size(n - 1) for n in numbers]
            yield m.MessageSizes(at, rows, at + _ROWS >= end)

    def _uidls(self, first: int, many: int) -> Iterator[SessionAction]:
        end = first + many
        for at in range(first, end, _ROWS):
            numbers = range(at, min(at + _ROWS, end))
            rows = ["" if self.deleted[n - 1] else self._listing.uidl(n - 1).decode("ascii") for n in numbers]
            yield m.MessageUidls(at, rows, at + _ROWS >= end)

    def _delete(self, first: int, many: int) -> Iterator[SessionAction]:
        refused = []
        for number in range(first, first + many):
            if self.deleted[number - 1]:
                refused.append(number)
            else:
                self.deleted[number - 1] = 1
                self.messages -= 1
                self._deleted_octets += self._listing.size(number - 1)
        for at in range(0, len(refused) or 1, 8192):
            yield m.MessagesMarked(first, many, refused[at : at + 8192], self.messages, self.octets)

    def _reset(self) -> Iterator[SessionAction]:
        self.deleted = bytearray(self._listing.count)
        self.messages, self._deleted_octets = self._listing.count, 0
        yield m.MaildropTotals(self.messages, self.octets)

    def _quit(self, taken: list[int]) -> Iterator[SessionAction]:
        """Remove messages, answer, then set flags, which no client waits for."""
        for first, many in zip(taken[::2], taken[1::2], strict=False):
            for number in range(max(1, first), min(first + many, self._listing.count + 1)):
                self.retrieved[number - 1] = 1
        marked = list(compress(count(), self.deleted))
        expired = []
        if self._drop.policy.expire_days >= 0:
            expired = [i for i in self._drop.expired(self._listing, self.retrieved) if not self.deleted[i]]
        failed: list[int] = []
        if marked or expired:
            try:
                failed = self._drop.remove(self._listing, marked + expired)
            except StoreError as error:
                failed, self._drop.why = marked + expired, error.text
        if failed:
            yield Note("maildir.not_removed", {"messages": len(failed), "why": self._drop.why})
        # expired mail that could not be removed is no failure of the client's QUIT
        owed = sum(map(self.deleted.__getitem__, failed))
        for i in expired:
            self.deleted[i] = 1
        yield m.QuitDone(len(marked) + len(expired) - len(failed), owed)
        self._drop.mark_seen(
            self._listing, [i for i, yes in enumerate(self.retrieved) if yes and not self.deleted[i]]
        )
        yield _OVER


def runs(marked: bytearray) -> list[int]:
    """Return the runs of 1 bytes as (index, length) pairs in one flat list."""
    out: list[int] = []
    at = marked.find(1)
    while at >= 0:
        end = marked.find(0, at)
        end = len(marked) if end < 0 else end
        out += (at, end - at)
        at = marked.find(1, end)
    return out


def marks(pairs: list[int], count: int) -> bytes:
    """Return the bytes that `runs` was made of."""
    out = bytearray(count)
    for at, many in zip(pairs[::2], pairs[1::2], strict=True):
        out[at : at + many] = b"\1" * many
    return bytes(out)
