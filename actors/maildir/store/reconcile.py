"""Compare the popcache with the files found by scan.py: make the listing and the changes to write back."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

from popkernel.actors.maildir.store.listing import Listing, uidl_of
from popkernel.proto.files import maildir_names, popcache

if TYPE_CHECKING:
    from popkernel.actors.maildir.store.scan import Scan

_HEX64 = frozenset(b"0123456789abcdef")


class Match:
    """The result of comparing a popcache with a scan.

    `gone`: canonical names whose lines must go. `added`: columns of lines to append (canonical names, octets,
    UIDLs). `whole`: the file must be rewritten; marking and appending do not suffice. `fit`: popcache lines
    can hold all names. `plain`: all UIDLs were made from the names here.
    """

    __slots__ = ("added", "fit", "gone", "listing", "plain", "whole")

    def __init__(self, cache: popcache.Cache, scan: Scan, journal: popcache.Cache | None) -> None:
        self.gone: set[bytes] = set()
        self.added: popcache.Columns = [], array("Q"), []
        self.fit = True
        self.plain = not cache.names and journal is None
        self.whole = bool(cache.refused or journal is not None or not cache.ordered)
        if journal is not None:
            merge(cache, journal)
        infos = list(map(scan.present.get, cache.names))
        if len(infos) != len(scan.present) or scan.doubtful or None in infos or not cache.ordered:
            self._drop_gone(cache, scan)
            self._add_fresh(cache, scan)
            if not cache.ordered:
                _sort(cache)
            kinds = set(scan.present.values())
            # all names have the same info: no lookup
            one = len(kinds) == 1 and len(scan.present) == len(cache.names)
            infos = [*kinds] * len(cache.names) if one else list(map(scan.present.get, cache.names))
        table: dict[bytes | None, bytes | None] = {}
        infos = list(map(table.setdefault, infos, infos))  # few different values: keep one object of each
        self.listing = Listing(cache.names, cache.sizes, cache.uidls, infos, tuple(scan.notes))

    def _drop_gone(self, cache: popcache.Cache, scan: Scan) -> None:
        present = scan.present
        if not all(map(present.__contains__, cache.names)):
            scan.read_again()
        doubtful = (
            [name for name in cache.names if name in scan.doubtful and name in present]
            if scan.doubtful
            else []
        )
        measured = dict(zip(doubtful, scan.measure(doubtful), strict=True))
        kept: list[int] = []
        for i, name in enumerate(cache.names):
            if name not in present:
                self.gone.add(name)
                continue
            if name in measured:
                octets = measured[name]
                if octets is None and name not in scan.unreadable and scan.vanished(name):
                    self.gone.add(name)
                    continue
                if octets is not None:
                    self.whole |= octets != cache.sizes[i]
                    cache.sizes[i] = octets
            kept.append(i)
        if self.gone:
            cache.names = [cache.names[i] for i in kept]
            cache.sizes = array("Q", [cache.sizes[i] for i in kept])
            cache.uidls = [cache.uidls[i] for i in kept]
            cache.uidl_set = set(cache.uidls)

    def _add_fresh(self, cache: popcache.Cache, scan: Scan) -> None:
        known = self.gone.union(cache.names)
        fresh = [name for name in scan.present if name not in known] if known else list(scan.present)
        self.fit = popcache.all_fit(fresh)
        if self.fit:
            fresh.sort()  # their leading numbers have the same length
        else:
            fresh = [name for name in fresh if maildir_names.is_message(name)]
            maildir_names.sort_names(fresh)
        found = scan.measure(fresh)
        uidls = list(map(uidl_of, fresh))
        if None in found:
            self._find_moved(scan, fresh, found, uidls)
        sizes: array[int] = array("Q", found)  # type: ignore[arg-type]  # no None is left; cast() is a call
        last = cache.names[-1] if cache.names else None
        cache.names += fresh
        cache.sizes += sizes
        cache.uidls += uidls
        if not self.plain:  # the hashes of different names differ
            cache.uidl_set = set(cache.uidls)
            if len(cache.uidl_set) < len(cache.uidls):
                self._restore_hashes(cache)
        self.added = fresh, sizes, uidls
        if not self.fit:
            fitting = [row for row in zip(*self.added, strict=True) if popcache.fits(row[0])]
            self.fit = len(fitting) == len(fresh)
            self.added = (
                [row[0] for row in fitting],
                array("Q", [row[1] for row in fitting]),
                [row[2] for row in fitting],
            )
        if last is not None and fresh and maildir_names.order_key(fresh[0]) < maildir_names.order_key(last):
            cache.ordered = False
            self.whole |= any(
                maildir_names.order_key(name) < maildir_names.order_key(last) for name in self.added[0]
            )

    def _find_moved(
        self, scan: Scan, names: list[bytes], found: list[int | None], uidls: list[bytes]
    ) -> None:
        """Find messages that could not be measured because another program moved them.

        All others that could not be measured are removed from the three columns.
        """
        lost = [
            name
            for name, octets in zip(names, found, strict=True)
            if octets is None and name not in scan.unreadable
        ]
        moved = scan.measure_moved(lost) if lost else {}
        rows = zip(names, found, uidls, strict=True)
        kept = [
            (name, size, uidl)
            for name, octets, uidl in rows
            if (size := moved.get(name) if octets is None else octets) is not None
        ]
        names[:], found[:], uidls[:] = (
            [row[0] for row in kept],
            [row[1] for row in kept],
            [row[2] for row in kept],
        )

    def _restore_hashes(self, cache: popcache.Cache) -> None:
        """Replace each UIDL that is the hash of another message's name: that message has the right to it."""
        for i, (name, uidl) in enumerate(zip(cache.names, cache.uidls, strict=True)):
            if len(uidl) == 64 and _HEX64.issuperset(uidl):
                cache.uidls[i] = uidl_of(name)
        cache.uidl_set = set(cache.uidls)
        self.whole = True


def sizes(cache: popcache.Cache, journal: popcache.Cache | None) -> dict[bytes, int]:
    """Return the octets of each message, by canonical name; the journal's come before the popcache's."""
    found = dict(zip(cache.names, cache.sizes, strict=True))
    return found if journal is None else found | dict(zip(journal.names, journal.sizes, strict=True))


def merge(cache: popcache.Cache, journal: popcache.Cache) -> None:
    """Merge a journal into the torn popcache that it was to replace; the journal's lines have priority."""
    found = dict(zip(cache.names, zip(cache.sizes, cache.uidls, strict=True), strict=True))
    saved = dict(zip(journal.names, zip(journal.sizes, journal.uidls, strict=True), strict=True))
    taken = set(journal.uidls)
    found = {name: line for name, line in found.items() if name in saved or line[1] not in taken} | saved
    cache.names = list(found)
    cache.sizes = array("Q", [octets for octets, _ in found.values()])
    cache.uidls = [uidl for _, uidl in found.values()]
    cache.uidl_set = set(cache.uidls)
    cache.ordered = False


def _sort(cache: popcache.Cache) -> None:
    names = cache.names
    plain = maildir_names.leading_width(names)
    order = sorted(
        range(len(names)), key=names.__getitem__ if plain else lambda i: maildir_names.order_key(names[i])
    )
    cache.names = [names[i] for i in order]
    cache.sizes = array("Q", [cache.sizes[i] for i in order])
    cache.uidls = [cache.uidls[i] for i in order]
    cache.ordered = True
