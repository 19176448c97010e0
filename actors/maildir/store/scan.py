"""Read the maildir's directories at the start of a session, and resolve conflicts with the popcache.

Decisions where maildir and popcache leave a choice:

- One canonical name on two files of cur/ (or new/ and cur/). If they are two links to one file, one is
  unlinked. If they are two files, one keeps the name and so the UIDL; the other is renamed, to the same
  leading number, eight fresh hex digits and the host name, and so gets a UIDL of its own at nearly the same
  place. The file that had the UIDL keeps it: a client that has read it must not get it twice, nor miss the
  other. It is the one whose size the popcache has; if that does not decide, cur/ comes before new/, then the
  first in byte order.
- Names read at two moments may be one file that another program renames, and two links may be one file that
  it moves by link and unlink (mutt changes flags that way). So both names are checked together: the file must
  have two links, and neither name may be younger than five seconds. Until then both stay, the message is
  served once, and a later listing checks again.
- Every regular file whose name does not begin with a dot is a message; directories, FIFOs, sockets and
  symbolic links are ignored.
- A name that cannot stand in a popcache line (with a blank or a line end, or # at its beginning) is served
  like any other and measured at each scan; its UIDL is the hash of its canonical name. While there is one, no
  header proves the maildir unchanged.
- New mail is moved to cur/ before the session begins, as the server that popkernel takes over from does. Of
  more than `MOVED_AT_ONCE` messages only the odd ones are moved: the others are served from new/, and moved
  after the session (`Maildrop.tidy`).
- A directory read while another program renames may miss a name. So before a message's line is dropped, the
  directory is read a second time: a UIDL that `import-uidl` took over from another server must not be lost
  that way.
- A message that cannot be read and whose size is not known is left out of this session and noted in
  `Listing.notes`. One that the popcache knows stays listed, with line and UIDL, and RETR says what is wrong.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from itertools import repeat
from operator import itemgetter
from stat import S_ISREG
from typing import TYPE_CHECKING, overload

from popkernel.actors.maildir.store import files as directory
from popkernel.actors.maildir.store.errors import from_os, show
from popkernel.actors.maildir.store.listing import IN_NEW
from popkernel.proto.files import maildir_names

if TYPE_CHECKING:
    from collections.abc import Callable

    from popkernel.actors.maildir.store.files import File

# errors that every message would get
_STUCK = frozenset(
    (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EXDEV)
)
_SHORTAGE = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOMEM))  # errors that are not about one message
# link(2), unlink(2) and rename(2) set a file's ctime: a file this young may be between two of them
_YOUNG_NS = 5_000_000_000
_MOST_HEAD = 128  # octets of a name that begin a fresh one: a name may have 255
MOVED_AT_ONCE = 256  # messages: five milliseconds of link and unlink


def split_names(names: list[bytes]) -> tuple[list[bytes], list[bytes]]:
    """Split file names into canonical names and infos (`b""` or with their `:`).

    In bulk, if each has one colon.
    """
    joined = b"/".join(names)
    fields = joined.replace(b":", b"/:").split(b"/")
    if len(fields) == 2 * len(names):
        infos = fields[1::2]
        if b"" not in infos and bytes(map(itemgetter(0), infos)).count(b":") == len(names):
            return fields[0::2], infos
    parts = [name.partition(b":") for name in names]
    return [base for base, _, _ in parts], [colon + info for _, colon, info in parts]


def places(cur: int, new: int) -> dict[bytes, bytes]:
    """Map canonical names to infos of files in cur/, and to `IN_NEW` for files in new/ with bare names."""
    return dict.fromkeys(directory.list_names(new), IN_NEW) | dict(
        zip(*split_names(directory.list_names(cur)), strict=True)
    )


class _Files(Sequence["File"]):
    """The files to measure, made by groups: of a million messages all at once would take much memory."""

    __slots__ = ("_names", "_scan")

    def __init__(self, scan: Scan, names: list[bytes]) -> None:
        self._scan = scan
        self._names = names

    def __len__(self) -> int:
        return len(self._names)

    @overload
    def __getitem__(self, at: int) -> File: ...
    @overload
    def __getitem__(self, at: slice) -> list[File]: ...
    def __getitem__(self, at: int | slice) -> File | list[File]:
        return (
            self._scan.files(self._names[at])
            if isinstance(at, slice)
            else self._scan.files([self._names[at]])[0]
        )


class Scan:
    """One reading of new/ and cur/, made under the popcache lock.

    - `present`: canonical name to info, of cur/ after new/ was emptied, or `IN_NEW`; names that are no
      messages may be among them.
    - `doubtful`: canonical names whose size must be measured whatever the popcache says. Among them are
      messages of new/ that are in `unchecked`: another program's popcache line is checked before it is
      believed.
    - `clean`: the result holds as long as neither directory changes.
    - `distrusted`: names in which the sizes are not believed.
    - `alive`: called regularly while messages are measured, which may take minutes.
    - `now`: when this began, ns since the epoch.
    - `left`: mail stays in new/.
    - `known`: returns the octets of each message in the popcache, by canonical name; called if a name has two
      files.
    - `linked`: canonical name to (device, inode) of messages with two names.
    """

    __slots__ = (
        "_cur",
        "_fresh_host",
        "_new",
        "_octets",
        "_random",
        "_stuck",
        "alive",
        "clean",
        "distrusted",
        "doubtful",
        "known",
        "left",
        "linked",
        "notes",
        "now",
        "present",
        "unchecked",
        "unreadable",
    )

    def __init__(
        self, cur: int, new: int, host: bytes, random: Callable[[int], bytes], doubtful: set[bytes]
    ) -> None:
        self._cur = cur
        self._new = new
        self._fresh_host = host
        self._random = random
        self.doubtful = doubtful
        self.distrusted = frozenset(doubtful)
        self.alive: Callable[[], None] | None = None
        self.known: Callable[[], dict[bytes, int]] = dict
        # the result of `known`, which is called for the first duplicate only
        self._octets: dict[bytes, int] | None = None
        self.unchecked: frozenset[bytes] = frozenset()
        self.present: dict[bytes, bytes] = {}
        self.notes: list[str] = []
        self.now = 0
        self.linked: dict[bytes, tuple[int, int]] = {}
        self.unreadable: set[bytes] = set()
        self.left = False
        self._stuck = False  # no file can be moved to cur/
        self.clean = True

    def read(self, at: Callable[[str], None]) -> None:
        """List cur/, resolve duplicate names, move new/ to cur/."""
        names = directory.list_names(self._cur)
        self.present = dict(zip(*split_names(names), strict=True))
        if len(self.present) != len(names):
            self._resolve_doubles(names)
        for name in self._names_to_move(directory.list_names(self._new)):
            if maildir_names.is_message(name):
                if self._stuck:
                    self._serve_from_new(name)
                else:
                    self.take(name)
                at("listing:moved")

    def _names_to_move(self, names: list[bytes]) -> list[bytes]:
        """Return the names in new/ to move now: all of few; of many those with an info or a known name."""
        if len(names) <= MOVED_AT_ONCE:
            return names
        present = self.present
        plain = not present and b":" not in b"/".join(names)
        odd = [] if plain else [name for name in names if b":" in name or name in present]
        present.update(left := dict.fromkeys(names if not odd else set(names).difference(odd), IN_NEW))
        self.left = True
        self.doubtful |= self.unchecked & left.keys()
        return odd

    def where(self, base: bytes) -> tuple[int, bytes]:
        """Return directory and file name of a present message."""
        info = self.present[base]
        return (
            (self._new, base + info[len(IN_NEW) :]) if info.startswith(IN_NEW) else (self._cur, base + info)
        )

    def read_again(self) -> None:
        """Read cur/ once more. Add what the first reading missed, or what was put back into new/ since."""
        bases, infos = split_names(directory.list_names(self._cur))
        for base, info in zip(bases, infos, strict=True):
            self.present.setdefault(base, info)
        for base in map(maildir_names.canonical, directory.list_names(self._new)):
            if base not in self.present:
                self.present[base] = maildir_names.INFO_NEW
                self.clean = False

    def vanished(self, name: bytes) -> bool:
        """Return whether a present message that could not be measured is gone or no regular file.

        If another program renamed it, note its new name and return False.
        """
        try:
            fd, there = self.where(name)
            return not S_ISREG(os.stat(there, dir_fd=fd, follow_symlinks=False).st_mode)
        except FileNotFoundError:
            self.clean = False
        for fd in (self._cur, self._new):
            for there in directory.list_names(fd):
                if maildir_names.canonical(there) == name:
                    self.present[name] = there[len(name) :] or maildir_names.INFO_NEW
                    return False
        return True

    def _resolve_doubles(self, names: list[bytes]) -> None:
        groups: dict[bytes, list[bytes]] = {}
        for name in names:
            groups.setdefault(maildir_names.canonical(name), []).append(name)
        for base, group in groups.items():
            if len(group) > 1 and maildir_names.is_message(base):
                self._resolve(base, sorted(group))

    def _resolve(self, base: bytes, group: list[bytes]) -> None:
        """Leave one file under `base`. A name that no longer exists was renamed during the reading."""
        there = []
        for name in group:
            try:
                if S_ISREG(os.stat(name, dir_fd=self._cur, follow_symlinks=False).st_mode):
                    there.append((self._cur, name))
            except FileNotFoundError:
                continue
        if there:
            _, kept = self._owner(base, there)
            self.present[base] = kept[len(base) :]
            for _, name in there:
                if name != kept:
                    self._remove_double(self._cur, name, base)
        self.doubtful.add(base)

    def _owner(self, base: bytes, files: list[tuple[int, bytes]]) -> tuple[int, bytes]:
        """Return the file (of those with one canonical name) that the popcache's line describes, by its size.

        If none fits, or all are links, the first.
        """
        if self._octets is None:
            self._octets = self.known()
        octets = self._octets.get(base)
        if octets is not None and len(files) > 1 and not self._same(files):
            for fd, name in files:
                if self.alive is not None:
                    self.alive()
                try:
                    if directory.measure(fd, name) == octets:
                        return fd, name
                except OSError:  # a file that cannot be read has no size to compare
                    continue
        return files[0]

    @staticmethod
    def _same(files: list[tuple[int, bytes]]) -> bool:
        """Return whether they are links to one file, or one is gone."""
        try:
            found = [os.stat(name, dir_fd=fd, follow_symlinks=False) for fd, name in files]
        except FileNotFoundError:
            return True
        return len({(status.st_dev, status.st_ino) for status in found}) == 1

    def _is_link(self, source: int, name: bytes, base: bytes) -> bool | None:
        """Return whether `name` is a link to the file that keeps `base`; False if it is another file.

        None if that can't be decided yet.
        """
        try:
            before = os.stat(name, dir_fd=source, follow_symlinks=False)
            fd, there = self.where(base)
            kept = os.stat(there, dir_fd=fd, follow_symlinks=False)
            after = os.stat(name, dir_fd=source, follow_symlinks=False)
        except FileNotFoundError:
            return None
        inode = after.st_dev, after.st_ino
        if inode != (before.st_dev, before.st_ino):
            return None
        if inode != (kept.st_dev, kept.st_ino):
            return False
        if after.st_nlink < 2:
            return None
        if after.st_ctime_ns > self.now - _YOUNG_NS:
            self.linked[base] = inode
            return None
        return True

    def _remove_double(self, source: int, name: bytes, base: bytes) -> None:
        """Remove a second file, or a second link to the same file, from the canonical name `base`."""
        try:
            same = self._is_link(source, name, base)
            if same:
                os.unlink(name, dir_fd=source)
                return
            info = name[len(base) :] or maildir_names.INFO_NEW
            for _ in range(16 if same is False else 0):
                fresh = (
                    base.partition(b".")[0][:_MOST_HEAD]
                    + b"."
                    + self._random(4).hex().encode()
                    + b"."
                    + self._fresh_host
                )
                # rename(2), not link and unlink: a crash in between would leave two messages, for the names
                # are unrelated.
                if fresh not in self.present and directory.rename_no_replace(
                    source, name, fresh + info, self._cur
                ):
                    self.present[fresh] = info
                    return
        except FileNotFoundError:
            return
        except OSError as error:
            self._note(f"{show(name)}: {os.strerror(error.errno or 0)}")
        self.clean = False

    def take(self, name: bytes) -> None:
        """Move one message from new/ to cur/. If it can't be moved, it is served from new/."""
        base = maildir_names.canonical(name)
        info = name[len(base) :] or maildir_names.INFO_NEW
        try:
            status = os.stat(name, dir_fd=self._new, follow_symlinks=False)
            if not S_ISREG(status.st_mode):
                return
            if base in self.present and not self._replace_present(name, base):
                self._remove_double(self._new, name, base)
            elif directory.move_no_replace(self._new, name, self._cur, base + info):
                self.present[base] = info
                if base in self.unchecked:
                    self.doubtful.add(base)
            else:
                self.clean = False  # another program has just put it there: the next session handles it
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno not in _STUCK:
                self._note(f"new/{show(name)}: {os.strerror(error.errno or 0)}")
            elif not self._stuck:
                self._stuck = True
                self.notes.append(
                    f"new: mail stays there, it can't be moved to cur: {os.strerror(error.errno or 0)}"
                )
            self._serve_from_new(name)

    def _replace_present(self, name: bytes, base: bytes) -> bool:
        """Let a file in new/ take `base` from the present file, if the popcache's line is of the new one.

        Returns whether it did.
        """
        self.doubtful.add(base)
        fd, there = self.where(base)
        if self._owner(base, [(fd, there), (self._new, name)]) == (fd, there):
            return False
        self.present[base] = IN_NEW + name[len(base) :]
        self._remove_double(fd, there, base)
        return True

    def _serve_from_new(self, name: bytes) -> None:
        base = maildir_names.canonical(name)
        self.present.setdefault(base, IN_NEW + name[len(base) :])
        if base in self.unchecked:
            self.doubtful.add(base)

    def _note(self, text: str) -> None:
        self.notes.append(text)
        self.clean = False

    def measure(self, names: list[bytes]) -> list[int | None]:
        """Return the octets of present messages; None if one is not regular, is gone or cannot be read."""
        found = directory.measure_all(_Files(self, names), self.alive)
        if {int}.issuperset(map(type, found)):  # all are sizes: checked in one go
            return found  # type: ignore[return-value]
        for name, octets in zip(names, found, strict=True):
            if isinstance(octets, OSError):
                self._cannot_read(name, octets)
        return [None if isinstance(octets, OSError) else octets for octets in found]

    def files(self, names: list[bytes]) -> list[File]:
        """Return directory, file name and claimed sizes of these messages."""
        cur, new, inside, infos = self._cur, self._new, len(IN_NEW), map(self.present.__getitem__, names)
        # Asked once for each group: few names have a size, and a function that is not called is a page not
        # copied.
        says = maildir_names.claimed_sizes
        claims = (
            (None if name in self.distrusted else says(name) for name in names)
            if b",W=" in b"/".join(names)
            else repeat(None)
        )
        return [
            (new, name + info[inside:], claim) if info.startswith(IN_NEW) else (cur, name + info, claim)
            for name, info, claim in zip(names, infos, claims, strict=False)
        ]

    def measure_moved(self, names: list[bytes]) -> dict[bytes, int | None]:
        """Measure those of these messages that another program has moved since they were listed."""
        now = places(self._cur, self._new)
        moved = [name for name in names if now.get(name, self.present[name]) != self.present[name]]
        if moved:
            self.present.update((name, now[name]) for name in moved)
            self.clean = False
        return dict(zip(moved, self.measure(moved), strict=True))

    def _cannot_read(self, name: bytes, error: OSError) -> None:
        fd, file = self.where(name)
        part = "new" if fd == self._new else "cur"
        if error.errno in _SHORTAGE:
            raise from_os(error, f"{part}/{show(name)}") from None
        self._note(f"{part}/{show(file)}: {os.strerror(error.errno or 0)}")
        self.unreadable.add(name)
