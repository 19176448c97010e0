"""The user table as the kernel reads it, at the start and at a reload."""

import os

from popkernel.kernel.exits import EXITS
from popkernel.kernel.regular import UnreadableError, read_named
from popkernel.proto.tables import MAX_TABLE, MailUser, parse_users

__all__ = ["NoTableError", "code_of", "read_users", "roots_of"]

_MOST_ROOTS = 200  # directories that the spawner unveils
_MOST_OCTETS = 100_000  # characters of them all: they travel in one message


class NoTableError(ValueError):
    """The user table is not there, or is not readable. `code`: sysexits(3)."""

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.code = code


def read_users(path: str, subdir: str) -> dict[str, MailUser]:
    """ValueError, with every finding a line, for a table that can't be used."""
    try:
        data = read_named("user_table", path, MAX_TABLE)
    except UnreadableError as error:
        raise NoTableError(str(error), error.code) from None
    users, findings = parse_users(data, path, subdir)
    if findings:
        raise ValueError("\n".join(map(str, findings[:20])))
    return users


def code_of(error: ValueError) -> int:
    """What a start ends with, or a reload, for what read_users() raised; sysexits(3)."""
    return error.code if isinstance(error, NoTableError) else EXITS["data"].code


def roots_of(users: dict[str, MailUser]) -> list[bytes]:
    """A few directories under which all maildirs lie: their parents, or the parents' parents, as many as make them few."""
    roots = {os.path.dirname(u.maildir) for u in users.values()}
    while len(roots) > _MOST_ROOTS or sum(map(len, roots)) > _MOST_OCTETS:
        roots = {os.path.dirname(r) for r in roots}
    return sorted(os.fsencode(r) for r in roots)
