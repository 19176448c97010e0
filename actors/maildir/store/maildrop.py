"""Provide a user's maildrop over directory descriptors, for one single-threaded process.

Each path is relative to the descriptors of the maildir, cur, new and tmp, so it works in a process that can
open that one directory and nothing else. This module has the operations that change the maildrop: the end of
a session, and deliveries. `held_directories.py` keeps the directories open, `mailbox.py` lists, `reading.py`
reads, `listing.py` is a session's view, `scan.py` reads the directories, `popcache_file.py` is the popcache
under its lock, `delivery.py` writes new mail, `files.py` has single directory operations.

Each method raises StoreError, never OSError.
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

__all__ = ["Maildrop"]

_QUIT_WAIT = 0.5  # seconds that QUIT waits for the popcache lock: without it, the next listing does the work


class Maildrop(Reading):
    """Add QUIT, expiry and deliveries to a mailbox."""

    quota: Quota | None = None  # removals are noted in it
    why = ""  # why a message could not be removed, for the log
    _tidying: list[bytes] | None = None  # names in new/ still to be moved, in reverse order

    # The end of a session

    def remove(self, listing: Listing, indices: Iterable[int]) -> list[int]:
        """Remove messages for good (QUIT, RFC 1939 section 6).

        Returns the indices that could not be removed; a message already gone counts as removed.

        First the files, synced, then their popcache lines: a crash in between leaves lines without message,
        which the next listing drops. The other order would leave messages that lost their UIDL. If the
        configuration keeps deleted mail, the files get the flag T instead.
        """
        self._must_hold("cur", "new")
        if self.policy.trash:
            return self._trash(listing, indices)
        failed: list[int] = []
        removed: set[bytes] = set()
        touched: set[int] = set()
        freed = 0
        count = self.quota is not None and self.quota.kept
        for i in indices:
            try:
                freed += self._file_size(listing, i) if count else 0
                touched.add(self._unlink(listing, i))
                removed.add(listing.names[i])
            except OSError as error:
                failed.append(i)
                self.why = from_os(error, show(listing.names[i])).text
            if self.alive is not None:
                self.alive()
            self.at("remove:unlinked")
        if self.quota is not None and count and removed:
            self.quota.add(-freed, -len(removed))
        if removed:
            self._last = None
            try:
                for part in touched:
                    files.sync(part)
            except OSError as error:
                raise from_os(error, "cur or new") from None
            self.at("remove:synced")
            self._mark_lines(removed)
        return failed

    def _must_hold(self, *parts: str) -> None:
        """Raise StoreError if the maildir was replaced.

        The one held may be somebody's copy then, and the client would see the removed mail again.
        """
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
        """Unlink a message. Returns the descriptor of its directory, of cur/ if it was gone already."""
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
        """Unlink both names of a message whose second name is too young to be resolved.

        Else the message would be back at the next listing.
        """
        for fd in (self.cur, self.new):
            for name in files.list_names(fd):
                if maildir_names.canonical(name) == base:
                    try:
                        status = os.stat(name, dir_fd=fd, follow_symlinks=False)
                        if (status.st_dev, status.st_ino) == self._linked[base]:
                            os.unlink(name, dir_fd=fd)
                    except FileNotFoundError:
                        continue

    def _mark_lines(self, removed: set[bytes]) -> None:
        """Mark the lines of removed messages; compact the file if more than half of its lines are marked."""
        try:
            lock = self.take_lock(TEMP, _QUIT_WAIT)
        except StoreError:
            return  # the mail is removed; the next listing drops lines without files
        try:
            data = popcache_file.read(lock) or b""
            offsets = popcache.line_offsets(data, removed)
            dead = (
                data.count(b"\n#")
                + data.startswith(b"#")
                - (popcache.parse_header(data) is not None)
                + len(offsets)
            )
            # If there is a journal, a crash left the popcache incomplete, and a rewrite would replace the
            # journal, which has more.
            if 2 * dead > data.count(b"\n") and popcache_file.read_journal(self.root) is None:
                left = popcache.parse(data)
                rows = zip(left.names, left.sizes, left.uidls, strict=True)
                kept = (row for row in rows if row[0] not in removed)
                checked = left.checked == len(left.names)
                popcache_file.rewrite(self.root, lock, kept, popcache.UNPROVEN, self.at, checked=checked)
            else:
                popcache_file.mark_removed(lock, offsets)
            self.at("remove:marked")
        except OSError:
            return  # as above: a line without file does no harm
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
        """Set the flag S (`:2,S`), other flags kept.

        Best effort: a message that cannot be renamed stays as it is.
        """
        if not self.policy.set_seen:
            return
        for i in indices:
            info = listing.infos[i]
            if info is None or not info.startswith(b":2,") or b"S" not in info:
                self._flag(listing, i, b"S", gone=False)

    def _flag(self, listing: Listing, i: int, flag: bytes, *, gone: bool) -> bool:
        """Set a flag. Returns False if that failed, and `gone` if the message no longer exists."""
        name = listing.names[listing.check(i)]
        for _ in range(2):  # another program may change flags between stat and rename
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
        """Return the messages to be removed at QUIT by age (`expire_days`, RFC 2449 section 6.7).

        `retrieved`: one byte for each message, 1 for yes. The age is by the time in the name or the file's
        mtime, whichever is younger. None is removed by age while the clock can't be trusted (expiry.py).
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
            # a time in the future is no time
            if delivered is None or delivered < limit or delivered > now + 86400:
                try:
                    status = self._status(listing, i)
                except OSError:
                    continue
                if status is not None and status.st_mtime < limit:
                    old.append(i)
        return old

    def tidy(self, most: int = 64) -> bool:
        """Move up to `most` messages that a listing left in new/ to cur/, oldest first.

        Returns whether there are more.

        Not while a session is open. A message that cannot be moved, or that another program is moving, is
        left to the next listing.
        """
        if not self.untidy:
            self._tidying = None
            return False
        try:
            self._must_hold("cur", "new")
            if self._tidying is None:
                self._tidying = sorted(
                    filter(maildir_names.is_message, files.list_names(self.new)), reverse=True
                )
            # not take_lock: a vain try here must not shorten the wait of logins
            lock = popcache_file.acquire(self.root, 0.0, TEMP)
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
        """Begin a delivery: a new file in tmp/, mode 0600."""
        return Delivery(self)

    def sweep_tmp(self, older_than: float = 36 * 3600) -> int:
        """Remove files that crashed deliveries left in tmp/: regular files older than so many seconds.

        Returns how many.
        """
        try:
            self._must_hold("tmp")
            return files.remove_older(self.tmp, self._clock() - older_than)
        except OSError as error:
            raise from_os(error, "tmp") from None
