"""The popcache file under its lock: open, lock, read, append, mark, rewrite. Text and meaning are in proto/files/popcache.py.

The file is rewritten in place, never replaced by rename: the program popkernel takes over from locks the file it has
opened, and one that waits for the old inode would go on with a file nobody else sees. In place, a crash leaves less, never
something false: the file is cut to nothing, then lines are written whole or torn (torn ones are refused), and the header
that proves anything comes last. What such a crash could lose for good is a UIDL that is not the hash of its name (brought
along from another server). So where there is one, the new text goes to ``popcache.new`` first, is synced, and is unlinked
when the popcache is whole again; the next listing finds it otherwise. What a crash left there is replaced by rename, and only
by a journal that is whole: it may be the one place where those UIDLs stand.
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
_PASSING = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO))  # says nothing of whether a journal is good
# Of a popcache without which mail is listed, read and delivered all the same.
UNUSABLE = frozenset((errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ENOLCK))
_POLL = 0.01  # seconds between two tries for the lock; the other side holds it for milliseconds
_LARGEST = 192 << 20  # octets: a million and a half messages; a listing of more does not fit into an actor's memory
_TAIL = 4096  # octets that the last line fits into


def acquire(root: int, wait: float, code: str, flags: int = _OPEN) -> int:
    """Open and lock the popcache (made 0600 where missing); closing the descriptor unlocks it.

    Tries for ``wait`` seconds, then StoreError ``code``. A popcache that is a link or a directory is a StoreError SYS/PERM; it is never
    followed. One that can't be written to is a StoreError whose ``number`` is in ``UNUSABLE``.
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
    """As ``acquire``, of one that can't be written to; -1 where it is not there, or not to be read either."""
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
    """Is the locked file still the one under that name? Somebody may have removed it while we waited."""
    try:
        there = os.stat(NAME, dir_fd=root, follow_symlinks=False)
    except FileNotFoundError:
        return False
    mine = os.fstat(fd)
    return (there.st_ino, there.st_dev) == (mine.st_ino, mine.st_dev)


def load(fd: int) -> popcache.Cache:
    """Read the file for what it says. Nothing in it is an error: one that can't be believed is a Cache with ``given_up``."""
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
    """Read the whole file; None for one of an impossible size."""
    size = os.fstat(fd).st_size
    if size > _LARGEST:
        return None
    data = os.pread(fd, size + 1, 0)
    while len(data) < size:  # a read of a regular file is whole but for signals and network file systems
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
    """Add lines after the last whole one. Torn octets at the end are cut off, before and when the disk is full after.

    They are popkernel's word: where all before them is, the header says so of them too.
    """
    size = os.fstat(fd).st_size
    end = size
    if size and os.pread(fd, 1, size - 1) != b"\n":
        start = max(0, size - _TAIL)
        end = os.pread(fd, _TAIL, start).rfind(b"\n") + 1
        end += start if end else 0  # no line ends there: no line at all is worth keeping
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
    """Overwrite the first character of the lines that begin at these offsets with ``#``."""
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
    """Replace the whole text by these messages: (canonical name, octets, UIDL). ``at`` is told of each step.

    ``checked``: all their sizes are popkernel's word. ``plain``: all their UIDLs are known to be those of their names. ``fit``: all their
    names are known to fit.
    """
    if not fit:
        rows = list(rows)
        if not popcache.all_fit([row[0] for row in rows]):
            rows = [row for row in rows if popcache.fits(row[0])]
    keep_safe = False
    if not plain:
        rows = list(rows)
        keep_safe = any(uidl != uidl_of(name) for name, _, uidl in rows)  # a UIDL that cannot be computed again
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
        write_header(fd, popcache.Header(header.made, header.cur, header.new, header.count, start + len(lines) if checked else 0))


def _write_journal(root: int, lines: bytes, at: Callable[[str], None]) -> None:
    """Make ``popcache.new`` of these lines, their number in its header, file and name synced; one that is there stays until then."""
    _unlink(root, _UNFINISHED)
    fd = os.open(_UNFINISHED, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=root)
    try:
        _write(fd, popcache.Header(0, (0, 0), (0, 0), lines.count(b"\n")).encode() + lines, 0)
        os.fsync(fd)
        at("rewrite:journaling")
        os.rename(_UNFINISHED, JOURNAL, src_dir_fd=root, dst_dir_fd=root)
    except OSError:
        _unlink(root, _UNFINISHED)  # a full disk needs the room
        raise
    finally:
        os.close(fd)
    os.fsync(root)


def drop_journal(root: int) -> None:
    """Remove ``popcache.new`` where there is one: only when all it says stands in the popcache, on disk."""
    _unlink(root, JOURNAL)


def _unlink(root: int, name: bytes) -> None:
    try:
        os.unlink(name, dir_fd=root)
    except FileNotFoundError:
        return


def read_journal(root: int) -> popcache.Cache | None:
    """Read what a crash in the middle of a rewrite left; None where there is none or it is not whole.

    Raises OSError where it may be good and could not be read this moment: to go on without it would be to replace it.
    """
    try:
        fd = os.open(JOURNAL, _READ, dir_fd=root)
    except OSError as error:
        if error.errno in _PASSING:
            raise
        return None  # ELOOP and the like: not one we wrote
    try:
        left = load(fd) if S_ISREG(os.fstat(fd).st_mode) else None
    finally:
        os.close(fd)
    if left is None or left.header is None or left.refused or left.header.count != len(left.names):
        return None
    return left
