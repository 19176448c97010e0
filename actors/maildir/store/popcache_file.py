"""Read and write the popcache file under its lock: lock, read, append, mark, rewrite.

proto/files/popcache.py defines the format.

The file is rewritten in place, never replaced by rename. The server that popkernel takes over from locks the
file it has opened; if it waits for the lock of an old inode, it would go on with a file that nobody else
sees. A crash during a rewrite leaves less, never wrong data: the file is truncated, then lines are written
(torn ones are refused), and the header that proves anything comes last. Such a crash could lose for good only
a UIDL that is not the hash of its name (taken over from another server). So if there is one, the new text
first goes to `popcache.new`, which is synced, and unlinked once the popcache is complete. After a crash the
next listing finds it. It is only replaced by rename, by another complete journal: it may be the only place
that has those UIDLs.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from stat import S_ISREG
from typing import TYPE_CHECKING

from popkernel.actors.maildir.store.errors import PERM, StoreError, from_os
from popkernel.actors.maildir.store.listing import uidl_of
from popkernel.proto.files import popcache

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

NAME = b"popcache"
JOURNAL = b"popcache.new"
_UNFINISHED = b"popcache.new.part"
_OPEN = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
# errors that do not tell whether a journal is sound
_PASSING = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO))
# Errors of a popcache without which mail can still be listed, read and delivered.
UNUSABLE = frozenset(
    (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ENOLCK)
)
_POLL = 0.01  # seconds between two tries for the lock; others hold it for milliseconds
# octets: a million and a half messages; a larger listing does not fit into an actor's memory
_LARGEST = 192 << 20
_TAIL = 4096  # octets from the end that hold the last line


def acquire(root: int, wait: float, code: str, flags: int = _OPEN) -> int:
    """Open and lock the popcache (made with mode 0600 if missing); closing the descriptor unlocks it.

    Tries for `wait` seconds, then raises StoreError `code`. A popcache that is a link or a directory is a
    StoreError SYS/PERM; a link is never followed. If it can't be written, the StoreError's `number` is in
    `UNUSABLE`.
    """
    deadline = time.monotonic() + wait
    while True:
        fd = _open(root, flags)
        try:
            if _try_lock(fd):
                if is_current(fd, root):
                    return fd
            elif time.monotonic() >= deadline:
                raise StoreError(code, f"popcache: locked by another program for more than {wait:g} s")
            else:
                time.sleep(_POLL)
        except OSError as error:
            os.close(fd)
            raise from_os(error, "popcache") from None
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


def acquire_to_read(root: int, wait: float, code: str) -> int:
    """Open and lock a popcache that can't be written; -1 if it is missing or can't be read either."""
    try:
        return acquire(root, wait, code, _READ)
    except StoreError as error:
        if error.number in UNUSABLE or error.number == errno.ENOENT:
            return -1
        raise


def _open(root: int, flags: int) -> int:
    try:
        fd = os.open(NAME, flags, 0o600, dir_fd=root)
    except OSError as error:
        if error.errno in {errno.ELOOP, errno.EISDIR, errno.ENXIO}:
            raise StoreError(PERM, "popcache is no regular file: remove it, it will be made anew") from None
        raise from_os(error, "popcache") from None
    if not S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise StoreError(PERM, "popcache is no regular file: remove it, it will be made anew")
    return fd


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_current(fd: int, root: int) -> bool:
    """Return whether the locked file still has that name: another program may have replaced it meanwhile."""
    try:
        there = os.stat(NAME, dir_fd=root, follow_symlinks=False)
    except FileNotFoundError:
        return False
    mine = os.fstat(fd)
    return (there.st_ino, there.st_dev) == (mine.st_ino, mine.st_dev)


def load(fd: int) -> popcache.Cache:
    """Read and parse the file.

    No content is an error: an invalid file gives a Cache with `given_up`.
    """
    try:
        data = read(fd)
        if data is not None:
            return popcache.parse(data)
        why = f"more than {_LARGEST >> 20} MiB"
    except MemoryError:
        why = "more than there is memory for"
    cache = popcache.Cache()
    cache.refused, cache.given_up = 1, why
    return cache


def read(fd: int) -> bytes | None:
    """Read the whole file; None if it is too large."""
    size = os.fstat(fd).st_size
    if size > _LARGEST:
        return None
    data = os.pread(fd, size + 1, 0)
    while len(data) < size:  # a read of a regular file is complete but for signals and network file systems
        more = os.pread(fd, size - len(data), len(data))
        if not more:
            break
        data += more
    return data


def _write(fd: int, data: bytes | memoryview, offset: int) -> None:
    view = memoryview(data)
    while view:
        done = os.pwrite(fd, view, offset)
        view = view[done:]
        offset += done


def append(fd: int, lines: bytes) -> None:
    """Append lines after the last complete one.

    Torn octets at the end are cut off, before the write, and after it if the disk is full.

    The lines are popkernel's own. If the header says so of all lines before them, it is updated to include
    them.
    """
    size = os.fstat(fd).st_size
    end = size
    if size and os.pread(fd, 1, size - 1) != b"\n":
        start = max(0, size - _TAIL)
        end = os.pread(fd, _TAIL, start).rfind(b"\n") + 1
        end += start if end else 0  # no line end there: nothing worth keeping
        os.ftruncate(fd, end)
    header = popcache.parse_header(os.pread(fd, popcache.HEADER_LENGTH, 0)) if end else None
    if not end:
        header = popcache.Header(0, (0, 0), (0, 0), 0)
        lines = header.encode() + lines
    try:
        _write(fd, lines, end)
        if header is not None and header.checked == end:
            header.checked = end + len(lines)
            write_header(fd, header)
    except OSError:
        os.ftruncate(fd, end)
        raise


def mark_removed(fd: int, offsets: list[int]) -> None:
    """Overwrite the first character of the lines at these offsets with `#`: they count as removed."""
    for offset in offsets:
        os.pwrite(fd, b"#", offset)


def write_header(fd: int, header: popcache.Header) -> None:
    """Overwrite the header of a file that has one."""
    _write(fd, header.encode(), 0)


def rewrite(
    root: int,
    fd: int,
    rows: Iterable[tuple[bytes, int, bytes]],
    header: popcache.Header,
    at: Callable[[str], None],
    *,
    checked: bool,
    plain: bool = False,
    fit: bool = False,
) -> None:
    """Replace the whole text by these rows: (canonical name, octets, UIDL). `at` is called after each step.

    `checked`: all sizes were measured by popkernel. `plain`: all UIDLs are those of their names. `fit`: all
    names fit into lines.
    """
    if not fit:
        rows = list(rows)
        if not popcache.all_fit([row[0] for row in rows]):
            rows = [row for row in rows if popcache.fits(row[0])]
    keep_safe = False
    if not plain:
        rows = list(rows)
        # some UIDL cannot be computed again
        keep_safe = any(uidl != uidl_of(name) for name, _, uidl in rows)
    lines = popcache.format_lines(rows)
    if keep_safe:
        _write_journal(root, lines, at)
        at("rewrite:journal")
    os.ftruncate(fd, 0)
    at("rewrite:truncated")
    start, half = popcache.HEADER_LENGTH, len(lines) // 2
    _write(fd, popcache.UNPROVEN.encode(), 0)
    _write(fd, memoryview(lines)[:half], start)
    at("rewrite:half")
    _write(fd, memoryview(lines)[half:], start + half)
    at("rewrite:written")
    if keep_safe:
        os.fsync(fd)
        drop_journal(root)
        at("rewrite:unjournaled")
    if header.made or checked:
        write_header(
            fd,
            popcache.Header(
                header.made, header.cur, header.new, header.count, start + len(lines) if checked else 0
            ),
        )


def _write_journal(root: int, lines: bytes, at: Callable[[str], None]) -> None:
    """Write `popcache.new`: these lines, their number in its header, file and name synced.

    An older one stays until then.
    """
    _unlink(root, _UNFINISHED)
    fd = os.open(
        _UNFINISHED, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=root
    )
    try:
        _write(fd, popcache.Header(0, (0, 0), (0, 0), lines.count(b"\n")).encode() + lines, 0)
        os.fsync(fd)
        at("rewrite:journaling")
        os.rename(_UNFINISHED, JOURNAL, src_dir_fd=root, dst_dir_fd=root)
    except OSError:
        _unlink(root, _UNFINISHED)  # frees room on a full disk
        raise
    finally:
        os.close(fd)
    os.fsync(root)


def drop_journal(root: int) -> None:
    """Remove `popcache.new`, if any: only when the popcache has all its lines on disk."""
    _unlink(root, JOURNAL)


def _unlink(root: int, name: bytes) -> None:
    try:
        os.unlink(name, dir_fd=root)
    except FileNotFoundError:
        return


def read_journal(root: int) -> popcache.Cache | None:
    """Read the journal that a crash left; None if there is none or it is incomplete.

    Raises OSError if it may be sound but could not be read now: to go on without it would replace it.
    """
    try:
        fd = os.open(JOURNAL, _READ, dir_fd=root)
    except OSError as error:
        if error.errno in _PASSING:
            raise
        return None  # ELOOP and the like: not a journal of popkernel
    try:
        left = load(fd) if S_ISREG(os.fstat(fd).st_mode) else None
    finally:
        os.close(fd)
    if left is None or left.header is None or left.refused or left.header.count != len(left.names):
        return None
    return left
