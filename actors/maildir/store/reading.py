"""Read one message of a mailbox: find it wherever it is now, and measure it before it is sent.

See maildrop.py.
"""

from __future__ import annotations

import os
from stat import S_ISREG
from typing import TYPE_CHECKING

from popkernel.actors.maildir.store import files
from popkernel.actors.maildir.store.errors import CHANGED, GONE, TEMP, UNREADABLE, StoreError, from_os, show
from popkernel.actors.maildir.store.listing import IN_NEW, Listing
from popkernel.actors.maildir.store.mailbox import Mailbox
from popkernel.actors.maildir.store.scan import places
from popkernel.proto.files import maildir_names, popcache
from popkernel.proto.pop3.octets import encode

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["NOWHERE", "Reading"]

NOWHERE = b"/"  # an info that no file can have: the message was not found
_GUESSES = (b":2,", b":2,S", b"")


class Reading(Mailbox):
    """Add reading to a mailbox."""

    def _candidates(self, listing: Listing, i: int) -> Iterable[tuple[int, bytes]]:
        """Return where the message may be (directory, file name), the likeliest place first."""
        info = listing.infos[listing.check(i)]
        name = listing.names[i]
        if info is None:
            return [(self.cur, name + guess) for guess in _GUESSES]
        return [
            (self.new, name + info[len(IN_NEW) :]) if info.startswith(IN_NEW) else (self.cur, name + info)
        ]

    def _find(self, listing: Listing, i: int) -> tuple[int, bytes] | None:
        """Find a message whose flags changed or that was put back into new/; None if it is gone.

        Returns directory and file name.
        """
        before = files.stamps(self.cur), files.stamps(self.new)
        made, looked = self._looked
        if listing.infos[i] != NOWHERE or looked != before or not popcache.settled(made, *before):
            self._looked = int(self._clock() * 1e9), before
            present = places(self.cur, self.new)
            if listing.names[i] not in present:
                # a reading may miss a name that is being changed
                present |= places(self.cur, self.new)
            listing.infos = [present.get(name, NOWHERE) for name in listing.names]
        name, info = listing.names[i], listing.infos[i]
        if info is not None and info != NOWHERE:
            return (
                (self.new, name + info[len(IN_NEW) :]) if info.startswith(IN_NEW) else (self.cur, name + info)
            )
        for there in files.list_names(self.new):
            if maildir_names.canonical(there) == name:
                return self.new, there
        return None

    def open_message(self, listing: Listing, i: int) -> int:
        """Open message `i` for reading and return its descriptor, whatever flags the message has now.

        StoreError SYS/TEMP "message gone" if another program removed it, SYS/PERM if it cannot be read. Its
        wire form must have `listing.size(i)` octets; if it does not, the caller must fail and call
        `distrust`.
        """
        try:
            fd = self._open(listing, i)
            if S_ISREG(os.fstat(fd).st_mode):
                return fd
            os.close(fd)
        except OSError as error:
            self.distrust(listing, i)
            raise from_os(error, f"cur/{show(listing.names[i])}", UNREADABLE) from None
        self.distrust(listing, i)
        raise StoreError(
            TEMP, f"message gone: cur/{show(listing.names[i])} is no regular file any more", said=GONE
        )

    def _open(self, listing: Listing, i: int) -> int:
        for part, name in self._candidates(listing, i):
            try:
                fd = os.open(name, files.READ, dir_fd=part)
            except FileNotFoundError:
                continue
            if listing.infos[i] is None:
                listing.infos[i] = name[len(listing.names[i]) :]
            return fd
        found = self._find(listing, i)
        if found is not None:
            try:
                return os.open(found[1], files.READ, dir_fd=found[0])
            except FileNotFoundError:
                found = None
        raise StoreError(
            TEMP, f"message gone: {show(listing.names[i])} was removed by another program", said=GONE
        )

    def read_wire(self, listing: Listing, i: int, limit: int) -> bytes | None:
        """Return message `i` in wire form (proto/pop3/octets.py); None if its `size` is above `limit`.

        The limit is in octets as POP3 counts them. What is returned has `listing.size(i)` octets; else it
        raises StoreError "message changed".
        """
        info, size = listing.infos[listing.check(i)], listing.sizes[i]
        # the usual case; anything unusual takes the long way below, which handles it
        if info is not None and size <= limit:
            try:
                part, name = (
                    (self.new, listing.names[i]) if info == IN_NEW else (self.cur, listing.names[i] + info)
                )
                fd = os.open(name, files.READ, dir_fd=part)
                try:
                    wire, octets = encode(os.read(fd, size + 1))
                finally:
                    os.close(fd)
                if octets == size:
                    return wire
            except OSError:
                pass
        size = listing.size(i)
        if size > limit:
            return None
        # one read gives all of a regular file, but for signals and network file systems
        for whole in (False, True):
            out, octets = encode(self._read(listing, i, size + 1, whole=whole))
            if octets == size:
                return out
        self.distrust(listing, i)
        raise StoreError(
            TEMP,
            f"message changed: {show(listing.names[i])} is not the size it was listed with",
            said=CHANGED,
        )

    def _read(self, listing: Listing, i: int, most: int, *, whole: bool) -> bytes:
        try:
            fd = self._open(listing, i)
            try:
                data = os.read(fd, most)
                while whole and len(data) < most and (more := os.read(fd, most - len(data))):
                    data += more
                return data
            finally:
                os.close(fd)
        except OSError as error:
            self.distrust(listing, i)
            raise from_os(error, f"cur/{show(listing.names[i])}", UNREADABLE) from None

    def _doubts(self, listing: Listing, i: int) -> bool:
        """Return whether the size listed for message `i` may only come from its name."""
        claimed = maildir_names.claimed_sizes(listing.names[i])
        return (
            claimed is not None and claimed[1] == listing.sizes[i] and listing.names[i] not in self._verified
        )

    def verify(self, listing: Listing, i: int) -> None:
        """Measure a large message before it is sent, if its size only comes from its name, and correct it.

        StoreError as `open_message`.
        """
        if not self._doubts(listing, i):
            return
        fd = self.open_message(listing, i)
        try:
            octets = files.count(fd)
        except OSError as error:
            self.distrust(listing, i)
            raise from_os(error, f"cur/{show(listing.names[i])}", UNREADABLE) from None
        finally:
            os.close(fd)
        self._verified.add(listing.names[i])
        if octets != listing.sizes[i]:
            listing.correct(i, octets)
            self.distrust(listing, i)

    def distrust(self, listing: Listing, i: int) -> None:
        """Mark message `i` as different from the popcache.

        The next `listing` measures it and corrects its line.
        """
        self._doubtful.add(listing.name(i))
        self._last = None
