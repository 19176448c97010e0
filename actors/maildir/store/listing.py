"""One session's view of a maildrop: numbers, sizes and UIDLs that do not move while the session lasts."""

from __future__ import annotations

from array import array

from popkernel.proto.files.maildir_names import is_trashed

try:  # the bare module is 3 MB and two milliseconds lighter than hashlib, which brings OpenSSL into every actor
    from _sha2 import sha256  # type: ignore[import-not-found, unused-ignore]  # CPython 3.12 and newer
except ImportError:
    try:
        from _sha256 import sha256  # type: ignore[import-not-found, unused-ignore]  # CPython 3.11
    except ImportError:
        from hashlib import sha256


def uidl_of(name: bytes) -> bytes:
    """Give the UIDL of a message nobody gave another: lower-case hex SHA-256 of its canonical name."""
    digest: str = sha256(name).hexdigest()
    return digest.encode()


IN_NEW = b"/new"  # an info no file can have: the message lies in new/, under its bare name, or one with what stands behind this


class Listing:
    """The messages of a maildrop at one moment, in message order; indices are 0-based.

    ``count`` messages, ``octets`` all together as POP3 sends them. ``notes``: what went wrong with single
    files (name and reason: not readable, not movable), for the log. ``infos`` belongs to the store: what follows the canonical
    name in cur/ now (``:2,S``), ``IN_NEW`` and what follows it in new/, None where nobody has looked yet.
    """

    __slots__ = ("_digest", "count", "infos", "names", "notes", "octets", "sizes", "uidls")

    def __init__(
        self,
        names: list[bytes],
        sizes: array[int],
        uidls: list[bytes],
        infos: list[bytes | None],
        notes: tuple[str, ...] = (),
    ) -> None:
        self.names = names
        self.sizes = sizes
        self.uidls = uidls
        self.infos = infos
        self.notes = notes
        self.count = len(names)
        self.octets = sum(sizes)
        self._digest: bytes | None = None

    def size(self, i: int) -> int:
        """Octets of message ``i`` as LIST says them."""
        return self.sizes[self.check(i)]

    def uidl(self, i: int) -> bytes:
        """Give the UIDL of message ``i``: 1 to 70 octets of 0x21 to 0x7E."""
        return self.uidls[self.check(i)]

    def name(self, i: int) -> bytes:
        """Canonical file name of message ``i``."""
        return self.names[self.check(i)]

    def check(self, i: int) -> int:
        """Give ``i`` back. Raises IndexError for a negative one, which Python would take for the last message."""
        if i < 0:
            raise IndexError("message index below 0")
        return i

    def correct(self, i: int, octets: int) -> None:
        """Message ``i`` has another size than was listed: what its name said of it was wrong."""
        self.octets += octets - self.sizes[self.check(i)]
        self.sizes[i] = octets

    def untrashed(self) -> Listing:
        """The messages without the flag T; all infos must be known."""
        keep = [i for i, info in enumerate(self.infos) if info is None or not is_trashed(info)]
        if len(keep) == self.count:
            return self
        names, uidls, infos = [self.names[i] for i in keep], [self.uidls[i] for i in keep], [self.infos[i] for i in keep]
        return Listing(names, array("Q", [self.sizes[i] for i in keep]), uidls, infos, self.notes)

    def first(self, count: int) -> Listing:
        """The listing of its first so many messages: what a session that began with them goes on with."""
        if count == self.count:
            return self
        return Listing(self.names[:count], self.sizes[:count], self.uidls[:count], self.infos[:count])

    def digest(self) -> bytes:
        """SHA-256 over the canonical names in order: two listings with one digest number the same messages alike."""
        if self._digest is None:
            # NUL is the one octet besides / that no name holds, so no two lists of names look the same.
            self._digest = sha256(b"\0".join(self.names)).digest()
        return self._digest
