"""One session of one user, as the maildir actor sees it: what the listener asks, what it is answered, what is marked.

The files are at the edge: a `drop` with the methods of store.Maildrop is handed in, and a test or a replay may hand in another.
Answers are made only as fast as credit allows: `step` gives the next message, or None while there is nothing to say or no credit.
"""

import os
from collections import deque
from collections.abc import Callable, Iterator
from itertools import compress, count
from typing import Any

import msgpack
from popkernel.actors.maildir.store.errors import CHANGED
from popkernel.actors.maildir.store.maildrop import Listing, Maildrop, StoreError
from popkernel.proto import messages as m
from popkernel.proto.pop3.octets import TopCutter, WireEncoder

__all__ = ["Session"]

_FRAME = 256 * 1024  # octets of mail in one frame, about
_SMALL = 160 * 1024  # octets of a message that is read in one go
_STATE = 1  # version of what a parked session is
_MOST_STATE = 200 * 1024  # octets of it that fit into a message
_MOST_PARTS = 4 * 1024  # numbers in a frame's head: four a message, however small
_ROWS = 2048  # sizes or unique ids in one frame

_Answer = tuple[tuple[Any, ...], bytes | None]  # a message, and its bulk apart


def _quiet(text: str) -> None:
    """Where nobody wants to know."""


class Session:
    """From Ready to Bye."""

    __slots__ = ("_drop", "_gone", "_jobs", "_listing", "credit", "deleted", "finished", "log", "messages", "retrieved")

    def __init__(self, drop: Maildrop, listing: Listing, *, deleted: bytes = b"", retrieved: bytes = b"") -> None:
        """`deleted` and `retrieved`: a byte a message, 1 for yes; as a parked session left them."""
        self._drop = drop
        self._listing = listing
        self._jobs: deque[Iterator[_Answer]] = deque()
        self.credit = m.WINDOW
        self.deleted = bytearray(deleted or bytes(listing.count))
        self.retrieved = bytearray(retrieved or bytes(listing.count))
        self.messages = listing.count - sum(self.deleted)
        self._gone = sum(map(listing.size, compress(count(), deleted)))  # octets of what is marked
        self.finished: tuple[int, int] | None = None  # (removed, failed) once QUIT is done
        self.log: Callable[[str], None] = _quiet  # told what the operator may want to mend

    @property
    def octets(self) -> int:
        """Of the messages not marked, all together."""
        return self._listing.octets - self._gone

    def ready(self) -> m.Ready:
        """What the session begins with."""
        return m.Ready(self.messages, self.octets)

    # -- asleep
    def park(self) -> bytes | None:
        """All there is to this session, for `wake`; None where it can't sleep now: something is asked, or it is too much to carry."""
        if self._jobs or self.finished is not None:
            return None
        state: bytes = msgpack.packb(
            [_STATE, self._listing.count, self._listing.digest(), self.credit, runs(self.deleted), runs(self.retrieved)],
        )
        return state if len(state) <= _MOST_STATE else None

    @classmethod
    def wake(cls, drop: Maildrop, listing: Listing, state: bytes) -> "Session":
        """Go on where `park` left off. StoreError where the maildrop is no longer the one that was listed then.

        New mail behind the old is left for the next session; a listed message that is gone, or mail that came between, changes
        what numbers mean, and no guess is made.
        """
        version, count, digest, credit, deleted, retrieved = msgpack.unpackb(state)
        if version != _STATE or listing.count < count or listing.first(count).digest() != digest:
            text = "the mailbox was changed by another program, log in again"
            raise StoreError("SYS/TEMP", text, said=text)
        session = cls(drop, listing.first(count), deleted=marks(deleted, count), retrieved=marks(retrieved, count))
        session.credit = credit
        return session

    # -- in
    def take(self, message: tuple[Any, ...]) -> None:
        """A message of the listener. ValueError for one that names messages which are not there."""
        match message:
            case m.Credit(octets):
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
                raise ValueError("no message of a session")

    def _check(self, first: int, many: int) -> None:
        if first < 1 or many < 1 or first + many - 1 > self._listing.count:
            raise ValueError("numbers that no message has")

    @property
    def idle(self) -> bool:
        """Nothing asked that is not answered."""
        return not self._jobs

    # -- out
    def step(self) -> _Answer | None:
        """The next answer, in the order of the questions."""
        while self._jobs and self.credit > 0:
            try:
                answer = next(self._jobs[0])
            except StopIteration:
                self._jobs.popleft()
                continue
            self.credit -= len(answer[1]) if answer[1] is not None else m.bulk_octets(answer[0])
            return answer
        return None

    def _retrieve(self, first: int, many: int, ahead: int) -> Iterator[_Answer]:
        """Small messages share frames; a large one is streamed."""
        parts: list[int] = []
        chunks: list[bytes] = []
        size = 0
        number = first
        wanted = first + many
        last = min(wanted + ahead, self._listing.count + 1)
        while number < last:
            asked = number < wanted
            if size >= _FRAME or (size and not asked and size >= _FRAME // 2):
                yield m.Mail(parts, b""), b"".join(chunks)
                parts, chunks, size = [], [], 0
                if not asked:
                    return
            wire, octets = self._whole(number) if not self.deleted[number - 1] else (None, 0)
            if parts and wire is not None and asked and (size + len(wire) > _FRAME or len(parts) >= _MOST_PARTS):
                yield m.Mail(parts, b""), b"".join(chunks)
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
                    yield m.Mail(parts, b""), b"".join(chunks)
                    parts, chunks, size = [], [], 0
                yield from self._large(number)
            number += 1
        if parts:
            yield m.Mail(parts, b""), b"".join(chunks)

    def _whole(self, number: int) -> tuple[bytes | None, int]:
        """A small message ready for the wire and its octets; None for a large one or one that can't be had."""
        index, sizes = number - 1, self._listing.sizes
        if sizes[index] > _SMALL:
            return None, 0
        try:
            return self._drop.read_wire(self._listing, index, _SMALL), sizes[index]
        except StoreError:
            return None, 0

    def _large(self, number: int) -> Iterator[_Answer]:
        """Also the way of every message that can't be sent: it says why."""
        if self.deleted[number - 1]:
            yield m.Missing(number, "", "no such message"), None
            return
        try:
            self._drop.verify(self._listing, number - 1)
            fd = self._drop.open_message(self._listing, number - 1)
        except StoreError as error:
            yield self._missing(number, error), None
            return
        try:
            yield from self._stream(number, fd, self._listing.size(number - 1))
        finally:
            os.close(fd)

    def _stream(self, number: int, fd: int, octets: int) -> Iterator[_Answer]:
        """A message that goes out whole counts as retrieved: one that does not must not expire for it.

        What was read goes out when it is known what comes behind it: of a message of one read that is not what was listed no octet has
        gone out, and the client can be told. Later only an end of the connection tells.
        """
        encoder = WireEncoder()
        wire, raw = b"", b"x"
        if os.fstat(fd).st_size > octets:  # CRLF makes a message larger, never smaller
            yield self._changed(number), None
            return
        while raw:
            try:
                raw = os.read(fd, _FRAME - 32 * 1024)
            except OSError as error:
                yield self._unreadable(number, error), None
                return
            behind = encoder.feed(raw) if raw else encoder.finish()
            if encoder.octets > octets or (not raw and encoder.octets != octets):
                yield self._changed(number), None
                return
            if not raw:
                wire += behind
            for at in range(0, len(wire), _FRAME):  # lines of one octet each grow threefold
                piece = wire[at : at + _FRAME] if len(wire) > _FRAME else wire
                done = not raw and at + len(piece) >= len(wire)
                yield m.Mail([number, octets, len(piece), int(done)], b""), piece
            if raw:
                wire = behind
        self.retrieved[number - 1] = 1
        if not wire:
            yield m.Mail([number, octets, 0, 1], b""), b""

    def _missing(self, number: int, error: StoreError) -> m.Missing:
        self.log(f"message {number}: {error}")
        return m.Missing(number, error.code, error.said)

    def _changed(self, number: int) -> m.Missing:
        self._drop.distrust(self._listing, number - 1)
        return self._missing(number, StoreError("SYS/TEMP", "it is not what was listed: another program changed it", said=CHANGED))

    def _unreadable(self, number: int, error: OSError) -> m.Missing:
        self.log(f"message {number}: {error.strerror}")
        return m.Missing(number, "SYS/TEMP", f"the message can't be read: {error.strerror}")

    def _top(self, number: int, lines: int) -> Iterator[_Answer]:
        if self.deleted[number - 1]:
            yield m.Missing(number, "", "no such message"), None
            return
        try:
            fd = self._drop.open_message(self._listing, number - 1)
        except StoreError as error:
            yield self._missing(number, error), None
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
                    yield m.Mail([number, octets, len(wire), 0], b""), wire
            wire = encoder.finish()
            yield m.Mail([number, octets, len(wire), 1], b""), wire
        except OSError as error:
            yield self._unreadable(number, error), None
        finally:
            os.close(fd)

    def _sizes(self, first: int, many: int) -> Iterator[_Answer]:
        end = first + many
        for at in range(first, end, _ROWS):
            numbers = range(at, min(at + _ROWS, end))
            rows = [-1 if self.deleted[n - 1] else self._listing.size(n - 1) for n in numbers]
            yield m.Sizes(at, rows, at + _ROWS >= end), None

    def _uidls(self, first: int, many: int) -> Iterator[_Answer]:
        end = first + many
        for at in range(first, end, _ROWS):
            numbers = range(at, min(at + _ROWS, end))
            rows = ["" if self.deleted[n - 1] else self._listing.uidl(n - 1).decode("ascii") for n in numbers]
            yield m.Ids(at, rows, at + _ROWS >= end), None

    def _delete(self, first: int, many: int) -> Iterator[_Answer]:
        refused = []
        for number in range(first, first + many):
            if self.deleted[number - 1]:
                refused.append(number)
            else:
                self.deleted[number - 1] = 1
                self.messages -= 1
                self._gone += self._listing.size(number - 1)
        for at in range(0, len(refused) or 1, 8192):
            yield m.Deleted(first, many, refused[at : at + 8192], self.messages, self.octets), None

    def _reset(self) -> Iterator[_Answer]:
        self.deleted = bytearray(self._listing.count)
        self.messages, self._gone = self._listing.count, 0
        yield m.Totals(self.messages, self.octets), None

    def _quit(self, taken: list[int]) -> Iterator[_Answer]:
        """Remove, then answer; flags after that, for nobody waits for them."""
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
            self.log(f"{len(failed)} messages not removed: {self._drop.why}")
        owed = sum(map(self.deleted.__getitem__, failed))  # what nobody asked to go is no failure of the client's QUIT
        self.finished = (len(marked) + len(expired) - len(failed), owed)
        yield m.Bye(*self.finished), None
        for i in expired:
            self.deleted[i] = 1
        self._drop.mark_seen(self._listing, [i for i, yes in enumerate(self.retrieved) if yes and not self.deleted[i]])


def runs(marked: bytearray) -> list[int]:
    """Where bytes are 1, as (index, how many) pairs in one flat list."""
    out: list[int] = []
    at = marked.find(1)
    while at >= 0:
        end = marked.find(0, at)
        end = len(marked) if end < 0 else end
        out += (at, end - at)
        at = marked.find(1, end)
    return out


def marks(pairs: list[int], count: int) -> bytes:
    """The reverse of `runs`."""
    out = bytearray(count)
    for at, many in zip(pairs[::2], pairs[1::2], strict=True):
        out[at : at + many] = b"\1" * many
    return bytes(out)
