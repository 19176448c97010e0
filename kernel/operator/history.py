"""Keep what happened lately in memory: sessions, failed logins, deliveries. For `popkernel explain`.

A record is one event of the log (proto/log_events.py) with its time and its author, packed with msgpack.
Names of fields are kept once for each combination of them. A search compares octets first, and decodes only
what contains the name. Nothing is written to disk; a stop of the server forgets all.

Clients and actors choose many of the texts, and how often they fail. So octets are bounded too. Logins that
were refused without a check, and connections without a login, cost a client nothing: they have a ring of
their own, and push out no other record. So have the sessions and deliveries of a user that are more than 60
in a minute: one user pushes out no other's.
"""

import time
from collections import deque
from collections.abc import Iterator, Mapping
from heapq import merge
from itertools import islice
from typing import Any, NamedTuple

import msgpack
from popkernel.kernel.operator.log_quota import CHECKED
from popkernel.proto.access.networks import host_of

__all__ = ["History", "Record", "Wanted"]

_SLICE = 5000  # records searched before the caller may do other work; some milliseconds at most
_MEAN_OCTETS = 512  # of a kind's records, at most; an ordinary one has 140 to 300
_FEW = 128  # records of that size for which there is room in any case
_MOST_SHAPES = 1000  # combinations of fields' names; beyond, a record has its names itself
# the kinds of records, each with a ring of its own, by the first part of an event's name
_KINDS = {
    "session": "session",
    "login": "login",
    "tls": "unchecked",
    "client": "unchecked",
    "delivery": "delivery",
}
_MESSAGES = "messages"  # what sessions marked and removed, by session
# the rings of records beyond those of a minute
_FURTHER = {kind: f"further {kind}" for kind in ("session", "delivery", _MESSAGES)}
_MINUTE, _MOST_MINUTE = 60.0, 60  # seconds, and records of one user or actor in them
_NAMES = ("user", "mailbox", "recipient")  # fields with a user's name or a mail address

_pack = msgpack.Packer(use_bin_type=True, autoreset=True, unicode_errors="backslashreplace").pack


class Record(NamedTuple):
    """An event that was kept. `time`: seconds since 1970. `actor`: its author."""

    time: float
    event: str
    actor: str
    fields: dict[str, Any]


class Wanted(NamedTuple):
    """What to search for: a user's name, or a client's numeric address.

    `given`: the user's name as it was given if it is another: a mail address, or as a client types it.
    """

    user: str = ""
    given: str = ""
    address: str = ""

    @property
    def octets(self) -> list[bytes]:
        """Return octets of which a record that meets this contains some: one or two texts."""
        return [text.encode(errors="backslashreplace") for text in self if text]

    def meets(self, record: Record) -> bool:
        """Return whether a record is about this."""
        fields = record.fields
        if self.address:
            return host_of(str(fields.get("address", ""))) == self.address
        if self.user and record.actor == f"maildir.{self.user}":
            return True
        names = {str(fields[name]) for name in _NAMES if name in fields}
        return bool(names & {name for name in (self.user, self.given) if name})


class History:
    """Keep the last records of each kind."""

    def __init__(self, most: int) -> None:
        """`most`: records of each kind; 0: keep none."""
        self._most = most
        kinds = (*dict.fromkeys(_KINDS.values()), _MESSAGES, *_FURTHER.values())
        self._rings: dict[str, deque[bytes]] = {kind: deque() for kind in kinds}
        self._octets = dict.fromkeys(kinds, 0)
        self._most_octets = max(most, _FEW) * _MEAN_OCTETS
        self._lately: dict[tuple[str, object], int] = {}  # records of this minute by kind and author
        self._minute = 0.0
        self._shapes: dict[tuple[str, ...], int] = {}
        self._names: list[tuple[str, ...]] = []

    def __len__(self) -> int:
        """Return the number of records."""
        return sum(map(len, self._rings.values()))

    @property
    def on(self) -> bool:
        """Whether anything is kept."""
        return self._most > 0

    def event(
        self, event: str, fields: Mapping[str, Any], actor: str = "kernel", *, granted: bool = False
    ) -> None:
        """Keep an event of the log, if it is of a kind that is kept.

        `granted`: of a failed login, whether auth had granted it.
        """
        kind = _KINDS.get(event.partition(".")[0])
        if kind == "login" and not (granted or fields.get("reason") in CHECKED):
            kind = "unchecked"
        if kind is not None:
            self.add(kind, fields, event, actor)

    def add(self, kind: str, fields: Mapping[str, Any], event: str = "", actor: str = "kernel") -> None:
        """Keep a record of a kind: session, login, unchecked, delivery or messages."""
        if not self._most:
            return
        if kind in _FURTHER and self._often(kind, actor if kind == "delivery" else fields.get("user")):
            kind, event = _FURTHER[kind], event or kind
        names = tuple(fields)
        shape = self._shapes.get(names, -1)
        if shape < 0 and len(self._names) < _MOST_SHAPES:
            shape = self._shapes[names] = len(self._names)
            self._names.append(names)
        row = (time.time(), event or kind, actor, shape, *([dict(fields)] if shape < 0 else fields.values()))
        data = _pack(row)
        ring, octets = self._rings[kind], self._octets[kind] + len(data)
        ring.append(data)
        while len(ring) > self._most or octets > self._most_octets:
            octets -= len(ring.popleft())
        self._octets[kind] = octets

    def _often(self, kind: str, author: object) -> bool:
        """Count a record. Returns whether its author has had too many in this minute."""
        now = time.monotonic()
        if now >= self._minute:
            self._lately.clear()
            self._minute = now + _MINUTE
        many = self._lately[kind, author] = self._lately.get((kind, author), 0) + 1
        return many > _MOST_MINUTE

    def messages(self, user: str, session: str, uidls: list[str]) -> None:
        """Keep which messages a session had marked at its end, or removed. `uidls`: the first of them."""
        self.add(_MESSAGES, {"user": user, "session": session, "uidls": uidls})

    def _record(self, data: bytes) -> Record:
        at, event, actor, shape, *values = msgpack.unpackb(data)
        return Record(
            at,
            event,
            actor,
            values[0] if shape < 0 else dict(zip(self._names[shape], values, strict=True)),
        )

    def find(self, kind: str, wanted: Wanted, most: int) -> Iterator[list[Record] | None]:
        """Search one kind, the newest first: yield None after each slice, at last the records, newest first.

        At most `most` records of all rings of that kind. What is added meanwhile is not seen.
        """
        parts = list[list[Record]]()
        for each in (kind, "unchecked" if kind == "login" else _FURTHER[kind]):
            for records in self._find(each, wanted, most):
                if records is None:
                    yield None
                else:
                    parts.append(records)
        yield list(islice(merge(*parts, key=lambda record: record.time, reverse=True), most))

    def _find(self, kind: str, wanted: Wanted, most: int) -> Iterator[list[Record] | None]:
        """Search one ring, as `find`."""
        found = list[Record]()
        rows = list(self._rings[kind])
        rows.reverse()
        for at in range(0, len(rows), _SLICE):
            if at:
                yield None
            found += self._met(rows[at : at + _SLICE], wanted, most - len(found))
            if len(found) >= most:
                break
        yield found

    def _met(self, rows: list[bytes], wanted: Wanted, most: int) -> list[Record]:
        """Return the first records of some rows that are wanted."""
        first, *other = wanted.octets
        if other:
            rows = [row for row in rows if first in row or other[0] in row]
        else:
            rows = [row for row in rows if first in row]
        return list(islice(filter(wanted.meets, map(self._record, rows)), most))
