"""`popkernel check`: everything that would go wrong at a start, found without starting.

The checks read; the only thing they do to the system is to bind each port for a moment. Errors are what `start` would
refuse or a user would suffer from; warnings are what an administrator should know.
"""

import argparse
import json
import os
import pwd
import shlex
import socket
import stat
from collections.abc import Iterable

from popkernel.cli.common.check_certificates import check_certificates
from popkernel.cli.common.parser import CommandParser
from popkernel.cli.common.server_flags import add_server_flags
from popkernel.kernel.client import Client, ClientError
from popkernel.kernel.config.addresses import Address
from popkernel.kernel.config.keys import COMMAND_LINE, Config, ConfigError, address_keys, gather, keys
from popkernel.kernel.config.regular_files import UnreadableError, read_named
from popkernel.kernel.init import permissions
from popkernel.kernel.init.binding import BindError, bind
from popkernel.kernel.init.ids import actor_ids, mta_uids
from popkernel.kernel.init.mailbox_faults import judge, odd_names, open_to_others
from popkernel.kernel.init.pass_phrase import file_of
from popkernel.kernel.init.requirements import needs
from popkernel.kernel.init.run_directory import problem as run_dir_problem
from popkernel.kernel.runtime.exit_codes import EXITS
from popkernel.kernel.runtime.log import doubt
from popkernel.kernel.supervisor.descriptor_room import too_few
from popkernel.proto.access.networks import MAX_NETWORKS, parse_networks
from popkernel.proto.access.user_names import name_lines, twins
from popkernel.proto.files.tables import MAX_FINDINGS, MAX_TABLE, Finding, MailUser, few, parse_auth, parse_users

_USAGE, _DATA, _NOINPUT, _OSERR, _CONFIG = (EXITS[name].code for name in ("usage", "data", "noinput", "oserr", "config"))


class Report:
    """What was found, and the code that `start` would end with: that of the first error, in the order in which it meets them."""

    def __init__(self) -> None:
        self.errors: list[Finding] = []
        self.warnings: list[Finding] = []
        self.notes: list[str] = []
        self.code = os.EX_OK

    def error(self, finding: Finding, code: int) -> None:
        """One more error."""
        self.code = self.code or code
        self.errors.append(finding)

    def all_errors(self, findings: Iterable[Finding], code: int) -> None:
        """Each of them."""
        for finding in findings:
            self.error(finding, code)


def define(parser: CommandParser) -> None:
    """Its flags and its help."""
    parser.describe(
        "Look at the configuration, both tables, certificate and key, maildirs, system users, ports and the\n"
        "sandbox, as `start` with the same flags would. Run it as the user who starts the server.\n"
        "While a server runs on this run directory, that one's lock and ports are left out, so that it can be checked\n"
        "before a reload; `start` would end with 69 then.\n"
        "Each finding is one line: file:line: what; mend. The exit code is that of the first error, as `start` ends\n"
        "with it. A mailbox that cannot be served, a private key that others may read, and a table or configuration\n"
        "that others can change, keep `start` from nothing, and are errors here.",
        """
        popkernel check -f /etc/popkernel.toml
        popkernel check -a /etc/mail/auth -u /etc/mail/users -l 192.0.2.1 -c /etc/ssl/mail.pem -k /etc/ssl/mail.key
        """,
        "usage data noinput unavailable oserr cantcreat ioerr tempfail noperm config",
        done="nothing found, or warnings only",
    )
    add_server_flags(parser)
    parser.add_argument("--json", action="store_true", help="findings as one JSON object")


def run(options: argparse.Namespace) -> int:
    """Run `popkernel check`."""
    given = vars(options)
    config, findings = gather({key.name: given.get(key.name) for key in keys()}, options.toml_path)
    report = Report()
    for finding in findings:
        report.error(finding, _USAGE if all(f.path.startswith(COMMAND_LINE) for f in findings) else _CONFIG)
    if config is not None:
        _check_trust(options.toml_path or "", report, _CONFIG)
        check(config, report)
    if options.json:
        found = {
            "errors": [finding._asdict() for finding in report.errors],
            "warnings": [finding._asdict() for finding in report.warnings],
        }
        print(json.dumps(found, indent=2))
    else:
        for finding in report.errors:
            print(_shown(str(finding)))
        for finding in report.warnings:
            print(_shown(f"warning: {finding}"))
        for note in report.notes:
            print(_shown(note))
        if not report.errors and not report.warnings:
            print("nothing found")
    return report.code


def _shown(line: str) -> str:
    """Keep paths with control characters or octets that are no text from reaching the terminal as such."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in line)


def check(config: Config, report: Report | None = None) -> Report:
    """Look at everything a configuration points to, in the order in which a start comes to it; what it does not name is left out."""
    report = report or Report()
    _check_sandbox(config, report)
    _check_ids(config, report)
    if any(finding.path == "calls" for finding in report.errors):  # what follows would meet it, too
        return report
    _check_run_dir(config, report)
    _check_ports(config, report)
    check_tables(config, report)
    pairs = [pair for pair in [(config.cert, config.key), *config.certs] if all(pair)]
    errors, warnings = check_certificates(pairs, file_of(config.key_passphrase_file), config.tls_min, notes=report.notes)
    report.all_errors(errors, _CONFIG)
    report.warnings.extend(warnings)
    _check_keys(config, report)
    _check_blocked(config, report)
    lost = doubt(config.log, daemon=config.daemon)
    report.warnings.extend([lost] if lost is not None else [])
    if config.allow_plaintext:
        what = "clients may log in without TLS: passwords and mail can be read on the way"
        report.warnings.append(Finding("configuration", 0, what, "leave out --allow-plaintext and allow_plaintext"))
    if config.deletion == "trash-flag" and not config.hide_trashed:
        what = 'deletion = "trash-flag" alone: clients see again what they have deleted'
        report.warnings.append(Finding("configuration", 0, what, "set hide_trashed = true too"))
    return report


def check_tables(config: Config, report: Report) -> None:
    """Look at both tables, at each alone and at what one has and the other has not, and at every maildir."""
    user_data = _read_table("user_table", config.user_table, report)
    auth_data = _read_table("auth_table", config.auth_table, report)
    for path, data in ((config.user_table, user_data), (config.auth_table, auth_data)):
        if data is not None:
            _check_trust(path, report, _DATA)
    if auth_data is not None:
        report.warnings.extend(_secrecy(config.auth_table, "hashes"))
    # No table at all has been said already; an empty one would be a finding of its own.
    users, user_findings = ({}, []) if user_data is None else parse_users(user_data, config.user_table, config.subdir)
    auth = parse_auth(auth_data or b"", config.auth_table)
    auth_findings = [] if auth_data is None else auth.errors
    report.all_errors(user_findings + auth_findings, _DATA)
    # A line that did not parse would show up as missing too: say that only once it does parse.
    if auth_data is not None and user_data is not None and not auth_findings and not user_findings:
        named = auth.names()
        report.warnings.extend(few(list(auth.shut_out.values()), "more users cannot log in"))
        report.warnings.extend(_missing(named, users, config.auth_table, auth_data, config.user_table))
        report.warnings.extend(_missing(users, named, config.user_table, user_data, config.auth_table))
        if auth.locked:
            report.notes.append(f"{config.auth_table}: {len(auth.locked)} user{'s are' if len(auth.locked) > 1 else ' is'} locked")
    for case, names, data, path in (
        (config.login_case, auth.names(), auth_data, config.auth_table), (config.recipient_case, users, user_data, config.user_table),
    ):
        report.warnings.extend(twins(names, data, path) if case == "fold" and data is not None else [])
    if user_data is not None:
        _check_maildirs(config, users, user_data, report)


def _check_keys(config: Config, report: Report) -> None:
    """Look at the issuer's keys: whoever can write them can log in as anybody."""
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
            report.warnings.append(Finding(config.block_list, 0, what, "leave out 127.0.0.0/8 and ::1 unless it is meant"))


def _check_trust(path: str, report: Report, code: int) -> None:
    """Look at who else could change a file that decides whom is served as whom: a start says it, and goes on."""
    for where, what, mend in permissions.doubts(path) if path else ():
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


def _secrecy(path: str, holds: str) -> Iterable[Finding]:
    mode = stat.S_IMODE(os.stat(path).st_mode)
    if mode & 0o007:
        yield Finding(path, 0, f"mode {mode:04o} lets every user at the {holds}", f"chmod o-rwx {shlex.quote(os.path.realpath(path))}")


def _missing(here: Iterable[str], there: Iterable[str], here_path: str, here_data: bytes, there_path: str) -> Iterable[Finding]:
    """Name the users of one table that the other lacks."""
    lacking = set(here).difference(there)
    if not lacking:
        return
    lines = name_lines(here_data)
    named = sorted(lacking, key=lambda name: lines.get(name, 0))
    for name in named[:MAX_FINDINGS]:
        mend = f"add {name} there, or remove the line here"
        yield Finding(here_path, lines.get(name, 0), f"user {name} is not in {there_path} and cannot log in", mend)
    if len(named) > MAX_FINDINGS:
        what = f"{len(named) - MAX_FINDINGS} more users are not in {there_path}"
        yield Finding(here_path, 0, what, "add them there, or remove their lines here")


def _actor_uids(config: Config) -> dict[int, str]:
    """Give the actor by its uid, as root only: without, all have one uid, which _check_ids() warns of."""
    try:
        return {uid: actor for actor, (uid, _gid) in actor_ids(config).items()} if os.geteuid() == 0 else {}
    except ConfigError:
        return {}


def _check_maildirs(config: Config, users: dict[str, MailUser], data: bytes, report: Report) -> None:
    named = 0
    for finding, error in judge(users, data, config.user_table, _actor_uids(config)):
        if not error:
            report.warnings.append(finding)
            continue
        report.error(finding, _DATA)
        named += 1
        if named > MAX_FINDINGS:
            report.errors[-1] = Finding(config.user_table, 0, "more users' maildirs have errors", "mend the ones above first")
            break
    wide = list(open_to_others(users, data, config.user_table))
    report.warnings.extend(few(wide, "more users' maildirs are open to others", MAX_FINDINGS))
    report.warnings.extend(few(list(odd_names(users, data, config.user_table)), "more users' maildirs with such names", MAX_FINDINGS))


def _check_ids(config: Config, report: Report) -> None:
    """Look at the actors' and the mail servers' users, and at whether the starter may become the mail users."""
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
        found = too_few(config)  # which a start says once it is ready
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
    """Bind each for a moment, in the order in which a start does."""
    problems: list[BindError] = []
    bound: list[socket.socket] = []
    tried: set[Address] = set()  # what is listed twice has been said, and would be refused here as another program's
    for key in address_keys():
        for address in getattr(config, key):
            if address.port and address in tried:
                continue
            tried.add(address)
            try:
                bound.append(bind(key, address))
                bound[-1].listen(1)  # one address may include another: then the second is refused
            except BindError as error:
                problems.append(error)
            except OSError as error:
                problems.append(BindError(key, address, error))
    for sock in bound:
        sock.close()
    if any(problem.taken for problem in problems) and _serving(config.run_dir):
        # Its own ports, most likely: a second start would be refused for the run directory first.
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
