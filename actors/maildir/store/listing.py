"""Hold one session's view of a maildrop: numbers, sizes and UIDLs that stay the same throughout."""

from __future__ import annotations

from array import array

from popkernel.proto.files.maildir_names import is_trashed

# hashlib loads OpenSSL into every actor: 3 MB and two milliseconds more
try:
    from _sha2 import sha256  # type: ignore[import-not-found, unused-ignore]  # CPython 3.12 and newer
except ImportError:
    try:
        from _sha256 import sha256  # type: ignore[import-not-found, unused-ignore]  # CPython 3.11
    except ImportError:
        from hashlib import sha256


def uidl_of(name: bytes) -> bytes:
    """Return the default UIDL of a message: lower-case hex SHA-256 of its canonical name."""
    digest: str = sha256(name).hexdigest()
    return digest.encode()


# An info that no file can have: the message is in new/, under its bare name and what follows this.
IN_NEW = b"/new"


class Listing:
    """The messages of a maildrop at one moment, in message order; indices are 0-based.

    `count` messages; `octets` in total, as POP3 sends them. `notes`: failures with single files (name and
    reason), for the log. `infos` belongs to the store. It holds what follows the canonical name in cur/ now
    (`:2,S`), or `IN_NEW` and what follows it in new/, or None if unknown.
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
        """Return the octets of message `i`, as LIST gives them."""
        return self.sizes[self.check(i)]

    def uidl(self, i: int) -> bytes:
        """Return the UIDL of message `i`: 1 to 70 octets of 0x21 to 0x7E (RFC 1939 section 7)."""
        return self.uidls[self.check(i)]

    def name(self, i: int) -> bytes:
        """Return the canonical file name of message `i`."""
        return self.names[self.check(i)]

    def check(self, i: int) -> int:
        """Return `i`.

        Raises IndexError if it is negative, which Python would take for an index from the end.
        """
        if i < 0:
            raise IndexError("message index below 0")
        return i

    def correct(self, i: int, octets: int) -> None:
        """Correct the size of message `i`: its file name stated a wrong one."""
        self.octets += octets - self.sizes[self.check(i)]
        self.sizes[i] = octets

    def untrashed(self) -> Listing:
        """Return the listing without messages that have the flag T; all infos must be known."""
        keep = [i for i, info in enumerate(self.infos) if info is None or not is_trashed(info)]
        if len(keep) == self.count:
            return self
        names, uidls, infos = (
            [self.names[i] for i in keep],
            [self.uidls[i] for i in keep],
            [self.infos[i] for i in keep],
        )
        return Listing(names, array("Q", [self.sizes[i] for i in keep]), uidls, infos, self.notes)

    def first(self, count: int) -> Listing:
        """Return the listing of the first `count` messages, with which a parked session goes on."""
        if count == self.count:
            return self
        return Listing(self.names[:count], self.sizes[:count], self.uidls[:count], self.infos[:count])

    def digest(self) -> bytes:
        """Return the SHA-256 of all canonical names in order. Equal digests mean equal message numbers."""
        if self._digest is None:
            # No file name contains NUL, so different lists give different texts.
            self._digest = sha256(b"\0".join(self.names)).digest()
        return self._digest
