"""``popkernel demo``: make a site, say how to read it, serve it until Ctrl-C, remove it.

make_site() and what belongs to it are at home in samplesite.py, and can be had from here too.
"""

import argparse
import errno
import os
import shlex
import shutil
import signal
import socket
import sys
import tempfile
import traceback
from contextlib import closing
from typing import Any, NoReturn

from popkernel.cli.samplesite import (
    FIRST_UID,
    HOST,
    PASSWORD,
    SAMPLE_MAIL,
    Paths,
    Site,
    free_ports,
    make_certificate,
    make_site,
)
from popkernel.cli.typed import as_typed
from popkernel.kernel.config import Config, ConfigError, load
from popkernel.kernel.exits import EXITS

__all__ = ["FIRST_UID", "HOST", "PASSWORD", "SAMPLE_MAIL", "Site", "free_ports", "make_certificate", "make_site", "run"]

_PR_SET_PDEATHSIG = 1  # prctl(2)


def run(options: argparse.Namespace) -> int:
    """Run ``popkernel demo``: make the site, say how to read it, serve it, remove it."""
    for port, flag in ((options.tls_port, "--tls-port"), (options.stls_port, "--stls-port")):
        problem = _port_problem(port)
        if problem is not None:
            print(f"popkernel: {HOST}:{port}: {problem[1]}; give another with {flag}", file=sys.stderr)
            return EXITS[problem[0]].code
    temporary = options.dir is None
    try:
        directory = tempfile.mkdtemp(prefix="popkernel-demo.") if temporary else os.path.abspath(options.dir)
    except OSError as error:
        return _cannot_make(error)
    try:
        config = _prepare(directory, options)
        print(_greeting(directory, config), flush=True)
        return _serve_in_child(config)
    except _NoSiteError as error:
        return _cannot_make(error.cause)
    finally:
        if temporary:
            shutil.rmtree(directory)


class _NoSiteError(Exception):
    """The site could not be made."""

    def __init__(self, cause: OSError) -> None:
        super().__init__(str(cause))
        self.cause = cause


def _cannot_make(error: OSError) -> int:
    print(f"popkernel: {error.filename}: {error.strerror}; choose another directory with --dir", file=sys.stderr)
    return os.EX_CANTCREAT


def _serve_in_child(config: Config) -> int:
    """Serve in a process of its own: it locks itself in, and could not remove the site afterwards.

    Returns:
        The server's exit code; 128 and the signal's number if it was killed.

    """
    me = os.getpid()
    pid = os.fork()
    if pid == 0:
        _serve(config, me)

    def forward(number: int, _frame: object) -> None:
        # Ctrl-C on a terminal reaches the child as well; being told twice to end politely does no harm.
        os.kill(pid, signal.SIGHUP if number == signal.SIGHUP else signal.SIGTERM)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, forward) for number in numbers}
    try:
        # Without reaping it yet, so that the number cannot be another process's by the time a signal is forwarded.
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    finally:
        for number in numbers:
            signal.signal(number, before[number])
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return code if code >= 0 else 128 - code


def _serve(config: Config, parent: int) -> NoReturn:
    """Be the server; never come back to what the parent does next."""
    code = os.EX_SOFTWARE
    try:
        _end_with(parent)
        from popkernel.cli.start import run as start

        code = int(start(config))
    except ConfigError as error:
        code = EXITS["config"].code
        for finding in error.findings:
            print(f"popkernel: {finding}", file=sys.stderr)
    except BaseException:  # noqa: BLE001 - whatever it is, it is shown, and the process ends here
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


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
    """Make the site, or take the one an earlier ``--dir`` has kept.

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
            make_site(directory, mail={"alice": SAMPLE_MAIL, "bob": bobs}, cost=8, ports=ports)
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


def _greeting(directory: str, config: Config) -> str:
    tls, stls = config.listen[0], config.listen_starttls[0]
    return f"""\
A site of three users (alice, bob, carol; password: {PASSWORD}) in {directory}
Read it from another terminal:
  curl -k --user alice:{PASSWORD} pop3s://{tls}/            # a line for each message
  curl -k --user alice:{PASSWORD} pop3s://{tls}/1           # the first message
  curl -k --user alice:{PASSWORD} -X UIDL pop3s://{tls}/    # any command with a list for an answer (for others, as STAT, add -I -v)
  curl --cacert {shlex.quote(config.cert)} --user bob:{PASSWORD} --ssl-reqd pop3://{stls}/1
  {as_typed()} status --run-dir {shlex.quote(config.run_dir)}
  {as_typed()} trace --run-dir {shlex.quote(config.run_dir)}    # then read some mail, and watch
Ctrl-C ends it."""
