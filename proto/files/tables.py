"""The two tables a site is made of: authorization (name, bcrypt hash) and users (name, uid:gid:maildir).

Pure: octets in, a dictionary and a list of findings out, and no input makes it raise. The files are those of the
original server and of OpenSMTPD's table(5): one entry a line; blanks, or a colon and blanks, between the two columns;
blank lines, leading and trailing blanks, and lines whose first non-blank is ``#`` are skipped. What cannot be taken is
an error with its line and its mend, never a guess: a table with errors must not be put in force.

A hash that cannot be checked shuts its user out, and nobody else: the line says plainly whose it is. ``!`` or ``*`` before
or instead of a hash locks a user on purpose. Every other fault refuses the table: a line that does not parse may be anybody's.
A user table has no such exception, since mail for a user whose line is passed over would be sent back as for a stranger.

Nothing of a line that did not parse is ever repeated in a finding, since it may be a password or a hash in the wrong
column.
"""

import re
from collections.abc import Callable, Collection
from typing import NamedTuple, TypeVar

# Two to the twenty-sixth: over 700,000 users at 90 octets a line. Whoever reads a table reads at most one octet more.
MAX_TABLE = 64 * 1024 * 1024
# A path of PATH_MAX (4096) octets, a name and two numbers.
MAX_LINE = 4608
MAX_PATH = 1024
# A name has to fit in "USER name CRLF" of 255 octets (RFC 2449 section 4).
MAX_NAME = 248
# uid_t and gid_t as every system's tools can carry them: (uid_t)-1 and negative numbers mean something else.
MAX_ID = 2**31 - 1
# A table in a foreign format would give one finding a line; this many say it all.
MAX_FINDINGS = 100
# bcrypt's cost: one more doubles the work. At 18 a check takes some 13 s; at 19 a client has given up before it ends.
MIN_COST, MAX_COST = 4, 18
_BOM = b"\xef\xbb\xbf"

_BCRYPT = rb"\$2[aby]\$(?:0[4-9]|1[0-8])\$[./A-Za-z0-9]{53}"
# Before a bcrypt hash in tables of Dovecot, whose schemes' names are of either case.
_PREFIX = rb"(?i:\{(?:BLF-)?CRYPT\})?"
# A name has no blank, no colon, no control character; 8-bit octets are left to the UTF-8 check of the careful path. It
# starts with neither "#" (a comment) nor "$" (a hash in the wrong column).
_FAST_NAME = rb"^([!\"%-9;-~][!-9;-~]{0,247})(?:[ \t]{1,64}|:[ \t]{0,64})"
_FAST_AUTH = re.compile(_FAST_NAME + _PREFIX + rb"(" + _BCRYPT + rb")$", re.MULTILINE)
_FAST_USER = re.compile(_FAST_NAME + rb"([0-9]{1,10}):([0-9]{1,10}):(/[!-~]{1,900})$", re.MULTILINE)
_SKIPPED = re.compile(rb"^[ \t]*(?:#[^\n]*)?\n", re.MULTILINE)
_COLUMNS = re.compile(rb"([^ \t:]+)(?:[ \t]*:[ \t]*|[ \t]+)(.*)", re.DOTALL)
_PREFIX_ONLY = re.compile(_PREFIX)
_BCRYPT_ONLY = re.compile(_BCRYPT)
_IDS = re.compile(rb"([0-9]{1,10}):([0-9]{1,10}):(.*)", re.DOTALL)
_CONTROL = re.compile(rb"[\x00-\x1f\x7f]")
# Schemes that crypt(3) and other mail servers write. Anything else that looks like one might be a password: not named.
_SCHEME = re.compile(
    rb"\$(?:1|2|2x|3|5|6|7|y|gy|md5|sha1|scrypt|argon2(?:i|d|id))\$"
    rb"|(?i:\{(?:CLEAR|CLEARTEXT|PLAIN|PLAIN-MD5|CRAM-MD5|DIGEST-MD5|HMAC-MD5|LDAP-MD5|SMD5|MD5|MD5-CRYPT|DES-CRYPT|LANMAN|NTLM|OTP"
    rb"|SHA|SHA1|SSHA|SHA256|SSHA256|SHA512|SSHA512|SHA256-CRYPT|SHA512-CRYPT|SCRAM-SHA-1|SCRAM-SHA-256|PBKDF2|ARGON2ID?"
    rb"|(?:BLF-)?CRYPT)(?:\.(?:B64|BASE64|HEX))?\})"
)
_ANEW = "set it anew with `popkernel passwd`"

_Entry = TypeVar("_Entry")


class Finding(NamedTuple):
    """One thing wrong in one place, and what to do about it."""

    path: str
    """The file, or what else was looked at, as the administrator knows it."""
    line: int
    """Line number from 1; 0 where there is no line to name."""
    what: str
    mend: str

    def __str__(self) -> str:
        where = f"{self.path}:{self.line}" if self.line else self.path
        return f"{where}: {self.what}; {self.mend}"


class MailUser(NamedTuple):
    """Where a user's mail lies and who owns it."""

    uid: int
    gid: int
    maildir: str
    """Absolute path, subdirectory included; octets that are not UTF-8 are surrogate escapes, as in os.fsdecode."""


class AuthTable(NamedTuple):
    """What an authorization table says."""

    hashes: dict[str, bytes]
    """bcrypt hash (60 octets) by name, of those who may log in, in their order."""
    errors: list[Finding]
    """Any of them keeps the table from being put in force."""
    shut_out: dict[str, Finding]
    """Who cannot log in because of what stands in place of the hash, and why; the others are served."""
    locked: list[str]
    """Whom `!` or `*` locks."""

    def names(self) -> Collection[str]:
        """Everybody it names, who may log in and who may not."""
        return {*self.hashes, *self.shut_out, *self.locked} if self.shut_out or self.locked else self.hashes


class _Refused(Exception):  # noqa: N818 - not an error of the program: the line's finding on its way up
    """What is wrong with a line, and the mend."""

    def __init__(self, what: str, mend: str) -> None:
        super().__init__(what)
        self.what = what
        self.mend = mend


class _UselessHash(_Refused):
    """What stands in place of the hash cannot be checked. `hash_like`: it is a hash, so that the first column is surely a name."""

    def __init__(self, what: str, mend: str, *, hash_like: bool = True) -> None:
        super().__init__(what, mend)
        self.hash_like = hash_like


def parse_auth(data: bytes, path: str) -> AuthTable:
    """Read an authorization table. Never raises.

    A table in which nobody may log in and nobody is locked is refused: it is another file, most likely.

    Args:
        data: the whole file.
        path: its path, for the findings only.

    """
    fits = _all_that_fits(_FAST_AUTH, data)
    hashes = {name.decode("ascii"): value for name, value in fits}
    if fits and len(hashes) == len(fits):
        return AuthTable(hashes, [], {}, [])
    shut_out: dict[str, Finding] = {}
    read, errors = _read_lines(data, path, _hash_of, "add one with `popkernel passwd -a FILE USER`", shut_out)
    hashes = {name: value for name, value in read.items() if value}
    locked = [name for name, value in read.items() if not value]
    if shut_out and not read:
        errors = few(sorted([*errors, *shut_out.values()], key=lambda finding: finding.line or MAX_TABLE), "more errors")
    return AuthTable(hashes, errors, shut_out, locked)


def few(findings: list[Finding], more: str, most: int = MAX_FINDINGS) -> list[Finding]:
    """The first `most`, and a line that says how many `more` there are; where that is one, it is shown itself."""
    if len(findings) <= most + 1:
        return findings
    left = f"{len(findings) - most} {more}"
    return [*findings[:most], Finding(findings[0].path, 0, left, "mend the ones above first")]


def parse_users(data: bytes, path: str, subdir: str = "") -> tuple[dict[str, MailUser], list[Finding]]:
    """Read a user table.

    Args:
        data: the whole file.
        path: its path, for the findings only.
        subdir: relative path appended to every maildirstring (the flag ``-e``); "" for none.

    Returns:
        The users by name for the lines that are good, in their order, and the findings. Never raises.

    """
    tail = "/" + subdir.strip("/") if subdir.strip("/") else ""
    # ".." and a bare "/" are rare enough to send the whole file down the careful path, which says which line it is.
    fits = [] if b"/.." in data else _all_that_fits(_FAST_USER, data)
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
    """Find what makes a table unfit to be added to: too large, a byte order mark, NUL, CR LF, a last line cut short."""
    whole = _whole_file(data, path)
    if whole is None and data and not data.endswith(b"\n"):
        return _no_newline(path, data.count(b"\n") + 1)
    return whole


def _all_that_fits(pattern: re.Pattern[bytes], data: bytes) -> list[tuple[bytes, ...]]:
    """Take a whole file in one pass: every entry's columns, or [] when any line needs the careful path."""
    if len(data) > MAX_TABLE or not data.endswith(b"\n") or b"\0" in data or b"\r\n" in data:
        return []
    fits: list[tuple[bytes, ...]] = pattern.findall(data)
    if len(fits) == data.count(b"\n"):
        return fits
    # Not every line is an entry. Are the others all comments and blank lines?
    return fits if len(fits) == _SKIPPED.sub(b"", data).count(b"\n") else []


def _read_lines(
    data: bytes, path: str, value_of: Callable[[bytes], _Entry], add_one: str, useless: dict[str, Finding] | None = None
) -> tuple[dict[str, _Entry], list[Finding]]:
    """Read every line with care: the path for files with comments, colons, 8-bit names, or errors.

    `useless` takes those whose second column alone is wrong, by name, where that is no error.
    """
    whole = _whole_file(data, path)
    if whole is not None:
        return {}, [whole]
    entries: dict[str, _Entry] = {}
    first_line: dict[str, int] = {}
    findings: list[Finding] = []
    unsaid = 0
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
            # A name counts as seen even if its value is refused: the second line is still the one too many.
            first = first_line.setdefault(name, number)
            if first != number:
                found.append(Finding(path, number, f"user {name} again, first on line {first}", "remove one of the two lines"))
            try:
                entries[name] = value_of(value)
            except _UselessHash as refused:
                assert useless is not None
                who = f"user {name}" if refused.hash_like else "its user"
                useless[name] = Finding(path, number, f"{who} cannot log in: {refused.what}", refused.mend)
        except _Refused as refused:
            found.append(Finding(path, number, refused.what, refused.mend))
        said = found[: MAX_FINDINGS - len(findings)]
        findings += said
        unsaid += len(found) - len(said)
    if last and len(findings) < MAX_FINDINGS:
        findings.append(_no_newline(path, len(lines) + 1))
    elif last:
        unsaid += 1
    elif not entries and not findings and not useless:
        findings.append(Finding(path, max(1, len(lines)), "the table has no user", add_one))
    if unsaid:
        findings.append(Finding(path, 0, f"{unsaid} more errors", "mend the ones above first"))
    return entries, findings


def _whole_file(data: bytes, path: str) -> Finding | None:
    """Find what makes the file as a whole useless: one finding then, not one a line."""
    if len(data) > MAX_TABLE:
        return Finding(path, 0, f"the table has over {MAX_TABLE} octets", "is it the right file? Give a smaller one")
    if data.startswith((_BOM, b"\xff\xfe", b"\xfe\xff")):
        what = "the file starts with a byte order mark"
        return Finding(path, 1, what, "save it as plain UTF-8 without one")
    nul = data.find(b"\0")
    if nul >= 0:
        what = "NUL octet: the file is damaged or is no text"
        return Finding(path, data.count(b"\n", 0, nul) + 1, what, "restore it from a backup, or write the line anew")
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
        raise _Refused("the line has no second column", "write `name`, a blank, and the value; or remove the line")
    name = columns[1]
    if len(name) > MAX_NAME:
        raise _Refused(f"the name has {len(name)} octets, over {MAX_NAME}", "choose a shorter one")
    if name.startswith(b"$"):
        raise _Refused("the name starts with `$`: is it a hash?", "write `name`, a blank, the value")
    if _CONTROL.search(name):
        raise _Refused("control character in the name", "write it in printable characters")
    try:
        return name.decode("utf-8"), columns[2]
    except UnicodeDecodeError:
        raise _Refused("the name is not UTF-8", "write it in UTF-8") from None


def _hash_of(value: bytes) -> bytes:
    """The bcrypt hash of the second column, b"" for a user who is locked; never say what else it is, beyond a known scheme's name."""
    prefix = _PREFIX_ONLY.match(value)
    bare = value[prefix.end() :] if prefix else value
    if _BCRYPT_ONLY.fullmatch(bare):
        return bare
    if bare.startswith((b"!", b"*")):  # as passwd(1) and vipw(8) lock; no hash begins so
        return b""
    if bare[:4] in {b"$2a$", b"$2b$", b"$2y$"}:
        if len(bare) != 60:
            raise _UselessHash(f"the bcrypt hash has {len(bare)} characters, not 60", _ANEW)
        cost = re.match(rb"(\d\d)\$", bare[4:])
        if cost is None or not MIN_COST <= int(cost[1]) <= 31:
            raise _UselessHash("the bcrypt cost is not a number from 04 to 31", _ANEW)
        if int(cost[1]) > MAX_COST:
            what = f"a check of bcrypt cost {int(cost[1])} takes longer than a client waits"
            raise _UselessHash(what, f"{_ANEW}, --cost at most {MAX_COST}")
        raise _UselessHash("the bcrypt hash has a character that bcrypt does not write", _ANEW)
    scheme = _SCHEME.match(bare) or _SCHEME.match(value)
    if scheme:
        raise _UselessHash(f"a {scheme[0].decode('ascii')} hash, not bcrypt ($2a$, $2b$, $2y$)", _ANEW)
    raise _UselessHash("the second column is not a bcrypt hash ($2a$, $2b$, $2y$)", _ANEW, hash_like=False)


def _user_of(value: bytes, tail: str) -> MailUser:
    """Take ``uid:gid:maildirstring``."""
    columns = _IDS.fullmatch(value)
    if columns is None:
        raise _Refused("the second column is not uid:gid:maildir in numbers", "write for example `1000:1000:/home/joe`")
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
    # Landlock and unveil resolve ".." as it is at that time; a table should say plainly where the mail is.
    if b".." in home.split(b"/"):
        raise _Refused("the maildir's path has a `..`", "write the path without it")
    directory = home.decode("utf-8", "surrogateescape").rstrip("/")
    if len(home) + len(tail) > MAX_PATH:
        raise _Refused(f"the maildir's path is over {MAX_PATH} octets", "use a shorter one")
    if not directory:
        raise _Refused("the maildir is the root directory", "write the user's own directory")
    return MailUser(uid, gid, directory + tail)
