"""A real service for tests: `popkernel start` on a site of its own, on loopback ports of its own, waited for and ended by its process id."""

import contextlib
import os
import select
import signal
import ssl
import subprocess
import sys
import tempfile
import time

from popkernel.cli.demo import make_site
from popkernel.kernel.client import Client

from tests.support.faults import short_deadlines
from tests.support.pop3 import Pop3
from tests.support.ports import free_ports
from tests.support.processes import tree
from tests.support.waiting import wait_for

POPKERNEL = [sys.executable, "-m", "popkernel"]
ROOT = os.geteuid() == 0
IMPATIENT_SECONDS = 2


class Service:
    """Started when made; `with` ends it. `site` as make_site() gives it; keyword arguments go to make_site()."""

    opened = []  # those that were made and not closed: conftest.py

    def __init__(self, *, command=None, arguments=(), expect_ready=True, verbose=2, directory=None, env=None, **site):
        self.clients = []
        self.temporary = tempfile.TemporaryDirectory(prefix="pk", dir=directory)
        os.chmod(self.temporary.name, 0o711)
        # All come from one address here, many with wrong passwords: what bounds that has tests of its own.
        self.site = make_site(self.temporary.name, **{"max_sessions_address": 0, "penalty_seconds": 0, "ports": free_ports(), **site})
        self.config = self.site.config
        self.toml = os.path.join(self.site.directory, "popkernel.toml")
        self.command_line = [*(command or POPKERNEL), "start", "-f", self.toml, "--log", "stderr", *(["-v"] * verbose), *arguments]
        self.env = env
        self.verbose = verbose
        self.start()
        Service.opened.append(self)
        if expect_ready:
            try:
                self.wait_ready()
            except BaseException:
                self.close()
                raise

    def start(self):
        self.log = b""
        self.process = subprocess.Popen(
            self.command_line, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=self.env,
            pipesize=1 << 20,  # nobody reads the log while a test does something else, and who writes to a full pipe waits
        )
        os.set_blocking(self.process.stderr.fileno(), False)

    def wait_ready(self):
        self.wait_log("ready: ")
        if self.verbose >= 2:  # then its processes are those that stay
            self.wait_log("mailboxes looked at")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def keep(self, thing):
        """Have a client closed with the service at the latest: the frames of a test that failed hold it for long, and the next ones would be told of it."""
        self.clients.append(thing)
        return thing

    def survive(self, clients):
        """A test has failed: its clients go, but for the first so many; where the service has ended, it is started anew on the same site."""
        while len(self.clients) > clients:
            self.clients.pop().close()
        if self.process.poll() is not None:
            wait_for(self._started_again)

    def _started_again(self):
        self.process.stderr.close()
        self.start()
        try:
            self.wait_ready()
        except AssertionError:  # what is left of the old one holds the run directory for a moment
            return False
        return True

    @property
    def tls(self):
        """Host and port of implicit TLS."""
        return self.config.listen[0]

    @property
    def plain(self):
        """Host and port of POP3 with STLS."""
        return self.config.listen_starttls[0]

    def read_log(self, timeout=0.0):
        """The log so far, as text."""
        fd = self.process.stderr.fileno()
        if timeout:
            select.select([fd], [], [], timeout)
        with contextlib.suppress(BlockingIOError):
            while part := os.read(fd, 1 << 16):
                self.log += part
        return self.log.decode(errors="replace")

    def wait_log(self, text, *, seconds=20.0, count=1):
        """Wait until `text` stands in the log (`count` times); the log."""
        end = time.monotonic() + seconds
        while self.read_log(0.05).count(text) < count:
            if time.monotonic() > end or (self.process.poll() is not None and self.read_log().count(text) < count):
                raise AssertionError(f"{text!r} is not in the log ({self.process.poll()}):\n{self.read_log()}")
        return self.read_log()

    def command(self, *arguments, check=True):
        """Run `popkernel ARGUMENTS --run-dir ...`."""
        result = subprocess.run(
            [*POPKERNEL, *arguments, "--run-dir", self.config.run_dir], capture_output=True, text=True, timeout=60, check=False,
        )
        if check and result.returncode:
            raise AssertionError(f"{arguments}: exit {result.returncode}\n{result.stdout}{result.stderr}")
        return result

    def status(self):
        """As the command gives it, without a process of its own: many tests ask often."""
        answer = Client(self.config.run_dir).ask("status", 20)
        del answer["ok"]
        return answer

    def actor(self, name):
        """The status row of an actor (a name or its beginning), None where there is none."""
        return next((a for a in self.status()["actors"] if a["name"] == name or a["name"].startswith((name + ".", name + "~"))), None)

    def pids(self):
        """Every process of this service that runs: init and all below it."""
        return tree(self.process.pid)

    def running(self, name):
        """Whether an actor of that name (15 octets of it, as the system keeps them) has a process: quicker than asking for the status."""
        for pid in self.pids():
            with contextlib.suppress(OSError), open(f"/proc/{pid}/comm") as file:
                if file.read().strip() == name[:15]:
                    return True
        return False

    def pop3(self, user="alice", password=None, *, login=True, timeout=20):
        """A poplib session over implicit TLS, logged in."""
        context = ssl.create_default_context(cafile=self.site.cert)
        context.check_hostname = False
        try:
            client = Pop3(self.tls.host, self.tls.port, context=context, timeout=timeout)
        except OSError as error:
            error.add_note(f"The service's log ends with:\n{self.read_log()[-2000:]}")
            raise
        if login:
            try:
                client.user(user)
                client.pass_(self.site.passwords[user] if password is None else password)
            except BaseException:
                client.close()
                raise
        return self.keep(client)

    def signal(self, number):
        """Send a signal to init."""
        self.process.send_signal(number)

    def stop(self, seconds=20):
        """SIGTERM, and the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(seconds)
        self.read_log()
        return code

    def close(self):
        """End it, whatever state it is in, and remove the site."""
        if self.process.poll() is None:
            try:
                self.stop()
            except subprocess.TimeoutExpired:
                for pid in reversed(self.pids()):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                self.process.wait(10)
        self.process.stderr.close()
        while self.clients:
            self.clients.pop().close()
        self.temporary.cleanup()
        if self in Service.opened:
            Service.opened.remove(self)


def serve(**site):
    """A service without delivery."""
    return Service(**{"lmtp": False, **site})


def impatient(*more, **site):
    """A service in which nobody waits long, with delivery."""
    return Service(command=[*short_deadlines.COMMAND, str(IMPATIENT_SECONDS), *more], mail=(), restart_intensity=1000, restart_seconds=1, **site)
