"""Lock, read and replace a table as one file: a reader sees the old one or the new one.

The exclusive flock on the table file is that of the original server's tools: programs with this lock wait for
each other.
"""

import fcntl
import os
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from popkernel.proto.files.tables import MAX_NAME, MAX_TABLE

__all__ = ["TableError", "check_name", "locked", "read", "replace"]

LOCK_SECONDS = 30.0


class TableError(Exception):
    """The table is unchanged; str() gives the reason and how to mend it, `code` the exit code."""

    def __init__(self, what: str, code: int) -> None:
        super().__init__(what)
        self.code = code


def check_name(user: str) -> bytes:
    """Encode a name, if a table can hold it.

    Raises:
        TableError: it cannot; exit code 64.

    """
    name = os.fsencode(user)
    mend = "choose a name of letters, digits, dots, dashes and @"
    if not name or len(name) > MAX_NAME:
        raise TableError(f"the name has {len(name)} octets, not 1 to {MAX_NAME}; {mend}", os.EX_USAGE)
    if any(octet <= 0x20 or octet in {0x3A, 0x7F} for octet in name) or name[:1] in {b"#", b"$"}:
        what = "the name has a blank, a colon or a control character, or starts with # or $"
        raise TableError(f"{what}; {mend}", os.EX_USAGE)
    try:
        printable = name.decode("utf-8").isprintable()
    except UnicodeDecodeError:
        raise TableError(f"the name is not UTF-8; {mend}", os.EX_USAGE) from None
    if not printable:
        raise TableError(f"the name has an invisible character; {mend}", os.EX_USAGE)
    return name


@contextmanager
def locked(path: str) -> Iterator[int]:
    """Hold the exclusive lock of the file that has this name at the time of the lock."""
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        descriptor = os.open(
            path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW, 0o600
        )
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise TableError(f"{path} is no regular file; name the table with -a", os.EX_DATAERR)
            _lock(descriptor, path, deadline)
            # While this waited for the lock, another program may have renamed a new table over this one.
            if _same_file(descriptor, path):
                yield descriptor
                return
        finally:
            os.close(descriptor)


def _lock(descriptor: int, path: str, deadline: float) -> None:
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                what = f"{path} is locked by another program for over {LOCK_SECONDS:g} seconds"
                raise TableError(f"{what}; try again when it is done", os.EX_TEMPFAIL) from None
            time.sleep(0.02)


def _same_file(descriptor: int, path: str) -> bool:
    locked = os.fstat(descriptor)
    try:
        named = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return (locked.st_dev, locked.st_ino) == (named.st_dev, named.st_ino)


def read(descriptor: int, path: str) -> bytes:
    """Return the table's octets.

    Raises:
        TableError: they are more than a table has.

    """
    with open(descriptor, "rb", closefd=False) as file:
        data = file.read(MAX_TABLE + 1)
    if len(data) > MAX_TABLE:
        raise TableError(f"{path} has over {MAX_TABLE} octets; is it the right file?", os.EX_DATAERR)
    return data


def replace(path: str, data: bytes, old: int) -> None:
    """Write a new file with the old one's owner, mode and access lists, and rename it over the old one."""
    directory, base = os.path.split(path)
    descriptor, temporary = tempfile.mkstemp(prefix=f".{base}.", dir=directory)
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            facts = os.fstat(old)
            made = os.fstat(descriptor)
            if (facts.st_uid, facts.st_gid) != (made.st_uid, made.st_gid):
                os.fchown(descriptor, facts.st_uid, facts.st_gid)
            os.fchmod(descriptor, stat.S_IMODE(facts.st_mode))
            _copy_access_list(old, descriptor)
            os.fsync(descriptor)
        os.rename(temporary, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    above = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(above)
    finally:
        os.close(above)


def _copy_access_list(old: int, new: int) -> None:
    """Copy a POSIX access list, by which OpenSMTPD may read the table."""
    name = "system.posix_acl_access"
    if hasattr(os, "listxattr") and name in os.listxattr(old):
        os.setxattr(new, name, os.getxattr(old, name))
