"""Read other servers' lists of accounts: Dovecot's passwd-file and doveadm's output, Courier's userdb, CSV.

Pure: octets in, accounts and findings out; no input raises. Nothing is guessed: what is not understood is a
finding with its line. A finding never quotes a password, nor a line that did not parse.

Sources: Dovecot's "Passwd-file" and "Extra fields", doveadm-user(1), makeuserdb(8), RFC 4180.
"""

import csv
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from popkernel.proto.files.tables import MAX_FINDINGS, Finding, first_findings

__all__ = ["COLUMNS", "FORMATS", "Account", "expand", "format_of", "maildir_of", "parse_accounts", "quota_of"]

MAX_ACCOUNTS = 1_000_000
_MAX_LINE = 16 * 1024  # octets
# extra fields of passdb that keep somebody from logging in, or send him elsewhere
_RESTRICTIONS = frozenset(
    ("allow_nets", "allow_real_nets", "proxy", "proxy_maybe", "host", "master", "pass", "user", "login_user")
)
_LOCKS = frozenset(("nologin", "disabled"))
COLUMNS = ("user", "password", "uid", "gid", "home", "maildir", "quota")
"""The columns of a CSV file's header row, in any order; `user` must be there."""
_CSV_NAMES = {
    "name": "user",
    "username": "user",
    "hash": "password",
    "mail": "maildir",
    **{c: c for c in COLUMNS},
}
_FIELD = re.compile(r"[ \t]*([A-Za-z][A-Za-z0-9_/]*)[ ]*(?:\t|: ?)(.*)")
_USERDB = re.compile(r"([^\t|=]+)\t+([A-Za-z0-9_-]+(?:=[^|]*)?(?:\|[A-Za-z0-9_-]+(?:=[^|]*)?)*\|?)")
_ONE_WORD = re.compile(r"[^\s:|,;]+")
_VARIABLE = re.compile(r"%(?:\{([^}]*)\}|(.?))")


class Account(NamedTuple):
    """An account as the list has it. "" or None: the list does not say it."""

    line: int
    name: str
    password: str = ""
    """The column of the hash, with its prefix. A secret: it may be plain text."""
    uid: str = ""
    gid: str = ""
    home: str = ""
    mail: str = ""
    """The mail's location: a path, or Dovecot's `maildir:PATH`."""
    quota: str = ""
    """In the form of the key `quota`."""
    locked: bool = False
    notes: tuple[str, ...] = ()
    """What is not taken over."""


def parse_accounts(data: bytes, path: str, form: str = "") -> tuple[list[Account], list[Finding]]:
    """Parse a list of accounts. Never raises.

    Args:
        data: the whole file.
        path: its path, for the findings only.
        form: one of FORMATS; "" to detect it.

    Returns:
        The accounts of the good lines, in their order, and the findings.

    """
    try:
        text = data.removeprefix(b"\xef\xbb\xbf").decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        return [], [
            Finding(path, line, "the line is not UTF-8", "convert the file: iconv -f latin1 -t utf-8")
        ]
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        return [], [Finding(path, line, "NUL octet: the file is damaged or is no text", "restore it")]
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    form = form or format_of(lines)
    if not form:
        what = "neither a passwd-file, doveadm's output, Courier's userdb nor a CSV with a header row"
        return [], [Finding(path, 0, what, "say which with --format")]
    accounts: list[Account] = []
    findings: list[Finding] = []
    for number, item in _READERS[form](lines):
        if isinstance(item, Account):
            accounts.append(item)
        else:
            findings.append(Finding(path, number, *item))
    if len(accounts) > MAX_ACCOUNTS:
        return [], [Finding(path, 0, f"over {MAX_ACCOUNTS} accounts", "divide the file")]
    if not accounts and not findings:
        findings.append(Finding(path, 0, "the file has no account", "is it the right one?"))
    return accounts, first_findings(findings, "more errors", MAX_FINDINGS)


def format_of(lines: list[str]) -> str:
    """Return the format that the first lines have; "" if none fits."""
    first = [line for line in lines[:200] if line.strip() and not line.startswith("#")][:20]
    if not first:
        return ""
    if _delimiter(first[0]):
        return "csv"
    if re.match(r"(user|userdb|passdb|field)(\t|: )", first[0]) or all(map(_ONE_WORD.fullmatch, first)):
        return "doveadm"
    if all(_USERDB.fullmatch(line) for line in first):
        return "userdb"
    if all(":" in line and not re.match(r"[^:]*[ \t]", line) for line in first):
        return "passwd-file"
    return ""


_Refusal = tuple[str, str]
_Items = Iterator[tuple[int, Account | _Refusal]]


def _entries(lines: list[str]) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(lines, 1):
        if line.strip() and not line.startswith("#"):
            yield number, line


def _too_long(line: str) -> _Refusal | None:
    return ("the line is too long", "shorten or remove it") if len(line) > _MAX_LINE else None


def _read_passwd_file(lines: list[str]) -> _Items:
    """Read `user:password:uid:gid:gecos:home:shell:extra fields`."""
    for number, line in _entries(lines):
        fields = line.split(":", 7)
        if refusal := _too_long(line):
            yield number, refusal
        elif len(fields) < 2 or not fields[0]:
            yield number, ("the line is not user:password:...", "mend or remove it, or say --format")
        else:
            fields += [""] * (8 - len(fields))
            # libpam-pwdfile's form: the number in brackets is a scheme
            name, password = fields[0], re.sub(r"\[[0-9]+\]$", "", fields[1])
            account = Account(number, name, password, fields[2], fields[3], fields[5])
            yield number, _with_fields(account, _extra_fields(fields[7]))


def _extra_fields(text: str) -> Iterator[tuple[str, str]]:
    for word in text.split():
        key, _, value = word.partition("=")
        yield key, value


def _with_fields(account: Account, fields: Iterator[tuple[str, str]]) -> Account:
    """Add Dovecot's extra fields, of userdb with or without their prefix."""
    found: dict[str, Any] = {}
    notes = []
    locked = account.locked
    for key, value in fields:
        bare = key.removeprefix("userdb_")
        if bare in ("uid", "gid", "home", "password"):
            found[bare] = value
        elif bare in ("mail", "mail_path"):
            found["mail"] = value
        elif bare in ("quota_rule", "quota_storage_size"):
            found["quota"] = quota_of(value)
            if not found["quota"]:
                notes.append(f"{bare} is not understood")
        elif re.fullmatch(r"quota[a-z0-9_]{0,40}", bare):
            notes.append(f"{bare} is not taken over")
        elif key in _LOCKS:
            locked = locked or value not in ("n", "no")
        elif key == "nopassword":
            found["password"] = ""
            notes.append("nopassword: Dovecot takes any password")
        elif key in _RESTRICTIONS:
            notes.append(f"{key} is not taken over")
    return account._replace(**found, locked=locked, notes=(*account.notes, *notes))


def _read_doveadm(lines: list[str]) -> _Items:
    """Read names, one a line, or `user NAME` and the output of `doveadm user NAME`, a tab before each value.

    `doveadm auth lookup NAME` indents its fields, has a colon before each value, and none for an empty one.
    """
    fields: list[tuple[str, str]] = []
    current: Account | None = None
    for number, line in _entries(lines):
        found = _FIELD.fullmatch(line)
        key, value = (found[1], found[2].strip()) if found else ("user", line.rstrip())
        if found is None and line[0].isspace():
            key, value = line.strip(), ""
        if refusal := _too_long(line):
            yield number, refusal
        elif re.search(r"\s", value if key == "user" else key):
            yield number, ("the line is no name and no field", "mend or remove it, or say --format")
        elif key in ("user", "userdb", "passdb"):
            if current is None or value != current.name:
                if current is not None:
                    yield current.line, _with_fields(current, iter(fields))
                current, fields = Account(number, value), []
        elif key == "field":  # the head of a table
            continue
        elif current is None:
            yield number, ("a field before the first account", "write `user NAME` before it")
        else:
            fields.append((key, value))
    if current is not None:
        yield current.line, _with_fields(current, iter(fields))


def _read_userdb(lines: list[str]) -> _Items:
    """Read `name TAB field=value|field=value`."""
    for number, line in _entries(lines):
        found = _USERDB.fullmatch(line)
        if refusal := _too_long(line):
            yield number, refusal
        elif found is None:
            yield number, ("the line is not `name`, a tab, field=value|field=value", "mend or remove it")
        else:
            fields = dict(field.partition("=")[::2] for field in found[2].split("|"))
            # authlib prefers the service's own password
            secret = fields.get("pop3pw") or fields.get("systempw", "")
            notes = [] if secret or "hmac-md5pw" not in fields else ["hmac-md5pw is not taken over"]
            quota = quota_of(fields.get("quota", ""))
            if fields.get("quota") and not quota:
                notes.append("quota is not understood")
            uid, gid, home, mail = (fields.get(key, "") for key in ("uid", "gid", "home", "mail"))
            locked = "disablepop3" in fields.get("options", "")
            yield (
                number,
                Account(number, found[1], secret, uid, gid, home, mail, quota, locked, tuple(notes)),
            )


def _read_csv(lines: list[str]) -> _Items:
    """Read a header row and a row an account."""
    rows = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    delimiter = _delimiter(rows[0][1]) if rows else ""
    if not delimiter:
        yield 1, ("no header row with a column `user`", f"name the columns: {','.join(COLUMNS)}")
        return
    columns: list[str] = []
    for number, line in rows:
        try:
            row = next(csv.reader([line], delimiter=delimiter, strict=True))
        except (csv.Error, StopIteration):
            yield number, ("the row is no CSV: a quote is not closed, or stands in a field", "mend the row")
            continue
        if not columns:
            columns = [_CSV_NAMES.get(cell.strip().lower(), "") for cell in row]
            if "" in columns or len(set(columns)) < len(columns):
                cell = columns.index("") + 1 if "" in columns else len(columns)
                what = f"column {cell} has an unknown name, or one that another has"
                yield number, (what, f"the columns are {', '.join(COLUMNS)}; remove others")
                return
        elif len(row) != len(columns):
            yield number, (f"the row has {len(row)} cells, and the header {len(columns)}", "mend the row")
        else:
            cells: dict[str, Any] = {column: cell.strip() for column, cell in zip(columns, row, strict=True)}
            cells["name"], cells["mail"] = cells.pop("user"), cells.pop("maildir", "")
            if cells.get("quota"):
                cells["quota"] = quota_of(cells["quota"])
                cells["notes"] = () if cells["quota"] else ("quota is not understood",)
            yield number, Account(line=number, **cells)


def _delimiter(head: str) -> str:
    """Return the delimiter of a CSV file by its header row; "" if it is none."""
    for delimiter in ",;":
        if {_CSV_NAMES.get(cell.strip().lower().strip('"')) for cell in head.split(delimiter)} >= {"user"}:
            return delimiter
    return ""


_READERS: dict[str, Callable[[list[str]], _Items]] = {
    "passwd-file": _read_passwd_file,
    "doveadm": _read_doveadm,
    "userdb": _read_userdb,
    "csv": _read_csv,
}
FORMATS = tuple(_READERS)


def quota_of(text: str) -> str:
    """Translate Dovecot's `*:storage=1G:messages=100`, Courier's `1000S,100C` or `1G`; "" if impossible."""
    parts = []
    for part in text.removeprefix("*:").replace(",", ":").split(":"):
        found = re.fullmatch(r"(?i)(storage=|bytes=|messages=|)([0-9]{1,12})([KMGT]?)B?([SC]?)", part.strip())
        if not found:
            return ""
        kind, number, unit, what = found[1].lower(), int(found[2]), found[3].upper(), found[4].upper()
        if kind == "messages=" or what == "C":
            if unit or kind not in {"", "messages="}:
                return ""
            parts += [f"{number}C"] if number else []
        else:
            # without a unit Dovecot's storage is in KiB
            parts += [f"{number}{unit or 'K' * (kind == 'storage=')}"] if number else []
    return ",".join(parts) or "none"


def expand(template: str, name: str, home: str) -> str:
    """Put a name and a home directory into a template: %u, %n and %d (before and after the @), %h.

    Also Dovecot 2.4's `%{user}`, `%{user | username}`, `%{user | domain}` and `%{home}`.

    Raises:
        ValueError: the template has another variable, or one that this account has no value for.

    """
    local, _, domain = name.partition("@")
    values = {"u": name, "n": local, "d": domain, "h": home, "%": "%"}
    long = {"user": "u", "user|username": "n", "user|domain": "d", "home": "h"}

    def value_of(found: re.Match[str]) -> str:
        key = long.get(re.sub(r"\s", "", found[1]), "") if found[1] is not None else found[2]
        if key not in values:
            raise ValueError(f"{found[0]} is not %u, %n, %d or %h")
        if not values[key]:
            raise ValueError(f"the account has no {'domain' if key == 'd' else 'home'} for {found[0]}")
        if key != "h" and ("/" in values[key] or values[key] in {".", ".."}):
            raise ValueError("the name has a slash or is a dot, which would be another directory")
        return values[key]

    return _VARIABLE.sub(value_of, template)


def maildir_of(account: Account, template: str) -> str:
    """Return the absolute path of an account's maildir: what the list says, else by the template.

    Raises:
        ValueError: it cannot be told, or the mail is in no maildir. The text says why.

    """
    location = account.mail or template
    if not location:
        example = "%h/Maildir" if account.home else "/srv/mail/%d/%n"
        raise ValueError(f"the list does not say where the mail is; give --maildir, as '{example}'")
    kind, colon, rest = location.partition(":")
    if colon and "/" not in kind:
        if kind.lower() not in {"maildir", "auto"}:
            raise ValueError(f"the mail is in {kind} format, not a maildir; see docs/migration.md")
        location = rest.partition(":")[0]  # INDEX= and others are Dovecot's own
    if location.startswith("~/"):
        location = "%h" + location[1:]
    elif location == "~":
        location = "%h"
    path = expand(location, account.name, account.home)
    if not path.startswith("/"):
        if not account.home.startswith("/"):
            raise ValueError("the maildir is no absolute path")
        path = f"{account.home}/{path.removeprefix('./')}"
    return "/" + "/".join(part for part in path.split("/") if part not in {"", "."})
