"""The directories that a maildir actor holds, compared with what the path names now.

Descriptors outlive names. Somebody may move a maildir, or a directory of it, and put another in its place; mount a file system over it;
point a link elsewhere. What is done with a descriptor then happens where nobody looks. So it is compared (device and inode) before it is
relied on: at a session's and a delivery's begin, before a message is confirmed, before mail is removed.
"""

from __future__ import annotations

import os

from popkernel.actors.maildir.store import files
from popkernel.actors.maildir.store.errors import MovedError

__all__ = ["Held"]

_Id = tuple[int, int]  # device and inode
_Stamp = tuple[_Id, int, int]  # of a directory: which, mtime_ns, ctime_ns
_look_at = os.stat  # of a whole path; tests that count calls mean those on what is in the maildir


class Held:
    """``root``, ``cur``, ``new`` and ``tmp`` are a maildir's descriptors. ``proven``: they were once found to be what the path names."""

    root = cur = new = tmp = -1
    proven = False

    def open(self, path: bytes) -> None:
        """Open all; StoreError where that can't be, and none is open then."""
        self._path = path
        self._held: dict[str, _Id] = {}
        self.root = files.open_root(path)
        try:
            self._root_id = files.identity(os.fstat(self.root))
            self._hold("cur", "new", "tmp")
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the descriptors; the maildrop is of no use afterwards."""
        for fd in (self.cur, self.new, self.tmp, self.root):
            if fd >= 0:
                os.close(fd)
        self.cur = self.new = self.tmp = self.root = -1

    def _hold(self, *parts: str) -> None:
        """Open these directories in the place of those held: all, or StoreError and what was held stays."""
        opened: dict[str, int] = {}
        held: dict[str, _Id] = {}
        try:
            for part in parts:
                opened[part] = files.open_part(self.root, part.encode())
                held[part] = files.identity(os.fstat(opened[part]))
        except BaseException:
            for fd in opened.values():
                os.close(fd)
            raise
        self._held |= held
        for part, fd in opened.items():
            before = getattr(self, part)
            setattr(self, part, fd)
            if before >= 0:
                os.close(before)

    def moved(self) -> bool:
        """Whether the path leads to another maildir than this one, or to none: the one held is no longer the user's."""
        try:
            return files.identity(_look_at(self._path)) != self._root_id
        except OSError:
            return True

    def _replaced(self, part: str) -> os.stat_result | None:
        """None where another directory than the one held has that name, or none has; else what it looks like."""
        try:
            status = os.stat(part, dir_fd=self.root, follow_symlinks=False)
        except FileNotFoundError:
            return None
        return status if files.identity(status) == self._held[part] else None

    def holds(self, *parts: str) -> bool:
        """Whether these directories of the maildir are still those that are held. Raises OSError."""
        return None not in map(self._replaced, parts)

    def look(self, *parts: str) -> list[_Stamp]:
        """What these directories look like now; those replaced by others are opened anew. MovedError where the maildir itself was.

        A mount over a directory and a link that is pointed elsewhere are replacements too. Raises OSError.
        """
        if self.moved():
            raise MovedError
        found = list(map(self._replaced, parts))
        if None in found:
            self._replaced_parts()
            self._hold(*(part for part, status in zip(parts, found, strict=True) if status is None))
        self.proven = True
        stamps = []
        for part, seen in zip(parts, found, strict=True):
            status = seen or os.fstat(getattr(self, part))
            stamps.append((files.identity(status), status.st_mtime_ns, status.st_ctime_ns))
        return stamps

    def _replaced_parts(self) -> None:
        """What was known of directories that are there no more is to be forgotten."""
