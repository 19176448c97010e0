"""`popkernel import-users`: make both tables of another server's list of accounts.

Either every account of the list is written or none. An existing line is never changed: tables are made, or
added to with --append. Both are replaced by renaming, the user table first: whoever is in that one alone gets
mail and cannot log in yet.
"""

import argparse
import functools
import grp
import json
import os
import pwd
import re
import sys
from collections import Counter
from contextlib import ExitStack
from typing import NamedTuple

from popkernel.actors.auth.schemes import import_library, library_mend
from popkernel.cli.common import table_files
from popkernel.cli.common.parser import FILE, CommandParser, add_key, complete
from popkernel.cli.common.table_files import TableError, check_name
from popkernel.proto.access.user_names import fold
from popkernel.proto.files.account_lists import COLUMNS, FORMATS, Account, maildir_of, parse_accounts
from popkernel.proto.files.password_schemes import SCHEMES, UnusableHashError, read_hash, scheme_of
from popkernel.proto.files.tables import MAX_TABLE, Finding, MailUser, damage, parse_auth, parse_users

_LOCKED = b"!"
_PREFIX = re.compile(rb"((?:\{[^}]*\})?)(.*)", re.DOTALL)
_MARK = "# import-users: "


class Line(NamedTuple):
    """An account's lines in both tables."""

    account: Account
    name: bytes
    hashed: bytes
    """The hash; with `!` before it or alone if the account is locked."""
    user: MailUser
    scheme: str
    """Its hash's scheme, "" if it is locked."""
    lost: str = ""
    """Why its password cannot be kept, "" if it is, or was locked in the list."""
    mend: str = ""
    """How it can be kept all the same, "" if it cannot."""


class Plan:
    """What the list becomes. Errors keep everything from being written."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.lines: list[Line] = []
        self.errors: list[Finding] = []
        self.warnings: list[Finding] = []

    def error(self, account: Account, what: str, mend: str) -> None:
        """Add an error of an account."""
        self.errors.append(self.finding(account, what, mend))

    def finding(self, account: Account, what: str, mend: str) -> Finding:
        """Make a finding of an account."""
        return Finding(self.path, account.line, f"account {account.name}: {what}", mend)


def define(parser: CommandParser) -> None:
    """Define the flags and the help."""
    parser.describe(
        "Make both tables of another server's list of accounts: Dovecot's passwd-file or doveadm's output,\n"
        "Courier's userdb as text, or CSV. Hashes that popkernel checks are kept. Every other account is\n"
        "named with its line; with --mark it gets a locked line and a note. Nothing is written unless every\n"
        "account can be, and a line that is in a table is never changed. See docs/migration.md.",
        """
        popkernel import-users -n -a /etc/popkernel/auth -u /etc/popkernel/users /etc/dovecot/users
        popkernel import-users -a /etc/popkernel/auth -u /etc/popkernel/users --mark /etc/dovecot/users
        popkernel import-users -a /etc/popkernel/auth -u /etc/popkernel/users --uid 5000 --gid 5000 \\
            --maildir '/srv/mail/%d/%n' accounts.csv
        """,
        "usage data noinput cantcreat tempfail noperm",
        files=f"""
        passwd-file  user:{{SCHEME}}hash:uid:gid:gecos:home:shell:extra fields
        doveadm      for each account `user NAME`, and what `doveadm user` prints
        userdb       user TAB uid=N|gid=N|home=DIR|mail=DIR|systempw=HASH
        csv          a header row with columns of {",".join(COLUMNS)}
        """,
    )
    complete(
        parser.add_argument("list", metavar="FILE", help="the list of accounts; - for standard input"), FILE
    )
    add_key(parser, "auth_table", required=True, help="authorization table to make")
    add_key(parser, "user_table", required=True, help="user table to make")
    parser.add_argument("--format", choices=FORMATS, help="form of the list (default: detected)")
    parser.add_argument("--uid", metavar="N", help="uid of accounts for which the list has none")
    parser.add_argument("--gid", metavar="N", help="gid of accounts for which the list has none")
    parser.add_argument(
        "--maildir",
        metavar="TEMPLATE",
        default="",
        help="maildir of accounts for which the list has none: %%u is the name, %%n and %%d its parts before"
        " and after the @, %%h the home directory",
    )
    parser.add_argument("--append", action="store_true", help="add to tables that exist")
    parser.add_argument(
        "--mark",
        action="store_true",
        help="write accounts whose password cannot be kept as locked, with a note before the line",
    )
    parser.add_argument(
        "--keep-schemes",
        action="store_true",
        help="keep hashes also if the library that checks them is not installed here",
    )
    parser.add_argument(
        "-n", "--dry-run", dest="dry", action="store_true", help="write nothing, print what would be done"
    )


def run(options: argparse.Namespace) -> int:
    """Run `popkernel import-users`."""
    try:
        return _run(options)
    except TableError as error:
        print(f"popkernel import-users: {error}", file=sys.stderr)
        return error.code
    except PermissionError as error:
        print(f"popkernel import-users: {error.filename}: {error.strerror}; run it as root", file=sys.stderr)
        return os.EX_NOPERM
    except OSError as error:
        what = f"{error.filename or options.auth_table}: {error.strerror}"
        print(f"popkernel import-users: {what}; see that both tables can be made there", file=sys.stderr)
        return os.EX_CANTCREAT


def _run(options: argparse.Namespace) -> int:
    path = "standard input" if options.list == "-" else options.list
    accounts, findings = parse_accounts(_read_list(options.list), path, options.format or "")
    plan = Plan(path)
    plan.errors += findings
    for account in accounts:
        _plan(account, options, plan)
    _find_twins(plan)
    lost = [line for line in plan.lines if line.lost]
    for line in lost:
        if line.mend:
            plan.warnings.append(plan.finding(line.account, line.lost, line.mend))
            continue
        mend = f"popkernel passwd -a {options.auth_table} {line.account.name}"
        plan.warnings.append(plan.finding(line.account, f"{line.lost}: it needs a new password", mend))
    plan.warnings.sort(key=lambda finding: finding.line)
    _print(plan.warnings, "warning: ")
    if not plan.errors and (options.mark or not lost):
        tables = (os.path.realpath(options.user_table), os.path.realpath(options.auth_table))
        if tables[0] == tables[1]:
            raise TableError("-a and -u name the same file; give two", os.EX_USAGE)
        added = _write(tables, plan, options)
        if not plan.errors:
            _summary(plan, options, added)
            return os.EX_OK
    _print(plan.errors, "")
    if plan.errors:
        problem = f"{len(plan.errors)} error{'s' * (len(plan.errors) > 1)}; mend them in a copy of the list"
    else:
        problem = (
            f"{len(lost)} of {len(plan.lines)} accounts cannot keep their password; with --mark they get"
        )
        problem += " locked lines" + _savable(plan)
    print(f"popkernel import-users: nothing is written: {problem}", file=sys.stderr)
    return os.EX_DATAERR


def _read_list(path: str) -> bytes:
    try:
        if path == "-":
            data = sys.stdin.buffer.read(MAX_TABLE + 1)
        else:
            with open(path, "rb") as file:
                data = file.read(MAX_TABLE + 1)
    except OSError as error:
        raise TableError(f"{path}: {error.strerror}; give a list of accounts", os.EX_NOINPUT) from None
    if len(data) > MAX_TABLE:
        raise TableError(f"{path}: over {MAX_TABLE} octets; divide it", os.EX_DATAERR)
    return data


def _print(findings: list[Finding], before: str) -> None:
    for finding in findings:
        print(f"popkernel import-users: {before}{_printable(str(finding))}", file=sys.stderr)


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def _plan(account: Account, options: argparse.Namespace, plan: Plan) -> None:
    """Add an account's lines to the plan, or what is wrong with it."""
    for note in account.notes:
        plan.warnings.append(plan.finding(account, note, "see that it is not needed"))
    try:
        name = check_name(account.name)
    except TableError as error:
        what, _, mend = str(error).partition("; ")
        plan.error(account, what, mend)
        return
    ids = []
    for key, given in (("uid", account.uid or options.uid), ("gid", account.gid or options.gid)):
        number = _number(key, given) if given else None
        if number is None:
            # A name is not shown: a password with the list's separator in it goes on in the next column.
            if not given:
                what = f"the list has no {key}"
            else:
                what = f"there is no {key} {given} here" if given.isdigit() else f"its {key} is unknown here"
            # the flag is only for accounts that have none
            mend = "or make it on this machine" if given else f"or give --{key}"
            plan.error(account, what, f"write it as a number, {mend}")
            return
        ids.append(number)
    try:
        maildir = maildir_of(account, options.maildir)
    except ValueError as error:
        what, _, mend = str(error).partition("; ")
        plan.error(account, what, mend or "mend the line, or give --maildir")
        return
    row = b"%b %d:%d:%b\n" % (name, ids[0], ids[1], os.fsencode(maildir))
    users, findings = parse_users(row, plan.path)
    if findings:
        plan.error(account, findings[0].what, findings[0].mend)
        return
    hashed, scheme, lost, mend = _hash_of(account, keep=options.keep_schemes)
    plan.lines.append(Line(account, name, hashed, users[account.name], scheme, lost, mend))


def _number(key: str, text: str) -> int | None:
    """Return a numeric id, also of a system user or group by its name; None if there is none."""
    if text.isascii() and text.isdigit():
        return int(text) if len(text) <= 10 else None
    try:
        return pwd.getpwnam(text).pw_uid if key == "uid" else grp.getgrnam(text).gr_gid
    except (KeyError, ValueError):
        return None


def _hash_of(account: Account, *, keep: bool) -> tuple[bytes, str, str, str]:
    """Return the hash as the table has it, its scheme, why it cannot be kept, and how it could be."""
    prefix, column = _PREFIX.fullmatch(account.password.encode()).groups()  # type: ignore[union-attr]
    bare = column.lstrip(b"!*")
    locked = account.locked or bare != column
    if not bare:
        return _LOCKED, "", "" if locked else "the list has no password", ""
    try:
        found = read_hash(prefix + bare)
    except UnusableHashError as error:
        what = error.what.partition(" (")[0] if error.hash_like else "its password is of no known scheme"
        return _LOCKED, "", "" if locked else what, ""
    if locked:  # the hash stays behind the lock, for `popkernel passwd --unlock`
        return _LOCKED + found, "", "", ""
    scheme = scheme_of(found)
    missing = "" if keep else _missing(scheme)
    if missing:
        mend = f"{library_mend(scheme)} and import it then, or give --keep-schemes"
        return _LOCKED, "", f"{SCHEMES[scheme].a_hash}, and {missing}", mend
    return found, scheme, "", ""


_missing = functools.cache(import_library)


def _find_twins(plan: Plan) -> None:
    """Refuse names that occur twice or differ in case only, and maildirs that two accounts have."""
    names: dict[str, Line] = {}
    maildirs: dict[str, Line] = {}
    for line in plan.lines:
        account = line.account
        other = names.setdefault(fold(account.name), line).account
        if other is not account:
            what = (
                "is there again" if other.name == account.name else f"differs from {other.name} in case only"
            )
            plan.error(account, f"{what}, see line {other.line}", "keep one of the two lines, or rename one")
            continue
        other = maildirs.setdefault(line.user.maildir, line).account
        if other is not account:
            what = f"has the same maildir as {other.name} on line {other.line}: {line.user.maildir}"
            plan.error(account, what, "give each account its own")


def _write(tables: tuple[str, str], plan: Plan, options: argparse.Namespace) -> tuple[int, int]:
    """Write both tables, unless there are errors or it is a dry run. Returns how many lines each got."""
    if not options.append:
        for path in tables:
            if os.path.lexists(path) and os.stat(path).st_size:
                raise TableError(f"{path} exists; name another, or add to it with --append", os.EX_CANTCREAT)
    made = [path for path in tables if not os.path.lexists(path)]
    done: list[str] = []
    try:
        with ExitStack() as stack:
            if options.dry:
                old = [_read_old(path) for path in tables]
            else:
                fds = [stack.enter_context(table_files.locked(path)) for path in tables]
                old = [table_files.read(fd, path) for fd, path in zip(fds, tables, strict=True)]
            new, added = _grown(tables, old, plan)
            if options.dry or plan.errors:
                return added
            for path, data, fd in zip(tables, new, fds, strict=True):
                table_files.replace(path, data, fd)
                done.append(path)
    except OSError as error:
        if not done:
            raise
        what = f"{done[0]} is written, and {tables[1]} is not: {error.strerror}"
        raise TableError(f"{what}; mend that and run it again with --append", os.EX_CANTCREAT) from None
    finally:
        for path in made:  # made for its lock alone
            if path not in done and os.path.lexists(path) and not os.stat(path).st_size:
                os.unlink(path)
    return added


def _read_old(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(MAX_TABLE + 1)
    except FileNotFoundError:
        return b""


def _grown(
    tables: tuple[str, str], old: list[bytes], plan: Plan
) -> tuple[tuple[bytes, bytes], tuple[int, int]]:
    """Return both tables with the lines that they lack, and how many these are."""
    for path, data in zip(tables, old, strict=True):
        broken = damage(data, path) if data else None
        if broken is not None:
            raise TableError(str(broken), os.EX_DATAERR)
    users, findings = parse_users(old[0], tables[0]) if old[0] else ({}, [])
    hashed: set[str] = set()
    if old[1]:
        auth = parse_auth(old[1], tables[1])
        findings = [*findings, *auth.errors]
        hashed.update(auth.names())
    if findings:
        raise TableError("\n".join(map(str, findings[:20])), os.EX_DATAERR)
    spelled = {fold(name): name for name in (*users, *hashed)}
    places = {user.maildir: name for name, user in users.items()}
    more_users, more_hashes = [], []
    for line in plan.lines:
        name = line.account.name
        there = spelled.get(fold(name), name)
        if there != name:
            mend = "rename one of the two"
            plan.error(line.account, f"differs in case only from {there}, which is in a table", mend)
        if name not in users:
            owner = places.get(line.user.maildir)
            if owner is not None:
                what = f"has the same maildir as {owner} in {tables[0]}: {line.user.maildir}"
                plan.error(line.account, what, "give each account its own")
            row = b"%b %d:%d:%b" % (line.name, line.user.uid, line.user.gid, os.fsencode(line.user.maildir))
            more_users.append(row)
        if name not in hashed:
            if line.lost:
                note = f"{_MARK}{plan.path}:{line.account.line}: {line.lost}: it needs a new password"
                more_hashes.append(_printable(note).encode("utf-8", "backslashreplace"))
            more_hashes.append(line.name + b" " + line.hashed)
    new = (_with(old[0], more_users), _with(old[1], more_hashes))
    for path, data in zip(tables, new, strict=True):
        if len(data) > MAX_TABLE:
            raise TableError(f"{path} would have over {MAX_TABLE} octets", os.EX_DATAERR)
    if not plan.errors:  # nothing is written that a start would refuse
        for finding in (*parse_users(new[0], tables[0])[1], *parse_auth(new[1], tables[1]).errors):
            raise TableError(str(finding), os.EX_SOFTWARE)
    many = sum(not line.startswith(b"#") for line in more_hashes)
    return new, (len(more_users), many)


def _with(old: bytes, lines: list[bytes]) -> bytes:
    return old + b"".join(line + b"\n" for line in lines)


def _savable(plan: Plan) -> str:
    """Say how many accounts lose their password only because a library is missing."""
    many = sum(bool(line.mend) for line in plan.lines)
    return f" ({many} of them only because a library is not installed: see above)" if many else ""


def _summary(plan: Plan, options: argparse.Namespace, added: tuple[int, int]) -> None:
    kept = Counter(line.scheme for line in plan.lines if line.scheme)
    lost = sum(bool(line.lost) for line in plan.lines)
    locked = len(plan.lines) - kept.total() - lost
    schemes = ", ".join(f"{many} {scheme}" for scheme, many in sorted(kept.items()))
    text = f"{len(plan.lines)} account{'s' * (len(plan.lines) != 1)}: {kept.total()} keep their password"
    text += f" ({schemes})" if schemes else ""
    print(f"{text}, {locked} were locked, {lost} need a new one{_savable(plan)}")
    would = "would get" if options.dry else "got"
    print(f"{options.user_table} {would} {added[0]} new lines, {options.auth_table} {added[1]}")
    quotas = {line.account.name: line.account.quota for line in plan.lines if line.account.quota}
    if not quotas:
        return
    usual, many = Counter(quotas.values()).most_common(1)[0]
    print("quotas of the list, for the configuration:")
    if many > 1 and len(quotas) == len(plan.lines):
        print(f'quota = "{usual}"')
        quotas = {name: quota for name, quota in quotas.items() if quota != usual}
    if quotas:
        rows = ", ".join(json.dumps(f"{name}={quota}", ensure_ascii=False) for name, quota in quotas.items())
        print(f"quota_users = [{rows}]")
