"""Work on directories for the store: open cur, new and tmp, list them as bytes, measure message files."""

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
_AT_ONCE = 16  # files in a group; two groups are open at a time, and an actor may have 64 descriptors
# missing, or not a file that can be read
_NO_FILE = frozenset((errno.ENOENT, errno.ELOOP, errno.ENXIO, errno.EOPNOTSUPP))
_MAY_NOT = frozenset((errno.EACCES, errno.EPERM, errno.EROFS))
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# O_NONBLOCK: to open a FIFO that somebody put into cur/ must not wait for a writer
READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
# Make the disk begin to read a file, posix_fadvise(2). OpenBSD has no such call.
_will_need: Callable[[int, int, int, int], None] = getattr(os, "posix_fadvise", lambda *_: None)
_WILLNEED: int = getattr(os, "POSIX_FADV_WILLNEED", 0)
# Measuring does not count as reading, and to update each access time takes longer than the read.
_MEASURE = READ | getattr(os, "O_NOATIME", 0)


def open_root(path: bytes) -> int:
    """Open the maildir itself. If only its last component is missing, make it, mode 0700.

    Symbolic links may lead to it.
    """
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    try:
        try:
            return os.open(path, flags)
        except FileNotFoundError:
            _make_root(path)
            return os.open(path, flags)
    except OSError as error:
        raise _owner_error(error, path) or from_os(error, "maildir") from None


def _make_root(path: bytes) -> None:
    """Make a missing maildir. If its user may not, the error says that it is missing, not only "denied"."""
    try:
        make_directory(path, None)
    except FileNotFoundError as error:
        text = "the directory above the maildir is not there: mount its file system, or make it"
        raise StoreError(TEMP, text, error.errno or 0) from None
    except OSError as error:
        if error.errno not in _MAY_NOT:
            raise
        text = (
            "the maildir is not there, and its user may not make it: "
            "mount its file system, or make it, owned by that user"
        )
        raise StoreError(TEMP, text, errno.ENOENT) from None


def _owner_error(error: OSError, path: bytes | int) -> StoreError | None:
    """Return an error if the maildir belongs to another user, else None.

    An empty mount point does so, while its file system is not mounted.
    """
    if error.errno not in _MAY_NOT:
        return None
    try:
        owner = os.stat(path).st_uid
    except OSError:
        return None
    if owner == os.geteuid():
        return None
    return StoreError(
        TEMP,
        f"maildir: it belongs to uid {owner}: mount its file system, or give it to its user",
        error.errno or 0,
    )


def open_part(root: int, part: bytes) -> int:
    """Open cur, new or tmp under `root`, made with mode 0700 if missing.

    A symbolic link is refused (SYS/PERM).
    """
    try:
        try:
            return os.open(part, _DIRECTORY, dir_fd=root)
        except FileNotFoundError:
            make_directory(part, root)
            sync(root)
            return os.open(part, _DIRECTORY, dir_fd=root)
    except OSError as error:
        if error.errno in {errno.ENOTDIR, errno.ELOOP}:
            raise StoreError(
                PERM, f"{part.decode()} is no directory, or a symbolic link: put a directory there"
            ) from None
        raise _owner_error(error, root) or from_os(error, part.decode()) from None


def identity(status: os.stat_result) -> tuple[int, int]:
    """Return device and inode of a status."""
    return status.st_dev, status.st_ino


def make_directory(path: bytes, root: int | None) -> None:
    """Make a directory, mode 0700, unless it exists by now."""
    try:
        os.mkdir(path, 0o700, dir_fd=root)
    except FileExistsError:
        return


def sync(fd: int) -> None:
    """Make the names in a directory survive a power failure.

    Does nothing on file systems that cannot sync directories.
    """
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise


def list_names(fd: int) -> list[bytes]:
    """Return all names in a directory but `.` and `..`, as bytes, in no order, in one list."""
    names = os.listdir(fd)
    # listdir(3) of a descriptor gives str: to encode them joined is ten times faster than one by one.
    return os.fsencode("/".join(names)).split(b"/") if names else []


def stamps(fd: int) -> tuple[int, int]:
    """Return (mtime_ns, ctime_ns) of an open directory.

    Any name that is made, moved or removed in it changes both.
    """
    status = os.fstat(fd)
    return status.st_mtime_ns, status.st_ctime_ns


File = tuple[int, bytes, "tuple[int, int] | None"]
"""Directory descriptor, name, and the result of `maildir_names.claimed_sizes`."""
Size = int | OSError | None
"""Octets that POP3 sends. None: the file is gone or not a regular one. OSError: it can't be read."""


def measure_all(files: Sequence[File], meanwhile: Callable[[], None] | None = None) -> list[Size]:
    """Return the size of each file, in octets as POP3 sends it.

    A name may claim two sizes, of the file and of its wire form. For a file too large for one read the second
    is believed, if the first is right and the file ends with a line end. So only the number of its line ends
    is taken on trust, until the message is sent. `meanwhile` is called regularly.
    """
    sizes: list[Size] = []
    with Ahead() as ahead:
        for start in range(0, len(files) + _AT_ONCE, _AT_ONCE):
            sizes += ahead.measure(files[start : start + _AT_ONCE])
            if meanwhile is not None:
                meanwhile()
    return sizes


class Ahead:
    """Measure a group of files while the disk reads the next group.

    For mail not in the page cache this is more than twice as fast as one by one.
    """

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
        """Make the disk read these files, and return the sizes of those of the call before."""
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
        # local names: a hundred thousand messages may pass here
        opening, flags, ask = os.open, _MEASURE, _will_need
        for fd, name, _ in self._files:
            sizes.append(None)
            try:
                opened.append(opening(name, flags, dir_fd=fd))
            except OSError as error:
                opened.append(_open_other(fd, name, error, sizes))
        for file in opened:  # all in one go: the disk wakes and interrupts once for several
            try:
                ask(file, 0, CHUNK, _WILLNEED)
            except OSError:  # a FIFO has no pages, and a descriptor may be -1
                continue


def _close(opened: list[int]) -> None:
    for file in opened:
        if file >= 0:
            os.close(file)


def _open_other(fd: int, name: bytes, error: OSError, sizes: list[Size]) -> int:
    """Open a file that failed to open, without O_NOATIME, which only its owner may use (open(2)).

    Returns -1 if it cannot be opened; the last of `sizes` then says why.
    """
    if error.errno == errno.EPERM:
        try:
            return os.open(name, READ, dir_fd=fd)
        except OSError as second:
            error = second
    sizes[-1] = None if error.errno in _NO_FILE else error
    return -1


def _measured(file: int, claimed: tuple[int, int] | None) -> Size:
    """Measure an open file. Most need no fstat(2), which costs three times as much.

    If one read gives exactly as many octets as lseek(2) says, it is a regular file.
    """
    try:
        size = os.lseek(file, 0, os.SEEK_END)
        data = os.pread(file, size + 1, 0) if 0 < size < CHUNK else b""
        if data and len(data) == size:
            return wire_size(data)
    except OSError:
        pass  # not a regular file: fstat(2) tells
    return _measured_large(file, claimed)


def _measured_large(file: int, claimed: tuple[int, int] | None) -> Size:
    """Measure a large file, or one that is not regular."""
    try:
        status = os.fstat(file)
        if not S_ISREG(status.st_mode):
            return None
        if (
            claimed is not None
            and CHUNK < status.st_size == claimed[0]
            and os.pread(file, 1, status.st_size - 1) == b"\n"
        ):
            return claimed[1]
        os.lseek(file, 0, os.SEEK_SET)
        return count(file)
    except OSError as error:
        return error


def measure(fd: int, name: bytes, claimed: tuple[int, int] | None = None) -> int | None:
    """Return the size of one file, as `measure_all` does; raises its OSError."""
    (octets,) = measure_all([(fd, name, claimed)])
    if isinstance(octets, OSError):
        raise octets
    return octets


def count(file: int, data: bytes = b"") -> int:
    """Return the octets that POP3 sends for `data` and the unread rest of an open file. Raises OSError."""
    counter = SizeCounter()
    counter.feed(data)
    while data := os.read(file, CHUNK):
        counter.feed(data)
    return counter.finish()


def move_no_replace(source: int, name: bytes, target: int, new_name: bytes) -> bool:
    """Move a file to another directory, never over another file; False if `new_name` is taken.

    By link(2) and unlink(2), as maildir requires: of two programs only one can win. If hard links cannot be
    made (some file systems; mail that root owns under fs.protected_hardlinks), by stat(2) and rename(2): the
    popcache lock keeps others off. A crash between link and unlink leaves one file under two names; if both
    have the same canonical name, a later listing mends it. Raises FileNotFoundError if the file is gone, and
    other OSErrors.
    """
    try:
        os.link(name, new_name, src_dir_fd=source, dst_dir_fd=target, follow_symlinks=False)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in {
            errno.EPERM,
            errno.EOPNOTSUPP,
            errno.ENOSYS,
            errno.EMLINK,
            errno.EACCES,
            errno.EXDEV,
        }:
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
    """Rename a file, in `target` if given; False if the new name is taken.

    At no moment does it have two names or none.
    """
    target = fd if target is None else target
    try:
        os.stat(new_name, dir_fd=target, follow_symlinks=False)
    except FileNotFoundError:
        os.rename(name, new_name, src_dir_fd=fd, dst_dir_fd=target)
        return True
    return False


def remove_older(fd: int, limit: float) -> int:
    """Unlink the regular files of a directory that were last written before `limit`.

    `limit`: seconds since the epoch. Returns how many were unlinked.
    """
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
