"""The maildir store: all a user's mailbox can do, over plain descriptors, for one single-threaded process.

Every path is relative to the descriptors of the maildir, cur, new and tmp, so it works in a process that sees that one
directory and nothing else. Here is what changes it: the end of a session, and deliveries. Beside it: ``held_directories.py`` holds the
directories, ``mailbox.py`` lists, ``reading.py`` reads, ``listing.py`` is what a session sees, ``scan.py`` finds it, ``popcache_file.py``
is the popcache under its lock, ``delivery.py`` the way in, ``files.py`` single directory operations.

Raises StoreError from every method; OSError never leaves this room.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from popkernel.actors.maildir.store import expiry, files, popcache_file
from popkernel.actors.maildir.store.delivery import Delivery
from popkernel.actors.maildir.store.errors import TEMP, StoreError, from_os, show
from popkernel.actors.maildir.store.listing import IN_NEW, Listing
from popkernel.actors.maildir.store.reading import NOWHERE, Reading
from popkernel.actors.maildir.store.scan import Scan
from popkernel.proto.files import maildir_names, popcache

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from popkernel.actors.maildir.store.quota import Quota

__all__ = ["Delivery", "Listing", "Maildrop", "StoreError"]

_QUIT_WAIT = 0.5  # seconds that QUIT waits for it: what it would write down, the next listing sees


class Maildrop(Reading):
    """A mailbox that sessions end in, and mail comes to."""

    quota: Quota | None = None  # to be told of removals
    why = ""  # the last message that could not be removed was not, for the log
    _tidying: list[bytes] | None = None  # names in new/ that are still to be moved, last one first

    # The end of a session

    def remove(self, listing: Listing, indices: Iterable[int]) -> list[int]:
        """Remove messages for good (QUIT). Returns the indices that could not be removed; already gone counts as removed.

        Files first, synced, then their popcache lines: a crash in between leaves lines of no message, which the next
        listing drops. The other way round it would leave messages that lost their UIDL. Where the site keeps what is deleted, the
        files get the flag T instead.
        """
        self._must_hold("cur", "new")
        if self.policy.trash:
            return self._trash(listing, indices)
        failed: list[int] = []
        doomed: set[bytes] = set()
        touched: set[int] = set()
        freed = 0
        count = self.quota is not None and self.quota.kept
        for i in indices:
            try:
                freed += self._file_size(listing, i) if count else 0
                touched.add(self._unlink(listing, i))
                doomed.add(listing.names[i])
            except OSError as error:
                failed.append(i)
                self.why = from_os(error, show(listing.names[i])).text
            if self.alive is not None:
                self.alive()
            self.at("remove:unlinked")
        if self.quota is not None and count and doomed:
            self.quota.add(-freed, -len(doomed))
        if doomed:
            self._last = None
            try:
                for part in touched:
                    files.sync(part)
            except OSError as error:
                raise from_os(error, "cur or new") from None
            self.at("remove:synced")
            self._strike_out(doomed)
        return failed

    def _must_hold(self, *parts: str) -> None:
        """Nothing is removed from what was moved away: it may be somebody's copy, and the client would see the mail again."""
        try:
            if not self.moved() and self.holds(*parts):
                return
        except OSError as error:
            raise from_os(error, "maildir") from None
        raise StoreError(TEMP, "the maildir was replaced while the session was open")

    def _file_size(self, listing: Listing, i: int) -> int:
        status = self._status(listing, i)
        return 0 if status is None else status.st_size

    def _status(self, listing: Listing, i: int) -> os.stat_result | None:
        for part, name in self._candidates(listing, i):
            try:
                return os.stat(name, dir_fd=part, follow_symlinks=False)
            except FileNotFoundError:
                continue
        found = self._find(listing, i)
        return None if found is None else os.stat(found[1], dir_fd=found[0], follow_symlinks=False)

    def _unlink(self, listing: Listing, i: int) -> int:
        """Gives the descriptor of the directory that the message was in; cur's where it was gone already."""
        if listing.names[i] in self._linked:
            self._unlink_links(listing.names[i])
        for part, name in self._candidates(listing, i):
            try:
                os.unlink(name, dir_fd=part)
                return part
            except FileNotFoundError:
                continue
        part, name = self._find(listing, i) or (self.cur, b"")
        if name:
            try:
                os.unlink(name, dir_fd=part)
            except FileNotFoundError:
                return self.cur
        return part

    def _unlink_links(self, base: bytes) -> None:
        """A message whose second name was too young to be taken away: else it would be back at the next listing."""
        for fd in (self.cur, self.new):
            for name in files.list_names(fd):
                if maildir_names.canonical(name) == base:
                    try:
                        status = os.stat(name, dir_fd=fd, follow_symlinks=False)
                        if (status.st_dev, status.st_ino) == self._linked[base]:
                            os.unlink(name, dir_fd=fd)
                    except FileNotFoundError:
                        continue

    def _strike_out(self, doomed: set[bytes]) -> None:
        """Mark the lines of removed messages; compact the file when more than half of its lines are such."""
        try:
            lock = self.take_lock(TEMP, _QUIT_WAIT)
        except StoreError:
            return  # the mail is gone as asked; the next listing finds lines without files and drops them
        try:
            data = popcache_file.read(lock) or b""
            offsets = popcache.line_offsets(data, doomed)
            dead = data.count(b"\n#") + data.startswith(b"#") - (popcache.parse_header(data) is not None) + len(offsets)
            # With a journal there, the popcache is what a crash left, and less than the journal that a rewrite would replace.
            if 2 * dead > data.count(b"\n") and popcache_file.read_journal(self.root) is None:
                left = popcache.parse(data)
                rows = zip(left.names, left.sizes, left.uidls, strict=True)
                kept = (row for row in rows if row[0] not in doomed)
                checked = left.checked == len(left.names)
                popcache_file.rewrite(self.root, lock, kept, popcache.UNPROVEN, self.at, checked=checked)
            else:
                popcache_file.mark_removed(lock, offsets)
            self.at("remove:marked")
        except OSError:
            return  # as above: an old line does no harm
        finally:
            os.close(lock)

    def _trash(self, listing: Listing, indices: Iterable[int]) -> list[int]:
        failed = [i for i in indices if not self._flag(listing, i, b"T", gone=True)]
        self._last = None
        try:
            files.sync(self.cur)
        except OSError as error:
            raise from_os(error, "cur") from None
        return failed

    def mark_seen(self, listing: Listing, indices: Iterable[int]) -> None:
        """Give messages the S flag (``:2,S``), other flags kept. Best effort: one that cannot be renamed stays as it is."""
        if not self.policy.set_seen:
            return
        for i in indices:
            info = listing.infos[i]
            if info is None or not info.startswith(b":2,") or b"S" not in info:
                self._flag(listing, i, b"S", gone=False)

    def _flag(self, listing: Listing, i: int, flag: bytes, *, gone: bool) -> bool:
        """Give a message a flag. False where that could not be; ``gone`` where the message is no more."""
        name = listing.names[listing.check(i)]
        for _ in range(2):  # another program may change flags between the look and the rename
            try:
                info, source = listing.infos[i], self.cur
                if info is not None and info.startswith(IN_NEW):
                    info, source = info[len(IN_NEW) :], self.new
                elif info is None or info == NOWHERE:
                    found = self._find(listing, i)
                    if found is None:
                        return gone
                    source, info = found[0], found[1][len(name) :]
                flagged = maildir_names.with_flag(info, flag)
                if flagged is None:
                    return False
                if source != self.cur:
                    done = files.move_no_replace(source, name + info, self.cur, name + flagged)
                else:
                    done = flagged == info or files.rename_no_replace(self.cur, name + info, name + flagged)
                if done:
                    listing.infos[i] = flagged
                return done
            except FileNotFoundError:
                listing.infos[i] = NOWHERE
            except OSError as error:
                self.why = from_os(error, show(name)).text
                return False
        return False

    def expired(self, listing: Listing, retrieved: Sequence[int]) -> list[int]:
        """Messages that the site keeps no longer (``expire_days``, RFC 2449 section 6.7), to be removed at QUIT.

        ``retrieved``: a byte a message, 1 for yes. A message is as old as its name or its file says, whichever is younger.
        By age none goes while the clock is not believed (expiry.py).
        """
        days = self.policy.expire_days
        if days <= 0:
            return [i for i, yes in enumerate(retrieved) if yes] if not days else []
        now = int(self._clock())
        if not expiry.believed(self.root, now):
            return []
        limit = now - days * 86400
        old: list[int] = []
        for i, name in enumerate(listing.names):
            delivered = maildir_names.number_of(name)
            if delivered is None or delivered < limit or delivered > now + 86400:  # the latter is no time at all
                try:
                    status = self._status(listing, i)
                except OSError:
                    continue
                if status is not None and status.st_mtime < limit:
                    old.append(i)
        return old

    def tidy(self, most: int = 64) -> bool:
        """Move up to ``most`` messages that a listing left in new/ to cur/, first come first. True while there are more.

        Not while a session is open. What cannot be moved, or is being moved by another program, is left to the next listing.
        """
        if not self.untidy:
            self._tidying = None
            return False
        try:
            self._must_hold("cur", "new")
            if self._tidying is None:
                self._tidying = sorted(filter(maildir_names.is_message, files.list_names(self.new)), reverse=True)
            lock = popcache_file.acquire(self.root, 0.0, TEMP)  # not take_lock: nobody waited, so logins need not wait less
        except (OSError, StoreError):
            self._tidying, self.untidy = None, False
            return False
        scan = Scan(self.cur, self.new, self._host, self._random, set())
        try:
            for name in self._tidying[-most:][::-1]:
                scan.take(name)
        finally:
            os.close(lock)
        del self._tidying[-most:]
        self.untidy = bool(self._tidying) and not scan.notes
        if not self.untidy:
            self._tidying = None
        return self.untidy

    # Delivery

    def deliver_begin(self) -> Delivery:
        """Start a message: a new file in tmp/, 0600."""
        return Delivery(self)

    def sweep_tmp(self, older_than: float = 36 * 3600) -> int:
        """Remove what crashed deliveries left in tmp/: regular files older than so many seconds. Returns how many."""
        try:
            self._must_hold("tmp")
            return files.remove_older(self.tmp, self._clock() - older_than)
        except OSError as error:
            raise from_os(error, "tmp") from None
