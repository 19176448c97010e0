"""Honest crowds, and floods: everybody with a right password is let in at once, and a flood makes room for who is none of it."""

import contextlib
import os
import threading
import time

import pytest

from tests.support.limits import MAIL, USERS, serve
from tests.support.pop3 import RawPop3, connect
from tests.support.service import Service
from tests.support.tracing.trace_command import frames_of, watcher
from tests.support.waiting import wait_for

OFFICE = [f"user{n}" for n in range(300)]
HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"  # how a ClientHello begins
COST = 7  # a check takes some 7 ms


def come_in_at_once(service, users, password="secret", **options):
    """Each connects, then all log in at the same moment; what each is told, and when the last was."""
    clients = [RawPop3(service, **options) for _ in users]
    try:
        for client, user in zip(clients, users, strict=True):
            assert client.ask(b"USER " + user.encode()) == b"+OK\r\n"
        began = time.monotonic()
        for client in clients:
            client.send(b"PASS " + password.encode() + b"\r\n")
        said = [client.line() for client in clients]
        return said, time.monotonic() - began
    finally:
        for client in clients:
            client.close()


@pytest.fixture(scope="module")
def office():
    """Default settings."""
    with Service(users=OFFICE, mail=MAIL, cost=COST, lmtp=False, allow_plaintext=True, max_sessions_address=2000, penalty_seconds=15, verbose=0) as service:
        yield service


@pytest.mark.parametrize("again", ["start", "reload"])
def test_an_office_behind_one_address_logs_in_at_once(office, again):
    """A8: nobody is known yet, and nobody is refused or waits for more than hashing (and 300 new processes) takes."""
    if again == "reload":
        office.command("reload")
    said, took = come_in_at_once(office, OFFICE)
    assert [line for line in said if not line.startswith(b"+OK 1 ")] == []
    assert took < 15
    assert "login failed" not in office.read_log() and "is met" not in office.read_log()


def test_who_guesses_all_at_once_is_not_looked_at_all_at_once():
    """A8; and the log says what it is, and for how long (D12)."""
    with serve(penalty_seconds=3) as service:
        said, _ = come_in_at_once(service, OFFICE[:100], "guess", tls="", source="127.0.0.9")
        looked = said.count(b"-ERR [AUTH] wrong name or password\r\n")
        assert looked <= 5 + 4 * len(os.sched_getaffinity(0)) + 4
        refused = [line for line in said if not line.startswith(b"-ERR [AUTH]")]
        assert all(line.startswith(b"-ERR [SYS/TEMP] too many failed logins from your address, try again in ") for line in refused)
        log = service.wait_log("why=guard seconds=")
        assert "why=SYS/TEMP" not in log
        said, _ = come_in_at_once(service, USERS)  # from another address
        assert all(line.startswith(b"+OK") for line in said)


def test_a_name_in_another_case_logs_in():
    """D15: by every way, and what the log, the trace of that user and the lease say is the table's name."""
    with serve() as service, watcher(service, user="alice") as viewer:
        with RawPop3(service) as client:
            assert client.ask(b"USER Alice") == b"+OK\r\n" and client.ask(b"PASS secret").startswith(b"+OK 1 ")
            assert [lease["user"] for lease in service.status()["leases"]] == ["alice"]
            with RawPop3(service) as other:
                assert other.ask(b"USER aLICE") == b"+OK\r\n"
                assert other.ask(b"PASS secret").startswith(b"-ERR [IN-USE]")
            assert client.ask(b"QUIT") == b"+OK bye\r\n"
        service.wait_log("why=quit user=alice")
        frames = frames_of(viewer, lambda frame: frame.name == "Ended" and frame.fields["why"] == "quit")
        mine = [frame.name for frame in frames if frame.session == frames[-1].session]
        assert mine[0] == "Connected" and {"Login", "Granted", "Opened", "Typed"} <= set(mine)
    with serve(login_case="exact") as service, RawPop3(service) as client:
        assert client.ask(b"USER Alice") == b"+OK\r\n" and client.ask(b"PASS secret").startswith(b"-ERR [AUTH]")


def test_names_that_differ_in_case_only():
    """D15: each by its own spelling, and a word of it in check, at the start and at a reload: the same."""
    users = {"alice": "one", "Alice": "two", "bob": "three"}
    with serve(users=users) as service:
        for name, password, good in (("alice", "one", True), ("Alice", "two", True), ("ALICE", "one", False), ("ALICE", "two", False), ("BOB", "three", True)):
            with RawPop3(service) as client:
                client.ask(b"USER " + name.encode())
                assert client.ask(b"PASS " + password.encode()).startswith(b"+OK" if good else b"-ERR [AUTH]"), name
                client.ask(b"QUIT")
        words = "users alice and Alice differ in case only: each is found only as it is written here"
        for table in (service.config.auth_table, service.config.user_table):
            assert f"{table}:2: {words}" in service.read_log()
        before = service.read_log().count(words)
        service.command("reload")
        service.wait_log(words, count=before + 2)
        assert service.command("check", "-f", service.toml, check=False).stdout.count(words) == 2


def test_a_session_lost_says_what_was_marked_and_what_was_removed():
    """D10."""
    with serve(users=["alice"], mail=MAIL * 3) as service:
        for quits, said in ((False, "marked=2 removed=0"), (True, "marked=1 removed=1")):
            with RawPop3(service, user="alice") as client:
                assert client.ask(b"DELE 1") == client.ask(b"DELE 2") == b"+OK marked\r\n"
                if quits:
                    client.ask(b"RSET"), client.ask(b"DELE 1"), client.ask(b"QUIT")
            assert f"retrieved=0 {said} " in service.wait_log(said)


def test_who_has_a_right_password_and_no_mailbox_is_no_failed_guess():
    with serve(users=["alice", "bob"], verbose=0) as service:
        with open(service.config.user_table) as file:
            lines = file.readlines()
        with open(service.config.user_table, "w") as file:
            file.writelines(line for line in lines if not line.startswith("bob"))
        service.command("reload")
        with RawPop3(service) as client:
            client.ask(b"USER bob")
            assert client.ask(b"PASS secret") == b"-ERR [AUTH] wrong name or password\r\n"
        assert "why=AUTH" not in service.wait_log("why=nomailbox user=bob")


def test_one_mistyped_password_is_one_failure_in_the_log():
    """E9: as a client tries it that knows PLAIN, LOGIN and PASS."""
    with serve(users=["alice"], verbose=0) as service:
        with RawPop3(service) as client:
            for attempt in (b"AUTH PLAIN AGFsaWNlAHR5cG8=", b"AUTH LOGIN YWxpY2U=", b"USER alice"):
                said = client.ask(attempt)
                if not said.startswith(b"-ERR"):
                    said = client.ask(b"dHlwbw==" if b"LOGIN" in attempt else b"PASS typo")
                assert said == b"-ERR [AUTH] wrong name or password\r\n"
            client.ask(b"USER alice")
            assert client.ask(b"PASS another") == b"-ERR [AUTH] wrong name or password\r\n"
        log = service.wait_log("login failed", count=2)
        assert log.count("login failed") == log.count("why=AUTH user=alice") == 2
        with RawPop3(service, user="alice") as client:
            assert client.ask(b"NOOP") == b"+OK\r\n"


# Floods


class HalfOpen(threading.Thread):
    """Opens one connection after the other, sends what begins a handshake and no more, until it is stopped."""

    def __init__(self, service, data, tls=True, most=400):
        super().__init__()
        self.address = service.tls if tls else service.plain
        self.data, self.most, self.made = data, most, 0
        self.stopped = threading.Event()

    def run(self):
        held = []
        while not self.stopped.is_set():
            with contextlib.suppress(OSError):
                sock = connect(self.address, source="127.0.0.7")
                held.append(sock)
                sock.sendall(self.data)
                self.made += 1
            if len(held) > self.most:
                held.pop(0).close()
        for sock in held:
            sock.close()


@pytest.mark.parametrize(("isolation", "port", "data"), [
    ("shared", "tls", HELLO), ("shared", "tls", b""), ("shared", "stls", b""), ("shared", "stls", b"STLS\r\n" + HELLO),
    ("connection", "tls", HELLO), ("connection", "stls", b""),
])
def test_a_flood_of_clients_that_never_log_in_makes_room(isolation, port, data):
    """B10: whatever the port and however far each goes; one from another address gets in each time."""
    with serve(isolation=isolation, max_sessions=60, max_handshakes=20, login_seconds=180, verbose=0) as service:
        flood = HalfOpen(service, data, tls=port == "tls")
        flood.start()
        try:
            wait_for(lambda: flood.made > 120, seconds=60)
            for n in range(3):
                with RawPop3(service, port, user="alice") as client:
                    assert client.ask(b"STAT").startswith(b"+OK 1 "), n
                    client.ask(b"QUIT")
        finally:
            flood.stopped.set()
            flood.join()
        service.wait_log("127.0.0.7: another made room: max_")
