"""Call shutdown(2) on a shared listening socket: its port takes connections again, and sessions go on."""

import os
import signal
import socket

import pytest

from tests.support.faults.patched import patched
from tests.support.pop3 import RawPop3
from tests.support.service import serve
from tests.support.waiting import wait_for

# A service whose listeners, gates and mda shut down their listening sockets on SIGUSR1, as a compromised one
# may.
SHUTS = """
def patch():
    import signal, socket
    from popkernel.kernel.runtime.actor import Actor
    connect = Actor.connect
    def connecting(self, *warnings):
        def shut(*_):
            for item in self.acceptor._listening if hasattr(self, "acceptor") else self.listening:
                (item[0] if isinstance(item, tuple) else item).shutdown(socket.SHUT_RDWR)
        if hasattr(self, "acceptor") or hasattr(self, "listening"):
            signal.signal(signal.SIGUSR1, shut)
        connect(self, *warnings)
    Actor.connect = connecting
"""


@pytest.fixture
def shuts(tmp_path):
    """Return the command for such a service."""
    return patched(tmp_path, SHUTS)


def answers(service, tls):
    try:
        with RawPop3(service, tls) as client:
            return client.greeting.startswith(b"+OK")
    except (OSError, EOFError):
        return False


@pytest.mark.parametrize("isolation", ["shared", "connection"])
def test_by_a_listener(shuts, isolation):
    door = "gate" if isolation == "connection" else "listener"
    with (
        serve(mail=(), command=shuts, isolation=isolation, listeners=2) as service,
        RawPop3(service) as one,
        RawPop3(service) as two,
    ):
        assert one.login("alice").startswith(b"+OK")
        assert two.login("bob").startswith(b"+OK")
        os.kill(service.actor(f"{door}.0")["pid"], signal.SIGUSR1)
        log = service.wait_log("takes over", count=2)  # the two share the sockets
        assert (
            f"{door}.0: a listening socket was shut down, by it or by another listener; {door}.0~2 takes over"
            in log
        )
        for tls in ("tls", ""):
            wait_for(lambda tls=tls: answers(service, tls))
        for client in (one, two):
            assert client.ask(b"STAT").startswith(b"+OK")
            assert client.ask(b"QUIT").startswith(b"+OK")
        wait_for(
            lambda: (
                sorted(
                    a["name"]
                    for a in service.status()["actors"]
                    if a["name"] in (f"{door}.{n}" for n in (0, 1))
                )
                == []
            )
        )
        assert service.command("reload").stdout.startswith("reloaded\n")
        assert answers(service, "tls")
        assert service.stop() == 0


def test_again_and_again_is_given_up(shuts):
    with serve(mail=(), command=shuts, restart_intensity=2, restart_seconds=60) as service:
        for n in ("", "~2", "~3"):
            row = wait_for(
                lambda n=n: service.actor("listener"),
                until=lambda row, n=n: row and row["name"] == f"listener.0{n}" and row["state"] == "serving",
            )
            os.kill(row["pid"], signal.SIGUSR1)
        assert service.process.wait(20) == 70
        assert (
            "a listening socket was shut down, by it or by another listener, again and again: giving up"
            in service.read_log()
        )


def test_by_the_mda(shuts):
    """Its sockets are its own: it ends, and the next mda has new ones.

    accept(2) on a unix socket only says that there is no connection.
    """
    with serve(mail=(), command=shuts, lmtp=True) as service:
        sockets = [f"{service.config.run_dir}/{name}" for name in ("lmtp.sock", "mta.sock")]
        mda = service.actor("mda")["pid"]
        os.kill(mda, signal.SIGUSR1)
        service.wait_log("a listening socket was shut down; LMTP begins anew")
        for path in sockets:
            wait_for(lambda path=path: greets(path))
        assert answers(service, "tls")


def greets(path):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(5)
        try:
            sock.connect(path)
            return sock.recv(100).startswith(b"220 ")
        except OSError:
            return False
