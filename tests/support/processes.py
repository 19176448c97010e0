"""What the tests of supervision share: a POP3 client of bare sockets that reads as slowly as it is told, and looks at mail and processes."""

import contextlib
import hashlib
import os
import signal
import socket
import ssl

from tests.support.faults import short_deadlines
from tests.support.service import Service, wait_for

BIG = b"From: demo@localhost\nSubject: large\n\n" + b"".join(b"%09d %b\n" % (n, b"x" * 60) for n in range(290_000))  # 20.6 MB


IMPATIENT_SECONDS = 2


def serve(**site):
    """A service as these tests want it: of the actors that read mail. Delivery has its own tests."""
    return Service(**{"lmtp": False, **site})


def impatient(*more, **site):
    """A service in which nobody waits long, with delivery."""
    return Service(command=[*short_deadlines.COMMAND, str(IMPATIENT_SECONDS), *more], mail=(), restart_intensity=1000, restart_seconds=1, **site)


class Raw:
    """A POP3 connection. `tls` False: port of STLS, without it. `buffer`: octets the system takes before we read."""

    def __init__(self, service, *, tls=True, buffer=0, timeout=20):
        self.sock = socket.socket()
        self.held = b""
        try:
            if buffer:
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
            self.sock.settimeout(timeout)
            address = service.tls if tls else service.plain
            self.sock.connect((address.host, address.port))
            if tls:
                context = ssl.create_default_context()
                context.check_hostname = False
                context.verify_mode = ssl.CERT_NONE
                self.sock = context.wrap_socket(self.sock)
            self.greeting = self.line()
        except BaseException:
            self.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self.sock.close()

    def certificate(self):
        return self.sock.getpeercert(binary_form=True)

    def line(self):
        while b"\n" not in self.held:
            part = self.sock.recv(65536)
            if not part:
                raise EOFError(self.held)
            self.held += part
        line, _, self.held = self.held.partition(b"\n")
        return line + b"\n"

    def send(self, text):
        self.sock.sendall(text.encode() + b"\r\n")

    def command(self, text):
        self.send(text)
        return self.line()

    def login(self, user="alice", password="secret"):
        self.command(f"USER {user}")
        return self.command(f"PASS {password}")

    def some(self, octets):
        """At least so many octets, left in `held`."""
        while len(self.held) < octets:
            part = self.sock.recv(16384)
            if not part:
                raise EOFError(len(self.held))
            self.held += part

    def body(self):
        """A multi-line answer after its first line, dots undone."""
        data = bytearray(self.held)
        while not (data.endswith(b"\r\n.\r\n") or data == b".\r\n"):
            part = self.sock.recv(1 << 18)
            if not part:
                raise EOFError(len(data))
            data += part
        self.held = b""
        return bytes(data[:-3]).replace(b"\r\n..", b"\r\n.")

    def rest(self):
        """Everything until the connection ends, however it ends."""
        data = bytearray(self.held)
        self.held = b""
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            while part := self.sock.recv(1 << 18):
                data += part
        return bytes(data)


def wire(message):
    """A message of LF lines as POP3 sends it, but for dots."""
    return message.replace(b"\n", b"\r\n")


def mail_of(service, user="alice"):
    """Every message of a user: digest by the unique part of its name."""
    found = {}
    base = service.site.mail_users[user].maildir
    for sub in ("new", "cur"):
        for name in os.listdir(f"{base}/{sub}"):
            with open(f"{base}/{sub}/{name}", "rb") as file:
                unique = name.partition(":")[0]
                assert unique not in found, f"{unique} is there twice"
                found[unique] = hashlib.sha256(file.read()).hexdigest()
    return found


def pid_of(service, name):
    """The process of an actor, which must be there."""
    row = wait_for(lambda: service.actor(name))
    assert row["pid"] > 1, row
    return row["pid"]


def kill(pid):
    os.kill(pid, signal.SIGKILL)


@contextlib.contextmanager
def stopped(*pids):
    """These processes do nothing meanwhile."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def gone(pid):
    """Not there any more; who is dead and not waited for still is."""
    return not os.path.exists(f"/proc/{pid}")


def running(pids):
    """Those that still run; a dead one that nobody has waited for runs no more."""
    alive = []
    for pid in pids:
        with contextlib.suppress(OSError), open(f"/proc/{pid}/stat") as file:
            if file.read().rpartition(")")[2].split()[0] not in "ZX":
                alive.append(pid)
    return alive


def all_gone(pids):
    wait_for(lambda: not running(pids), seconds=10)
