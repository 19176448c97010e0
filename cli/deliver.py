"""`popkernel deliver`: put the message on standard input into a mailbox, by the running server's LMTP socket.

For `mda` actions, `.forward` and other pipes. The server decides by the caller's uid which mailboxes it may
deliver to. Exit codes are for MTAs: 75 for everything that may succeed later, also if the server is not
running, since Postfix and OpenSMTPD send the mail back on any other code but 0.
"""

import argparse
import contextlib
import os
import socket
import struct
import sys
from typing import BinaryIO, NoReturn

from popkernel.cli.common.parser import CommandParser
from popkernel.cli.common.run_directory import add_which_server, delivery_run_dir_of
from popkernel.kernel.config.loading import ConfigError
from popkernel.kernel.runtime.exit_codes import EXITS
from popkernel.proto.pop3.octets import WireEncoder

# sysexits(3)
OK, USAGE, DATAERR, NOINPUT, NOUSER, UNAVAILABLE, TEMPFAIL, NOPERM = 0, 64, 65, 66, 67, 69, 75, 77
# RFC 3463
_CODES = {
    "5.1.1": NOUSER,
    "5.1.3": DATAERR,
    "5.1.7": DATAERR,
    "5.3.4": DATAERR,
    "5.5.4": DATAERR,
    "5.7.1": NOPERM,
}
# The meanings follow from the reaction of mail servers: on any code but 75 they send the mail back.
_EXITS = (
    (EXITS["usage"].code, EXITS["usage"].said),
    (EXITS["data"].code, "the message is too large, or an address is none"),
    (EXITS["noinput"].code, "standard input is closed"),
    (EXITS["nouser"].code, EXITS["nouser"].said),
    (EXITS["unavailable"].code, "refused for good: the mailbox is full, for example"),
    (
        EXITS["tempfail"].code,
        "try again later: the server is away, the disk is full, the configuration cannot be read",
    ),
    (EXITS["noperm"].code, "not permitted: another user's mailbox"),
)
_CHUNK = 128 * 1024  # octets
_FROM_LINE = 1000  # octets
_QUEUE_SECONDS = 30  # in the socket's queue, if many connect at once
_ANSWER_SECONDS = 330  # half a minute more than the server gives a mailbox


class _NotTakenError(Exception):
    """The server refused the message or did not answer; `code` is the exit code."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


def define(parser: CommandParser) -> None:
    """Define the flags and the help."""
    parser.describe(
        "Put the message on standard input into a mailbox of the running server; done once it is safe\n"
        "on disk. For `mda` actions, .forward files and other pipes. Allowed to root, the mail servers of\n"
        "the key mta_users and each mailbox's own user.",
        """
        popkernel deliver -u alice < message
        action "pop" mda "popkernel deliver -u %{user.username}" virtual <users> userbase <users>
        "|/usr/local/bin/popkernel deliver"
        """,
        codes=_EXITS,
        files="""
        RUN_DIR/lmtp.sock  the running server's socket for mail
        """,
    )
    what = "whose mailbox: a name of the user table, or an address (default: $USER)"
    parser.add_argument("-u", dest="user", metavar="USER", help=what)
    parser.add_argument(
        "--sender",
        metavar="ADDR",
        help="address for Return-Path if the message has none (default: $SENDER)",
    )
    add_which_server(parser)


def run(options: argparse.Namespace) -> int:
    """Run `popkernel deliver`."""
    if options.user == "":  # most likely an unset variable
        print("popkernel deliver: -u: no user; name one, or leave out -u for $USER", file=sys.stderr)
        return USAGE
    user = options.user or os.environ.get("USER") or os.environ.get("LOGNAME") or _own_name()
    sender = options.sender if options.sender is not None else os.environ.get("SENDER", "")
    try:
        message = _message()
        deliver(_socket(_run_dir(options)), sender, user, message)
    except _NotTakenError as error:
        print(f"popkernel deliver: {user}: {error}", file=sys.stderr)
        return error.code
    return OK


def _message() -> BinaryIO:
    """Return standard input, unless it is closed."""
    if sys.stdin is None:
        raise _NotTakenError(NOINPUT, "standard input is closed; the message is to come there")
    return sys.stdin.buffer


def _read(message: BinaryIO) -> bytes:
    try:
        return message.read(_CHUNK)
    except OSError as error:
        raise _NotTakenError(TEMPFAIL, f"standard input: {error.strerror or error}") from None


def _run_dir(options: argparse.Namespace) -> str:
    """Return the run directory. An unreadable configuration is temporary: the mail must not be sent back."""
    try:
        return delivery_run_dir_of(options)
    except ConfigError as error:
        raise _NotTakenError(TEMPFAIL, str(error)) from None


def _socket(run_dir: str) -> str:
    """Choose the socket for mail servers if this user may connect to it: no other user can fill its queue."""
    own = f"{run_dir}/mta.sock"
    return own if os.access(own, os.W_OK) else f"{run_dir}/lmtp.sock"


def _own_name() -> str:
    import pwd

    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def deliver(path: str, sender: str, user: str, message: BinaryIO) -> None:
    """Deliver a message; returns once it is safe on the server's disk. Raises _NotTakenError otherwise."""
    for whose, text in (("the sender", sender.strip("<>")), ("the user", user)):
        if not text.isprintable():
            raise _NotTakenError(DATAERR, f"{whose}: an address with control characters in it")
        if not _is_address(text):
            raise _NotTakenError(DATAERR, f"{whose}: {text!r} is no address: a blank outside of quotes")
    with socket.socket(socket.AF_UNIX) as sock:
        # The time that connect(2) waits for a place in the queue; with a Python timeout it would not wait.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", _QUEUE_SECONDS, 0))
        try:
            sock.connect(path)
            sock.settimeout(_ANSWER_SECONDS)
            with sock.makefile("rb") as answers:
                _talk(sock, answers, sender.strip("<>"), user, message)
        except PermissionError as error:
            raise _NotTakenError(NOPERM, f"{path}: {error.strerror}") from None
        except OSError as error:
            raise _NotTakenError(
                TEMPFAIL, f"{path}: {error.strerror or error}; is the server running?"
            ) from None


def _talk(sock: socket.socket, answers: BinaryIO, sender: str, user: str, message: BinaryIO) -> None:
    first = _without_from_line(message)
    sock.sendall(
        b"LHLO localhost\r\nMAIL FROM:<%s>\r\nRCPT TO:<%s>\r\nDATA\r\n" % (os.fsencode(sender), _quoted(user))
    )
    for _ in range(4):  # greeting, LHLO, MAIL, RCPT
        _expect(answers)
    _expect(answers, b"354")
    with contextlib.suppress(BrokenPipeError):  # a server that closes early has sent the reason
        _send(sock, first, message)
    _expect(answers)
    sock.sendall(b"QUIT\r\n")


def _send(sock: socket.socket, first: bytes, message: BinaryIO) -> None:
    """Send the message as DATA's content, with stuffed dots (RFC 5321 section 4.5.2), and its end."""
    encoder = WireEncoder()
    while first:
        sock.sendall(encoder.feed(first))
        first = _read(message)
    sock.sendall(encoder.finish() + b".\r\n")


def _without_from_line(message: BinaryIO) -> bytes:
    """Read the beginning of a message, without the mbox "From " line that Postfix's local(8) and others add.

    Only a line that ends within `_FROM_LINE` octets is one; anything else is mail.
    """
    head = _read(message)
    line, end, rest = head.partition(b"\n")
    if not head.startswith(b"From ") or not end or len(line) > _FROM_LINE:
        return head
    return rest or _read(message)


def _is_address(text: str) -> bool:
    """Say whether blanks occur in quotes only (RFC 5321 section 4.1.2); names of the user table have none."""
    local, sign, domain = text.rpartition("@")
    if not sign:
        local, domain = text, ""
    return " " not in domain and (" " not in local or (len(local) > 1 and local[0] == local[-1] == '"'))


def _quoted(user: str) -> bytes:
    """Write a user name as an address, in quotes if it needs them (RFC 5321 section 4.1.2)."""
    if any(c in ' "<>\\,;:()[]' for c in user):
        user = '"' + user.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return os.fsencode(user)


def _expect(answers: BinaryIO, code: bytes = b"2") -> None:
    """Read one answer, which may have several lines and must begin with `code`."""
    while True:
        line = answers.readline(2048)
        if line[3:4] != b"-":
            break
    if not line.endswith(b"\n"):
        raise _NotTakenError(TEMPFAIL, "the server went away")
    if not line.startswith(code):
        _refused(line.decode("utf-8", "replace").strip())


def _refused(line: str) -> NoReturn:
    status = line[4:9]
    text = "".join(c if c.isprintable() else "?" for c in line)
    if line.startswith("4"):
        raise _NotTakenError(TEMPFAIL, text)
    raise _NotTakenError(_CODES.get(status, UNAVAILABLE), text)
