"""Test crowds and floods: right passwords get in at once, and a flood makes room for honest clients."""

import base64
import contextlib
import os
import re
import threading
import time

import pytest

from tests.support.limits import MAIL, USERS, serve
from tests.support.pop3 import RawPop3, connect
from tests.support.service import Service
from tests.support.tracing.trace_command import frames_of, watcher
from tests.support.waiting import wait_for

OFFICE = [f"user{n}" for n in range(300)]
HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"  # the beginning of a ClientHello
COST = 7  # a check takes 7 ms


def come_in_at_once(service, users, password="secret", **options):
    """Connect all, then log in all at the same moment; return the replies and the time of the last one."""
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
    """Use default settings."""
    with Service(
        users=OFFICE,
        mail=MAIL,
        cost=COST,
        lmtp=False,
        allow_plaintext=True,
        max_sessions_address=2000,
        penalty_seconds=15,
        verbose=0,
    ) as service:
        yield service


@pytest.mark.parametrize("again", ["start", "reload"])
def test_an_office_behind_one_address_logs_in_at_once(office, again):
    """No user is known yet; none is refused or waits longer than hashing and 300 new processes take."""
    if again == "reload":
        office.change_files()
        office.command("reload")
    said, took = come_in_at_once(office, OFFICE)
    assert [line for line in said if not line.startswith(b"+OK 1 ")] == []
    assert took < 15
    assert "login failed" not in office.read_log() and "is met" not in office.read_log()


def test_concurrent_guesses_are_not_all_checked():
    """The log gives the reason and the wait."""
    with serve(penalty_seconds=3) as service:
        said, _ = come_in_at_once(service, OFFICE[:100], "guess", tls="", source="127.0.0.9")
        looked = said.count(b"-ERR [AUTH] wrong name or password\r\n")
        assert looked <= 5 + 4 * len(os.sched_getaffinity(0)) + 4
        refused = [line for line in said if not line.startswith(b"-ERR [AUTH]")]
        assert all(
            line.startswith(b"-ERR [SYS/TEMP] too many failed logins from your address, try again in ")
            for line in refused
        )
        log = service.wait_log("reason=guard waited_ms=")
        assert re.search(r"reason=guard waited_ms=\d+ seconds=\d+ ", log) and "reason=temp" not in log
        said, _ = come_in_at_once(service, USERS)  # from another address
        assert all(line.startswith(b"+OK") for line in said)


def test_a_name_in_another_case_logs_in():
    """By every method; the log, the user's trace and the lease use the table's name."""
    with serve() as service, watcher(service, user="alice") as viewer:
        with RawPop3(service) as client:
            assert client.ask(b"USER Alice") == b"+OK\r\n" and client.ask(b"PASS secret").startswith(
                b"+OK 1 "
            )
            assert [lease["user"] for lease in service.status()["leases"]] == ["alice"]
            with RawPop3(service) as other:
                assert other.ask(b"USER aLICE") == b"+OK\r\n"
                assert other.ask(b"PASS secret").startswith(b"-ERR [IN-USE]")
            assert client.ask(b"QUIT") == b"+OK bye\r\n"
        service.wait_log("why=quit user=alice")
        frames = frames_of(
            viewer, lambda frame: frame.name == "ConnectionEnded" and frame.fields["why"] == "quit"
        )
        mine = [frame.name for frame in frames if frame.session == frames[-1].session]
        assert mine[0] == "Connected" and {"LoginRequest", "LoginGranted", "SessionAdmitted", "Typed"} <= set(
            mine
        )
    with serve(login_case="exact") as service, RawPop3(service) as client:
        assert client.ask(b"USER Alice") == b"+OK\r\n" and client.ask(b"PASS secret").startswith(
            b"-ERR [AUTH]"
        )


def test_names_that_differ_in_case_only():
    """Each is found by its own spelling; check, a start and a reload warn alike."""
    users = {"alice": "one", "Alice": "two", "bob": "three"}
    with serve(users=users) as service:
        for name, password, good in (
            ("alice", "one", True),
            ("Alice", "two", True),
            ("ALICE", "one", False),
            ("ALICE", "two", False),
            ("BOB", "three", True),
        ):
            with RawPop3(service) as client:
                client.ask(b"USER " + name.encode())
                assert client.ask(b"PASS " + password.encode()).startswith(
                    b"+OK" if good else b"-ERR [AUTH]"
                ), name
                client.ask(b"QUIT")
        words = "users alice and Alice differ in case only: each is found only as it is written here"
        for table in (service.config.auth_table, service.config.user_table):
            assert f"{table}:2: {words}" in service.read_log()
        before = service.read_log().count(words)
        service.change_files()
        service.command("reload")
        service.wait_log(words, count=before + 2)
        assert service.command("check", "-f", service.toml, check=False).stdout.count(words) == 2


def test_names_with_and_without_the_default_domain():
    """By USER and AUTH; a name of the table is always that user; check and a start warn of both forms."""
    users = {"alice": "one", "bob@example.org": "two", "carol": "three", "carol@example.org": "four"}
    with serve(users=users, default_domain="example.org") as service:
        for name, password, good in (
            ("alice@example.org", "one", True),
            ("Bob", "two", True),
            ("carol", "three", True),
            ("carol@example.org", "four", True),
            ("carol@example.org", "three", False),
            ("alice@other.example", "one", False),
        ):
            for plain in (False, True):
                with RawPop3(service) as client:
                    client.ask(b"AUTH PLAIN" if plain else b"USER " + name.encode())
                    secret = base64.b64encode(f"\0{name}\0{password}".encode())
                    said = client.ask(secret if plain else b"PASS " + password.encode())
                    assert said.startswith(b"+OK" if good else b"-ERR [AUTH]"), name
                    client.ask(b"QUIT")
        words = f"{service.config.auth_table}:4: users carol and carol@example.org differ in default_domain"
        assert words in service.read_log()
        assert words in service.command("check", "-f", service.toml, check=False).stdout


def test_the_log_of_a_lost_session_has_marked_and_removed_messages():
    with serve(users=["alice"], mail=MAIL * 3) as service:
        for quits, said in ((False, "marked=2 removed=0"), (True, "marked=1 removed=1")):
            with RawPop3(service, user="alice") as client:
                assert client.ask(b"DELE 1") == client.ask(b"DELE 2") == b"+OK marked\r\n"
                if quits:
                    client.ask(b"RSET"), client.ask(b"DELE 1"), client.ask(b"QUIT")
            assert f"retrieved=0 {said} " in service.wait_log(said)


def test_a_right_password_without_a_mailbox_is_no_failed_guess():
    with serve(users=["alice", "bob"], verbose=0) as service:
        with open(service.config.user_table) as file:
            lines = file.readlines()
        with open(service.config.user_table, "w") as file:
            file.writelines(line for line in lines if not line.startswith("bob"))
        service.command("reload")
        with RawPop3(service) as client:
            client.ask(b"USER bob")
            assert client.ask(b"PASS secret") == b"-ERR [AUTH] wrong name or password\r\n"
        log = service.wait_log("reason=no-maildrop")
        assert "user=bob" in log and "reason=password" not in log


def test_one_mistyped_password_is_one_failure_in_the_log():
    """The client tries PLAIN, LOGIN and PASS."""
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
        assert log.count("login failed") == log.count(" reason=password ") == 2
        with RawPop3(service, user="alice") as client:
            assert client.ask(b"NOOP") == b"+OK\r\n"


# Floods


class HalfOpen(threading.Thread):
    """Open connections one after the other and send the beginning of a handshake, until stopped."""

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


@pytest.mark.parametrize(
    ("isolation", "port", "data"),
    [
        ("shared", "tls", HELLO),
        ("shared", "tls", b""),
        ("shared", "stls", b""),
        ("shared", "stls", b"STLS\r\n" + HELLO),
        ("connection", "tls", HELLO),
        ("connection", "stls", b""),
    ],
)
def test_a_flood_of_clients_that_never_log_in_makes_room(isolation, port, data):
    """A client from another address gets in each time.

    The port and the progress of the flood's clients make no difference.
    """
    with serve(
        isolation=isolation, max_sessions=60, max_handshakes=20, login_seconds=180, verbose=0
    ) as service:
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
