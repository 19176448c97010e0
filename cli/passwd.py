"""`popkernel passwd`: set or remove one user's hash in an authorization table, and touch nothing else in it.

The table is replaced by renaming, so a reader sees the old one or the new one and no half. The exclusive flock on the
table file is the one the original server's tools take: whoever edits with those waits for us, and we for them.
"""

import argparse
import errno
import fcntl
import getpass
import os
import re
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from popkernel.cli.common.parser import CommandParser, add_key
from popkernel.kernel.client import runs_at
from popkernel.kernel.config.keys import default_run_dir
from popkernel.proto.access.user_names import fold, twins
from popkernel.proto.files.tables import MAX_COST, MAX_NAME, MAX_TABLE, MIN_COST, Finding, damage, parse_auth

DEFAULT_COST = 10
MAX_PASSWORD = 72
"""Octets; bcrypt sees no more, so a longer password would be weaker than it looks."""
LOCK_SECONDS = 30.0
_MEND = "see that the table and a new one beside it can be written"
_MENDS = {
    errno.EISDIR: "name the table itself, a file, with -a",
    errno.ENOENT: "make its directory first, or name another table with -a",
    errno.ENOTDIR: "name a table in a directory with -a",
    errno.ENOSPC: "make room on that disk",
}
# What stands before the name, the name, and what parts it from the hash; a comment has none.
_ENTRY = re.compile(rb"([ \t]*)([^ \t:\n#][^ \t:\n]*)([ \t]*:[ \t]*|[ \t]*)")


class PasswdError(Exception):
    """The table stays as it was; str() says what and the mend, `code` is the exit code."""

    def __init__(self, what: str, code: int) -> None:
        super().__init__(what)
        self.code = code


def define(parser: CommandParser) -> None:
    """Its flags and its help."""
    parser.describe(
        "Set USER's password in an authorization table: asked for twice on the terminal, or one line of\n"
        "standard input. A new user is appended, a new file made with mode 0600. Every other line stays as it is.\n"
        "The table is replaced in one step, under the lock the original server's tools take. `popkernel reload` puts\n"
        "it in force.",
        """
        popkernel passwd -a /etc/mail/auth alice
        pwgen 20 1 | tee alice.txt | popkernel passwd -a /etc/mail/auth --stdin alice
        popkernel passwd -a /etc/mail/auth --lock alice
        popkernel passwd -a /etc/mail/auth --delete alice
        """,
        "usage data noinput nouser cantcreat tempfail noperm",
    )
    add_key(parser, "auth_table", required=True, help="authorization table")
    parser.add_argument("user", metavar="USER", help="name as in the table: no blank, no colon")
    parser.add_argument("--stdin", action="store_true", help="read the password from standard input, one line")
    parser.add_argument("--cost", type=int, metavar="N", help="bcrypt cost, 4 to 18 (default 10); one more doubles the work")
    parser.add_argument("--delete", action="store_true", help="remove the user's line instead")
    parser.add_argument("--lock", action="store_true", help="put a ! before the user's hash: no login until --unlock or a new password")
    parser.add_argument("--unlock", action="store_true", help="take the ! away again")


def run(options: argparse.Namespace) -> int:
    """Run `popkernel passwd`."""
    try:
        _run(options)
    except PasswdError as error:
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
        raise PasswdError(f"--cost {cost} is not from {MIN_COST} to {MAX_COST}; 10 to 12 suit most machines", os.EX_USAGE)
    asked = [name for name in _CHANGES if getattr(options, name)]
    if len(asked) > 1:
        raise PasswdError(f"--{asked[0]} and --{asked[1]}: give one of them", os.EX_USAGE)
    if asked and (options.stdin or options.cost is not None):
        raise PasswdError(f"--{asked[0]} takes neither --stdin nor --cost; leave them out", os.EX_USAGE)
    user = check_name(options.user)
    path = os.path.abspath(options.auth_table)
    if asked:
        # Looked at before the lock so that a mistyped path makes no new file.
        if not os.path.exists(path):
            raise PasswdError(f"{path}: there is no such table; name the right one with -a", os.EX_NOINPUT)
        done, change = _CHANGES[asked[0]]
        replace_entry(path, user, change)
        print(f"{options.user} {done}; {_in_force()}", file=sys.stderr)
        return
    password = _from_stdin() if options.stdin else _from_terminal(options.user)
    # The slow part comes before the lock: cost 16 takes seconds, and nobody else should wait for it.
    line_hash = hash_password(password, cost)
    made = replace_entry(path, user, line_hash)
    what = f"{path} made with mode 0600; " if made else ""
    print(f"{what}{options.user} set; {_in_force()}", file=sys.stderr)
    for finding in _twins_of(options.user, path):
        print(f"warning: {finding}", file=sys.stderr)


def _twins_of(user: str, path: str) -> list[Finding]:
    """What is to be said of others of that name in another case, as `check` says it."""
    with open(path, "rb") as file:
        data = file.read(MAX_TABLE)
    return twins([name for name in parse_auth(data, path).names() if fold(name) == fold(user)], data, path)


def _in_force() -> str:
    """What puts the change in force. Which server goes by this table is not known: one at the usual place, most likely."""
    if runs_at(default_run_dir()):
        return "`popkernel reload` puts it in force"
    return "no server runs at the usual place; any goes by it from its next start or reload on"


def _locked_hash(old: bytes) -> bytes:
    if not parse_auth(b"x " + old + b"\n", "").hashes:
        raise PasswdError("is locked already, or has no bcrypt hash; nothing is changed", os.EX_DATAERR)
    return b"!" + old


def _unlocked_hash(old: bytes) -> bytes:
    bare = old.lstrip(b"!*")
    if bare == old:
        raise PasswdError("is not locked; nothing is changed", os.EX_DATAERR)
    if not parse_auth(b"x " + bare + b"\n", "").hashes:
        raise PasswdError("has no bcrypt hash behind the lock; set a password", os.EX_DATAERR)
    return bare


_CHANGES: dict[str, tuple[str, Callable[[bytes], bytes] | None]] = {
    "delete": ("removed", None), "lock": ("locked", _locked_hash), "unlock": ("unlocked", _unlocked_hash),
}
"""What else than setting a password may be asked for: what has been done then, and what becomes of the hash."""


def check_name(user: str) -> bytes:
    """Encode a name that a table can hold.

    Raises:
        PasswdError: it cannot; exit code 64.

    """
    name = os.fsencode(user)
    mend = "choose a name of letters, digits, dots, dashes and @"
    if not name or len(name) > MAX_NAME:
        raise PasswdError(f"the name has {len(name)} octets, not 1 to {MAX_NAME}; {mend}", os.EX_USAGE)
    if any(octet <= 0x20 or octet in {0x3A, 0x7F} for octet in name) or name[:1] in {b"#", b"$"}:
        what = "the name has a blank, a colon or a control character, or starts with # or $"
        raise PasswdError(f"{what}; {mend}", os.EX_USAGE)
    try:
        name.decode("utf-8")
    except UnicodeDecodeError:
        raise PasswdError(f"the name is not UTF-8; {mend}", os.EX_USAGE) from None
    return name


def _from_stdin() -> bytes:
    """Read one line; its newline, LF or CR LF, is no part of the password."""
    data = sys.stdin.buffer.read(4096)
    line = data.removesuffix(b"\n").removesuffix(b"\r")
    return check_password(line)


def _from_terminal(user: str) -> bytes:
    try:
        # Without a terminal getpass would read standard input, and echo it.
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        raise PasswdError("there is no terminal to ask on; use --stdin", os.EX_NOINPUT) from None
    try:
        first = getpass.getpass(f"New password for {user}: ")
        # Told at once rather than after typing it again.
        password = check_password(os.fsencode(first))
        second = getpass.getpass("Once more: ")
    except EOFError:
        raise PasswdError("no password was typed; give one, or use --stdin", os.EX_NOINPUT) from None
    if first != second:
        raise PasswdError("the two passwords differ; nothing is changed, try again", os.EX_DATAERR)
    return password


def check_password(password: bytes) -> bytes:
    """Refuse a password that bcrypt would cut short or a client could not send; never name it.

    Raises:
        PasswdError: exit code 65.

    """
    if not password:
        raise PasswdError("the password is empty; give one", os.EX_DATAERR)
    if b"\n" in password or b"\r" in password:
        raise PasswdError("the password has a line end; give one line", os.EX_DATAERR)
    if b"\0" in password:
        raise PasswdError("the password has a NUL octet; leave it out", os.EX_DATAERR)
    if len(password) > MAX_PASSWORD:
        what = f"the password has {len(password)} octets and bcrypt takes {MAX_PASSWORD}"
        raise PasswdError(f"{what}; choose a shorter one", os.EX_DATAERR)
    return password


def hash_password(password: bytes, cost: int) -> bytes:
    """Hash with bcrypt under a fresh salt; `$2b$`, 60 octets."""
    import bcrypt

    return bcrypt.hashpw(password, bcrypt.gensalt(cost))


def replace_entry(path: str, user: bytes, value: bytes | Callable[[bytes], bytes] | None) -> bool:
    """Put one user's hash into a table, or take the user out, in one step; every other octet stays as it was.

    Args:
        path: the table; a symbolic link is followed, so that it stays a link.
        user: as check_name() gives it.
        value: the hash, or what makes it of the old one; None removes the user.

    Returns:
        Whether the file was made.

    Raises:
        PasswdError: the table cannot be used as it is, is locked by another program, or has no such user to remove.
        OSError: the system refused something; the table is then as it was.

    """
    path = os.path.realpath(path)
    made = not os.path.lexists(path)
    try:
        with _locked(path) as descriptor:
            old = _read(descriptor, path)
            new = _edited(old, path, user, value)
            _replace(path, new, descriptor)
    except BaseException:
        # An empty table would only puzzle; one that another writer has filled meanwhile stays.
        if made and os.path.lexists(path) and os.stat(path, follow_symlinks=False).st_size == 0:
            os.unlink(path)
        raise
    return made


@contextmanager
def _locked(path: str) -> Iterator[int]:
    """Hold the exclusive lock of the file that has this name once the lock is ours."""
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW, 0o600)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise PasswdError(f"{path} is no regular file; name the table with -a", os.EX_DATAERR)
            _lock(descriptor, path, deadline)
            # Another writer may have renamed a new table over the one we waited for.
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
                raise PasswdError(f"{what}; try again when it is done", os.EX_TEMPFAIL) from None
            time.sleep(0.02)


def _same_file(descriptor: int, path: str) -> bool:
    ours = os.fstat(descriptor)
    try:
        named = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return (ours.st_dev, ours.st_ino) == (named.st_dev, named.st_ino)


def _read(descriptor: int, path: str) -> bytes:
    with open(descriptor, "rb", closefd=False) as file:
        data = file.read(MAX_TABLE + 1)
    if len(data) > MAX_TABLE:
        raise PasswdError(f"{path} has over {MAX_TABLE} octets; is it the right file?", os.EX_DATAERR)
    return data


def _edited(old: bytes, path: str, user: bytes, value: bytes | Callable[[bytes], bytes] | None) -> bytes:
    """Give the table's new content."""
    # Lines with errors of their own stay as they are; a file that is damaged or half written must not be added to.
    broken = damage(old, path)
    if broken is not None:
        raise PasswdError(str(broken), os.EX_DATAERR)
    lines = old.split(b"\n")[:-1]
    entries = [_ENTRY.match(line) for line in lines]
    places = [number for number, entry in enumerate(entries) if entry and entry[2] == user]
    if len(places) > 1:
        first, second = places[0] + 1, places[1] + 1
        what = f"{path}:{second}: user {user.decode()} again, first on line {first}; remove one of the two lines"
        raise PasswdError(what, os.EX_DATAERR)
    if not places and not isinstance(value, bytes):
        raise PasswdError(f"{path}: there is no user {user.decode()}; nothing is changed", os.EX_NOUSER)
    if value is None:
        del lines[places[0]]
    elif places:
        entry = entries[places[0]]
        assert entry is not None
        if not isinstance(value, bytes):
            try:
                value = value(lines[places[0]][entry.end() :].strip(b" \t"))
            except PasswdError as error:
                raise PasswdError(f"{path}:{places[0] + 1}: user {user.decode()} {error}", error.code) from None
        lines[places[0]] = entry[1] + user + (entry[3] or b" ") + value
    elif isinstance(value, bytes):
        lines.append(user + b" " + value)
    return b"".join(line + b"\n" for line in lines)


def _replace(path: str, data: bytes, old: int) -> None:
    """Write a new file of the old one's owner, mode and access lists beside it, and rename it over the old one."""
    directory, base = os.path.split(path)
    descriptor, temporary = tempfile.mkstemp(prefix=f".{base}.", dir=directory)
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            facts = os.fstat(old)
            mine = os.fstat(descriptor)
            if (facts.st_uid, facts.st_gid) != (mine.st_uid, mine.st_gid):
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
    """Keep a POSIX access list, by which OpenSMTPD may read the table."""
    name = "system.posix_acl_access"
    if hasattr(os, "listxattr") and name in os.listxattr(old):
        os.setxattr(new, name, os.getxattr(old, name))
