"""The user table: one judge of it for the start, a reload and whoever else looks at it.

The kernel opens no file of it. A child of init's reads it (kernel/init/inputs.py), and the kernel is handed a descriptor of what was read.
"""

import os

from popkernel.kernel.config.regular_files import UnreadableError, read_named
from popkernel.kernel.runtime.exit_codes import EXITS
from popkernel.proto.files.tables import MAX_TABLE, MailUser, parse_users

__all__ = ["NoTableError", "code_of", "handed_over", "judge", "read_table", "read_users", "roots_of"]

_MOST_ROOTS = 200  # directories that the spawner unveils
_MOST_OCTETS = 100_000  # characters of them all: they travel in one message
_PIECE = 1 << 20  # octets


class NoTableError(ValueError):
    """The user table is not there, or is not readable. `code`: sysexits(3)."""

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.code = code


def read_table(path: str) -> bytes:
    """What the file holds; NoTableError where it can't be read."""
    try:
        return read_named("user_table", path, MAX_TABLE)
    except UnreadableError as error:
        raise NoTableError(str(error), error.code) from None


def handed_over(fd: int) -> bytes:
    """What was read of the table, from the memory that it was put into; closes the descriptor. OSError where there is no memory."""
    parts: list[bytes] = []
    try:
        while part := os.pread(fd, _PIECE, sum(map(len, parts))):
            parts.append(part)
    finally:
        os.close(fd)
    return b"".join(parts)


def judge(data: bytes, path: str, subdir: str) -> dict[str, MailUser]:
    """The users of a table. ValueError, with every finding a line, for one that can't be used."""
    users, findings = parse_users(data, path, subdir)
    if findings:
        raise ValueError("\n".join(map(str, findings[:20])))
    return users


def read_users(path: str, subdir: str) -> dict[str, MailUser]:
    """Read and judge. ValueError as of read_table() and judge()."""
    return judge(read_table(path), path, subdir)


def code_of(error: ValueError) -> int:
    """What a start ends with, or a reload, for what was raised here; sysexits(3)."""
    return error.code if isinstance(error, NoTableError) else EXITS["data"].code


def roots_of(users: dict[str, MailUser]) -> list[bytes]:
    """A few directories under which all maildirs lie: their parents, or the parents' parents, as many as make them few."""
    roots = {os.path.dirname(u.maildir) for u in users.values()}
    while len(roots) > _MOST_ROOTS or sum(map(len, roots)) > _MOST_OCTETS:
        roots = {os.path.dirname(r) for r in roots}
    return sorted(os.fsencode(r) for r in roots)
