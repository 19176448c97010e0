"""Write UIDLs of another server into a maildir's popcache, for `popkernel import-uidl`.

No actor imports this.

It works under the popcache lock and rewrites the file as a session does: a session or a delivery at the same
time sees either the old or the new lines. A message that has a line keeps its UIDL unless `force` is given,
and every message gets a line.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from popkernel.actors.maildir.store import files as directory
from popkernel.actors.maildir.store import foreign_uidls, popcache_file
from popkernel.actors.maildir.store.errors import IN_USE, from_os, show
from popkernel.actors.maildir.store.listing import uidl_of
from popkernel.actors.maildir.store.maildrop import Maildrop
from popkernel.actors.maildir.store.reconcile import merge
from popkernel.proto.files import maildir_names, popcache, uid_lists

__all__ = ["Report", "import_uidls", "source_of"]

_Known = dict[bytes, tuple[int, bytes]]  # by canonical name: octets (-1: not yet measured), UIDL


def source_of(drop: Maildrop) -> str | None:
    """Return the server whose file is in the maildir; None if there is none, "both" if there are two."""
    inside = set(directory.list_names(drop.root))
    there = [source for source, name in foreign_uidls.FILES.items() if name in inside]
    return "both" if len(there) > 1 else there[0] if there else None


class Report(NamedTuple):
    """The result for one maildir: messages, and how many kept their UIDL, took one over or got a new one."""

    messages: int
    kept: int
    taken: int
    new: int
    notes: list[str]


def import_uidls(drop: Maildrop, source: str, *, force: bool, dry: bool) -> Report:
    """Take over the UIDLs of `source` (of `uid_lists.SOURCES`).

    `force`: also for messages that have a UIDL. `dry`: write nothing.

    StoreError IN-USE if another program keeps the lock, others as for the maildir.
    """
    try:
        lock = _existing(drop) if dry else drop.take_lock(IN_USE)
        try:
            return _import_locked(drop, lock, source, force=force, dry=dry)
        finally:
            if lock is not None:
                os.close(lock)
    except OSError as error:
        raise from_os(error, "maildir") from None


def _existing(drop: Maildrop) -> int | None:
    try:
        return os.open(popcache_file.NAME, directory.READ, dir_fd=drop.root)
    except FileNotFoundError:
        return None


def _import_locked(drop: Maildrop, lock: int | None, source: str, *, force: bool, dry: bool) -> Report:
    cache = popcache.Cache() if lock is None else popcache_file.load(lock)
    journal = popcache_file.read_journal(drop.root)
    if journal is not None:
        merge(cache, journal)
    before: _Known = dict(zip(cache.names, zip(cache.sizes, cache.uidls, strict=True), strict=True))
    files = _files(drop)
    names = list(files)
    maildir_names.sort_names(names)
    notes = [f"popcache: not believed: {cache.given_up}"] if cache.given_up else []
    notes += [
        f"{show(name)}: no line of a popcache can hold such a name"
        for name in names
        if not popcache.fits(name)
    ]
    names = [name for name in names if popcache.fits(name)]
    found, more = foreign_uidls.uidls(drop.root, source, names)
    after, said = _after(names, before, found, force=force)
    notes += more + foreign_uidls.notes(said)
    for name in [name for name, (octets, _) in after.items() if octets < 0]:
        _measure(files[name], name, after, notes)
    if not dry and after != before:
        _write(drop, lock, after)
    present = [name for name in names if name in after]
    kept = sum(name in before and before[name][1] == after[name][1] for name in present)
    taken = sum(
        after[name][1] == found.get(name) and before.get(name, (0, b""))[1] != after[name][1]
        for name in present
    )
    return Report(len(present), kept, taken, len(present) - kept - taken, notes)


def _files(drop: Maildrop) -> dict[bytes, tuple[int, bytes]]:
    """Return directory and file name of each message, by canonical name.

    It reads twice, for a reading may miss a name that is being changed.
    """
    files: dict[bytes, tuple[int, bytes]] = {}
    for _ in range(2):
        for fd in (drop.cur, drop.new):
            for name in directory.list_names(fd):
                if maildir_names.is_message(name):
                    files.setdefault(maildir_names.canonical(name), (fd, name))
    return files


def _after(
    names: list[bytes], before: _Known, found: dict[bytes, bytes], *, force: bool
) -> tuple[_Known, list[tuple[bytes, str]]]:
    """Return every line that the popcache is to have, and the UIDLs refused.

    A UIDL must be unique. Those that are kept have priority, or with `force` those taken over.
    """
    known = [] if force else list(before)
    held = {before[name][1] for name in known}
    chosen, said = uid_lists.choose([name for name in names if force or name not in before], found, held)
    used = held | set(chosen.values())
    after: _Known = {}
    for name in [*before, *(name for name in names if name not in before)]:
        octets, uidl = before.get(name, (-1, b""))
        if name in chosen:
            uidl = chosen[name]
        elif name not in before or (force and uidl in used):
            uidl = _fresh(name, used)
        used.add(uidl)
        after[name] = octets, uidl
    # With `force`, a message may keep its old UIDL: not reported.
    return after, [one for one in said if after[one[0]] != before.get(one[0])]


def _fresh(name: bytes, used: set[bytes]) -> bytes:
    uidl = uidl_of(name)
    while uidl in used:  # the other server used the hash of another message's name
        uidl = uidl_of(uidl)
    return uidl


def _measure(where: tuple[int, bytes], name: bytes, after: _Known, notes: list[str]) -> None:
    fd, file = where
    try:
        octets = directory.measure(fd, file, maildir_names.claimed_sizes(name))
    except OSError as error:
        notes.append(f"{show(file)}: {os.strerror(error.errno or 0)}")
        octets = None
    if octets is None:
        del after[name]
    else:
        after[name] = octets, after[name][1]


def _write(drop: Maildrop, lock: int | None, after: _Known) -> None:
    assert lock is not None
    names = list(after)
    maildir_names.sort_names(names)
    popcache_file.rewrite(
        drop.root, lock, [(name, *after[name]) for name in names], popcache.UNPROVEN, drop.at, checked=False
    )
    popcache_file.drop_journal(drop.root)
