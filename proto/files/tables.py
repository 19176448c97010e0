"""Parse the two tables of a site: authorization (name, password hash) and users (name, uid:gid:maildir).

Pure: octets in, a dictionary and a list of findings out; no input raises. The format is that of the original
server and of OpenSMTPD's table(5): one entry a line; blanks, or a colon and blanks, between the two columns.
Blank lines, leading and trailing blanks, and lines whose first non-blank is `#` are skipped. Anything else is
an error with its line and how to mend it, never guessed at. A table with errors must not be put in force.

A hash that cannot be checked keeps its own user from logging in and nobody else: the line names the user. `!`
or `*` before or instead of a hash locks the user on purpose. Every other fault refuses the whole table: a
line that does not parse may be any user's. In a user table every fault does: if a line were skipped, mail for
its user would be sent back.

A finding never quotes a line that did not parse: it may hold a password, or a hash in the wrong column.
"""

import re
from collections.abc import Callable, Collection
from typing import NamedTuple, TypeVar

from popkernel.proto.files.password_schemes import UnusableHashError, read_hash

# Octets: over 700,000 users at 90 octets a line. A reader reads at most one octet more.
MAX_TABLE = 64 * 1024 * 1024
# A path of PATH_MAX (4096) octets, a name and two numbers.
MAX_LINE = 4608
MAX_PATH = 1024
# A name has to fit in "USER name CRLF" of 255 octets (RFC 2449 section 4).
MAX_NAME = 248
# The largest uid_t and gid_t that every system's tools carry: (uid_t)-1 and negative numbers are special.
MAX_ID = 2**31 - 1
# A table in another format gives one finding a line; a hundred are enough.
MAX_FINDINGS = 100
_BOM = b"\xef\xbb\xbf"

_BCRYPT = rb"\$2[aby]\$(?:0[4-9]|1[0-8])\$[./A-Za-z0-9]{53}"
# The scheme prefix of Dovecot's tables, in either case.
_PREFIX = rb"(?i:\{(?:BLF-)?CRYPT\})?"
# A name has no blank, colon or control character, and begins with neither "#" (a comment) nor "$" (a hash in
# the wrong column). A name with 8-bit octets goes to the slow path, which checks UTF-8.
_FAST_NAME = rb"^([!\"%-9;-~][!-9;-~]{0,247})(?:[ \t]{1,64}|:[ \t]{0,64})"
_FAST_AUTH = re.compile(_FAST_NAME + _PREFIX + rb"(" + _BCRYPT + rb")$", re.MULTILINE)
_FAST_USER = re.compile(_FAST_NAME + rb"([0-9]{1,10}):([0-9]{1,10}):(/[!-~]{1,900})$", re.MULTILINE)
_SKIPPED = re.compile(rb"^[ \t]*(?:#[^\n]*)?\n", re.MULTILINE)
_COLUMNS = re.compile(rb"([^ \t:]+)(?:[ \t]*:[ \t]*|[ \t]+)(.*)", re.DOTALL)
_IDS = re.compile(rb"([0-9]{1,10}):([0-9]{1,10}):(.*)", re.DOTALL)
_CONTROL = re.compile(rb"[\x00-\x1f\x7f]")
_Entry = TypeVar("_Entry")


class Finding(NamedTuple):
    """One fault in one place, and how to mend it."""

    path: str
    """The file, or another thing that was checked, as the administrator knows it."""
    line: int
    """Line number from 1; 0 for no line."""
    what: str
    mend: str

    def __str__(self) -> str:
        where = f"{self.path}:{self.line}" if self.line else self.path
        return f"{where}: {self.what}; {self.mend}"


class MailUser(NamedTuple):
    """A row of the user table: the owner and the path of the mail."""

    uid: int
    gid: int
    maildir: str
    """Absolute path with the subdirectory; octets that are not UTF-8 are surrogate escapes (os.fsdecode)."""


class AuthTable(NamedTuple):
    """The contents of an authorization table."""

    hashes: dict[str, bytes]
    """Hash by name, of the users who may log in, in their order; see password_schemes.py."""
    errors: list[Finding]
    """Any of them keeps the table from being put in force."""
    shut_out: dict[str, Finding]
    """Users who cannot log in because their hash is unusable, with the reason."""
    locked: list[str]
    """Users who are locked by `!` or `*`."""

    def names(self) -> Collection[str]:
        """Return all names of the table, whether they may log in or not."""
        return {*self.hashes, *self.shut_out, *self.locked} if self.shut_out or self.locked else self.hashes


class _Refused(Exception):  # noqa: N818 - not an error of the program: carries a line's finding
    """A line is wrong; `what` and `mend` are those of its finding."""

    def __init__(self, what: str, mend: str) -> None:
        super().__init__(what)
        self.what = what
        self.mend = mend


def parse_auth(data: bytes, path: str) -> AuthTable:
    """Parse an authorization table. Never raises.

    A table in which nobody may log in and nobody is locked is refused: it is probably another file.

    Args:
        data: the whole file.
        path: its path, for the findings only.

    """
    fits = _parse_fast(_FAST_AUTH, data)
    hashes = {name.decode("ascii"): value for name, value in fits}
    if fits and len(hashes) == len(fits):
        return AuthTable(hashes, [], {}, [])
    shut_out: dict[str, Finding] = {}
    read, errors = _read_lines(
        data, path, read_hash, "add one with `popkernel passwd -a FILE USER`", shut_out
    )
    hashes = {name: value for name, value in read.items() if value}
    locked = [name for name, value in read.items() if not value]
    if shut_out and not read:
        errors = first_findings(
            sorted([*errors, *shut_out.values()], key=lambda finding: finding.line or MAX_TABLE),
            "more errors",
        )
    return AuthTable(hashes, errors, shut_out, locked)


def first_findings(findings: list[Finding], more: str, most: int = MAX_FINDINGS) -> list[Finding]:
    """Return the first `most` findings, and one that counts the rest; a rest of one is shown itself."""
    if len(findings) <= most + 1:
        return findings
    left = f"{len(findings) - most} {more}"
    return [*findings[:most], Finding(findings[0].path, 0, left, "mend the ones above first")]


def parse_users(data: bytes, path: str, subdir: str = "") -> tuple[dict[str, MailUser], list[Finding]]:
    """Parse a user table. Never raises.

    Args:
        data: the whole file.
        path: its path, for the findings only.
        subdir: relative path appended to every maildir (the flag `-e`); "" for none.

    Returns:
        The users of the good lines by name, in their order, and the findings.

    """
    tail = "/" + subdir.strip("/") if subdir.strip("/") else ""
    # ".." and a bare "/" are rare: they send the whole file to the slow path, which finds their line.
    fits = [] if b"/.." in data else _parse_fast(_FAST_USER, data)
    users: dict[str, MailUser] = {}
    for name, uid_text, gid_text, home in fits:
        uid, gid = int(uid_text), int(gid_text)
        directory = home.decode("ascii").rstrip("/")
        if not (0 < uid <= MAX_ID and 0 < gid <= MAX_ID and directory):
            break
        users[name.decode("ascii")] = MailUser(uid, gid, directory + tail)
    if fits and len(users) == len(fits):
        return users, []

    def user_of(value: bytes) -> MailUser:
        return _user_of(value, tail)

    return _read_lines(data, path, user_of, "add one as `name uid:gid:/path/of/maildir`")


def damage(data: bytes, path: str) -> Finding | None:
    """Find a reason not to append to a table: size, byte order mark, NUL, CR LF, a last line without LF."""
    whole = _file_fault(data, path)
    if whole is None and data and not data.endswith(b"\n"):
        return _no_newline(path, data.count(b"\n") + 1)
    return whole


def _parse_fast(pattern: re.Pattern[bytes], data: bytes) -> list[tuple[bytes, ...]]:
    """Parse a whole file in one pass: the columns of every entry, or [] if any line needs the slow path."""
    if len(data) > MAX_TABLE or not data.endswith(b"\n") or b"\0" in data or b"\r\n" in data:
        return []
    fits: list[tuple[bytes, ...]] = pattern.findall(data)
    if len(fits) == data.count(b"\n"):
        return fits
    # Some lines are no entries. Are these all comments and blank lines?
    return fits if len(fits) == _SKIPPED.sub(b"", data).count(b"\n") else []


def _read_lines(
    data: bytes,
    path: str,
    value_of: Callable[[bytes], _Entry],
    add_one: str,
    useless: dict[str, Finding] | None = None,
) -> tuple[dict[str, _Entry], list[Finding]]:
    """Parse line by line: the slow path for files with comments, colons, 8-bit names, or errors.

    `useless` receives, by name, the lines in which only the hash is wrong.
    """
    whole = _file_fault(data, path)
    if whole is not None:
        return {}, [whole]
    entries: dict[str, _Entry] = {}
    first_line: dict[str, int] = {}
    findings: list[Finding] = []
    unreported = 0
    lines = data.split(b"\n")
    last = lines.pop()
    for number, raw in enumerate(lines, 1):
        line = raw.strip(b" \t")
        if not line or line[0] == 0x23:  # "#"
            continue
        found: list[Finding] = []
        try:
            if len(raw) > MAX_LINE:
                raise _Refused(f"the line has {len(raw)} octets, over {MAX_LINE}", "shorten or remove it")
            name, value = _split(line)
            # A name counts as seen even if its value is refused, so that its second line is reported.
            first = first_line.setdefault(name, number)
            if first != number:
                found.append(
                    Finding(
                        path,
                        number,
                        f"user {name} again, first on line {first}",
                        "remove one of the two lines",
                    )
                )
            try:
                entries[name] = value_of(value)
            except UnusableHashError as refused:
                assert useless is not None
                who = f"user {name}" if refused.hash_like else "its user"
                useless[name] = Finding(path, number, f"{who} cannot log in: {refused.what}", refused.mend)
        except _Refused as refused:
            found.append(Finding(path, number, refused.what, refused.mend))
        reported = found[: MAX_FINDINGS - len(findings)]
        findings += reported
        unreported += len(found) - len(reported)
    if last and len(findings) < MAX_FINDINGS:
        findings.append(_no_newline(path, len(lines) + 1))
    elif last:
        unreported += 1
    elif not entries and not findings and not useless:
        findings.append(Finding(path, max(1, len(lines)), "the table has no user", add_one))
    if unreported:
        findings.append(Finding(path, 0, f"{unreported} more errors", "mend the ones above first"))
    return entries, findings


def _file_fault(data: bytes, path: str) -> Finding | None:
    """Find a fault of the whole file, reported once instead of once a line."""
    if len(data) > MAX_TABLE:
        return Finding(
            path, 0, f"the table has over {MAX_TABLE} octets", "is it the right file? Give a smaller one"
        )
    if data.startswith((_BOM, b"\xff\xfe", b"\xfe\xff")):
        what = "the file starts with a byte order mark"
        return Finding(path, 1, what, "save it as plain UTF-8 without one")
    nul = data.find(b"\0")
    if nul >= 0:
        what = "NUL octet: the file is damaged or is no text"
        return Finding(
            path, data.count(b"\n", 0, nul) + 1, what, "restore it from a backup, or write the line anew"
        )
    cr = data.find(b"\r\n")
    if cr >= 0:
        what = "line ends in CR LF"
        return Finding(path, data.count(b"\n", 0, cr) + 1, what, "turn them into LF: sed -i 's/\\r$//' FILE")
    return None


def _no_newline(path: str, line: int) -> Finding:
    what = "the last line has no newline: the file may be half written"
    return Finding(path, line, what, "write it in full and end it with a newline")


def _split(line: bytes) -> tuple[str, bytes]:
    """Split a stripped line into its name and the rest, as table(5) does."""
    columns = _COLUMNS.fullmatch(line)
    if columns is None or not columns[2]:
        raise _Refused(
            "the line has no second column", "write `name`, a blank, and the value; or remove the line"
        )
    name = columns[1]
    if len(name) > MAX_NAME:
        raise _Refused(f"the name has {len(name)} octets, over {MAX_NAME}", "choose a shorter one")
    if name.startswith(b"$"):
        raise _Refused("the name starts with `$`: is it a hash?", "write `name`, a blank, the value")
    if _CONTROL.search(name):
        raise _Refused("control character in the name", "write it in printable characters")
    try:
        text = name.decode("utf-8")
    except UnicodeDecodeError:
        raise _Refused("the name is not UTF-8", "write it in UTF-8") from None
    if not text.isprintable():  # such as a zero-width blank: nobody would find it
        raise _Refused("invisible character in the name", "write it in printable characters")
    return text, columns[2]


def _user_of(value: bytes, tail: str) -> MailUser:
    """Parse `uid:gid:maildir`."""
    columns = _IDS.fullmatch(value)
    if columns is None:
        raise _Refused(
            "the second column is not uid:gid:maildir in numbers", "write for example `1000:1000:/home/joe`"
        )
    uid, gid = int(columns[1]), int(columns[2])
    for number, called in ((uid, "uid"), (gid, "gid")):
        if number == 0:
            raise _Refused(f"{called} 0 is root's", f"give the mail a {called} of its own")
        if number > MAX_ID:
            raise _Refused(f"the {called} is over {MAX_ID}", f"give the mail a {called} of its own")
    home = columns[3]
    if not home.startswith(b"/"):
        raise _Refused("the maildir is no absolute path", "start it with /")
    if _CONTROL.search(home):
        raise _Refused("control character in the maildir's path", "rename the directory")
    # Landlock and unveil resolve ".." once, when the rule is set: the path must say where the mail is.
    if b".." in home.split(b"/"):
        raise _Refused("the maildir's path has a `..`", "write the path without it")
    directory = home.decode("utf-8", "surrogateescape").rstrip("/")
    if len(home) + len(tail) > MAX_PATH:
        raise _Refused(f"the maildir's path is over {MAX_PATH} octets", "use a shorter one")
    if not directory:
        raise _Refused("the maildir is the root directory", "write the user's own directory")
    return MailUser(uid, gid, directory + tail)
