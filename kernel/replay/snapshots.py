"""Copy a maildir into a recording, and restore it for a replay."""

import errno
import os
import stat
from collections.abc import Mapping
from typing import Any

__all__ = ["SnapshotError", "put", "take"]

_MOST = 200 << 20  # octets of mail
_MOST_FILES = 200_000
# errors of the system, not of the recorded maildir
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.EIO)
_PARTS = (b"", b"cur", b"new", b"tmp")
_MAKE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


class SnapshotError(Exception):
    """Raised for a maildir that can't be copied or restored. `code`: the exit code, sysexits(3)."""

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.code = code


def take(path: bytes) -> dict[str, Any]:
    """Return contents and times of all regular files of the maildir and of its cur/, new/ and tmp/.

    No symbolic link is followed. This may run as root in a directory that an untrusted user controls, so each
    file is opened relative to its directory.

    Raises:
        SnapshotError: too many files, too many octets, or an unreadable directory.
    """
    files: dict[bytes, dict[str, Any]] = {}
    times: dict[bytes, int] = {}
    total = 0
    try:
        root = os.open(path, _OPEN | os.O_DIRECTORY)
    except OSError as error:
        raise SnapshotError(f"{os.fsdecode(path)}: {error.strerror}", os.EX_NOINPUT) from None
    try:
        for part in _PARTS:
            at = os.open(part, _OPEN | os.O_DIRECTORY, dir_fd=root) if part else os.dup(root)
            try:
                times[part] = os.fstat(at).st_mtime_ns
                for name in _names(at):
                    if len(files) >= _MOST_FILES:
                        raise _too_many()
                    data, status = _read(at, name, _MOST - total)
                    if status is not None:
                        total += len(data)
                        files[part + b"/" + name if part else name] = {
                            "data": data,
                            "mtime": status.st_mtime_ns,
                        }
            finally:
                os.close(at)
    except OSError as error:
        raise SnapshotError(f"{os.fsdecode(path)}: {error.strerror}", os.EX_NOINPUT) from None
    finally:
        os.close(root)
    return {"files": files, "times": times}


def _names(at: int) -> list[bytes]:
    """Return the sorted names of a directory; SnapshotError if there are too many."""
    names: list[bytes] = []
    with os.scandir(at) as entries:
        for entry in entries:
            if len(names) >= _MOST_FILES:
                raise _too_many()
            names.append(os.fsencode(entry.name))
    return sorted(names)


def _too_many() -> SnapshotError:
    return SnapshotError(f"more than {_MOST_FILES} files of mail: too much for a recording", os.EX_DATAERR)


def _read(at: int, name: bytes, most: int) -> tuple[bytes, os.stat_result | None]:
    try:
        if not stat.S_ISREG(os.stat(name, dir_fd=at, follow_symlinks=False).st_mode):
            return b"", None
        fd = os.open(name, _OPEN, dir_fd=at)
    except FileNotFoundError:  # moved from tmp/ or new/ meanwhile, or deleted
        return b"", None
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            return b"", None
        if status.st_size > most:
            raise SnapshotError(
                f"more than {_MOST >> 20} MiB of mail: too much for a recording", os.EX_DATAERR
            )
        parts = []
        while part := os.read(fd, 1 << 20):
            parts.append(part)
        return b"".join(parts), status
    finally:
        os.close(fd)


def put(snapshot: Mapping[str, Any], path: str) -> None:
    """Restore a maildir in the directory `path`, with the same contents, names and times.

    Raises:
        SnapshotError: the recorded data is no maildir, or the system has no room for it.
    """
    try:
        for part in _PARTS:
            os.makedirs(os.path.join(os.fsencode(path), part), mode=0o700, exist_ok=True)
        if len(snapshot["files"]) > _MOST_FILES:
            raise _too_many()
        for name, file in snapshot["files"].items():
            folder, _, plain = name.rpartition(b"/")
            if (
                name.startswith(b"/")
                or folder not in _PARTS
                or plain in (b"", b".", b"..")
                or b"/" in plain
                or name in _PARTS
            ):
                raise SnapshotError(
                    f"the recorded maildir names a file outside of it: {name!r}", os.EX_DATAERR
                )
            where = os.path.join(os.fsencode(path), name)
            with open(os.open(where, _MAKE, 0o600), "wb") as out:
                out.write(file["data"])
            os.utime(where, ns=(file["mtime"], file["mtime"]))
        for part, when in snapshot["times"].items():
            if part in _PARTS:
                os.utime(os.path.join(os.fsencode(path), part), ns=(when, when))
    except OSError as error:
        code = os.EX_CANTCREAT if error.errno in _FULL else os.EX_DATAERR
        raise SnapshotError(f"the recorded maildir can't be restored: {error.strerror}", code) from None
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError):
        raise SnapshotError("the recorded maildir has a wrong format", os.EX_DATAERR) from None
