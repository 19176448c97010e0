"""A maildir that is listed, over plain descriptors. See maildrop.py.

Raises StoreError from every method; OSError never leaves this room.
"""

from __future__ import annotations

import errno
import os
import time
from typing import TYPE_CHECKING

from popkernel.actors.maildir.store import popcache_file
from popkernel.actors.maildir.store.errors import IN_USE, StoreError, from_os
from popkernel.actors.maildir.store.held_directories import Held
from popkernel.actors.maildir.store.listing import IN_NEW, Listing
from popkernel.actors.maildir.store.policy import Policy
from popkernel.actors.maildir.store.reconcile import Match, sizes
from popkernel.actors.maildir.store.scan import Scan, split_names
from popkernel.proto.files import maildir_names, popcache

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Mailbox"]

_HELD = 30.0  # seconds from a wait for the lock in vain, in which nobody waits for it again
_AS_EVER = Policy()


class Mailbox(Held):
    """One maildir, its directories held open.

    ``clock`` gives wall time in seconds, ``random`` n random octets; ``lock_wait`` is how many seconds to try for the
    popcache lock; ``hostname`` goes into the names of new messages; ``policy`` says what the site wants done
    with mail; ``fault`` is told the name of each step that a crash
    could come after (for tests).
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
        self.named = 0, 0  # the last fresh name's second and number
        self._linked: dict[bytes, tuple[int, int]] = {}  # messages that had two names at the last scan
        self.untidy = False  # whether the last scan left mail in new/: there is something for `tidy`
        self._last: Listing | None = None
        self._last_state: tuple[object, ...] = ()
        self._last_made = 0
        self._seen: tuple[int, ...] = ()  # of what `_still` found to be what was listed last: the hashes of new/ and cur/ as they are read
        self._looked: tuple[int, tuple[tuple[int, int], ...]] = (0, ())
        self.alive: Callable[[], None] | None = None  # called now and then while a listing takes its time
        self.open(os.fsencode(path))

    def at(self, step: str) -> None:
        """Tell the fault hook which step has just been taken."""
        if self._fault is not None:
            self._fault(step)

    def forget(self) -> None:
        """Let the next ``listing`` read the maildir anew."""
        self._last = None

    def take_lock(self, code: str, wait: float | None = None) -> int:
        """Take the popcache lock; closing the descriptor gives it back. StoreError ``code`` where another program keeps it.

        This process serves a session and deliveries at once, and waiting stops it all: so after one wait in vain, nobody waits
        again for half a minute.
        """
        wait = self.lock_wait if wait is None else min(wait, self.lock_wait)
        try:
            lock = popcache_file.acquire(self.root, 0.0 if time.monotonic() < self._held_until else wait, code)
        except StoreError as error:
            if not error.number:
                self._held_until = time.monotonic() + _HELD
            raise
        self._held_until = 0.0
        return lock

    def fresh_name(self) -> bytes:
        """Make a name for a new message: TIME.8HEX.HOSTNAME.

        Within one second the hex digits only rise, and the time never goes back: so messages are numbered as they came,
        and the popcache stays in order by appending to it.
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
        """Start a session: move new/ to cur/ and say what there is. StoreError IN-USE when another program has the lock.

        An unchanged maildrop gives the listing of last time, without a lock and without reading. The popcache is brought
        up to date where it was not; when that fails (disk full, read-only, not ours), ``Listing.notes`` says so and the session goes on.
        """
        try:
            if self._as_before() and self._last is not None:
                return self._last
            last, self._last = self._last, None
            return self._list_anew(last)
        except OSError as error:
            raise from_os(error, "maildir") from None

    def settle(self) -> None:
        """Look at what this process itself has moved, so that the next ``listing`` need not: two seconds after that, when nobody waits."""
        try:
            if self._last is not None and not self._as_before():
                self._last = None
        except (OSError, StoreError):
            self._last = None

    def _as_before(self) -> bool:
        """Whether what was listed last is what there is now. Raises OSError."""
        cur, new = self.look("cur", "new")
        last = self._last
        if last is None or self._last_state[2] != self._popcache_state():
            return False
        if popcache.settled(self._last_made, cur[1:], new[1:]) and self._last_state[:2] == (cur, new):
            return True
        made = int(self._clock() * 1e9)
        if not self._still(last):
            return False
        self._last_made, self._last_state = made, (cur, new, self._last_state[2])
        return True

    def _still(self, last: Listing) -> bool:
        """Whether there are just the messages listed last, wherever they lie by now: what was only moved or flagged need not be matched."""
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

    def _list_anew(self, last: Listing | None) -> Listing:
        """``last``: what was listed last, which is all that is known where the popcache can't be read."""
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
        """What the popcache says and why it can't be written to. Of one that can't be read it stays as it is: it may be good."""
        try:
            if lock >= 0:
                return popcache_file.load(lock), why
        except OSError as error:
            why = from_os(error, "popcache").text
        cache = popcache.Cache()
        if last is not None:
            cache.names, cache.sizes, cache.uidls, cache.uidl_set = [*last.names], last.sizes[:], [*last.uidls], set(last.uidls)
        return cache, f"{why}; UIDLs that only it knows are not known"

    def _list(self, lock: int, why: str, last: Listing | None) -> Listing:
        made = int(self._clock() * 1e9)
        cur, new = self.look("cur", "new")
        cache, why = self._load(lock, why, last)
        header, count = cache.header, len(cache.names)
        sound = header is not None and cache.ordered and not cache.refused and not self._doubtful
        # What is trashed only the directory says.
        if sound and header is not None and not self.policy.hide_trashed and header.proves(cur[1:], new[1:], count):
            listing, clean = Listing(cache.names, cache.sizes, cache.uidls, [None] * count), True
        else:
            listing, clean = self._scan(lock, cache, popcache.Header(made, cur[1:], new[1:], 0), why)
            if self.policy.hide_trashed:
                listing = listing.untrashed()
        if clean and (lock < 0 or popcache_file.is_current(lock, self.root)):
            self._last, self._last_made = listing, made
            self._last_state = cur, new, self._popcache_state()
        return listing

    def _scan(self, lock: int, cache: popcache.Cache, seen: popcache.Header, why: str) -> tuple[Listing, bool]:
        """Read the directories, write back what the popcache lacked. With it: may this listing be used again.

        ``why``: nothing is to be written, for that reason; then the journal, which a rewrite would replace, is not looked at either.
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
            if match.whole or 2 * dead > dead + listing.count or (header is None and (provable or match.added[0])):
                rows = zip(listing.names, listing.sizes, listing.uidls, strict=True)
                proof = seen if provable else popcache.UNPROVEN
                popcache_file.rewrite(self.root, lock, rows, proof, self.at, checked=checked, plain=match.plain, fit=match.fit)
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
            popcache_file.mark_removed(lock, popcache.line_offsets(popcache_file.read(lock) or b"", match.gone))
            self.at("listing:marked")
        if match.added[0]:
            popcache_file.append(lock, popcache.format_lines(zip(*match.added, strict=True)))
            self.at("listing:appended")
