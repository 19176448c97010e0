"""Every command, flag, default, example and exit code, as argparse and as people read them.

Shell completion is made from the same parsers, so ``complete`` on a flag says what kind of value it takes.
"""

import argparse
import os
import sys
import textwrap
from typing import Any, NoReturn

from popkernel.kernel.config import Config, default_run_dir, keys, load
from popkernel.kernel.exits import EXITS
from popkernel.proto.sessionname import session_number

FILE = {"bash": "_shtab_compgen_files", "zsh": "_files", "tcsh": "f"}
DIRECTORY = {"bash": "_shtab_compgen_dirs", "zsh": "_files -/", "tcsh": "d"}


class Parser(argparse.ArgumentParser):
    """argparse's parser with sysexits' code for wrong usage, and no guessing of shortened flags."""

    def __init__(self, **options: Any) -> None:
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        options.setdefault("allow_abbrev", False)
        super().__init__(**options)

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and where the help is, in two lines."""
        self.exit(os.EX_USAGE, f"{self.prog}: {message}\nTry `{self.prog} --help`.\n")


class CommandParser(Parser):
    """The parser of a command: what it does not know it says itself, with its own help; argparse leaves that to the whole program's."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        known, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return known, unknown


class StartParser(CommandParser):
    """The parser of ``start``: its help goes on with the keys of the TOML file."""

    def format_help(self) -> str:
        return super().format_help() + "\n" + toml_help()


class Version(argparse.Action):
    """``--version``; reads the package's metadata only when asked."""

    def __call__(self, *_parser_and_rest: Any) -> NoReturn:
        from importlib.metadata import version

        print(f"popkernel {version('popkernel')}")
        sys.exit(os.EX_OK)


def toml_help() -> str:
    """Describe every key of the file of ``-f``."""
    lines = ["keys of the TOML file (flags win; every key is optional where a flag was given):"]
    for key in keys():
        rules = key.metadata
        default = _toml_value(key.default, rules["kind"])
        if key.name in {"run_dir", "hostname"}:
            default = f'"{default_run_dir()}"' if key.name == "run_dir" else "the machine's"
        bounds = f", {rules['low']} to {rules['high']}" if rules["kind"] == "int" else ""
        bounds = ", " + " or ".join(f'"{c}"' for c in rules["choices"]) if rules["choices"] else bounds
        said = f"{rules['doc']} ({'default ' + default if default else 'no default'}{bounds})"
        lines.append(textwrap.fill(said, 100, initial_indent=f"  {key.name:20} ", subsequent_indent=" " * 23))
    return "\n".join(lines) + "\n"


def _toml_value(value: Any, kind: str) -> str:
    if kind == "bool":
        return "true" if value else "false"
    if kind == "addresses":
        return ""
    return str(value) if kind == "int" else value and f'"{value}"'


def _exits(names: str) -> str:
    rows = sorted(EXITS[name] for name in names.split())
    return _rows([(row.code, row.said) for row in rows])


def _rows(rows: list[tuple[int, str]]) -> str:
    return "\n".join(textwrap.fill(f"{code}  {said}", 100, initial_indent="  ", subsequent_indent=" " * 6) for code, said in rows)


def _epilog(examples: str, exits: str, files: str = "") -> str:
    """Join the closing parts of a help text."""
    parts = ["examples:\n" + textwrap.indent(textwrap.dedent(examples).strip(), "  ")]
    parts.append("exit codes:\n  0   done\n" + _exits(exits))
    if files:
        parts.append("files:\n" + textwrap.indent(textwrap.dedent(files).strip(), "  "))
    return "\n\n".join(parts)


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
    commands._parser_class = CommandParser  # noqa: SLF001 - add_parser() has no argument for it
    _start(commands)
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


def _complete(action: argparse.Action, how: dict[str, str]) -> None:
    """Tell shtab how to complete an option's value; it reads this attribute."""
    action.complete = how  # type: ignore[attr-defined]


def _add_run_dir(parser: argparse.ArgumentParser) -> None:
    what = f"directory of the server's sockets (default {default_run_dir()})"
    _complete(parser.add_argument("--run-dir", metavar="DIR", help=what), DIRECTORY)


def _add_which_server(parser: argparse.ArgumentParser) -> None:
    """Which running server a command is for; see cli/rundir.py."""
    what = "the server's configuration, for its run_dir; --run-dir wins over it"
    _complete(parser.add_argument("-f", dest="toml_path", type=os.path.abspath, metavar="CONFIG.toml", help=what), FILE)
    _add_run_dir(parser)


def add_server_flags(parser: argparse.ArgumentParser) -> None:
    """Add what ``start`` and ``check`` have in common: the flags of the original server, and ours."""
    add = parser.add_argument
    _complete(add("-a", dest="auth_table", metavar="FILE", help="authorization table: name, blank, bcrypt hash"), FILE)
    _complete(add("-u", dest="user_table", metavar="FILE", help="user table: name, blank, uid:gid:maildir"), FILE)
    add(
        "-l",
        dest="listen",
        metavar="ADDR[:PORT]",
        action="append",
        help="numeric address for implicit TLS, port 995 unless given; [ADDR6]:PORT for IPv6; repeatable",
    )
    _complete(add("-c", dest="cert", metavar="FILE", help="certificate chain, PEM, the server's own first"), FILE)
    _complete(add("-k", dest="key", metavar="FILE", help="private key, PEM"), FILE)
    add("-e", dest="subdir", metavar="DIR", help="subdirectory of each user's directory that is the maildir")
    add("-v", dest="verbose", action="count", help="one more step of logging, up to ten; 0 to 2 suffice in daily use")
    add(
        "-L",
        dest="listen_starttls",
        metavar="ADDR[:PORT]",
        action="append",
        help="numeric address for POP3 with STLS, port 110 unless given; repeatable",
    )
    # Made absolute at once: a reload reads it again, and a detached server has gone to "/".
    what = "configuration; flags win over it"
    _complete(add("-f", dest="toml_path", type=os.path.abspath, metavar="CONFIG.toml", help=what), FILE)
    _add_run_dir(parser)
    add("--listeners", type=int, metavar="N", help="listener processes (default 1)")
    add("--allow-plaintext", action="store_true", default=None, help="let clients log in without TLS")
    add("--daemon", action="store_true", default=None, help="detach from the terminal once ready")
    add("--watch", action="store_true", default=None, help="put changed tables, certificates and keys in force at once")
    add(
        "--log",
        choices=("auto", "syslog", "stderr"),
        help="where the log goes; auto (the default): standard error on a terminal, else syslog, facility mail",
    )
    add("--log-format", choices=("text", "json"), help="for people, or one JSON object a line (default text)")
    add(
        "--insecure-no-sandbox",
        action="store_true",
        default=None,
        help="serve although this system cannot lock the actors in",
    )


def config_from(options: argparse.Namespace) -> Config:
    """Build the configuration from the flags of add_server_flags().

    Raises:
        ConfigError: as kernel.config.load() does.

    """
    given = vars(options)
    return load({key.name: given.get(key.name) for key in keys()}, options.toml_path)


def _start(commands: Any) -> None:
    commands._parser_class = StartParser  # noqa: SLF001 - see build_parser()
    parser = commands.add_parser(
        "start",
        help="serve maildirs over POP3",
        description="Serve maildirs over POP3, in the foreground unless --daemon. All paths are absolute.",
        epilog=_epilog(
            """
            popkernel start -a /etc/mail/auth -u /etc/mail/users -l 192.0.2.1 -l '[2001:db8::1]' \\
                -c /etc/ssl/mail.pem -k /etc/ssl/private/mail.key -e Maildir
            popkernel start -f /etc/popkernel.toml --daemon
            popkernel start -f /etc/popkernel.toml -vv --log stderr
            """,
            "usage data noinput unavailable software oserr cantcreat noperm config",
            """
            RUN_DIR/control.sock  what `popkernel status`, `stop` and `reload` talk to
            """,
        ),
    )
    commands._parser_class = CommandParser  # noqa: SLF001
    add_server_flags(parser)
    parser.set_defaults(run="popkernel.cli.arguments:run_start")


def run_start(options: argparse.Namespace) -> int:
    """Run ``popkernel start``."""
    config = config_from(options)
    from popkernel.cli.start import run

    # At a reload flags and file are read again.
    return int(run(config, lambda: config_from(options), options.toml_path))


def _status(commands: Any) -> None:
    parser = commands.add_parser(
        "status",
        help="show the running server's actors, sessions and leases",
        description="Show the running server: its actors with their ids, promises and memory, sessions and leases.",
        epilog=_epilog(
            """
            popkernel status
            popkernel status -f /etc/popkernel.toml --json | jq '.actors[] | {name, pid, promises, unveiled}'
            """,
            "usage unavailable software ioerr tempfail noperm config",
        ),
    )
    _add_which_server(parser)
    parser.add_argument("--json", action="store_true", help="everything, as one JSON object")
    parser.set_defaults(run="popkernel.cli.control:status")


def _stop(commands: Any) -> None:
    parser = commands.add_parser(
        "stop",
        help="end the running server",
        description="End the running server politely, and wait up to 30 seconds until it is gone.",
        epilog=_epilog(
            "popkernel stop\npopkernel stop -f /etc/popkernel-two.toml", "usage unavailable software ioerr tempfail noperm config",
        ),
    )
    _add_which_server(parser)
    parser.set_defaults(run="popkernel.cli.control:stop")


def _reload(commands: Any) -> None:
    parser = commands.add_parser(
        "reload",
        help="read tables, certificate and key anew; open sessions go on",
        description="Read configuration, tables, certificate and key anew. Open sessions go on. If any of them has errors,\n"
        "nothing changes and the errors are printed. Changed keys that count only from the next start on are named, and\n"
        "up to ten mailboxes that cannot be served.",
        epilog=_epilog(
            "popkernel check -f /etc/popkernel.toml && popkernel reload -f /etc/popkernel.toml",
            "usage data noinput unavailable software ioerr tempfail noperm config",
        ),
    )
    _add_which_server(parser)
    parser.set_defaults(run="popkernel.cli.control:reload")


def _check(commands: Any) -> None:
    parser = commands.add_parser(
        "check",
        help="look for everything that would go wrong, without starting",
        description="Look at the configuration, both tables, certificate and key, maildirs, system users, ports and the\n"
        "sandbox, as `start` with the same flags would. Run it as the user who starts the server.\n"
        "While a server runs on this run directory, that one's lock and ports are left out, so that it can be checked\n"
        "before a reload; `start` would end with 69 then.\n"
        "Each finding is one line: file:line: what; mend. The exit code is that of the first error, as `start` ends\n"
        "with it. A mailbox that cannot be served, and a table or configuration that others can change, keep `start`\n"
        "from nothing, and are errors here.",
        epilog=_epilog(
            """
            popkernel check -f /etc/popkernel.toml
            popkernel check -a /etc/mail/auth -u /etc/mail/users -l 192.0.2.1 -c /etc/ssl/mail.pem -k /etc/ssl/mail.key
            """,
            "usage data noinput unavailable oserr cantcreat noperm config",
        ).replace("0   done", "0   nothing found, or warnings only"),
    )
    add_server_flags(parser)
    parser.add_argument("--json", action="store_true", help="findings as one JSON object")
    parser.set_defaults(run="popkernel.cli.check:run")


def _passwd(commands: Any) -> None:
    parser = commands.add_parser(
        "passwd",
        help="set or remove a user's password",
        description="Set USER's password in an authorization table: asked for twice on the terminal, or one line of\n"
        "standard input. A new user is appended, a new file made with mode 0600. Every other line stays as it is.\n"
        "The table is replaced in one step, under the lock the original server's tools take. `popkernel reload` puts\n"
        "it in force.",
        epilog=_epilog(
            """
            popkernel passwd -a /etc/mail/auth alice
            pwgen 20 1 | tee alice.txt | popkernel passwd -a /etc/mail/auth --stdin alice
            popkernel passwd -a /etc/mail/auth --delete alice
            """,
            "usage data noinput nouser cantcreat tempfail noperm",
        ),
    )
    what = "authorization table"
    _complete(parser.add_argument("-a", dest="auth_table", metavar="FILE", required=True, help=what), FILE)
    parser.add_argument("user", metavar="USER", help="name as in the table: no blank, no colon")
    parser.add_argument("--stdin", action="store_true", help="read the password from standard input, one line")
    parser.add_argument("--cost", type=int, metavar="N", help="bcrypt cost, 4 to 31 (default 10); one more doubles the work")
    parser.add_argument("--delete", action="store_true", help="remove the user's line instead")
    parser.set_defaults(run="popkernel.cli.passwd:run")


# What mail servers make of a code decides: on any but 75 they send the mail back.
_DELIVER_EXITS = [
    (EXITS["usage"].code, EXITS["usage"].said),
    (EXITS["data"].code, "the message is too large, or an address is none"),
    (EXITS["nouser"].code, EXITS["nouser"].said),
    (EXITS["unavailable"].code, "refused for good: the mailbox is full, for example"),
    (EXITS["tempfail"].code, "try again later: the server is away, the disk is full, the configuration cannot be read"),
    (EXITS["noperm"].code, "not permitted: another user's mailbox"),
]


def _deliver(commands: Any) -> None:
    parser = commands.add_parser(
        "deliver",
        help="put the message on standard input into a mailbox",
        description="Put the message on standard input into a mailbox of the running server; done once it is safe on disk.\n"
        "For `mda` actions, .forward files and other pipes. Root, the mail servers of the key mta_users and each\n"
        "mailbox's own user may.",
        epilog=_epilog(
            """
            popkernel deliver -u alice < message
            action "pop" mda "popkernel deliver -u %{user.username}" virtual <users> userbase <users>
            "|/usr/local/bin/popkernel deliver"
            """,
            "",
            """
            RUN_DIR/lmtp.sock  where the running server takes mail
            """,
        ).replace("  0   done\n", "  0   done\n" + _rows(_DELIVER_EXITS)),
    )
    what = "whose mailbox: a name of the user table, or an address (default: $USER)"
    parser.add_argument("-u", dest="user", metavar="USER", help=what)
    parser.add_argument("--sender", metavar="ADDR", help="whom to name in Return-Path where the message has none (default: $SENDER)")
    _add_which_server(parser)
    parser.set_defaults(run="popkernel.cli.deliver:run")


def _import_uidl(commands: Any) -> None:
    parser = commands.add_parser(
        "import-uidl",
        help="take over the unique ids that another server gave",
        description="Write into maildirs' popcaches the unique ids that Dovecot or Courier gave, or the file names that others\n"
        "use, so that no client fetches its mail again. A message that has one in the popcache keeps it. Each maildir is\n"
        "read and written as its own user, under the popcache lock; the server may run.",
        epilog=_epilog(
            """
            popkernel import-uidl -n -u /etc/mail/users -e Maildir
            popkernel import-uidl -u /etc/mail/users -e Maildir --from dovecot
            popkernel import-uidl -u /etc/mail/users --from courier --force alice
            """,
            "usage data noinput nouser software tempfail noperm config",
            """
            MAILDIR/dovecot-uidlist       Dovecot's
            MAILDIR/courierpop3dsizelist  Courier's
            MAILDIR/popcache              popkernel's
            """,
        ),
    )
    what = "user table"
    _complete(parser.add_argument("-u", dest="user_table", metavar="FILE", required=True, help=what), FILE)
    parser.add_argument("-e", dest="subdir", default="", metavar="DIR", help="subdirectory of each user's directory that is the maildir")
    parser.add_argument("-n", dest="dry", action="store_true", help="write nothing, say what would be done")
    choices = ("dovecot", "courier", "filename")
    parser.add_argument("--from", dest="source", choices=choices, help="where they come from (default: whose file lies in the maildir)")
    parser.add_argument("--force", action="store_true", help="also for messages that have a unique id in the popcache")
    parser.add_argument("users", metavar="USER", nargs="*", help="only these (default: all of the table)")
    parser.set_defaults(run="popkernel.cli.import_uidl:run")


def _topology(commands: Any) -> None:
    parser = commands.add_parser(
        "topology",
        help="print who the actors are and who may say what to whom",
        description="Print the one table the server is built from: every actor with its promises and files, every edge\n"
        "between two actors with its messages.",
        epilog=_epilog("popkernel topology\npopkernel topology --format dot | dot -Tsvg > actors.svg", "usage"),
    )
    choices = ("text", "json", "mermaid", "dot")
    parser.add_argument("--format", choices=choices, default="text", help="for people or programs (default text)")
    parser.set_defaults(run="popkernel.cli.topology:run")


def _session(text: str) -> int:
    """A session as `trace`, `status` and the log show it."""
    try:
        return session_number(text)
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
    parser = commands.add_parser(
        "trace",
        help="watch live what actors are told and what they say; record it",
        description="Attach to the running server and tell what passes between its actors, until Ctrl-C. Nothing is\n"
        "restarted, any number may watch, and one who is too slow slows nobody but loses frames, which are counted.\n"
        "Passwords are never shown; mail is shown as its size. Only root, or the user who runs the server, may watch.",
        epilog=_epilog(
            """
            popkernel trace
            popkernel trace --user alice
            popkernel trace auth --type Denied,Granted --count 10
            popkernel trace --session 1.17 --format mermaid > session.mmd
            popkernel trace --format json --for 60 | jq -r 'select(.took_seconds > 0.1) | .name'
            popkernel trace maildir.alice --record alice.rec --with-maildir
            """,
            "usage nouser unavailable software cantcreat ioerr tempfail noperm config",
        ),
    )
    add = parser.add_argument
    add("actor", metavar="ACTOR", nargs="?", help="only this actor: listener.0, or listener for all of them, maildir.USER, kernel ...")
    add("--user", metavar="USER", help="only sessions, deliveries and the maildir actor of this user")
    add("--session", metavar="ID", type=_session, default=0, help="only this session, as status, trace and the log show it: 1.17")
    add("--edge", metavar="FROM:TO", help="only messages between these two, for example listener:auth")
    add("--type", metavar="NAME,...", default=[], type=lambda text: [n for n in text.split(",") if n], help="only messages of these names")
    add("--format", choices=("pretty", "json", "mermaid"), default="pretty", help="for people, programs, or as a diagram (default pretty)")
    what = "write what is watched there too, for `popkernel replay`"
    _complete(add("--record", metavar="FILE", help=what), FILE)
    add("--with-maildir", action="store_true", help="with --record and one user: take that maildir along as it is now, mail and all")
    add("--force", action="store_true", help="with --record: into a file that has something in it, which is lost")
    add("--count", metavar="N", type=_count, help="detach after so many lines")
    add("--for", dest="seconds", metavar="SECONDS", type=_seconds, help="detach after so long")
    add("--payload", action="store_true", help="mail content too; root only")
    _add_which_server(parser)
    parser.set_defaults(run="popkernel.cli.trace:run")


def _replay(commands: Any) -> None:
    parser = commands.add_parser(
        "replay",
        help="feed recordings to fresh actors, and compare what they say",
        description="Feed what recorded actors were told, in order and with the recorded clock and randomness, to fresh ones,\n"
        "and compare what these say with the recording, field by field.",
        epilog=_epilog(
            """
            popkernel replay tests/replay/*.rec
            popkernel replay alice.rec --actor maildir.alice --maildir /tmp/copy-of-alice
            popkernel replay tests/replay/quit.rec --update
            """,
            "usage data noinput cantcreat",
        ).replace("0   done\n", "0   everything as recorded\n  1   differences\n"),
    )
    _complete(parser.add_argument("files", metavar="FILE", nargs="+", help="what `popkernel trace --record` wrote"), FILE)
    parser.add_argument("--actor", metavar="NAME", help="only this one of the actors in the recording")
    what = "the maildir as it was when the recording began, if that is not in it; it is copied, and left as it is"
    _complete(parser.add_argument("--maildir", metavar="DIR", help=what), DIRECTORY)
    parser.add_argument("--update", action="store_true", help="write what is said now into the recordings, where it differs")
    parser.set_defaults(run="popkernel.cli.replay:run")


def _demo(commands: Any) -> None:
    parser = commands.add_parser(
        "demo",
        help="serve a temporary site on loopback ports 1995 and 1110",
        description="Make a site with a certificate, the users alice, bob and carol (password: secret) and some mail;\n"
        "print the curl lines that read it; serve it until Ctrl-C, then remove it.",
        epilog=_epilog(
            """
            popkernel demo
            popkernel demo --dir /tmp/popsite --tls-port 2995 --stls-port 2110
            """,
            "usage unavailable software oserr cantcreat noperm config",
        ),
    )
    what = "make the site here, and keep it (default: a temporary directory, removed at the end)"
    _complete(parser.add_argument("--dir", metavar="DIR", help=what), DIRECTORY)
    parser.add_argument("--tls-port", type=int, default=1995, metavar="PORT", help="implicit TLS (default 1995)")
    parser.add_argument("--stls-port", type=int, default=1110, metavar="PORT", help="STLS (default 1110)")
    parser.add_argument("-v", dest="verbose", action="count", default=1, help="one more step of logging (default 1)")
    what = "serve although this system cannot lock the actors in"
    parser.add_argument("--insecure-no-sandbox", action="store_true", help=what)
    parser.set_defaults(run="popkernel.cli.demo:run")


def _completion(commands: Any) -> None:
    parser = commands.add_parser(
        "completion",
        help="print a shell's completion script",
        description="Print a completion script for a shell, for its start-up file or its directory of such scripts.",
        epilog=_epilog(
            """
            popkernel completion bash > /etc/bash_completion.d/popkernel
            popkernel completion zsh > /usr/local/share/zsh/site-functions/_popkernel
            popkernel completion tcsh >> ~/.tcshrc
            """,
            "usage",
        ),
    )
    parser.add_argument("shell", choices=("bash", "zsh", "tcsh"), help="the shell")
    parser.set_defaults(run="popkernel.cli.completion:run")
