"""Test maildrop leases: one session a maildrop, freed at every end; actors stay warm for a limited time."""

import os
import socket
import threading

import pytest

from tests.support.pop3 import RawPop3, login_answer
from tests.support.processes import continue_process, kill, pid_of, stop_process
from tests.support.service import serve
from tests.support.waiting import wait_for


@pytest.fixture(scope="module")
def service():
    with serve(
        mail=[b"Subject: 1\n\nx\n"] * 3, listeners=2, restart_intensity=100, restart_seconds=2
    ) as running:
        yield running


def test_second_session_is_turned_away_by_every_listener(service):
    with RawPop3(service) as first:
        assert first.login().startswith(b"+OK")
        mine = service.status()["leases"][0]["listener"]
        seen = set()
        for _ in range(400):  # the system distributes connections; until each listener has had one
            with RawPop3(service) as second:
                assert second.login().startswith(b"-ERR [IN-USE]")
                seen.add(next(listener_of(service, second)))
            if len(seen) == 2:
                break
        assert len(seen) == 2, seen
        assert mine.startswith("listener.")
        assert first.ask(b"STAT").startswith(b"+OK")
        assert first.ask(b"QUIT").startswith(b"+OK")
    assert login_answer(service).startswith(b"+OK")


def listener_of(service, client):
    """Return the listener that has the other end of the client's socket."""
    local = client.sock.getsockname()[1]
    with open("/proc/net/tcp") as file:
        inodes = {row.split()[9] for row in file.readlines()[1:] if row.split()[2].endswith(f":{local:04X}")}
    for row in service_rows(service):
        for fd in os.listdir(f"/proc/{row}/fd"):
            try:
                if os.readlink(f"/proc/{row}/fd/{fd}").removeprefix("socket:[").rstrip("]") in inodes:
                    yield row
            except OSError:
                continue


def service_rows(service):
    if not hasattr(service, "listener_pids"):
        service.listener_pids = [
            a["pid"] for a in service.status()["actors"] if a["name"].startswith("listener.")
        ]
    return service.listener_pids


@pytest.mark.parametrize("end", ["QUIT", "drop", "reset", "kill"])
def test_freed_at_every_end(service, end):
    with RawPop3(service) as client:
        assert client.login().startswith(b"+OK")
        if end == "QUIT":
            assert client.ask(b"QUIT").startswith(b"+OK")
        elif end == "reset":
            client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            client.sock.close()
        elif end == "kill":
            kill(pid_of(service, "maildir.alice"))
            client.end()
        else:
            client.sock.close()
        wait_for(lambda: login_answer(service).startswith(b"+OK"))


def test_quit_and_log_in_again_at_once(service):
    """200 times, never [IN-USE]: a new session waits for the old one's end."""
    for n in range(200):
        with RawPop3(service) as client:
            assert client.login().startswith(b"+OK"), n
            if n % 10 == 0:
                client.send(b"RETR 1\r\n")
                client.line()
                client.message()
            assert client.ask(b"QUIT").startswith(b"+OK")


def test_log_in_while_the_last_session_is_still_being_closed():
    """The next login waits for the old session's end, and then gets the maildrop.

    The maildir actor is stopped after QUIT's reply.
    """
    with serve(mail=[b"Subject: 1\n\nx\n"], allow_plaintext=True) as service:
        with RawPop3(service, tls="") as first:
            assert first.login().startswith(b"+OK")
            pid = pid_of(service, "maildir.alice")
            stop_process(pid)
        with RawPop3(service, tls="") as second, RawPop3(service, tls="") as third:
            assert second.ask(b"USER alice").startswith(b"+OK")
            wait_for(lambda: status_while_halted(service))  # the listener has reported the first one's end
            second.send(b"PASS secret\r\n")
            # one login may wait, a second may not
            wait_for(lambda: third.login().startswith(b"-ERR [IN-USE]"))
            continue_process(pid)
            assert second.line().startswith(b"+OK")
            assert second.ask(b"QUIT").startswith(b"+OK")
        for _ in range(300):  # without TLS, for the quickest client possible
            with RawPop3(service, tls="") as client:
                assert client.login().startswith(b"+OK")
                assert client.ask(b"QUIT").startswith(b"+OK")


def status_while_halted(service):
    return service.actor("listener")["pid"] > 1


def test_warm_actors_retire():
    with serve(mail=(), warm_seconds=1) as service:
        with RawPop3(service, user="alice") as client:
            pid = pid_of(service, "maildir.alice")
            assert client.ask(b"QUIT").startswith(b"+OK")
        wait_for(lambda: service.actor("maildir.alice") is None)
        assert not os.path.exists(f"/proc/{pid}")
        each = service.status()["warm"]["memory_actor"]
    with serve(mail=(), warm_memory=str(2 * each + each // 2)) as service:
        for user in ("alice", "bob", "carol"):  # beyond warm_memory, the actor idle for longest goes
            assert login_answer(service, user).startswith(b"+OK")
        wait_for(lambda: service.actor("maildir.alice") is None)
        pids = [pid_of(service, "maildir.bob"), pid_of(service, "maildir.carol")]
        for user in ("bob", "carol"):
            assert login_answer(service, user).startswith(b"+OK")
        assert [pid_of(service, "maildir.bob"), pid_of(service, "maildir.carol")] == pids  # warm
        warm = service.status()["warm"]
        assert (warm["actors"], warm["holds"]) == (2, 2)
        assert abs(warm["memory_actor"] - each) < each // 10
        assert "warm actors: 2 of about 2 (" in service.command("status").stdout
        service.wait_log("warm actors: about 2 (")


def test_login_racing_with_retirement():
    """With warm_seconds 0 and warm_memory 0 each session's end ends its actor, and the next login meets it.

    All logins succeed.
    """
    with serve(mail=[b"Subject: 1\n\nx\n"], warm_seconds=0, warm_memory="0") as service:
        failures = []

        def one(user):
            for n in range(25):
                try:
                    answer = login_answer(service, user)
                except (OSError, EOFError) as error:
                    answer = repr(error).encode()
                if not answer.startswith(b"+OK"):
                    failures.append((user, n, answer))

        threads = [threading.Thread(target=one, args=(u,)) for u in ("alice", "bob", "carol")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        wait_for(lambda: not service.status()["leases"])
