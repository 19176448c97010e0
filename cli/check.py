"""`popkernel check`: find, without starting, what would make a start fail.

The checks only read, except that they bind each port for a moment. Errors would make `start` fail or a user
suffer; warnings are for the administrator to know.
"""

import argparse
import json
import os
import pwd
import shlex
import socket
import stat
from collections.abc import Iterable

from popkernel.actors.auth.schemes import schemes_of, without_missing
from popkernel.cli.common.check_certificates import check_certificates
from popkernel.cli.common.parser import CommandParser
from popkernel.cli.common.server_flags import add_server_flags
from popkernel.kernel.client import Client, ClientError
from popkernel.kernel.config.addresses import Address
from popkernel.kernel.config.keys import Config, address_keys, keys
from popkernel.kernel.config.loading import COMMAND_LINE, ConfigError, gather
from popkernel.kernel.config.regular_files import UnreadableError, read_named
from popkernel.kernel.init import permissions
from popkernel.kernel.init.binding import BindError, bind
from popkernel.kernel.init.ids import actor_ids, mta_uids
from popkernel.kernel.init.mailbox_faults import mailbox_findings, odd_names, open_to_others
from popkernel.kernel.init.pass_phrase import phrase_file
from popkernel.kernel.init.requirements import needs
from popkernel.kernel.init.run_directory import problem as run_dir_problem
from popkernel.kernel.runtime.exit_codes import EXITS
from popkernel.kernel.runtime.log import doubt
from popkernel.kernel.supervisor.descriptor_room import too_few
from popkernel.proto.access.networks import MAX_NETWORKS, parse_networks
from popkernel.proto.access.user_names import (
    case_conflicts,
    domain_conflicts,
    name_lines,
    names_beyond_clients,
)
from popkernel.proto.files.tables import (
    MAX_FINDINGS,
    MAX_TABLE,
    AuthTable,
    Finding,
    MailUser,
    first_findings,
    parse_auth,
    parse_users,
)

_USAGE, _DATA, _NOINPUT, _OSERR, _CONFIG = (
    EXITS[name].code for name in ("usage", "data", "noinput", "oserr", "config")
)


class Report:
    """Collect findings, and the exit code of the first error, which is also that of `start`."""

    def __init__(self) -> None:
        self.errors: list[Finding] = []
        self.warnings: list[Finding] = []
        self.notes: list[str] = []
        self.code = os.EX_OK

    def error(self, finding: Finding, code: int) -> None:
        """Add an error; `code` counts if it is the first."""
        self.code = self.code or code
        self.errors.append(finding)

    def all_errors(self, findings: Iterable[Finding], code: int) -> None:
        """Add each of these errors."""
        for finding in findings:
            self.error(finding, code)


def define(parser: CommandParser) -> None:
    """Define the flags and the help."""
    parser.describe(
        "Check the configuration, both tables, certificate and key, maildirs, system users, ports and the\n"
        "sandbox, as `start` with the same flags would. Run it as the user who starts the server.\n"
        "If a server runs on this run directory, its lock and its ports are no errors, so that a\n"
        "configuration can be checked before a reload; `start` would end with 69 then.\n"
        "Each finding is one line: file:line: what; mend. The exit code is that of the first error, as\n"
        "`start` would end with it. A mailbox that cannot be served, a private key that others may read,\n"
        "and a table or configuration that others can change do not keep `start` from serving, but are\n"
        "errors here.",
        """
        popkernel check -f /etc/popkernel/popkernel.toml
        popkernel check -a /etc/popkernel/auth -u /etc/popkernel/users -l 192.0.2.1 \\
            -c /etc/ssl/mail.pem -k /etc/ssl/mail.key
        """,
        "usage data noinput unavailable oserr cantcreat ioerr tempfail noperm config",
        done="no errors; there may be warnings",
    )
    add_server_flags(parser)
    parser.add_argument("--json", action="store_true", help="findings as one JSON object")
    parser.add_argument(
        "--no-mailboxes",
        action="store_true",
        help="leave out the maildirs: `start` checks them once it serves",
    )


def run(options: argparse.Namespace) -> int:
    """Run `popkernel check`."""
    given = vars(options)
    config, findings = gather({key.name: given.get(key.name) for key in keys()}, options.toml_path)
    report = Report()
    for finding in findings:
        report.error(finding, _USAGE if all(f.path.startswith(COMMAND_LINE) for f in findings) else _CONFIG)
    if config is not None:
        _check_trust(options.toml_path or "", report, _CONFIG)
        check(config, report, mailboxes=not options.no_mailboxes)
    if options.json:
        found = {
            "errors": [finding._asdict() for finding in report.errors],
            "warnings": [finding._asdict() for finding in report.warnings],
        }
        print(json.dumps(found, indent=2))
    else:
        for finding in report.errors:
            print(_printable(str(finding)))
        for finding in report.warnings:
            print(_printable(f"warning: {finding}"))
        for note in report.notes:
            print(_printable(note))
        if not report.errors and not report.warnings:
            print("no errors, no warnings")
    return report.code


def _printable(line: str) -> str:
    """Escape control characters and octets that are no text, as in paths: they must not reach a terminal."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in line)


def check(config: Config, report: Report | None = None, *, mailboxes: bool = True) -> Report:
    """Check everything that the configuration names, in the order of a start; maildirs if `mailboxes`."""
    report = report or Report()
    _check_sandbox(config, report)
    _check_ids(config, report)
    if any(finding.path == "calls" for finding in report.errors):  # the later checks would meet the same
        return report
    _check_run_dir(config, report)
    _check_ports(config, report)
    check_tables(config, report, mailboxes=mailboxes)
    pairs = [pair for pair in [(config.cert, config.key), *config.certs] if all(pair)]
    errors, warnings = check_certificates(
        pairs, phrase_file(config.key_passphrase_file), config.tls_min, notes=report.notes
    )
    report.all_errors(errors, _CONFIG)
    report.warnings.extend(warnings)
    _check_keys(config, report)
    _check_blocked(config, report)
    lost = doubt(config.log, daemon=config.daemon)
    report.warnings.extend([lost] if lost is not None else [])
    if config.allow_plaintext:
        what = "clients may log in without TLS: passwords and mail can be read on the way"
        report.warnings.append(
            Finding("configuration", 0, what, "leave out --allow-plaintext and allow_plaintext")
        )
    if config.deletion == "trash-flag" and not config.hide_trashed:
        what = 'deletion = "trash-flag" alone: clients see again what they have deleted'
        report.warnings.append(Finding("configuration", 0, what, "set hide_trashed = true too"))
    return report


def check_tables(config: Config, report: Report, *, mailboxes: bool = True) -> None:
    """Check both tables, the differences between them, and every maildir if `mailboxes`."""
    user_data = _read_table("user_table", config.user_table, report)
    auth_data = _read_table("auth_table", config.auth_table, report)
    for path, data in ((config.user_table, user_data), (config.auth_table, auth_data)):
        if data is not None:
            _check_trust(path, report, _DATA)
    if auth_data is not None:
        report.warnings.extend(_readable_by_all(config.auth_table, "hashes"))
    # A missing table has been reported; as an empty one it would give another error.
    users, user_findings = (
        ({}, []) if user_data is None else parse_users(user_data, config.user_table, config.subdir)
    )
    auth, missing = without_missing(
        parse_auth(auth_data or b"", config.auth_table), auth_data or b"", config.auth_table
    )
    _name_schemes(auth, missing, config.auth_table, report)
    auth_findings = [] if auth_data is None else auth.errors
    report.all_errors(user_findings + auth_findings, _DATA)
    # A line that does not parse would also count as a missing user: compare only if both tables parse.
    if auth_data is not None and user_data is not None and not auth_findings and not user_findings:
        named = auth.names()
        report.warnings.extend(first_findings(list(auth.shut_out.values()), "more users cannot log in"))
        report.warnings.extend(_missing(named, users, config.auth_table, auth_data, config.user_table))
        report.warnings.extend(_missing(users, named, config.user_table, user_data, config.auth_table))
        if auth.locked:
            locked = f"{len(auth.locked)} user{'s are' if len(auth.locked) > 1 else ' is'} locked"
            report.notes.append(f"{config.auth_table}: {locked}")
    for case, names, data, path in (
        (config.login_case, auth.names(), auth_data, config.auth_table),
        (config.recipient_case, users, user_data, config.user_table),
    ):
        report.warnings.extend(
            case_conflicts(names, data, path) if case == "fold" and data is not None else []
        )
    if auth_data is not None:
        named, path, domain = auth.names(), config.auth_table, config.default_domain
        report.warnings.extend(names_beyond_clients(named, auth_data, path))
        if domain:
            folds = config.login_case == "fold"
            report.warnings.extend(domain_conflicts(named, auth_data, path, domain, folds=folds))
    if user_data is not None and mailboxes:
        _check_maildirs(config, users, user_data, report)


def _name_schemes(auth: AuthTable, missing: list[Finding], path: str, report: Report) -> None:
    """Say which schemes the table's hashes have, if not bcrypt alone, and which library is missing."""
    report.warnings.extend(missing)
    schemes = schemes_of(auth)
    if set(schemes) - {"BLF-CRYPT"}:
        counted = ", ".join(f"{many} {scheme}" for scheme, many in sorted(schemes.items()))
        report.notes.append(f"{path}: hashes: {counted}")


def _check_keys(config: Config, report: Report) -> None:
    """Check the issuer's keys. Whoever can write that file can log in as anybody."""
    if not config.oauth_issuer:
        return
    from popkernel.actors.auth.tokens import MOST_OCTETS, parse_jwks

    data = _read_table("oauth_jwks", config.oauth_jwks, report, MOST_OCTETS)
    if data is not None:
        keys, findings = parse_jwks(data, config.oauth_jwks)
        report.all_errors(findings, _DATA)
        _check_trust(config.oauth_jwks, report, _DATA)
        if not findings and len(keys) > 1 and any(key.kid is None for key in keys):
            what = "a key has no `kid`: every token is tried with each"
            report.warnings.append(Finding(config.oauth_jwks, 0, what, "have the issuer name its keys"))


def _check_blocked(config: Config, report: Report) -> None:
    data = _read_table("block_list", config.block_list, report, MAX_NETWORKS)
    if data is not None:
        networks, findings = parse_networks(data, config.block_list)
        report.all_errors(findings, _DATA)
        if networks.contains("127.0.0.1") or networks.contains("::1"):
            what = "this machine itself is blocked"
            report.warnings.append(
                Finding(config.block_list, 0, what, "leave out 127.0.0.0/8 and ::1 unless it is meant")
            )


def _check_trust(path: str, report: Report, code: int) -> None:
    """Report other users who can change a file that decides about access. `start` only warns of them."""
    for where, what, mend in permissions.problems(path) if path else ():
        finding = Finding(where, 0, what, mend)
        if finding not in report.errors:
            report.error(finding, code)


def _read_table(key: str, path: str, report: Report, most: int = MAX_TABLE) -> bytes | None:
    if not path:
        return None
    try:
        return read_named(key, path, most)
    except UnreadableError as error:
        report.error(error.finding, error.code)
        return None


def _readable_by_all(path: str, holds: str) -> Iterable[Finding]:
    mode = stat.S_IMODE(os.stat(path).st_mode)
    if mode & 0o007:
        yield Finding(
            path,
            0,
            f"mode {mode:04o} lets every user at the {holds}",
            f"chmod o-rwx {shlex.quote(os.path.realpath(path))}",
        )


def _missing(
    here: Iterable[str], there: Iterable[str], here_path: str, here_data: bytes, there_path: str
) -> Iterable[Finding]:
    """Report the users of one table that the other lacks."""
    lacking = set(here).difference(there)
    if not lacking:
        return
    lines = name_lines(here_data)
    named = sorted(lacking, key=lambda name: lines.get(name, 0))
    for name in named[:MAX_FINDINGS]:
        mend = f"add {name} there, or remove the line here"
        yield Finding(
            here_path, lines.get(name, 0), f"user {name} is not in {there_path} and cannot log in", mend
        )
    if len(named) > MAX_FINDINGS:
        what = f"{len(named) - MAX_FINDINGS} more users are not in {there_path}"
        yield Finding(here_path, 0, what, "add them there, or remove their lines here")


def _actor_uids(config: Config) -> dict[int, str]:
    """Return the actors by uid, as root only: else all have one uid, of which _check_ids() warns."""
    try:
        return {uid: actor for actor, (uid, _gid) in actor_ids(config).items()} if os.geteuid() == 0 else {}
    except ConfigError:
        return {}


def _check_maildirs(config: Config, users: dict[str, MailUser], data: bytes, report: Report) -> None:
    named = 0
    for finding, error in mailbox_findings(users, data, config.user_table, _actor_uids(config)):
        if not error:
            report.warnings.append(finding)
            continue
        report.error(finding, _DATA)
        named += 1
        if named > MAX_FINDINGS:
            report.errors[-1] = Finding(
                config.user_table, 0, "more users' maildirs have errors", "mend the ones above first"
            )
            break
    wide = list(open_to_others(users, data, config.user_table))
    report.warnings.extend(first_findings(wide, "more users' maildirs are open to others", MAX_FINDINGS))
    report.warnings.extend(
        first_findings(
            list(odd_names(users, data, config.user_table)),
            "more users' maildirs with such names",
            MAX_FINDINGS,
        )
    )


def _check_ids(config: Config, report: Report) -> None:
    """Check the users of actors and mail servers, and whether the caller may become the mail users."""
    ids: dict[str, tuple[int, int]] = {}
    try:
        ids = actor_ids(config)
        mta_uids(config)
    except ConfigError as error:
        report.all_errors(error.findings, _CONFIG)
    missing = needs(config, ids)
    for finding, code in missing.errors:
        report.error(finding, code)
    report.warnings.extend(missing.warnings)
    if not missing.errors:
        found = too_few(config)  # `start` reports it once it is ready
        report.warnings.extend([found[0]] if found is not None and found[1] else [])
    if os.geteuid() != 0:
        what = "without root every actor has your own uid, and only your own maildirs can be served"
        report.warnings.append(Finding("configuration", 0, what, "start it as root to part the actors"))
        return
    for actor, (uid, _gid) in ids.items():
        try:
            home = pwd.getpwuid(uid).pw_dir
        except KeyError:
            continue
        if os.path.isdir(home) and os.stat(home).st_uid == uid:
            what = f"uid {uid} owns its home directory {home}"
            mend = "give the actor a user that owns no file, with the home directory /var/empty"
            report.warnings.append(Finding(f"{actor}_user", 0, what, mend))


def _check_run_dir(config: Config, report: Report) -> None:
    found = run_dir_problem(config.run_dir)
    if found is not None:
        code, what, mend = found
        report.error(Finding(config.run_dir, 0, what, mend), code)


def _check_ports(config: Config, report: Report) -> None:
    """Bind each port for a moment, in the order of a start."""
    problems: list[BindError] = []
    bound: list[socket.socket] = []
    # An address that is listed twice has been reported; binding it again would blame another program.
    tried: set[Address] = set()
    for key in address_keys():
        for address in getattr(config, key):
            if address.port and address in tried:
                continue
            tried.add(address)
            try:
                bound.append(bind(key, address))
                bound[-1].listen(1)  # if one address includes another, the second fails here
            except BindError as error:
                problems.append(error)
            except OSError as error:
                problems.append(BindError(key, address, error))
    for sock in bound:
        sock.close()
    if any(problem.taken for problem in problems) and _serving(config.run_dir):
        # Most likely that server's ports. A second start would fail because of the run directory first.
        problems = [problem for problem in problems if not problem.taken]
    for problem in problems:
        report.error(problem.finding, problem.code)


def _serving(run_dir: str) -> bool:
    try:
        Client(run_dir).ask("status")
    except (ClientError, ConfigError):
        return False
    return True


def _check_sandbox(config: Config, report: Report) -> None:
    from popkernel.kernel.sandbox.lock import missing

    found = [_finding_of(line) for line in missing()]
    if config.insecure_no_sandbox:
        report.warnings.extend(found)
        return
    report.all_errors(found, _OSERR)


def _finding_of(line: str) -> Finding:
    what, colon, mend = line.partition(": ")
    return Finding("sandbox", 0, what, mend if colon else "see docs, or use --insecure-no-sandbox")
