"""List a maildir by directory descriptors. See maildrop.py.

Each method raises StoreError, never OSError, unless it says otherwise.
"""

from __future__ import annotations

import errno
import os
import time
from typing import TYPE_CHECKING

from popkernel.actors.maildir.store import popcache_file
from popkernel.actors.maildir.store.errors import IN_USE, StoreError, from_os
from popkernel.actors.maildir.store.held_directories import HeldDirectories
from popkernel.actors.maildir.store.listing import IN_NEW, Listing
from popkernel.actors.maildir.store.policy import Policy
from popkernel.actors.maildir.store.reconcile import Match, sizes
from popkernel.actors.maildir.store.scan import Scan, split_names
from popkernel.proto.files import maildir_names, popcache

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Mailbox"]

_HELD = 30.0  # seconds after a vain wait for the lock in which nobody waits for it again
_AS_EVER = Policy()


class Mailbox(HeldDirectories):
    """One maildir, its directories open.

    `clock` gives wall time in seconds, `random` returns that many random octets. `lock_wait`: seconds to try
    for the popcache lock. `hostname` goes into the names of new messages. `policy`: the configuration about
    mail. `fault` is called with the name of each step after which a crash may come (for tests).
    """

    def __init__(
        self,
        path: bytes | str,
        *,
        clock: Callable[[], float] = time.time,
        lock_wait: float = 5.0,
        hostname: bytes | str = b"localhost",
        random: Callable[[int], bytes] = os.urandom,
        policy: Policy = _AS_EVER,
        fault: Callable[[str], None] | None = None,
    ) -> None:
        self.lock_wait = lock_wait
        self.policy = policy
        self._held_until = 0.0
        self._verified: set[bytes] = set()
        self._clock = clock
        self._random = random
        self._fault = fault
        self._host = maildir_names.escape_host(os.fsencode(hostname))
        self._doubtful: set[bytes] = set()
        self.named = 0, 0  # second and number of the last fresh name
        self._linked: dict[bytes, tuple[int, int]] = {}  # messages that had two names at the last scan
        self.untidy = False  # the last scan left mail in new/ for `tidy`
        self._last: Listing | None = None
        self._last_state: tuple[object, ...] = ()
        self._last_made = 0
        # hashes of the names in new/ and cur/ when `_same_messages` last found the maildir unchanged
        self._seen: tuple[int, ...] = ()
        self._looked: tuple[int, tuple[tuple[int, int], ...]] = (0, ())
        self.alive: Callable[[], None] | None = None  # called regularly during a long listing
        self.open(os.fsencode(path))

    def at(self, step: str) -> None:
        """Call the fault hook after a step."""
        if self._fault is not None:
            self._fault(step)

    def forget(self) -> None:
        """Make the next `listing` read the maildir again."""
        self._last = None

    def take_lock(self, code: str, wait: float | None = None) -> int:
        """Take the popcache lock; closing the descriptor releases it.

        StoreError `code` if another program keeps it.

        This process serves a session and deliveries at once, and waiting stops them all. So after one vain
        wait nobody waits again for half a minute.
        """
        wait = self.lock_wait if wait is None else min(wait, self.lock_wait)
        try:
            lock = popcache_file.acquire(
                self.root, 0.0 if time.monotonic() < self._held_until else wait, code
            )
        except StoreError as error:
            if not error.number:
                self._held_until = time.monotonic() + _HELD
            raise
        self._held_until = 0.0
        return lock

    def fresh_name(self) -> bytes:
        """Make a name for a new message: TIME.8HEX.HOSTNAME.

        Within one second the hex digits only rise, and the time never goes back. So messages are numbered in
        the order they came, and the popcache stays in order when a line is appended.
        """
        seconds, number = int(self._clock()), int.from_bytes(self._random(4), "big") >> 1
        if seconds <= self.named[0]:
            seconds, number = self.named[0], self.named[1] + 1 + (number & 0xFFFF)
            if number > 0xFFFFFFFF:
                seconds, number = seconds + 1, number & 0xFFFF
        self.named = seconds, number
        return maildir_names.unique_name(seconds, number, self._host)

    # Listing

    def listing(self) -> Listing:
        """Begin a session: move new/ to cur/ and list all messages.

        StoreError IN-USE if another program has the lock.

        If nothing changed, it returns the last listing, without lock or reading. Otherwise it updates the
        popcache. If that fails (disk full, read-only, another owner), `Listing.notes` says so and the session
        goes on.
        """
        try:
            if self._unchanged() and self._last is not None:
                return self._last
            last, self._last = self._last, None
            return self._list_again(last)
        except OSError as error:
            raise from_os(error, "maildir") from None

    def settle(self) -> None:
        """Check the maildir after this process moved mail, so that the next `listing` need not.

        To be called two seconds after the last move, when no client waits.
        """
        try:
            if self._last is not None and not self._unchanged():
                self._last = None
        except (OSError, StoreError):
            self._last = None

    def _unchanged(self) -> bool:
        """Return whether the last listing is still right. Raises OSError."""
        cur, new = self.refresh("cur", "new")
        last = self._last
        if last is None or self._last_state[2] != self._popcache_state():
            return False
        if popcache.settled(self._last_made, cur[1:], new[1:]) and self._last_state[:2] == (cur, new):
            return True
        made = int(self._clock() * 1e9)
        if not self._same_messages(last):
            return False
        self._last_made, self._last_state = made, (cur, new, self._last_state[2])
        return True

    def _same_messages(self, last: Listing) -> bool:
        """Return whether exactly the messages listed last are there, wherever they lie now.

        Messages that were only moved or flagged need not be matched with the popcache again.
        """
        texts = "/".join(os.listdir(self.new)), "/".join(os.listdir(self.cur))
        seen = hash(texts[0]), hash(texts[1])
        if seen == self._seen:
            return True
        in_new, in_cur = (os.fsencode(text).split(b"/") if text else [] for text in texts)
        if len(in_new) + len(in_cur) != last.count or self.policy.hide_trashed:
            return False
        present = dict.fromkeys(in_new, IN_NEW) | dict(zip(*split_names(in_cur), strict=True))
        infos: list[bytes | None] = list(map(present.get, last.names))
        if len(present) != last.count or None in infos:
            return False
        table: dict[bytes | None, bytes | None] = {}
        last.infos = list(map(table.setdefault, infos, infos))
        self.untidy = bool(in_new)
        self._seen = seen
        return True

    def _list_again(self, last: Listing | None) -> Listing:
        """List the maildir.

        `last`: the last listing, which gives the UIDLs if the popcache can't be read.
        """
        why, self._seen = "", ()
        try:
            lock = self.take_lock(IN_USE)
        except StoreError as error:
            if error.number not in popcache_file.UNUSABLE:
                raise
            why, lock = error.text, popcache_file.acquire_to_read(self.root, self.lock_wait, IN_USE)
        try:
            return self._list(lock, why, last)
        finally:
            if lock >= 0:
                os.close(lock)

    def _replaced_parts(self) -> None:
        self._last, self._linked, self._looked = None, {}, (0, ())
        self._verified.clear()

    def _popcache_state(self) -> tuple[int, ...]:
        try:
            status = os.stat(popcache_file.NAME, dir_fd=self.root, follow_symlinks=False)
        except FileNotFoundError:
            return ()
        return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns

    def _load(self, lock: int, why: str, last: Listing | None) -> tuple[popcache.Cache, str]:
        """Return the popcache, and why it can't be written ("": it can).

        One that can't be read is left as it is: it may be sound.
        """
        try:
            if lock >= 0:
                return popcache_file.load(lock), why
        except OSError as error:
            why = from_os(error, "popcache").text
        cache = popcache.Cache()
        if last is not None:
            cache.names, cache.sizes, cache.uidls, cache.uidl_set = (
                [*last.names],
                last.sizes[:],
                [*last.uidls],
                set(last.uidls),
            )
        return cache, f"{why}; UIDLs that only the popcache has are not known"

    def _list(self, lock: int, why: str, last: Listing | None) -> Listing:
        made = int(self._clock() * 1e9)
        cur, new = self.refresh("cur", "new")
        cache, why = self._load(lock, why, last)
        header, count = cache.header, len(cache.names)
        sound = header is not None and cache.ordered and not cache.refused and not self._doubtful
        # Only the directory shows which messages have the flag T.
        if (
            sound
            and header is not None
            and not self.policy.hide_trashed
            and header.proves(cur[1:], new[1:], count)
        ):
            listing, clean = Listing(cache.names, cache.sizes, cache.uidls, [None] * count), True
        else:
            listing, clean = self._scan(lock, cache, popcache.Header(made, cur[1:], new[1:], 0), why)
            if self.policy.hide_trashed:
                listing = listing.untrashed()
        if clean and (lock < 0 or popcache_file.is_current(lock, self.root)):
            self._last, self._last_made = listing, made
            self._last_state = cur, new, self._popcache_state()
        return listing

    def _scan(
        self, lock: int, cache: popcache.Cache, seen: popcache.Header, why: str
    ) -> tuple[Listing, bool]:
        """Read the directories and update the popcache. Returns the listing, and whether it may be reused.

        `why`: why the popcache can't be written ("": it can). If it can't, the journal is not read either,
        for only a rewrite would replace it.
        """
        journal = None
        if not why:
            try:
                journal = popcache_file.read_journal(self.root)
            except OSError as error:
                if error.errno != errno.EIO:
                    raise
                why = f"{os.fsdecode(popcache_file.JOURNAL)}: {os.strerror(errno.EIO)}"
        header, removed = cache.header, cache.removed
        scan = Scan(self.cur, self.new, self._host, self._random, self._doubtful)
        scan.alive, scan.now = self.alive, seen.made
        scan.known = lambda: sizes(cache, journal)
        scan.unchecked = frozenset(cache.names[cache.checked :])
        scan.read(self.at)
        match = Match(cache, scan, journal)
        self._linked = scan.linked
        self.untidy = scan.left
        self._doubtful = set()
        listing = match.listing
        seen.count = listing.count
        provable = scan.clean and match.fit and popcache.settled(seen.made, seen.cur, seen.new)
        dead = removed + len(match.gone)
        if why:
            listing.notes += (f"popcache: not brought up to date: {why.removeprefix('popcache: ')}",)
            return listing, scan.clean
        if cache.given_up:
            listing.notes += (f"popcache: not believed, and made anew: {cache.given_up}",)
        try:
            checked = not scan.unreadable
            if (
                match.whole
                or 2 * dead > dead + listing.count
                or (header is None and (provable or match.added[0]))
            ):
                rows = zip(listing.names, listing.sizes, listing.uidls, strict=True)
                proof = seen if provable else popcache.UNPROVEN
                popcache_file.rewrite(
                    self.root, lock, rows, proof, self.at, checked=checked, plain=match.plain, fit=match.fit
                )
            else:
                self._update(lock, match)
                seen.checked = os.fstat(lock).st_size if checked else 0
                if header is not None and provable and not header.proves(seen.cur, seen.new, seen.count):
                    popcache_file.write_header(lock, seen)
                elif header is not None and header.checked != seen.checked:
                    header.checked = seen.checked
                    popcache_file.write_header(lock, header)
            if journal is not None:
                popcache_file.drop_journal(self.root)
        except OSError as error:
            listing.notes += (f"popcache: not brought up to date: {os.strerror(error.errno or 0)}",)
            return listing, False
        return listing, scan.clean

    def _update(self, lock: int, match: Match) -> None:
        if match.gone:
            popcache_file.mark_removed(
                lock, popcache.line_offsets(popcache_file.read(lock) or b"", match.gone)
            )
            self.at("listing:marked")
        if match.added[0]:
            popcache_file.append(lock, popcache.format_lines(zip(*match.added, strict=True)))
            self.at("listing:appended")
