"""`popkernel import-uidl`: take over the UIDLs of another server into the popcaches of many users.

A maildir's user may have put anything into it. So each maildir is processed by a child of its own, under that
user's ids and, if the system can, locked in to that maildir. The child returns its result as one line of
JSON.
"""

import argparse
import json
import os
import sys
from typing import Any

from popkernel.actors.maildir.store.errors import StoreError
from popkernel.actors.maildir.store.maildrop import Maildrop
from popkernel.actors.maildir.uidl_import import import_uidls, source_of
from popkernel.cli.common.parser import CommandParser, add_key
from popkernel.kernel.config.user_table import exit_code, read_users
from popkernel.kernel.config.values import checked
from popkernel.kernel.runtime.child_process import do_and_leave
from popkernel.kernel.sandbox import lock as sandbox
from popkernel.kernel.sandbox.libc import SandboxError
from popkernel.proto.files.tables import MailUser
from popkernel.proto.files.uid_lists import SOURCES
from popkernel.proto.topology import actor as row_of

OK, USAGE, DATAERR, NOINPUT, NOUSER, SOFTWARE, TEMPFAIL, NOPERM = 0, 64, 65, 66, 67, 70, 75, 77  # sysexits(3)
_LOCK_SECONDS = 30.0  # to wait for the popcache lock; no client waits meanwhile
_NOTES = 20  # printed notes of one user; a maildir may have thousands
_COMMON = ("Maildir", ".maildir", "mail")  # usual names of the mail's subdirectory
_MOST_ANSWER = 1 << 20  # octets


def define(parser: CommandParser) -> None:
    """Define the flags and the help."""
    parser.describe(
        "Write into maildirs' popcaches the unique ids that Dovecot or Courier gave, or the file names that\n"
        "other servers use, so that no client fetches its mail again. A message with an id in the popcache\n"
        "keeps it. Each maildir is read and written as its own user, under the popcache lock; the server\n"
        "may run.",
        """
        popkernel import-uidl -n -u /etc/popkernel/users -e Maildir
        popkernel import-uidl -u /etc/popkernel/users -e Maildir --from dovecot
        popkernel import-uidl -u /etc/popkernel/users --from courier --force alice
        """,
        "usage data noinput nouser software tempfail noperm",
        files="""
        MAILDIR/dovecot-uidlist       Dovecot's
        MAILDIR/courierpop3dsizelist  Courier's
        MAILDIR/popcache              popkernel's
        """,
    )
    add_key(parser, "user_table", required=True, help="user table")
    add_key(parser, "subdir", default="")
    parser.add_argument("-n", dest="dry", action="store_true", help="write nothing, print what would be done")
    what = "where they come from (default: from the server whose file is in the maildir)"
    parser.add_argument("--from", dest="source", choices=SOURCES, help=what)
    parser.add_argument(
        "--force", action="store_true", help="also for messages that have a unique id in the popcache"
    )
    parser.add_argument("users", metavar="USER", nargs="*", help="only these (default: all of the table)")


def run(options: argparse.Namespace) -> int:
    """Run `popkernel import-uidl`."""
    try:
        subdir = checked(options.subdir, {"kind": "subdir"}) if options.subdir else ""
    except ValueError as error:
        print(f"popkernel import-uidl: -e: {error}", file=sys.stderr)
        return USAGE
    try:
        users = read_users(options.user_table, subdir)
    except ValueError as error:
        print(f"popkernel import-uidl: {error}", file=sys.stderr)
        return exit_code(error)
    unknown = [name for name in options.users if name not in users]
    for name in unknown:
        print(
            f"popkernel import-uidl: {name} is not in {options.user_table}; write the name as it is there",
            file=sys.stderr,
        )
    if unknown:
        return NOUSER
    names = list(dict.fromkeys(options.users)) or list(users)
    program = sandbox.compile_promises(row_of("maildir").promises) if not sandbox.missing() else None
    sums = {"messages": 0, "kept": 0, "taken": 0, "new": 0}
    worst, skipped, failed = OK, 0, 0
    # Of each user without a maildir at the path: the subdirectory that looks like one, or "".
    without_maildir: list[str] = []
    for number, name in enumerate(names, 1):
        answer = _in_child(users[name], options, program)
        _print_answer(f"[{number}/{len(names)}] {name}", answer)
        worst = worst or answer["code"]
        without_maildir += [answer["within"]] if "within" in answer else []
        failed += answer["code"] != OK
        skipped += answer["code"] == OK and "messages" not in answer
        for key in sums:
            sums[key] += answer.get(key, 0)
    would = "nothing written: " if options.dry else ""
    users_done = f"{_plural(len(names), 'user')}, {skipped} with nothing to take over, {failed} failed"
    print(f"{would}{users_done}; {_counts(sums)}")
    mistake = _likely_mistake(options, len(names), skipped, without_maildir)
    if mistake:  # clients would fetch all that mail again
        print(f"popkernel import-uidl: {mistake}", file=sys.stderr)
    return worst or (NOINPUT if mistake else OK)


def _likely_mistake(options: argparse.Namespace, users: int, skipped: int, without_maildir: list[str]) -> str:
    """Return a text if the flags look like a mistake, else ""."""
    if without_maildir:
        found = next(filter(None, without_maildir), "")
        mend = (
            f"is -e {options.subdir} right?"
            if options.subdir
            else f"did you forget -e{found and ' ' + found}?"
        )
        return f"no maildir found for {len(without_maildir)} user{'s' * (len(without_maildir) > 1)}; {mend}"
    if skipped == users:
        return (
            "no unique ids of another server found in any maildir; is it the right table,"
            " and do Dovecot or Courier keep them there?"
        )
    return ""


def _plural(number: int, of: str) -> str:
    return f"{number} {of}{'s' * (number != 1)}"


def _counts(of: dict[str, Any]) -> str:
    ids = f"{_plural(of['taken'], 'unique id')} taken over, {of['kept']} kept, {of['new']} new"
    return f"{_plural(of['messages'], 'message')}: {ids}"


def _print_answer(who: str, answer: dict[str, Any]) -> None:
    text = answer.get("text") or _counts(answer)
    print(f"{who}: {text}", file=sys.stderr if answer["code"] else sys.stdout, flush=True)
    notes = answer.get("notes", [])
    for note in notes[:_NOTES]:
        print(f"{who}: {note}", file=sys.stderr)
    if len(notes) > _NOTES:
        print(f"{who}: {answer['findings'] - _NOTES} more such", file=sys.stderr)


def _in_child(user: MailUser, options: argparse.Namespace, program: bytes | None) -> dict[str, Any]:
    """Process a user's maildir in a child. Returns its counts, or a text; and `code`, see sysexits(3)."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        do_and_leave(lambda: _send(_import_user(user, options, program), writing), SOFTWARE)
    os.close(writing)
    with os.fdopen(reading, "rb") as file:
        text = file.read(_MOST_ANSWER)
    _, status = os.waitpid(pid, 0)
    if status or not text:
        return {"code": SOFTWARE, "text": f"ended with wait status {status}: nothing is known to be changed"}
    answer: dict[str, Any] = json.loads(text)
    return answer


def _send(answer: dict[str, Any], pipe: int) -> int:
    text = json.dumps(answer).encode()
    while text:
        text = text[os.write(pipe, text) :]
    return OK


def _import_user(user: MailUser, options: argparse.Namespace, program: bytes | None) -> dict[str, Any]:
    try:
        sandbox.drop_ids(user.uid, user.gid)
    except SandboxError as error:
        return {"code": NOPERM, "text": str(error)}
    if not all(os.path.isdir(os.path.join(user.maildir, part)) for part in ("cur", "new", "tmp")):
        within = [sub for sub in _COMMON if os.path.isdir(os.path.join(user.maildir, sub, "cur"))]
        return {
            "code": NOINPUT,
            "within": (within or [""])[0],
            "text": "no maildir there, or none that its user may see",
        }
    try:
        drop = Maildrop(os.fsencode(user.maildir), lock_wait=_LOCK_SECONDS)
        if program is not None:
            sandbox.unveil([(user.maildir, "rwc")])
            sandbox.pledge(program)
        source = options.source or source_of(drop)
        if source is None:
            return {"code": OK, "text": "neither dovecot-uidlist nor courierpop3dsizelist is there"}
        if source == "both":
            return {
                "code": DATAERR,
                "text": "both dovecot-uidlist and courierpop3dsizelist are there; say which with --from",
            }
        report = import_uidls(drop, source, force=options.force, dry=options.dry)
    except StoreError as error:
        return {"code": NOPERM if error.code == "SYS/PERM" else TEMPFAIL, "text": error.text}
    notes = [note[:300] for note in report.notes[: _NOTES + 1]]
    return {"code": OK, **report._asdict(), "notes": notes, "findings": len(report.notes)}
