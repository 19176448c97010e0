"""Keep a maildir's directories open, and compare them with the path.

Descriptors outlive names. Somebody may replace a maildir or one of its directories, mount a file system over
it, or point a link elsewhere. Changes through a descriptor then happen where nobody sees them. So device and
inode are compared before a descriptor is relied on: when a session or a delivery begins, before a message is
confirmed, and before mail is removed.
"""

from __future__ import annotations

import os

from popkernel.actors.maildir.store import files
from popkernel.actors.maildir.store.errors import MovedError

__all__ = ["HeldDirectories"]

_Id = tuple[int, int]  # device and inode
_Stamp = tuple[_Id, int, int]  # of a directory: identity, mtime_ns, ctime_ns
_stat_path = os.stat  # stat of the maildir's path; tests count other calls of os.stat


class HeldDirectories:
    """Hold a maildir's descriptors: `root`, `cur`, `new` and `tmp`.

    `proven`: they were found to be those of the path once.
    """

    root = cur = new = tmp = -1
    proven = False

    def open(self, path: bytes) -> None:
        """Open all. StoreError if one can't be opened; then none stays open."""
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
        """Close the descriptors; the maildrop can't be used afterwards."""
        for fd in (self.cur, self.new, self.tmp, self.root):
            if fd >= 0:
                os.close(fd)
        self.cur = self.new = self.tmp = self.root = -1

    def _hold(self, *parts: str) -> None:
        """Open these directories in place of those held: all of them, or StoreError and nothing changes."""
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
        """Return whether the path leads to another directory or to none: this one is no longer the user's."""
        try:
            return files.identity(_stat_path(self._path)) != self._root_id
        except OSError:
            return True

    def _replaced(self, part: str) -> os.stat_result | None:
        """Return the status of the directory of that name; None if it is missing or not the one held."""
        try:
            status = os.stat(part, dir_fd=self.root, follow_symlinks=False)
        except FileNotFoundError:
            return None
        return status if files.identity(status) == self._held[part] else None

    def holds(self, *parts: str) -> bool:
        """Return whether these directories are still the ones held. Raises OSError."""
        return None not in map(self._replaced, parts)

    def refresh(self, *parts: str) -> list[_Stamp]:
        """Return the stamps of these directories; open those that were replaced anew.

        MovedError if the maildir itself was replaced.

        A mount over a directory and a link that points elsewhere are replacements too. Raises OSError.
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
        """Forget all that was known of replaced directories."""
