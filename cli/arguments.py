"""Every command, with its flags, defaults, examples and exit codes, as argparse and as people read them."""

import argparse
from typing import Any

from popkernel.cli.parser import DIRECTORY, FILE, Parser, Version, add_config_file, add_key, command, complete
from popkernel.cli.server_flags import add_server_flags, add_start
from popkernel.kernel.runtime.exit_codes import EXITS
from popkernel.proto.files.uid_lists import SOURCES
from popkernel.proto.trace.session_names import session_number

__all__ = ["build_parser"]


def build_parser() -> Parser:
    """Build the whole program's parser; the parsed options carry ``run``, the command's "module:function"."""
    parser = Parser(
        prog="popkernel",
        description="A POP3 server of isolated actors, each locked in to what its work needs.",
        epilog="`popkernel COMMAND --help` has each command's flags, defaults, examples, files and exit codes.\n"
        "To see it work at once, as any user: popkernel demo",
    )
    parser.add_argument("--version", action=Version, nargs=0, help="print the version and leave")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    add_start(commands)
    _status(commands)
    _stop(commands)
    _reload(commands)
    _check(commands)
    _passwd(commands)
    _deliver(commands)
    _import_uidl(commands)
    _topology(commands)
    _trace(commands)
    _replay(commands)
    _demo(commands)
    _completion(commands)
    return parser


def _add_which_server(parser: argparse.ArgumentParser) -> None:
    """Which running server a command is for; see cli/run_directory.py."""
    add_config_file(parser, "the server's configuration, for its run_dir; --run-dir wins over it")
    add_key(parser, "run_dir")


def _status(commands: Any) -> None:
    parser = command(
        commands,
        "status",
        "popkernel.cli.control:status",
        "show the running server's actors, sessions and leases",
        "Show the running server: its actors with their ids, promises and memory, sessions and leases.",
        """
        popkernel status
        popkernel status -f /etc/popkernel.toml --json | jq '.actors[] | {name, pid, promises, unveiled}'
        """,
        "usage unavailable software ioerr tempfail noperm config",
    )
    _add_which_server(parser)
    parser.add_argument("--json", action="store_true", help="everything, as one JSON object")


def _stop(commands: Any) -> None:
    parser = command(
        commands,
        "stop",
        "popkernel.cli.control:stop",
        "end the running server",
        "End the running server politely, and wait up to 30 seconds until it is gone.",
        "popkernel stop\npopkernel stop -f /etc/popkernel-two.toml",
        "usage unavailable software ioerr tempfail noperm config",
    )
    _add_which_server(parser)


def _reload(commands: Any) -> None:
    parser = command(
        commands,
        "reload",
        "popkernel.cli.control:reload",
        "read tables, certificate and key anew; open sessions go on",
        "Read configuration, tables, certificate and key anew. Open sessions go on. If any of them has errors,\n"
        "nothing changes and the errors are printed. Changed keys that count only from the next start on are named, and\n"
        "up to ten mailboxes that cannot be served.",
        "popkernel check -f /etc/popkernel.toml && popkernel reload -f /etc/popkernel.toml",
        "usage data noinput unavailable software ioerr tempfail noperm config",
    )
    _add_which_server(parser)


def _check(commands: Any) -> None:
    parser = command(
        commands,
        "check",
        "popkernel.cli.check:run",
        "look for everything that would go wrong, without starting",
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


def _passwd(commands: Any) -> None:
    parser = command(
        commands,
        "passwd",
        "popkernel.cli.passwd:run",
        "set or remove a user's password",
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


# What mail servers make of a code decides: on any but 75 they send the mail back.
_DELIVER_EXITS = (
    (EXITS["usage"].code, EXITS["usage"].said),
    (EXITS["data"].code, "the message is too large, or an address is none"),
    (EXITS["nouser"].code, EXITS["nouser"].said),
    (EXITS["unavailable"].code, "refused for good: the mailbox is full, for example"),
    (EXITS["tempfail"].code, "try again later: the server is away, the disk is full, the configuration cannot be read"),
    (EXITS["noperm"].code, "not permitted: another user's mailbox"),
)


def _deliver(commands: Any) -> None:
    parser = command(
        commands,
        "deliver",
        "popkernel.cli.deliver:run",
        "put the message on standard input into a mailbox",
        "Put the message on standard input into a mailbox of the running server; done once it is safe on disk.\n"
        "For `mda` actions, .forward files and other pipes. Root, the mail servers of the key mta_users and each\n"
        "mailbox's own user may.",
        """
        popkernel deliver -u alice < message
        action "pop" mda "popkernel deliver -u %{user.username}" virtual <users> userbase <users>
        "|/usr/local/bin/popkernel deliver"
        """,
        codes=_DELIVER_EXITS,
        files="""
        RUN_DIR/lmtp.sock  where the running server takes mail
        """,
    )
    what = "whose mailbox: a name of the user table, or an address (default: $USER)"
    parser.add_argument("-u", dest="user", metavar="USER", help=what)
    parser.add_argument("--sender", metavar="ADDR", help="whom to name in Return-Path where the message has none (default: $SENDER)")
    _add_which_server(parser)


def _import_uidl(commands: Any) -> None:
    parser = command(
        commands,
        "import-uidl",
        "popkernel.cli.import_uidl:run",
        "take over the unique ids that another server gave",
        "Write into maildirs' popcaches the unique ids that Dovecot or Courier gave, or the file names that others\n"
        "use, so that no client fetches its mail again. A message that has one in the popcache keeps it. Each maildir is\n"
        "read and written as its own user, under the popcache lock; the server may run.",
        """
        popkernel import-uidl -n -u /etc/mail/users -e Maildir
        popkernel import-uidl -u /etc/mail/users -e Maildir --from dovecot
        popkernel import-uidl -u /etc/mail/users --from courier --force alice
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
    parser.add_argument("-n", dest="dry", action="store_true", help="write nothing, say what would be done")
    what = "where they come from (default: whose file lies in the maildir)"
    parser.add_argument("--from", dest="source", choices=SOURCES, help=what)
    parser.add_argument("--force", action="store_true", help="also for messages that have a unique id in the popcache")
    parser.add_argument("users", metavar="USER", nargs="*", help="only these (default: all of the table)")


def _topology(commands: Any) -> None:
    parser = command(
        commands,
        "topology",
        "popkernel.cli.topology:run",
        "print who the actors are and who may say what to whom",
        "Print the one table the server is built from: every actor with its promises and files, every edge\n"
        "between two actors with its messages.",
        "popkernel topology\npopkernel topology --format dot | dot -Tsvg > actors.svg",
        "usage ioerr",
    )
    choices = ("text", "json", "mermaid", "dot")
    parser.add_argument("--format", choices=choices, default="text", help="for people or programs (default text)")


def _session(text: str) -> int:
    """A session as `trace`, `status` and the log show it."""
    try:
        number = session_number(text)
        if number < 1 << 63:
            return number
        raise ValueError(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no session: give it as status, trace and the log show it, 1.17") from None


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of lines; give 1 or more")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no time; give seconds, more than 0")
    return seconds


def _trace(commands: Any) -> None:
    parser = command(
        commands,
        "trace",
        "popkernel.cli.trace:run",
        "watch live what actors are told and what they say; record it",
        "Attach to the running server and tell what passes between its actors, until Ctrl-C. Nothing is\n"
        "restarted, any number may watch, and one who is too slow slows nobody but loses frames, which are counted.\n"
        "Passwords are never shown; mail is shown as its size. Only root, or the user who runs the server, may watch.",
        """
        popkernel trace
        popkernel trace --user alice
        popkernel trace auth --type Denied,Granted --count 10
        popkernel trace --session 1.17 --format mermaid > session.mmd
        popkernel trace --format json --for 60 | jq -r 'select(.took_seconds > 0.1) | .name'
        popkernel trace maildir.alice --record alice.rec --with-maildir
        """,
        "usage nouser unavailable software cantcreat ioerr tempfail noperm config",
    )
    add = parser.add_argument
    add("actor", metavar="ACTOR", nargs="?", help="only this actor: listener.0, or listener for all of them, maildir.USER, kernel ...")
    add("--user", metavar="USER", help="only sessions, deliveries and the maildir actor of this user")
    add("--session", metavar="ID", type=_session, default=0, help="only this session, as status, trace and the log show it: 1.17")
    add("--edge", metavar="FROM:TO", help="only messages between these two, for example listener:auth")
    add("--type", metavar="NAME,...", default=[], type=lambda text: [n for n in text.split(",") if n], help="only messages of these names")
    add("--format", choices=("pretty", "json", "mermaid"), default="pretty", help="for people, programs, or as a diagram (default pretty)")
    what = "write what is watched there too, for `popkernel replay`"
    complete(add("--record", metavar="FILE", help=what), FILE)
    add("--with-maildir", action="store_true", help="with --record and one user: take that maildir along as it is now, mail and all")
    add("--force", action="store_true", help="with --record: into a file that has something in it, which is lost")
    add("--count", metavar="N", type=_count, help="detach after so many lines")
    add("--for", dest="seconds", metavar="SECONDS", type=_seconds, help="detach after so long")
    add("--payload", action="store_true", help="mail content too; root only")
    _add_which_server(parser)


def _replay(commands: Any) -> None:
    parser = command(
        commands,
        "replay",
        "popkernel.cli.replay:run",
        "feed recordings to fresh actors, and compare what they say",
        "Feed what recorded actors were told, in order and with the recorded clock and randomness, to fresh ones,\n"
        "and compare what these say with the recording, field by field.",
        """
        popkernel replay tests/replay/*.rec
        popkernel replay alice.rec --actor maildir.alice --maildir /tmp/copy-of-alice
        popkernel replay tests/replay/quit.rec --update
        """,
        "usage data noinput cantcreat ioerr",
        done="everything as recorded",
        codes=((1, "differences"),),
    )
    what = "what `popkernel trace --record` wrote; - for standard input"
    complete(parser.add_argument("files", metavar="FILE", nargs="+", help=what), FILE)
    parser.add_argument("--actor", metavar="NAME", help="only this one of the actors in the recording")
    what = "the maildir as it was when the recording began, if that is not in it; it is copied, and left as it is"
    complete(parser.add_argument("--maildir", metavar="DIR", help=what), DIRECTORY)
    parser.add_argument("--update", action="store_true", help="write what is said now into the recordings, where it differs")


def _demo(commands: Any) -> None:
    parser = command(
        commands,
        "demo",
        "popkernel.cli.demo:run",
        "serve a temporary site on loopback ports 1995 and 1110",
        "Make a site with a certificate, the users alice, bob and carol (password: secret) and some mail;\n"
        "serve it, print lines that read it (curl, or Python where there is none); remove it after Ctrl-C,\n"
        "or when the terminal closes.",
        """
        popkernel demo
        popkernel demo --dir /tmp/popsite --tls-port 2995 --stls-port 2110
        """,
        "usage unavailable software oserr cantcreat noperm config",
    )
    what = "make the site here, and keep it (default: a temporary directory, removed at the end)"
    complete(parser.add_argument("--dir", metavar="DIR", help=what), DIRECTORY)
    parser.add_argument("--tls-port", type=int, default=1995, metavar="PORT", help="implicit TLS (default 1995)")
    parser.add_argument("--stls-port", type=int, default=1110, metavar="PORT", help="STLS (default 1110)")
    add_key(parser, "verbose", default=1, help="one more step of logging (default 1)")
    add_key(parser, "insecure_no_sandbox", default=False)


def _completion(commands: Any) -> None:
    parser = command(
        commands,
        "completion",
        "popkernel.cli.completion:run",
        "print a shell's completion script",
        "Print a completion script for a shell, for its start-up file or its directory of such scripts.",
        """
        popkernel completion bash > /etc/bash_completion.d/popkernel
        popkernel completion zsh > /usr/local/share/zsh/site-functions/_popkernel
        popkernel completion tcsh >> ~/.tcshrc
        """,
        "usage ioerr",
    )
    parser.add_argument("shell", choices=("bash", "zsh", "tcsh"), help="the shell")
