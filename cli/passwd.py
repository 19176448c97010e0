"""`popkernel passwd`: set or remove one user's hash in an authorization table, and change nothing else.

The table is locked and replaced as cli/common/table_files.py does.
"""

import argparse
import errno
import getpass
import os
import re
import sys
from collections.abc import Callable

from popkernel.cli.common import table_files
from popkernel.cli.common.parser import CommandParser, add_key
from popkernel.cli.common.table_files import TableError, check_name
from popkernel.kernel.client import runs_at
from popkernel.kernel.config.keys import default_run_dir
from popkernel.proto.access.user_names import case_conflicts, fold
from popkernel.proto.files.password_schemes import MAX_COST, MIN_COST
from popkernel.proto.files.tables import MAX_TABLE, Finding, damage, parse_auth

DEFAULT_COST = 10
MAX_PASSWORD = 72
"""Octets. bcrypt ignores the rest, so that a longer password would be weaker than it looks."""
_MEND = "see that the table can be written, and a new file in its directory"
_MENDS = {
    errno.EISDIR: "name the table itself, a file, with -a",
    errno.ENOENT: "make its directory first, or name another table with -a",
    errno.ENOTDIR: "name a table in a directory with -a",
    errno.ENOSPC: "make room on that disk",
}
# Leading blanks, the name, and the separator before the hash; a comment does not match.
_ENTRY = re.compile(rb"([ \t]*)([^ \t:\n#][^ \t:\n]*)([ \t]*:[ \t]*|[ \t]*)")


def define(parser: CommandParser) -> None:
    """Define the flags and the help."""
    parser.describe(
        "Set USER's password in an authorization table. It is asked for twice on the terminal, or read from\n"
        "standard input as one line. A new user is appended, a new file made with mode 0600. Every other\n"
        "line stays as it is. The table is replaced in one step, under the lock that the original server's\n"
        "tools take. `popkernel reload` puts it in force.",
        """
        popkernel passwd -a /etc/popkernel/auth alice
        pwgen 20 1 | tee alice.txt | popkernel passwd -a /etc/popkernel/auth --stdin alice
        popkernel passwd -a /etc/popkernel/auth --lock alice
        popkernel passwd -a /etc/popkernel/auth --delete alice
        """,
        "usage data noinput nouser cantcreat tempfail noperm",
    )
    add_key(parser, "auth_table", required=True, help="authorization table")
    parser.add_argument("user", metavar="USER", help="name as in the table: no blank, no colon")
    parser.add_argument(
        "--stdin", action="store_true", help="read the password from standard input, one line"
    )
    parser.add_argument(
        "--cost", type=int, metavar="N", help="bcrypt cost, 4 to 18 (default 10); one more doubles the work"
    )
    parser.add_argument("--delete", action="store_true", help="remove the user's line instead")
    parser.add_argument(
        "--lock",
        action="store_true",
        help="put a ! before the user's hash: no login until --unlock or a new password",
    )
    parser.add_argument("--unlock", action="store_true", help="take the ! away again")


def run(options: argparse.Namespace) -> int:
    """Run `popkernel passwd`."""
    try:
        _run(options)
    except TableError as error:
        print(f"popkernel: {error}", file=sys.stderr)
        return error.code
    except PermissionError as error:
        print(f"popkernel: {error.filename}: {error.strerror}; run it as the table's owner", file=sys.stderr)
        return os.EX_NOPERM
    except OSError as error:
        where = error.filename or options.auth_table
        print(f"popkernel: {where}: {error.strerror}; {_MENDS.get(error.errno or 0, _MEND)}", file=sys.stderr)
        return os.EX_CANTCREAT
    return os.EX_OK


def _run(options: argparse.Namespace) -> None:
    cost = DEFAULT_COST if options.cost is None else options.cost
    if not MIN_COST <= cost <= MAX_COST:
        raise TableError(
            f"--cost {cost} is not from {MIN_COST} to {MAX_COST}; 10 to 12 suit most machines", os.EX_USAGE
        )
    asked = [name for name in _CHANGES if getattr(options, name)]
    if len(asked) > 1:
        raise TableError(f"--{asked[0]} and --{asked[1]}: give one of them", os.EX_USAGE)
    if asked and (options.stdin or options.cost is not None):
        raise TableError(f"--{asked[0]} takes neither --stdin nor --cost; leave them out", os.EX_USAGE)
    user = check_name(options.user)
    path = os.path.abspath(options.auth_table)
    if asked:
        # Checked before the lock, which would create the file of a mistyped path.
        if not os.path.exists(path):
            raise TableError(f"{path}: there is no such table; name the right one with -a", os.EX_NOINPUT)
        done, change = _CHANGES[asked[0]]
        replace_entry(path, user, change)
        print(f"{options.user} {done}; {_in_force()}", file=sys.stderr)
        return
    password = _from_stdin() if options.stdin else _from_terminal(options.user)
    # Hashing comes before the lock: cost 16 takes seconds, for which nobody else should wait.
    line_hash = hash_password(password, cost)
    made = replace_entry(path, user, line_hash)
    what = f"{path} made with mode 0600; " if made else ""
    print(f"{what}{options.user} set; {_in_force()}", file=sys.stderr)
    for finding in _case_warnings(options.user, path):
        print(f"warning: {finding}", file=sys.stderr)


def _case_warnings(user: str, path: str) -> list[Finding]:
    """Warn of users whose names differ from this one in case only, as `check` does."""
    with open(path, "rb") as file:
        data = file.read(MAX_TABLE)
    return case_conflicts(
        [name for name in parse_auth(data, path).names() if fold(name) == fold(user)], data, path
    )


def _in_force() -> str:
    """Say how the change gets into force.

    The server that uses this table is unknown; most likely it is the one at the default run directory.
    """
    if runs_at(default_run_dir()):
        return "`popkernel reload` puts it in force"
    return "no server runs at the usual place; a server uses it from its next start or reload on"


def _locked_hash(old: bytes) -> bytes:
    if not parse_auth(b"x " + old + b"\n", "").hashes:
        raise TableError("is locked already, or has no usable hash; nothing is changed", os.EX_DATAERR)
    return b"!" + old


def _unlocked_hash(old: bytes) -> bytes:
    bare = old.lstrip(b"!*")
    if bare == old:
        raise TableError("is not locked; nothing is changed", os.EX_DATAERR)
    if not parse_auth(b"x " + bare + b"\n", "").hashes:
        raise TableError("has no usable hash behind the lock; set a password", os.EX_DATAERR)
    return bare


_CHANGES: dict[str, tuple[str, Callable[[bytes], bytes] | None]] = {
    "delete": ("removed", None),
    "lock": ("locked", _locked_hash),
    "unlock": ("unlocked", _unlocked_hash),
}
"""What can be done instead of setting a password: the text when it is done, and the change of the hash."""


def _from_stdin() -> bytes:
    """Read one line; its line end, LF or CR LF, is not part of the password."""
    data = sys.stdin.buffer.read(4096)
    line = data.removesuffix(b"\n").removesuffix(b"\r")
    return check_password(line)


def _from_terminal(user: str) -> bytes:
    try:
        # Without a terminal getpass would read standard input and echo it.
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        raise TableError("there is no terminal to ask on; use --stdin", os.EX_NOINPUT) from None
    try:
        first = getpass.getpass(f"New password for {user}: ")
        # Checked before it must be typed again.
        password = check_password(os.fsencode(first))
        second = getpass.getpass("Once more: ")
    except EOFError:
        raise TableError("no password was typed; give one, or use --stdin", os.EX_NOINPUT) from None
    if first != second:
        raise TableError("the two passwords differ; nothing is changed, try again", os.EX_DATAERR)
    return password


def check_password(password: bytes) -> bytes:
    """Refuse a password that bcrypt would cut or a client cannot send, without quoting it.

    Raises:
        TableError: exit code 65.

    """
    if not password:
        raise TableError("the password is empty; give one", os.EX_DATAERR)
    if b"\n" in password or b"\r" in password:
        raise TableError("the password has a line end; give one line", os.EX_DATAERR)
    if b"\0" in password:
        raise TableError("the password has a NUL octet; leave it out", os.EX_DATAERR)
    if len(password) > MAX_PASSWORD:
        what = f"the password has {len(password)} octets and bcrypt takes {MAX_PASSWORD}"
        raise TableError(f"{what}; choose a shorter one", os.EX_DATAERR)
    return password


def hash_password(password: bytes, cost: int) -> bytes:
    """Hash with bcrypt under a fresh salt; `$2b$`, 60 octets."""
    import bcrypt

    return bcrypt.hashpw(password, bcrypt.gensalt(cost))


def replace_entry(path: str, user: bytes, value: bytes | Callable[[bytes], bytes] | None) -> bool:
    """Put one user's hash into a table, or remove the user, in one step; every other octet is kept.

    Args:
        path: the table; a symbolic link is followed, and stays a link.
        user: from check_name().
        value: the hash, or a function that makes it of the old one; None removes the user.

    Returns:
        Whether the file was created.

    Raises:
        TableError: the table is damaged, is locked by another program, or has no such user.
        OSError: the system refused something; the table is unchanged.

    """
    path = os.path.realpath(path)
    made = not os.path.lexists(path)
    try:
        with table_files.locked(path) as descriptor:
            old = table_files.read(descriptor, path)
            new = _edited(old, path, user, value)
            table_files.replace(path, new, descriptor)
    except BaseException:
        # An empty table would puzzle; one that another program has written to meanwhile stays.
        if made and os.path.lexists(path) and os.stat(path, follow_symlinks=False).st_size == 0:
            os.unlink(path)
        raise
    return made


def _edited(old: bytes, path: str, user: bytes, value: bytes | Callable[[bytes], bytes] | None) -> bytes:
    """Return the table's new content."""
    # Lines with errors stay as they are; but nothing is added to a damaged or half written file.
    broken = damage(old, path)
    if broken is not None:
        raise TableError(str(broken), os.EX_DATAERR)
    lines = old.split(b"\n")[:-1]
    entries = [_ENTRY.match(line) for line in lines]
    places = [number for number, entry in enumerate(entries) if entry and entry[2] == user]
    if len(places) > 1:
        first, second = places[0] + 1, places[1] + 1
        what = (
            f"{path}:{second}: user {user.decode()} again, first on line {first}; remove one of the two lines"
        )
        raise TableError(what, os.EX_DATAERR)
    if not places and not isinstance(value, bytes):
        raise TableError(f"{path}: there is no user {user.decode()}; nothing is changed", os.EX_NOUSER)
    if value is None:
        del lines[places[0]]
    elif places:
        entry = entries[places[0]]
        assert entry is not None
        if not isinstance(value, bytes):
            try:
                value = value(lines[places[0]][entry.end() :].strip(b" \t"))
            except TableError as error:
                raise TableError(
                    f"{path}:{places[0] + 1}: user {user.decode()} {error}", error.code
                ) from None
        lines[places[0]] = entry[1] + user + (entry[3] or b" ") + value
    elif isinstance(value, bytes):
        lines.append(user + b" " + value)
    return b"".join(line + b"\n" for line in lines)
