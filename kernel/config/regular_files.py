"""Read a file that the operator names: only a regular file, without blocking, up to a number of octets.

Opening a FIFO waits for a writer, and opening a device may have effects. So the file's type is checked before
it is opened, and again afterwards, since another file may have replaced it in between.
"""

import errno
import os
import stat

from popkernel.kernel.runtime.exit_codes import EXITS
from popkernel.proto.files.tables import Finding

__all__ = ["UnreadableError", "open_regular", "read_named", "read_regular"]

_KINDS = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
_OPEN = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
_PIECE = 1 << 20  # octets
_NAMED = {
    "auth_table": "auth_table (-a)",
    "user_table": "user_table (-u)",
    "cert": "cert (-c) or certs",
    "key": "key (-k) or certs",
}


class UnreadableError(Exception):
    """A file of the configuration cannot be read.

    `finding` names the file and the key that gives it; `code` is one of sysexits(3).
    """

    def __init__(self, finding: Finding, code: int) -> None:
        super().__init__(str(finding))
        self.finding = finding
        self.code = code


def open_regular(path: str) -> int:
    """Open a file for reading, and return its descriptor, which the caller closes.

    Raises:
        OSError: it does not exist, is not readable, or is no regular file. `strerror` is a text to put
            between the path and the mend.
    """
    _must_be_regular(os.stat(path), path)
    fd = os.open(path, _OPEN)
    try:
        _must_be_regular(os.fstat(fd), path)
    except BaseException:
        os.close(fd)
        raise
    return fd


def read_regular(path: str, most: int) -> bytes:
    """Read a whole file of at most `most` octets.

    Raises:
        OSError: as of open_regular(); it has more octets (EFBIG); or reading fails.
    """
    fd = open_regular(path)
    parts: list[bytes] = []
    left = most + 1
    try:
        while left and (part := os.read(fd, min(left, _PIECE))):
            parts.append(part)
            left -= len(part)
    finally:
        os.close(fd)
    if not left:
        raise OSError(errno.EFBIG, f"has over {most} octets", path)
    return b"".join(parts)


def read_named(key: str, path: str, most: int) -> bytes:
    """Read the file that `key` of the configuration names, for start, reload and `check`.

    Raises:
        UnreadableError: where read_regular() raises OSError.
    """
    try:
        return read_regular(path, most)
    except OSError as error:
        mend = f"name the right file with {_NAMED.get(key, key)}, readable by the user who starts the server"
        code = EXITS["data" if error.errno == errno.EFBIG else "noinput"].code
        raise UnreadableError(Finding(path, 0, error.strerror or str(error), mend), code) from None


def _must_be_regular(found: os.stat_result, path: str) -> None:
    kind = stat.S_IFMT(found.st_mode)
    if kind == stat.S_IFDIR:
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    if kind != stat.S_IFREG:
        raise OSError(errno.EINVAL, f"is {_KINDS.get(kind, 'something else')}, not a regular file", path)
