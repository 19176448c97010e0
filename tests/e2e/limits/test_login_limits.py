"""Test limits of handshakes, logins and memory on a real service: clear refusals, counts, nobody delayed."""

import contextlib
import os
import socket
import threading
import time
import types
from concurrent.futures import ThreadPoolExecutor

import pytest
from popkernel.kernel.client import Client

from tests.support import awkward
from tests.support.limits import MAIL, USERS, greeting, hangs_up, resets, serve
from tests.support.pop3 import RawPop3, connect
from tests.support.processes import continue_process, pid_of, stop_process
from tests.support.waiting import wait_for

HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"  # the beginning of a ClientHello


def beginning(service, data=HELLO):
    sock = service.keep(connect(service.tls))
    sock.sendall(data)
    return sock


def test_handshakes():
    """Those of an address wait for their turn behind its own; another address's take the place of one."""
    with (
        serve(max_handshakes=2, login_seconds=60) as service,
        RawPop3(service, user="alice") as client,
        contextlib.ExitStack() as stack,
    ):
        for _ in range(5):
            stack.enter_context(connect(service.tls))  # a silent client is no handshake
        assert greeting(service).startswith(b"+OK")
        for _ in range(3):  # the oldest makes room for the next, and an honest client always comes later
            begun = [stack.enter_context(beginning(service)) for _ in range(3)]
            for _ in range(3):
                assert greeting(service, source="127.0.0.2").startswith(b"+OK")
            with contextlib.suppress(ConnectionError):
                assert begun[0].recv(100) == b""
        service.wait_log('why="made room for another handshake"')
        service.wait_log("another made room: max_handshakes is met (2 in this process)")
        began = time.monotonic()
        assert greeting(service).startswith(b"+OK")  # when one that says no more has had its two seconds
        assert time.monotonic() - began < 10
        assert client.ask(b"STAT").startswith(b"+OK 1 ")
        with RawPop3(service, "") as plain:
            assert plain.greeting.startswith(b"+OK")
        assert service.status()["logins"]["refused"]["max_handshakes"] > 3


def test_many_handshakes_of_one_address_at_once():
    """All wait for their turn; none makes room for another."""
    with serve(max_handshakes=2, login_seconds=60) as service, ThreadPoolExecutor(40) as pool:
        said = [*pool.map(lambda _: greeting(service), range(200))]
        assert [line for line in said if not line.startswith(b"+OK")] == []
        assert "is met" not in service.read_log()


def test_a_handshake_that_waits_for_its_turn_does_not_keep_the_listener_busy():
    """Nor when its client goes."""
    with serve(max_handshakes=1, login_seconds=60) as service, contextlib.ExitStack() as stack:
        stack.enter_context(beginning(service))
        waiting = [stack.enter_context(beginning(service)) for _ in range(3)]
        listener = pid_of(service, "listener.0")
        resets(service, types.SimpleNamespace(sock=waiting[0], close=waiting[0].close))
        waiting[1].shutdown(socket.SHUT_WR)
        before, began = seconds_used(listener), time.monotonic()
        wait_for(lambda: time.monotonic() > began + 0.5)
        assert seconds_used(listener) - before < 0.1
        assert greeting(service).startswith(b"+OK")


# Logins


def asking(service, user, password="secret", tls="tls", **options):
    client = service.keep(RawPop3(service, tls, **options))
    client.ask(b"USER " + user.encode())
    client.send(b"PASS " + password.encode() + b"\r\n")
    return client


def test_logins_at_a_time():
    """One login is with auth, all others wait in turn by address and user; none is refused."""
    with serve(max_logins=1, login_seconds=60) as service, contextlib.ExitStack() as stack:
        with RawPop3(service, user="frank") as client:
            stop_process(pid_of(service, "auth"))
            waiting = [stack.enter_context(asking(service, user)) for user in USERS[:5]]
            ghosts = [stack.enter_context(asking(service, f"ghost{n}")) for n in range(16)]
            late = stack.enter_context(asking(service, "carol", "wrong"))
            other = stack.enter_context(asking(service, "erin", "wrong", source="127.0.0.2"))
            resets(service, waiting[2])  # a client that left no longer counts, though its login waits
            assert client.ask(b"STAT").startswith(b"+OK 1 ")
            continue_process(auth_of(service))
            for n in (0, 1, 3, 4):
                assert waiting[n].line().startswith(b"+OK 1 ")
            for client in (late, other, *ghosts):
                assert client.line() == b"-ERR [AUTH] wrong name or password\r\n"
            assert late.ask(b"USER carol") == b"+OK\r\n"
            assert late.ask(b"PASS secret").startswith(b"+OK 1 ")
            assert "refused" not in service.read_log()


@pytest.mark.parametrize("end", [resets, hangs_up])
@pytest.mark.parametrize("tls", ["tls", ""])
def test_a_client_that_leaves_while_its_login_waits(end, tls):
    """The end of such a client must not keep the listener busy until auth answers."""
    with serve(login_seconds=60) as service, RawPop3(service, user="frank") as client:
        listener = pid_of(service, "listener.0")
        stop_process(pid_of(service, "auth"))
        with asking(service, "alice", tls=tls) as going:
            if not tls:
                going.sock.shutdown(socket.SHUT_WR)  # which alone is no end
                assert greeting(service).startswith(b"+OK")
                assert 'why="connection lost"' not in service.read_log()
            end(service, going)
        if end is resets:
            service.wait_log('why="connection lost"', seconds=5)
        before, began = seconds_used(listener), time.monotonic()
        wait_for(lambda: time.monotonic() > began + 0.5)
        assert seconds_used(listener) - before < 0.1
        continue_process(auth_of(service))
        wait_for(lambda: greeting(service), until=lambda said: said.startswith(b"+OK"))
        assert client.ask(b"STAT").startswith(b"+OK 1 ")


def seconds_used(pid):
    """Return seconds of processor time."""
    with open(f"/proc/{pid}/stat") as file:
        return sum(map(int, file.read().rpartition(")")[2].split()[11:13])) / os.sysconf("SC_CLK_TCK")


def auth_of(service):
    """Find the stopped process, which the status does not list."""
    for pid in service.pids():
        with open(f"/proc/{pid}/comm") as file:
            if file.read().strip() == "auth":
                return pid
    raise AssertionError("no auth")


def test_logins_of_one_user():
    with serve(max_logins_user=2, login_seconds=60) as service, contextlib.ExitStack() as stack:
        stop_process(pid_of(service, "auth"))
        guesses = [stack.enter_context(asking(service, "alice", "wrong")) for _ in range(2)]
        with asking(service, "alice") as late:
            assert (
                late.line()
                == b"-ERR [SYS/TEMP] too many logins of this user from your address at once, try again\r\n"
            )
            # guesses lock nobody out
            elsewhere = stack.enter_context(asking(service, "alice", source="127.0.0.2"))
            other = stack.enter_context(asking(service, "bob"))
            continue_process(auth_of(service))
            for client in guesses:
                assert client.line().startswith(b"-ERR [AUTH]")
            assert elsewhere.line().startswith(b"+OK 1 ") and other.line().startswith(b"+OK 1 ")
            elsewhere.ask(b"QUIT")
            assert late.ask(b"USER alice") == b"+OK\r\n"
            assert late.ask(b"PASS secret").startswith(b"+OK 1 ")
        service.wait_log("reason=temp waited_ms=0 user=alice")


def test_login_delay():
    with serve(login_delay=3) as service:
        with RawPop3(service) as client:
            assert b"LOGIN-DELAY 3\r\n" in client.many(b"CAPA")
            assert client.ask(b"USER alice") and client.ask(b"PASS wrong").startswith(b"-ERR [AUTH]")
            assert client.ask(b"USER alice") and client.ask(b"PASS secret").startswith(b"+OK")
            assert b"LOGIN-DELAY 3\r\n" in client.many(b"CAPA")
            assert client.ask(b"QUIT") == b"+OK bye\r\n"
            in_at = service.status()["uptime"]
        with RawPop3(service) as client:
            for _ in range(3):  # a refusal does not restart the delay
                client.ask(b"USER alice")
                assert client.ask(b"PASS secret") == b"-ERR [LOGIN-DELAY] only one login in 3 seconds\r\n"
            client.ask(b"USER alice")
            # a client with a wrong password learns nothing of it
            assert client.ask(b"PASS wrong").startswith(b"-ERR [AUTH]")
            with RawPop3(service, user="bob"):
                pass
            wait_for(lambda: client.ask(b"USER alice") and client.ask(b"PASS secret").startswith(b"+OK"))
            assert 2.5 < service.status()["uptime"] - in_at < 6


# Memory


@pytest.mark.parametrize("memory", [64, 65536])
def test_answers_that_are_not_taken(memory):
    """No reply is lost, with much memory or little.

    With much the last command reaches the maildir actor before a reply is read, with little only after.
    """
    with serve(session_memory=memory) as service, RawPop3(service, user="alice", buffer=4096) as client:
        answer = b"+OK capabilities follow\r\n" + client.many(b"CAPA")
        many = 3_000_000 // len(answer)
        with Client(service.config.run_dir).follow(types=["List"]) as watched:
            sender = threading.Thread(target=client.send, args=(b"CAPA\r\n" * many + b"LIST 1\r\n",))
            sender.start()
            assert asked(watched, 1 if memory == 64 else 15) == (memory > 64)
        assert client.take(many * len(answer)) == answer * many
        assert client.line() == b"+OK 1 %d\r\n" % len(awkward.sent(MAIL[0]))
        sender.join()


def asked(watched, seconds):
    """Return whether the maildir actor gets a LIST within that time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        frame = watched.next_frame(0.2)
        if frame is not None and frame.name == "List":
            return True
    return False
