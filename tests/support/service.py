"""Run a real service: `popkernel start` on its own site and loopback ports.

It is waited for, and ended by its process id.
"""

import contextlib
import os
import select
import signal
import ssl
import subprocess
import sys
import tempfile
import time

from popkernel.cli.common.sample_site import make_site
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
    """Start a service; `with` ends it.

    `site` is what make_site() returns; keyword arguments go to make_site().
    """

    opened = []  # created and not yet closed; read by conftest.py

    def __init__(
        self, *, command=None, arguments=(), expect_ready=True, verbose=2, directory=None, env=None, **site
    ):
        self.clients = []
        self.temporary = tempfile.TemporaryDirectory(prefix="pk", dir=directory)
        os.chmod(self.temporary.name, 0o711)
        # All clients share one address and many send wrong passwords; those limits have their own tests.
        self.site = make_site(
            self.temporary.name,
            **{"max_sessions_address": 0, "penalty_seconds": 0, "ports": free_ports(), **site},
        )
        self.config = self.site.config
        self.toml = os.path.join(self.site.directory, "popkernel.toml")
        self.command_line = [
            *(command or POPKERNEL),
            "start",
            "-f",
            self.toml,
            "--log",
            "stderr",
            *(["-v"] * verbose),
            *arguments,
        ]
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
            self.command_line,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=self.env,
            # A test does not read the log meanwhile, and a full pipe would block the service.
            pipesize=1 << 20,
        )
        os.set_blocking(self.process.stderr.fileno(), False)

    def wait_ready(self):
        json = self.config.log_format == "json"
        self.wait_log("service.ready" if json else "ready: ")
        if self.verbose >= 2:  # then the processes are the final ones
            self.wait_log("mailboxes.checked" if json else "mailboxes checked")
            self.wait_log("warm.budget" if json else "warm actors: ")  # the actor on trial has ended
            wait_for(lambda: not self.running("trial"))  # and the process that tried it

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def keep(self, thing):
        """Close a client with the service at the latest.

        The frames of a failed test keep it open, and the next tests would see its warnings.
        """
        self.clients.append(thing)
        return thing

    def clean_up_after_failure(self, clients):
        """Clean up after a failed test.

        Close all but the first `clients`; if the service has ended, restart it on its site.
        """
        while len(self.clients) > clients:
            self.clients.pop().close()
        if self.process.poll() is not None:
            wait_for(self._started_again)

    def _started_again(self):
        self.process.stderr.close()
        self.start()
        try:
            self.wait_ready()
        except AssertionError:  # a remaining process holds the run directory for a moment
            return False
        return True

    @property
    def tls(self):
        """Return host and port of implicit TLS."""
        return self.config.listen[0]

    @property
    def plain(self):
        """Return host and port of POP3 with STLS."""
        return self.config.listen_starttls[0]

    def read_log(self, timeout=0.0):
        """Return the log so far."""
        fd = self.process.stderr.fileno()
        if timeout:
            select.select([fd], [], [], timeout)
        with contextlib.suppress(BlockingIOError):
            while part := os.read(fd, 1 << 16):
                self.log += part
        return self.log.decode(errors="replace")

    def wait_log(self, text, *, seconds=20.0, count=1):
        """Wait until `text` stands in the log `count` times; return the log."""
        end = time.monotonic() + seconds
        while self.read_log(0.05).count(text) < count:
            if time.monotonic() > end or (
                self.process.poll() is not None and self.read_log().count(text) < count
            ):
                raise AssertionError(
                    f"{text!r} is not in the log ({self.process.poll()}):\n{self.read_log()}"
                )
        return self.read_log()

    def command(self, *arguments, check=True):
        """Run `popkernel ARGUMENTS --run-dir ...`."""
        result = subprocess.run(
            [*POPKERNEL, *arguments, "--run-dir", self.config.run_dir],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if check and result.returncode:
            raise AssertionError(f"{arguments}: exit {result.returncode}\n{result.stdout}{result.stderr}")
        return result

    def change_files(self):
        """Change the files that auth and listeners read, so that the next reload replaces both."""
        for path, more in ((self.site.auth_table, b"# changed\n"), (self.site.cert, b"\n")):
            with open(path, "ab") as file:
                file.write(more)

    def status(self):
        """Return the status as the command does, without starting a process: many tests ask often."""
        answer = Client(self.config.run_dir).ask("status", 20)
        del answer["ok"]
        return answer

    def actor(self, name):
        """Return the status row of an actor (a name or its beginning); None if there is none."""
        return next(
            (
                a
                for a in self.status()["actors"]
                if a["name"] == name or a["name"].startswith((name + ".", name + "~"))
            ),
            None,
        )

    def pids(self):
        """Return every running process of this service: init and all its descendants."""
        return tree(self.process.pid)

    def running(self, name):
        """Return whether an actor has a process.

        Quicker than the status; compares the first 15 octets of the name, as the system keeps no more.
        """
        for pid in self.pids():
            with contextlib.suppress(OSError), open(f"/proc/{pid}/comm") as file:
                if file.read().strip() == name[:15]:
                    return True
        return False

    def pop3(self, user="alice", password=None, *, login=True, timeout=20):
        """Return a poplib session over implicit TLS, logged in."""
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
        """Send SIGTERM; return the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(seconds)
        self.read_log()
        return code

    def close(self):
        """End the service in any state and remove its site."""
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
    """Run a service without delivery."""
    return Service(**{"lmtp": False, **site})


def serve_with_short_deadlines(*more, **site):
    """Run a service with delivery and short deadlines."""
    return Service(
        command=[*short_deadlines.COMMAND, str(IMPATIENT_SECONDS), *more],
        mail=(),
        restart_intensity=1000,
        restart_seconds=1,
        **site,
    )
