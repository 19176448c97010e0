"""Read and check the user table, for start, reload and commands.

The kernel does not open the table's file: a child of init reads it (kernel/init/inputs.py), and the kernel
gets a descriptor of a copy in memory.
"""

import os

from popkernel.kernel.config.regular_files import UnreadableError, read_named
from popkernel.kernel.runtime.exit_codes import EXITS
from popkernel.proto.files.tables import MAX_TABLE, MailUser, parse_users

__all__ = ["NoTableError", "exit_code", "read_descriptor", "read_table", "read_users", "roots_of", "users_of"]

_MOST_ROOTS = 200  # directories that the spawner unveils
_MOST_OCTETS = 100_000  # characters of these directories together: one message carries them
_PIECE = 1 << 20  # octets


class NoTableError(ValueError):
    """The user table does not exist, or is not readable. `code`: sysexits(3)."""

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.code = code


def read_table(path: str) -> bytes:
    """Return the table's octets.

    Raises:
        NoTableError: the file can't be read.
    """
    try:
        return read_named("user_table", path, MAX_TABLE)
    except UnreadableError as error:
        raise NoTableError(str(error), error.code) from None


def read_descriptor(fd: int) -> bytes:
    """Return the table's octets from the descriptor of its copy in memory, and close it.

    Raises:
        OSError: there is no memory.
    """
    parts: list[bytes] = []
    try:
        while part := os.pread(fd, _PIECE, sum(map(len, parts))):
            parts.append(part)
    finally:
        os.close(fd)
    return b"".join(parts)


def users_of(data: bytes, path: str, subdir: str) -> dict[str, MailUser]:
    """Return the users of a table, given its octets, its path and the configured subdirectory of maildirs.

    Raises:
        ValueError: the table has faults; its text has a line for each of the first 20.
    """
    users, findings = parse_users(data, path, subdir)
    if findings:
        raise ValueError("\n".join(map(str, findings[:20])))
    return users


def read_users(path: str, subdir: str) -> dict[str, MailUser]:
    """Read a table, and return its users.

    Raises:
        ValueError: as of read_table() and users_of().
    """
    return users_of(read_table(path), path, subdir)


def exit_code(error: ValueError) -> int:
    """Return the exit code, of sysexits(3), for an error of this module."""
    return error.code if isinstance(error, NoTableError) else EXITS["data"].code


def roots_of(users: dict[str, MailUser]) -> list[bytes]:
    """Return at most 200 directories that all maildirs lie under.

    These are the maildirs' parents or, where those are too many, the directories one or more levels above.
    """
    roots = {os.path.dirname(u.maildir) for u in users.values()}
    while len(roots) > _MOST_ROOTS or sum(map(len, roots)) > _MOST_OCTETS:
        roots = {os.path.dirname(r) for r in roots}
    return sorted(os.fsencode(r) for r in roots)
