"""Run OpenSMTPD and Postfix on loopback ports with their own queues, and send with swaks."""

import contextlib
import glob
import grp
import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
import time

import pytest

from tests.support.ports import free_ports
from tests.support.service import ROOT
from tests.support.waiting import wait_for

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT_OF_TREE = os.path.dirname(os.path.dirname(os.path.dirname(HERE)))


def need(*programs):
    """Skip the test and name the missing program."""
    if not ROOT:
        pytest.skip("a mail server needs root")
    for program in programs:
        if not (shutil.which(program) or os.path.exists(program)):
            pytest.skip(f"{program} is not installed: run tests/packages.sh")


@contextlib.contextmanager
def passable_directory():
    """Make a directory that every user can enter; pytest's lie in one with mode 0700."""
    with tempfile.TemporaryDirectory(prefix="pkmta") as directory:
        os.chmod(directory, 0o755)
        yield directory


def swaks(port, recipients, mail, sender="sender@example.net"):
    """Send by SMTP and return swaks's exit code. `mail`: octets with LF line ends."""
    command = [
        "swaks",
        "--server",
        f"127.0.0.1:{port}",
        "--from",
        sender,
        "--to",
        ",".join(recipients),
        "--data",
        "-",
        "--hide-all",
        "--helo",
        "test.example.net",
        "--timeout",
        "30",
    ]
    # swaks adds a line end
    done = subprocess.run(
        command, input=mail.removesuffix(b"\n"), capture_output=True, timeout=120, check=False
    )
    assert done.returncode == 0, done
    return done


def reachable_popkernel(directory):
    """Make a `popkernel` that any user can run.

    It copies what `deliver` needs, since this checkout and its interpreter may be closed to others.
    """
    python = next(
        (p for p in (os.path.realpath(sys.executable), "/usr/bin/python3") if _runs_for_all(p)), None
    )
    if python is None:
        pytest.skip("no Python that ordinary users can run")
    package = os.path.join(directory, "lib", "popkernel")
    os.makedirs(package)
    for part in ("proto", "kernel", "cli"):
        shutil.copytree(
            os.path.join(ROOT_OF_TREE, part),
            os.path.join(package, part),
            ignore=shutil.ignore_patterns("__pycache__"),
        )
    shutil.copy(os.path.join(ROOT_OF_TREE, "popkernel", "__init__.py"), package)
    for folder, _, files in os.walk(os.path.join(directory, "lib")):
        os.chmod(folder, 0o755)
        for name in files:
            os.chmod(os.path.join(folder, name), 0o644)
    program = os.path.join(directory, "popkernel")
    with open(program, "w") as file:
        file.write(
            f"#!/bin/sh\nPYTHONPATH={directory}/lib exec {python} -c 'import sys; from "
            f'popkernel.cli.main import main; sys.exit(main())\' "$@"\n'
        )
    os.chmod(program, 0o755)
    return program


def _runs_for_all(python):
    command = [python, "-c", "import sys; sys.exit(sys.version_info < (3, 11))"]
    try:
        return (
            subprocess.run(
                command, user=65534, group=65534, check=False, capture_output=True, cwd="/"
            ).returncode
            == 0
        )
    except OSError:
        return False


class Server:
    """Hold a running mail server; `port` takes SMTP."""

    def __init__(self, command, port, log, env=None):
        self.port = port
        self.log = log
        self.file = open(log, "ab")
        self.process = subprocess.Popen(
            command,
            stdout=self.file,
            stderr=self.file,
            stdin=subprocess.DEVNULL,
            env=env,
            start_new_session=True,
            cwd="/",
        )
        try:
            wait_for(self._answers, seconds=20)
        except BaseException:
            self.close()
            raise AssertionError(self.said()) from None

    def _answers(self):
        assert self.process.poll() is None, self.said()
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 2) as sock:
            sock.settimeout(5)
            return sock.recv(3) == b"220"
        return False

    def said(self):
        with open(self.log, errors="replace") as file:
            return file.read()[-6000:]

    def close(self):
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.file.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def opensmtpd(directory, actions):
    """Run OpenSMTPD with `actions` (with {port}) as its configuration.

    Spool and control socket are its own, in a mount namespace.
    """
    need("smtpd", "swaks", "unshare")
    (port,) = free_ports(1)
    spool, run = f"{directory}/spool", f"{directory}/run"
    for path in (directory, spool, f"{spool}/smtpd", run):
        os.makedirs(path, exist_ok=True)
        os.chmod(path, 0o711)
    config = f"{directory}/smtpd.conf"
    with open(config, "w") as file:
        file.write(actions.replace("{port}", str(port)))
    script = (
        f"mount --make-rprivate / && mount --bind {spool} /var/spool && mount --bind {run} /run && exec "
        f"smtpd -dv -f {config}"
    )
    try:
        return Server(["unshare", "--mount", "sh", "-c", script], port, f"{directory}/smtpd.log")
    except AssertionError as error:
        if "unshare" in str(error) or "mount:" in str(error):
            pytest.skip("no mount namespaces here")
        raise


def unpacked_postfix():
    """Return where Postfix's files are.

    They are installed, or unpacked by tests/packages.sh: Debian does not allow Postfix beside OpenSMTPD.
    """
    for prefix in ("", os.environ.get("POPKERNEL_POSTFIX", "/var/tmp/popkernel-tests/postfix")):
        if os.path.exists(f"{prefix}/usr/lib/postfix/sbin/master"):
            return prefix
    need("postfix")
    return ""


def postfix(directory, main):
    """Run Postfix with these lines in main.cf.

    Its owner is an existing system user: `postfix`, or one without another use here.
    """
    need("swaks")
    prefix = unpacked_postfix()
    (port,) = free_ports(1)
    owner, group = postfix_owner()
    config, queue, data = (f"{directory}/{name}" for name in ("config", "queue", "data"))
    for path in (config, queue, data):
        os.makedirs(path)
        os.chmod(path, 0o755)
    os.chmod(directory, 0o755)
    os.chown(data, owner.pw_uid, -1)
    private = (
        "active bounce corrupt defer deferred flush hold incoming private saved trace public maildrop pid"
    ).split()
    for name in private:
        os.makedirs(f"{queue}/{name}")
        os.chmod(f"{queue}/{name}", 0o755 if name == "pid" else 0o700 if name != "public" else 0o755)
        os.chown(f"{queue}/{name}", 0 if name == "pid" else owner.pw_uid, -1)
    library = f"{prefix}/usr/lib/postfix"
    settings = f"""
compatibility_level = 3.6
mail_owner = {owner.pw_name}
setgid_group = {group}
default_privs = nobody
queue_directory = {queue}
data_directory = {data}
daemon_directory = {library}/sbin
command_directory = {prefix}/usr/sbin
shlib_directory = {library}
meta_directory = {config}
maillog_file = {directory}/mail.log
maillog_file_prefixes = {directory}
import_environment = MAIL_CONFIG MAIL_DEBUG MAIL_LOGTAG TZ LANG=C LD_LIBRARY_PATH={library}
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
myhostname = mx.example.org
mydestination =
local_recipient_maps =
mynetworks = 127.0.0.0/8
smtpd_recipient_restrictions = permit_mynetworks, reject
minimal_backoff_time = 1s
maximal_backoff_time = 2s
queue_run_delay = 1s
alias_maps =
alias_database =
{main}
"""
    with open(f"{config}/main.cf", "w") as file:
        file.write(settings)
    services = f"127.0.0.1:{port} inet n - n - - smtpd\n" + "".join(
        f"{name} {kind} {flags}\n"
        for name, kind, flags in (
            ("cleanup", "unix", "n - n - 0 cleanup"),
            ("qmgr", "unix", "n - n 1 1 qmgr"),
            ("rewrite", "unix", "- - n - - trivial-rewrite"),
            ("bounce", "unix", "- - n - 0 bounce"),
            ("defer", "unix", "- - n - 0 bounce"),
            ("trace", "unix", "- - n - 0 bounce"),
            ("lmtp", "unix", "- - n - - lmtp"),
            ("local", "unix", "- n n - - local"),
            ("virtual", "unix", "- n n - - virtual"),
            ("anvil", "unix", "- - n - 1 anvil"),
            ("scache", "unix", "- - n - 1 scache"),
            ("retry", "unix", "- - n - - error"),
            ("error", "unix", "- - n - - error"),
            ("proxymap", "unix", "- - n - - proxymap"),
            ("smtp", "unix", "- - n - - smtp"),
            ("flush", "unix", "n - n 1000? 0 flush"),
            ("showq", "unix", "n - n - - showq"),
            ("pipe", "unix", "- n n - - pipe"),
            ("postlog", "unix-dgram", "n - n - 1 postlogd"),
            ("verify", "unix", "- - n - 1 verify"),
            ("tlsmgr", "unix", "- - n 1000? 1 tlsmgr"),
        )
    )
    with open(f"{config}/master.cf", "w") as file:
        file.write(services)
    env = {
        "PATH": f"{prefix}/usr/sbin:/usr/sbin:/usr/bin:/bin",
        "LD_LIBRARY_PATH": library,
        "MAIL_CONFIG": config,
    }
    return Server([f"{library}/sbin/master", "-c", config, "-d"], port, f"{directory}/mail.log", env)


def postfix_owner():
    """Return a user and a group for Postfix alone: its own, or unused ones of the system."""
    users, groups = ([e.pw_name for e in pwd.getpwall()], [e.gr_name for e in grp.getgrall()])
    owner = next((name for name in ("postfix", "uucp", "news", "list", "irc") if name in users), None)
    group = next((name for name in ("postdrop", "voice", "fax", "audio") if name in groups), None)
    if owner is None or group is None:
        pytest.skip("no system user and group that Postfix could run as")
    return pwd.getpwnam(owner), group


def wait_settled(take, seconds=40):
    """Wait until `take()` is true, long enough for a mail server's second try."""
    end = time.monotonic() + seconds
    while not (value := take()):
        assert time.monotonic() < end, "the mail did not come"
        time.sleep(0.05)
    return value


def leftovers(spool):
    """Return what an OpenSMTPD queue still holds."""
    return [path for path in glob.glob(f"{spool}/smtpd/queue/*/*/*") if os.path.isfile(path)]
