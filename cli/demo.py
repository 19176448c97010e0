"""`popkernel demo`: make a site, serve it until Ctrl-C or the terminal closes, and remove it.

make_site() and its companions are defined in sample_site.py, and exported here too.
"""

import argparse
import errno
import os
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import closing, suppress
from typing import Any, NoReturn

from popkernel.cli.common.parser import DIRECTORY, CommandParser, add_key, complete
from popkernel.cli.common.program_name import as_typed
from popkernel.cli.common.sample_site import (
    HOST,
    PASSWORD,
    SAMPLE_MAIL,
    Paths,
    make_site,
)
from popkernel.kernel.config.keys import Config
from popkernel.kernel.config.loading import ConfigError, load
from popkernel.kernel.runtime.child_process import do_and_leave
from popkernel.kernel.runtime.exit_codes import EXITS

__all__ = ["run"]

_ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
_MOST_SESSIONS = 100  # works with every usual limit of descriptors
_PR_SET_PDEATHSIG = 1  # prctl(2)


def define(parser: CommandParser) -> None:
    """Define the flags and the help."""
    parser.describe(
        "Make a site with a certificate, the users alice, bob and carol (password: secret) and some mail;\n"
        "serve it, print commands that read it (curl, or Python without curl); remove it after Ctrl-C,\n"
        "or when the terminal closes.",
        """
        popkernel demo
        popkernel demo --dir /tmp/popsite --tls-port 2995 --stls-port 2110
        """,
        "usage unavailable software oserr cantcreat noperm config",
    )
    what = "make the site here, and keep it (default: a temporary directory, removed at the end)"
    complete(parser.add_argument("--dir", metavar="DIR", help=what), DIRECTORY)
    parser.add_argument(
        "--tls-port", type=int, default=1995, metavar="PORT", help="implicit TLS (default 1995)"
    )
    parser.add_argument("--stls-port", type=int, default=1110, metavar="PORT", help="STLS (default 1110)")
    add_key(parser, "verbose", default=0)
    add_key(parser, "insecure_no_sandbox", default=False)


def run(options: argparse.Namespace) -> int:
    """Run `popkernel demo`."""
    for port, flag in ((options.tls_port, "--tls-port"), (options.stls_port, "--stls-port")):
        problem = _port_problem(port)
        if problem is not None:
            print(
                f"popkernel: {HOST}:{port}: {problem[1]}; give another: {as_typed()} demo {flag} PORT",
                file=sys.stderr,
            )
            return EXITS[problem[0]].code
    # Ctrl-C, kill, and a closed terminal, except under nohup(1).
    numbers = [
        number for number in _ENDS if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN
    ]
    before = {number: signal.signal(number, _signalled) for number in numbers}
    try:
        return _run(options, list(before))
    except _SignalledError as error:
        return 128 + error.number
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _run(options: argparse.Namespace, numbers: list[int]) -> int:
    temporary = options.dir is None
    try:
        directory = tempfile.mkdtemp(prefix="popkernel-demo.") if temporary else os.path.abspath(options.dir)
    except OSError as error:
        return _cannot_make(error)
    try:
        again, toml = _prepare(directory, options)
        config = again()
        print(f"A site of three users (alice, bob, carol; password: {PASSWORD}) in {directory}", flush=True)
        return _serve_in_child(config, again, toml, _greeting(config), numbers)
    except _NoSiteError as error:
        return _cannot_make(error.cause)
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)  # a closing terminal may send it twice
        if temporary:
            shutil.rmtree(directory)


class _SignalledError(Exception):
    """A signal arrived before there was a server."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def _signalled(number: int, _frame: object) -> NoReturn:
    raise _SignalledError(number)


class _NoSiteError(Exception):
    """The site could not be made."""

    def __init__(self, cause: OSError) -> None:
        super().__init__(str(cause))
        self.cause = cause


def _cannot_make(error: OSError) -> int:
    print(
        f"popkernel: {error.filename}: {error.strerror}; choose another directory with --dir", file=sys.stderr
    )
    return os.EX_CANTCREAT


def _serve_in_child(
    config: Config, again: Callable[[], Config], toml: str, greeting: str, numbers: list[int]
) -> int:
    """Serve in a child process: it locks itself in, and could not remove the site afterwards.

    Returns:
        The server's exit code; 128 and the signal's number if it was killed.

    """
    me = os.getpid()
    signal.pthread_sigmask(signal.SIG_BLOCK, numbers)  # until the server can handle them
    woken, wake = os.pipe()
    pid = os.fork()
    if pid == 0:
        do_and_leave(lambda: _serve(config, again, toml, greeting, me), os.EX_SOFTWARE)
    # A pipe: Python would not run a handler for a signal that arrives just before a call that waits.
    os.set_blocking(wake, False)
    before = signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    chld = signal.signal(signal.SIGCHLD, lambda *_: None)
    for number in numbers:
        signal.signal(number, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)
    poll = select.poll()
    poll.register(woken, select.POLLIN)
    for terminal in _terminals() if signal.SIGHUP in numbers else ():
        poll.register(terminal, 0)  # its end is reported even so
    ended = 0
    while not ended:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            break
        signals: set[int] = set()
        for fd, _ in poll.poll():
            if fd == woken:
                signals.update(os.read(woken, 64))
            else:
                signals.add(numbers[0])
                poll.unregister(fd)
        if signals.intersection(numbers):
            # On a terminal Ctrl-C reaches the child as well. A second request to end does no harm, nor does
            # the reload that SIGHUP causes.
            os.kill(pid, signal.SIGTERM)
    signal.set_wakeup_fd(before)
    signal.signal(signal.SIGCHLD, chld)
    os.close(woken)
    os.close(wake)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _terminals() -> list[int]:
    """Return descriptors of this terminal: under `make` or su(1) its end sends no SIGHUP to this process."""
    found = [fd for fd in (0, 1, 2) if os.isatty(fd)]
    with suppress(OSError):
        found.append(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    return found


def _serve(config: Config, again: Callable[[], Config], toml: str, greeting: str, parent: int) -> int:
    """Run the server, and print how to read the site once it is ready."""
    _end_with(parent)
    from popkernel.cli.common.serving import serve

    def on_ready() -> None:
        with suppress(OSError):  # the reader may be gone
            os.write(1, greeting.encode())

    try:
        return serve(config, again, toml, on_ready)
    except ConfigError as error:
        for finding in error.findings:
            print(f"popkernel: {finding}", file=sys.stderr)
        return EXITS["config"].code


def _end_with(parent: int) -> None:
    """Have Linux send SIGTERM to this process when the parent is killed; elsewhere only Ctrl-C ends it."""
    if sys.platform != "linux":
        return
    import ctypes

    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(os.EX_TEMPFAIL)


def _port_problem(port: int) -> tuple[str, str] | None:
    """Try to bind a port of the demo. Returns the fault's name in EXITS and its text, or None."""
    if not 1 <= port <= 65535:
        return "usage", "no port from 1 to 65535"
    with closing(socket.socket()) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            if error.errno == errno.EACCES:
                return "noperm", "ports below 1024 are root's"
            return "unavailable", "the port is taken" if error.errno == errno.EADDRINUSE else str(
                error.strerror
            )
    return None


def _prepare(directory: str, options: argparse.Namespace) -> tuple[Callable[[], Config], str]:
    """Make the site, or use the one that an earlier `--dir` left.

    Returns:
        What reads its configuration, now and for a reload, and the file that it is read from.

    Raises:
        _NoSiteError: it cannot be made there.

    """
    flags: dict[str, Any] = {"verbose": min(options.verbose, 10)}
    flags["insecure_no_sandbox"] = options.insecure_no_sandbox or None
    ports = (options.tls_port, options.stls_port)
    place = Paths(directory)
    try:
        _refuse_unreachable(directory)
        if os.path.exists(place.toml):
            # Its mail may have been read and removed: make nothing again.
            flags["listen"], flags["listen_starttls"] = [f"{HOST}:{ports[0]}"], [f"{HOST}:{ports[1]}"]
        elif os.path.isdir(directory) and os.listdir(directory):
            raise OSError(errno.ENOTEMPTY, "the directory holds something that is no demo site", directory)
        else:
            bobs = [message.replace(b"To: alice@", b"To: bob@") for message in SAMPLE_MAIL[:2]]
            make_site(
                directory,
                mail={"alice": SAMPLE_MAIL, "bob": bobs},
                cost=8,
                ports=ports,
                max_sessions=_MOST_SESSIONS,
            )
    except OSError as error:
        raise _NoSiteError(error) from error
    return lambda: load(flags, place.toml), place.toml


def _refuse_unreachable(directory: str) -> None:
    """As root, refuse a directory such as /root/demo, which the mail users cannot enter."""
    if os.geteuid() != 0:
        return
    above = os.path.dirname(directory)
    while above != os.path.dirname(above):
        if os.path.isdir(above) and not os.stat(above).st_mode & 0o001:
            raise OSError(
                errno.EACCES, "other users cannot enter this directory, so not their maildirs either", above
            )
        above = os.path.dirname(above)


def _greeting(config: Config) -> str:
    tls, stls = config.listen[0], config.listen_starttls[0]
    cert, run_dir = shlex.quote(config.cert), shlex.quote(config.run_dir)
    if _curl_reads_mail():
        lines = f"""\
  curl -k --user alice:{PASSWORD} pop3s://{tls}/            # a line for each message
  curl -k --user alice:{PASSWORD} pop3s://{tls}/1           # the first message
  curl -k --user alice:{PASSWORD} -X UIDL pop3s://{tls}/    # any command that lists; for others add -I -v
  curl --cacert {cert} --user bob:{PASSWORD} --ssl-reqd pop3://{stls}/1
"""
    else:
        script = (
            "import poplib, ssl, sys; "
            "c = poplib.POP3_SSL(sys.argv[1], int(sys.argv[2]),"
            " context=ssl.create_default_context(cafile=sys.argv[3])); "
            f'c.user("alice"); c.pass_("{PASSWORD}"); '
            'print(b"\\n".join(c.list()[1] + c.retr(1)[1]).decode()); c.quit()'
        )
        lines = f"""\
  {shlex.quote(sys.executable)} -c {shlex.quote(script)} {tls.host} {tls.port} {cert}
(It lists the messages and shows the first. A shorter command, for curl, which is not here:
 `curl -k --user alice:{PASSWORD} pop3s://{tls}/1`)
"""
    return f"""\
Read it from another terminal:
{lines}\
  {as_typed()} status --run-dir {run_dir}
  {as_typed()} trace --run-dir {run_dir}    # then read some mail, and watch
Ctrl-C ends it.
"""


def _curl_reads_mail() -> bool:
    """Say whether there is a curl that supports POP3 over TLS; some do not."""
    with suppress(OSError, subprocess.SubprocessError):
        shown = subprocess.run(
            ["curl", "--version"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=5, check=False
        ).stdout
        return b"pop3s" in shown.split()
    return False
