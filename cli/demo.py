"""`popkernel demo`: make a site, serve it until Ctrl-C or until its terminal closes, say how to read it, remove it.

make_site() and what belongs to it are at home in sample_site.py, and can be had from here too.
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
from contextlib import closing, suppress
from typing import Any, NoReturn

from popkernel.cli.common.parser import DIRECTORY, CommandParser, add_key, complete
from popkernel.cli.common.program_name import as_typed
from popkernel.cli.common.sample_site import FIRST_UID, HOST, PASSWORD, SAMPLE_MAIL, Paths, Site, free_ports, make_certificate, make_site
from popkernel.kernel.config.keys import Config, ConfigError, load
from popkernel.kernel.runtime.child_process import do_and_leave
from popkernel.kernel.runtime.exit_codes import EXITS

__all__ = ["FIRST_UID", "HOST", "PASSWORD", "SAMPLE_MAIL", "Site", "free_ports", "make_certificate", "make_site", "run"]

_ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
_MOST_SESSIONS = 100  # few enough for every limit of descriptors there is
_PR_SET_PDEATHSIG = 1  # prctl(2)


def define(parser: CommandParser) -> None:
    """Its flags and its help."""
    parser.describe(
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


def run(options: argparse.Namespace) -> int:
    """Run `popkernel demo`: make the site, serve it, say how to read it, remove it."""
    for port, flag in ((options.tls_port, "--tls-port"), (options.stls_port, "--stls-port")):
        problem = _port_problem(port)
        if problem is not None:
            print(f"popkernel: {HOST}:{port}: {problem[1]}; give another: {as_typed()} demo {flag} PORT", file=sys.stderr)
            return EXITS[problem[0]].code
    # Ctrl-C, kill, and a terminal that closes, but for nohup(1).
    numbers = [number for number in _ENDS if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, _told) for number in numbers}
    try:
        return _run(options, list(before))
    except _ToldError as error:
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
        config = _prepare(directory, options)
        print(f"A site of three users (alice, bob, carol; password: {PASSWORD}) in {directory}", flush=True)
        return _serve_in_child(config, _greeting(config), numbers)
    except _NoSiteError as error:
        return _cannot_make(error.cause)
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)  # a terminal that closes may say it twice
        if temporary:
            shutil.rmtree(directory)


class _ToldError(Exception):
    """A signal told it to end, before there was a server."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def _told(number: int, _frame: object) -> NoReturn:
    raise _ToldError(number)


class _NoSiteError(Exception):
    """The site could not be made."""

    def __init__(self, cause: OSError) -> None:
        super().__init__(str(cause))
        self.cause = cause


def _cannot_make(error: OSError) -> int:
    print(f"popkernel: {error.filename}: {error.strerror}; choose another directory with --dir", file=sys.stderr)
    return os.EX_CANTCREAT


def _serve_in_child(config: Config, greeting: str, numbers: list[int]) -> int:
    """Serve in a process of its own: it locks itself in, and could not remove the site afterwards.

    Returns:
        The server's exit code; 128 and the signal's number if it was killed.

    """
    me = os.getpid()
    signal.pthread_sigmask(signal.SIG_BLOCK, numbers)  # the server takes them when it can
    woken, wake = os.pipe()
    pid = os.fork()
    if pid == 0:
        do_and_leave(lambda: _serve(config, greeting, me), os.EX_SOFTWARE)
    # By a pipe: a handler of Python's own would not run for a signal that came just before a call that waits.
    os.set_blocking(wake, False)
    before = signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    chld = signal.signal(signal.SIGCHLD, lambda *_: None)
    for number in numbers:
        signal.signal(number, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)
    poll = select.poll()
    poll.register(woken, select.POLLIN)
    for terminal in _terminals() if signal.SIGHUP in numbers else ():
        poll.register(terminal, 0)  # its end is told all the same
    ended = 0
    while not ended:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            break
        told: set[int] = set()
        for fd, _ in poll.poll():
            if fd == woken:
                told.update(os.read(woken, 64))
            else:
                told.add(numbers[0])
                poll.unregister(fd)
        if told.intersection(numbers):
            # Ctrl-C on a terminal reaches the child as well; being told twice to end politely does no harm. Nor does its reload, at SIGHUP.
            os.kill(pid, signal.SIGTERM)
    signal.set_wakeup_fd(before)
    signal.signal(signal.SIGCHLD, chld)
    os.close(woken)
    os.close(wake)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _terminals() -> list[int]:
    """Descriptors of the terminal this runs on: where `make` or su(1) is what the terminal started, its end sends SIGHUP to them alone."""
    found = [fd for fd in (0, 1, 2) if os.isatty(fd)]
    with suppress(OSError):
        found.append(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    return found


def _serve(config: Config, greeting: str, parent: int) -> int:
    """Be the server, and say how to read the site once it is there."""
    _end_with(parent)
    from popkernel.cli.common.serving import serve

    def on_ready() -> None:
        with suppress(OSError):  # nobody reads it any more
            os.write(1, greeting.encode())

    try:
        return serve(config, on_ready=on_ready)
    except ConfigError as error:
        for finding in error.findings:
            print(f"popkernel: {finding}", file=sys.stderr)
        return EXITS["config"].code


def _end_with(parent: int) -> None:
    """Have the system end this process politely when the parent is killed (Linux; elsewhere Ctrl-C alone ends it)."""
    if sys.platform != "linux":
        return
    import ctypes

    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(os.EX_TEMPFAIL)


def _port_problem(port: int) -> tuple[str, str] | None:
    """Try to bind a port of the demo: the fault, by its name in EXITS, and what is said; None when it is free."""
    if not 1 <= port <= 65535:
        return "usage", "no port from 1 to 65535"
    with closing(socket.socket()) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            if error.errno == errno.EACCES:
                return "noperm", "ports below 1024 are root's"
            return "unavailable", "the port is taken" if error.errno == errno.EADDRINUSE else str(error.strerror)
    return None


def _prepare(directory: str, options: argparse.Namespace) -> Config:
    """Make the site, or take the one an earlier `--dir` has kept.

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
            # Its mail may be read and removed by now, so nothing is made anew.
            flags["listen"], flags["listen_starttls"] = [f"{HOST}:{ports[0]}"], [f"{HOST}:{ports[1]}"]
        elif os.path.isdir(directory) and os.listdir(directory):
            raise OSError(errno.ENOTEMPTY, "the directory holds something that is no demo site", directory)
        else:
            bobs = [message.replace(b"To: alice@", b"To: bob@") for message in SAMPLE_MAIL[:2]]
            make_site(directory, mail={"alice": SAMPLE_MAIL, "bob": bobs}, cost=8, ports=ports, max_sessions=_MOST_SESSIONS)
    except OSError as error:
        raise _NoSiteError(error) from error
    return load(flags, place.toml)


def _refuse_unreachable(directory: str) -> None:
    """As root, refuse a place like /root/demo that the mail users could not enter."""
    if os.geteuid() != 0:
        return
    above = os.path.dirname(directory)
    while above != os.path.dirname(above):
        if os.path.isdir(above) and not os.stat(above).st_mode & 0o001:
            raise OSError(errno.EACCES, "other users cannot enter this directory, so not their maildirs either", above)
        above = os.path.dirname(above)


def _greeting(config: Config) -> str:
    tls, stls = config.listen[0], config.listen_starttls[0]
    cert, run_dir = shlex.quote(config.cert), shlex.quote(config.run_dir)
    if _curl_reads_mail():
        lines = f"""\
  curl -k --user alice:{PASSWORD} pop3s://{tls}/            # a line for each message
  curl -k --user alice:{PASSWORD} pop3s://{tls}/1           # the first message
  curl -k --user alice:{PASSWORD} -X UIDL pop3s://{tls}/    # any command with a list for an answer (for others, as STAT, add -I -v)
  curl --cacert {cert} --user bob:{PASSWORD} --ssl-reqd pop3://{stls}/1
"""
    else:
        script = (
            "import poplib, ssl, sys; "
            'c = poplib.POP3_SSL(sys.argv[1], int(sys.argv[2]), context=ssl.create_default_context(cafile=sys.argv[3])); '
            f'c.user("alice"); c.pass_("{PASSWORD}"); '
            'print(b"\\n".join(c.list()[1] + c.retr(1)[1]).decode()); c.quit()'
        )
        lines = f"""\
  {shlex.quote(sys.executable)} -c {shlex.quote(script)} {tls.host} {tls.port} {cert}
(It lists the messages and shows the first. Shorter with curl, which is not here: curl -k --user alice:{PASSWORD} pop3s://{tls}/1)
"""
    return f"""\
Read it from another terminal:
{lines}\
  {as_typed()} status --run-dir {run_dir}
  {as_typed()} trace --run-dir {run_dir}    # then read some mail, and watch
Ctrl-C ends it.
"""


def _curl_reads_mail() -> bool:
    """Whether there is a curl that was built for POP3 over TLS; some are not."""
    with suppress(OSError, subprocess.SubprocessError):
        shown = subprocess.run(["curl", "--version"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=5, check=False).stdout
        return b"pop3s" in shown.split()
    return False
