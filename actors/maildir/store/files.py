"""Directory work of the maildir store: opening cur, new and tmp, listing them as bytes, measuring a message file."""

from __future__ import annotations

import errno
import os
from stat import S_ISREG
from typing import TYPE_CHECKING

from popkernel.actors.maildir.store.errors import PERM, TEMP, StoreError, from_os
from popkernel.proto.pop3.octets import SizeCounter, wire_size

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Self

CHUNK = 65536
_AT_ONCE = 16  # files of a lot; two lots are open at a time, and an actor may have 64
_NO_FILE = frozenset((errno.ENOENT, errno.ELOOP, errno.ENXIO, errno.EOPNOTSUPP))  # not there, or none to be read
_MAY_NOT = frozenset((errno.EACCES, errno.EPERM, errno.EROFS))
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# O_NONBLOCK: opening a FIFO somebody put into cur/ must not wait for a writer.
READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
# Have the disk begin to read a file, posix_fadvise(2). OpenBSD has no such call.
_will_need: Callable[[int, int, int, int], None] = getattr(os, "posix_fadvise", lambda *_: None)
_WILLNEED: int = getattr(os, "POSIX_FADV_WILLNEED", 0)
# To measure is not to read; and to write down when each was read takes longer than to read it.
_MEASURE = READ | getattr(os, "O_NOATIME", 0)


def open_root(path: bytes) -> int:
    """Open the maildir itself; where only its last component is missing it is made, 0700. Symbolic links may lead to it."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    try:
        try:
            return os.open(path, flags)
        except FileNotFoundError:
            _make_root(path)
            return os.open(path, flags)
    except OSError as error:
        raise _foreign(error, path) or from_os(error, "maildir") from None


def _make_root(path: bytes) -> None:
    """Make a maildir that is not there; where its user may not, say that it is missing and not only that something is denied."""
    try:
        make_directory(path, None)
    except FileNotFoundError as error:
        text = "the directory above the maildir is not there: mount its file system, or make it"
        raise StoreError(TEMP, text, error.errno or 0) from None
    except OSError as error:
        if error.errno not in _MAY_NOT:
            raise
        text = "the maildir is not there, and its user may not make it: mount its file system, or make it, owned by that user"
        raise StoreError(TEMP, text, errno.ENOENT) from None


def _foreign(error: OSError, path: bytes | int) -> StoreError | None:
    """Say of a maildir that shuts its user out whether it is another's: so is the place of a file system that is not mounted."""
    if error.errno not in _MAY_NOT:
        return None
    try:
        owner = os.stat(path).st_uid
    except OSError:
        return None
    if owner == os.geteuid():
        return None
    return StoreError(TEMP, f"maildir: it belongs to uid {owner}: mount its file system, or give it to its user", error.errno or 0)


def open_part(root: int, part: bytes) -> int:
    """Open cur, new or tmp under ``root``, made 0700 where missing. A symbolic link is refused (SYS/PERM)."""
    try:
        try:
            return os.open(part, _DIRECTORY, dir_fd=root)
        except FileNotFoundError:
            make_directory(part, root)
            sync(root)
            return os.open(part, _DIRECTORY, dir_fd=root)
    except OSError as error:
        if error.errno in {errno.ENOTDIR, errno.ELOOP}:
            raise StoreError(PERM, f"{part.decode()} is no directory, or a symbolic link: put a directory there") from None
        raise _foreign(error, root) or from_os(error, part.decode()) from None


def identity(status: os.stat_result) -> tuple[int, int]:
    """Which file a status is of: device and inode."""
    return status.st_dev, status.st_ino


def make_directory(path: bytes, root: int | None) -> None:
    """Mkdir 0700, content when another program was quicker."""
    try:
        os.mkdir(path, 0o700, dir_fd=root)
    except FileExistsError:
        return


def sync(fd: int) -> None:
    """Make the names in a directory survive a power failure. File systems that cannot sync directories are content."""
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise


def list_names(fd: int) -> list[bytes]:
    """All names in a directory but ``.`` and ``..``, as bytes, in no order; 100,000 at a go."""
    names = os.listdir(fd)
    # listdir of a descriptor gives str; turning them into bytes in one piece is ten times faster than one by one.
    return os.fsencode("/".join(names)).split(b"/") if names else []


def stamps(fd: int) -> tuple[int, int]:
    """(mtime_ns, ctime_ns) of an open directory: any name made, moved or removed in it changes both."""
    status = os.fstat(fd)
    return status.st_mtime_ns, status.st_ctime_ns


File = tuple[int, bytes, "tuple[int, int] | None"]
"""Directory descriptor, name, what ``maildirname.claimed_sizes`` says."""
Size = int | OSError | None
"""Octets POP3 will send; None where the file is gone or no regular one; OSError where it can't be read."""


def measure_all(files: Sequence[File], meanwhile: Callable[[], None] | None = None) -> list[Size]:
    """The size of each file.

    Of a file too large for one read what its name claims is believed, where the file has that size and ends its last line: then only what
    the name says of the line ends is taken on trust, until the message is sent. ``meanwhile`` is called now and then.
    """
    sizes: list[Size] = []
    with Ahead() as ahead:
        for start in range(0, len(files) + _AT_ONCE, _AT_ONCE):
            sizes += ahead.measure(files[start : start + _AT_ONCE])
            if meanwhile is not None:
                meanwhile()
    return sizes


class Ahead:
    """Measures a lot of files while the disk reads the next one: of mail nobody has read yet, more than twice as fast as one by one."""

    __slots__ = ("_files", "_opened", "_sizes")

    def __init__(self) -> None:
        self._files: Sequence[File] = ()
        self._opened: list[int] = []
        self._sizes: list[Size] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        _close(self._opened)

    def measure(self, files: Sequence[File]) -> list[Size]:
        """Have the disk read these, and give the sizes of those of the call before."""
        before, opened, sizes = self._files, self._opened, self._sizes
        self._files, self._opened, self._sizes = files, [], []
        try:
            self._begin()
            for at, file in enumerate(opened):
                if file >= 0:
                    sizes[at] = _measured(file, before[at][2])
        finally:
            _close(opened)
        return sizes

    def _begin(self) -> None:
        opened, sizes = self._opened, self._sizes
        opening, flags, ask = os.open, _MEASURE, _will_need  # looked up once: a hundred thousand messages may pass here
        for fd, name, _ in self._files:
            sizes.append(None)
            try:
                opened.append(opening(name, flags, dir_fd=fd))
            except OSError as error:
                opened.append(_open_other(fd, name, error, sizes))
        for file in opened:  # one right after the other: the disk is woken, and interrupts, once for several
            try:
                ask(file, 0, CHUNK, _WILLNEED)
            except OSError:  # a FIFO has no pages, and what is not open has none
                continue


def _close(opened: list[int]) -> None:
    for file in opened:
        if file >= 0:
            os.close(file)


def _open_other(fd: int, name: bytes, error: OSError, sizes: list[Size]) -> int:
    """Only an owner may leave a file's times alone (open(2), O_NOATIME). -1 where it cannot be opened; ``sizes`` gets why."""
    if error.errno == errno.EPERM:
        try:
            return os.open(name, READ, dir_fd=fd)
        except OSError as second:
            error = second
    sizes[-1] = None if error.errno in _NO_FILE else error
    return -1


def _measured(file: int, claimed: tuple[int, int] | None) -> Size:
    """Where all octets that there are to the end come at one read, it is a file: so most need no stat, which costs three times as much."""
    try:
        size = os.lseek(file, 0, os.SEEK_END)
        data = os.pread(file, size + 1, 0) if 0 < size < CHUNK else b""
        if data and len(data) == size:
            return wire_size(data)
    except OSError:
        pass  # no file: the stat says what it is
    return _measured_large(file, claimed)


def _measured_large(file: int, claimed: tuple[int, int] | None) -> Size:
    """Also of all that is odd."""
    try:
        status = os.fstat(file)
        if not S_ISREG(status.st_mode):
            return None
        if claimed is not None and CHUNK < status.st_size == claimed[0] and os.pread(file, 1, status.st_size - 1) == b"\n":
            return claimed[1]
        os.lseek(file, 0, os.SEEK_SET)
        return count(file)
    except OSError as error:
        return error


def measure(fd: int, name: bytes, claimed: tuple[int, int] | None = None) -> int | None:
    """As ``measure_all``, of one file; raises its OSError."""
    (octets,) = measure_all([(fd, name, claimed)])
    if isinstance(octets, OSError):
        raise octets
    return octets


def count(file: int, data: bytes = b"") -> int:
    """Octets POP3 will send for ``data`` and all that can still be read of an open file. Raises OSError."""
    counter = SizeCounter()
    counter.feed(data)
    while data := os.read(file, CHUNK):
        counter.feed(data)
    return counter.finish()


def move_no_replace(source: int, name: bytes, target: int, new_name: bytes) -> bool:
    """Move a file to another directory, never over another file; False when ``new_name`` is taken.

    link and unlink, as maildir asks: of two programs only one can win. Where hard links cannot be made (some file
    systems; mail that root owns under fs.protected_hardlinks), a look and a rename: the popcache lock keeps others off.
    A crash between link and unlink leaves one file under two names; where they are of one canonical name, a later listing mends it.
    Raises FileNotFoundError when the file is gone, other OSErrors as they come.
    """
    try:
        os.link(name, new_name, src_dir_fd=source, dst_dir_fd=target, follow_symlinks=False)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EACCES, errno.EXDEV}:
            raise
        try:
            os.stat(new_name, dir_fd=target, follow_symlinks=False)
            return False
        except FileNotFoundError:
            os.rename(name, new_name, src_dir_fd=source, dst_dir_fd=target)
            return True
    os.unlink(name, dir_fd=source)
    return True


def rename_no_replace(fd: int, name: bytes, new_name: bytes, target: int | None = None) -> bool:
    """Give a file a new name, in ``target`` where given, unless that is taken (then False); no moment with two names or none."""
    target = fd if target is None else target
    try:
        os.stat(new_name, dir_fd=target, follow_symlinks=False)
    except FileNotFoundError:
        os.rename(name, new_name, src_dir_fd=fd, dst_dir_fd=target)
        return True
    return False


def remove_older(fd: int, limit: float) -> int:
    """Unlink the regular files of a directory last written before ``limit`` (seconds of the epoch). Returns how many."""
    removed = 0
    for name in list_names(fd):
        try:
            status = os.stat(name, dir_fd=fd, follow_symlinks=False)
            if S_ISREG(status.st_mode) and status.st_mtime < limit:
                os.unlink(name, dir_fd=fd)
                removed += 1
        except FileNotFoundError:
            continue
    return removed
