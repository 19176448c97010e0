"""The bounds of handshakes, logins and memory on a real service: refused politely, counted down after every end, nobody else kept waiting."""

import contextlib
import os
import socket
import threading
import time

import pytest
from popkernel.kernel.client import Client

from tests.support import awkward
from tests.support.limits import MAIL, USERS, greeting, hangs_up, resets, serve
from tests.support.pop3 import RawPop3, connect
from tests.support.processes import continue_process, pid_of, stop_process
from tests.support.waiting import wait_for

HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"  # how a ClientHello begins


def beginning(service, data=HELLO):
    sock = service.keep(connect(service.tls))
    sock.sendall(data)
    return sock


def test_handshakes():
    with serve(max_handshakes=2, login_seconds=60) as service, RawPop3(service, user="alice") as client, contextlib.ExitStack() as stack:
        for _ in range(5):
            stack.enter_context(connect(service.tls))  # who says nothing is no handshake
        assert greeting(service).startswith(b"+OK")
        for _ in range(3):  # the oldest makes room for the next, and an honest client is always a next one
            begun = [stack.enter_context(beginning(service)) for _ in range(3)]
            for _ in range(3):
                assert greeting(service).startswith(b"+OK")
            with contextlib.suppress(ConnectionError):
                assert begun[0].recv(100) == b""
        service.wait_log('why="made room for another handshake"')
        service.wait_log("another made room: max_handshakes is met (2 in this process)")
        assert client.ask(b"STAT").startswith(b"+OK 1 ")
        with RawPop3(service, "") as plain:
            assert plain.greeting.startswith(b"+OK")


# Logins


def asking(service, user, password="secret", tls="tls", **options):
    client = service.keep(RawPop3(service, tls, **options))
    client.ask(b"USER " + user.encode())
    client.send(b"PASS " + password.encode() + b"\r\n")
    return client


def test_logins_at_a_time():
    """One is asked of auth, twenty wait, one more is refused; and all get their answer in the end."""
    with serve(max_logins=1, login_seconds=60) as service, contextlib.ExitStack() as stack:
        with RawPop3(service, user="frank") as client:
            stop_process(pid_of(service, "auth"))
            waiting = [stack.enter_context(asking(service, user)) for user in USERS[:5]]
            ghosts = [stack.enter_context(asking(service, f"ghost{n}")) for n in range(16)]
            late = stack.enter_context(asking(service, "nobody"))
            said = late.line()
            assert said == b"-ERR [SYS/TEMP] too many logins at once, try again\r\n"
            service.wait_log("127.0.0.1: refused: max_logins is met (1 in this process)")
            other = stack.enter_context(asking(service, "erin", "wrong", source="127.0.0.2"))
            assert ghosts.pop().line() == said  # for another address the one with most waiting makes room
            resets(service, waiting[2])  # who goes is counted no more, though it waits
            wait_for(lambda: late.ask(b"USER carol") and not late.send(b"PASS wrong\r\n") and in_time(late))
            assert client.ask(b"STAT").startswith(b"+OK 1 ")
            continue_process(auth_of(service))
            for n in (0, 1, 3, 4):
                assert waiting[n].line().startswith(b"+OK 1 ")
            for client in (late, other, *ghosts):
                assert client.line() == b"-ERR [AUTH] wrong name or password\r\n"
            assert late.ask(b"USER carol") == b"+OK\r\n"
            assert late.ask(b"PASS secret").startswith(b"+OK 1 ")


@pytest.mark.parametrize("end", [resets, hangs_up])
@pytest.mark.parametrize("tls", ["tls", ""])
def test_who_goes_while_a_login_waits_is_gone(end, tls):
    """And costs nothing: what was told of the end again and again, and not heard, once kept the listener busy until auth answered."""
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
    """Of processor time."""
    with open(f"/proc/{pid}/stat") as file:
        return sum(map(int, file.read().rpartition(")")[2].split()[11:13])) / os.sysconf("SC_CLK_TCK")


def in_time(client):
    """Whether that is not refused at once."""
    client.sock.settimeout(0.5)
    try:
        assert b"too many logins" in client.line()
        return False
    except TimeoutError:
        return True
    finally:
        client.sock.settimeout(20)


def auth_of(service):
    """The process that is halted, which says no status."""
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
            assert late.line() == b"-ERR [SYS/TEMP] too many logins of this user from your address at once, try again\r\n"
            elsewhere = stack.enter_context(asking(service, "alice", source="127.0.0.2"))  # whoever guesses locks nobody out
            other = stack.enter_context(asking(service, "bob"))
            continue_process(auth_of(service))
            for client in guesses:
                assert client.line().startswith(b"-ERR [AUTH]")
            assert elsewhere.line().startswith(b"+OK 1 ") and other.line().startswith(b"+OK 1 ")
            elsewhere.ask(b"QUIT")
            assert late.ask(b"USER alice") == b"+OK\r\n"
            assert late.ask(b"PASS secret").startswith(b"+OK 1 ")
        assert "why=SYS/TEMP user=alice" in service.wait_log("SYS/TEMP")


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
            for _ in range(3):  # a refusal begins the time not anew
                client.ask(b"USER alice")
                assert client.ask(b"PASS secret") == b"-ERR [LOGIN-DELAY] only one login in 3 seconds\r\n"
            client.ask(b"USER alice")
            assert client.ask(b"PASS wrong").startswith(b"-ERR [AUTH]")  # nothing is told to who does not know the password
            with RawPop3(service, user="bob"):
                pass
            wait_for(lambda: client.ask(b"USER alice") and client.ask(b"PASS secret").startswith(b"+OK"))
            assert 2.5 < service.status()["uptime"] - in_at < 6


# Memory


@pytest.mark.parametrize("memory", [64, 65536])
def test_answers_that_are_not_taken(memory):
    """With much memory the last of the commands reaches the maildir actor before any answer is taken, with little only then; none is lost."""
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
    """Whether the maildir actor was asked for a LIST within that time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        frame = watched.next_frame(0.2)
        if frame is not None and frame.name == "List":
            return True
    return False
