"""Test logins right after a start, when each password has to be checked: all wait, none is refused."""

import contextlib
import threading
import time

import bcrypt
import pytest

from benchmarks.cold_start import measure
from tests.e2e.limits.test_login_limits import seconds_used
from tests.support.limits import MAIL, USERS, resets, serve
from tests.support.pop3 import RawPop3
from tests.support.processes import continue_process, pid_of, stop_process
from tests.support.service import Service
from tests.support.waiting import wait_for

OFFICE = [f"user{n:03d}" for n in range(120)]
COST = 10  # a check takes 60 ms: the crowd waits longer than the second from which the log tells


def asking(service, user, password="secret", **options):
    client = service.keep(RawPop3(service, "", **options))
    client.ask(b"USER " + user.encode())
    client.send(b"PASS " + password.encode() + b"\r\n")
    return client


@pytest.fixture(scope="module")
def office():
    """Use default settings."""
    with Service(
        users=[*OFFICE, "alice", "bob"],
        mail=MAIL[:1],
        cost=COST,
        lmtp=False,
        allow_plaintext=True,
        penalty_seconds=15,
        verbose=0,
    ) as service:
        yield service


def test_many_users_behind_one_address(office):
    """Some have an old password. A user of another address waits for a few checks only."""
    with contextlib.ExitStack() as stack:
        clients = [
            stack.enter_context(asking(office, user, "old" if n % 20 == 9 else "secret"))
            for n, user in enumerate(OFFICE)
        ]
        began, took = time.monotonic(), []
        with asking(office, "alice", source="127.0.0.2") as other:
            assert other.line().startswith(b"+OK 1 ")
            took.append(time.monotonic() - began)
            other.ask(b"QUIT")
        said = [client.line() for client in clients]
        took.append(time.monotonic() - began)
        for n, line in enumerate(said):
            assert line.startswith(b"-ERR [AUTH]" if n % 20 == 9 else b"+OK 1 "), (n, line)
        assert took[0] < took[1] / 2
    office.wait_log("logins wait for the password check, the oldest for ")
    state = office.status()["logins"]
    assert state["waiting"] == 0 and state["penalised"] == 0 and state["refused"] == {}


def test_a_waiting_login_whose_client_is_gone_is_not_checked(office):
    stop_process(auth := pid_of(office, "auth"))
    before = seconds_used(auth)
    gone = [asking(office, "bob", f"wrong{n}", source=f"127.0.1.{n}") for n in range(60)]
    for client in gone:
        resets(office, client)
    with asking(office, "bob", source="127.0.0.3") as client:
        continue_process(auth)
        assert client.line().startswith(b"+OK 1 ")
    wait_for(lambda: office.status()["logins"]["waiting"] == 0)
    began, hashed = time.process_time(), bcrypt.gensalt(COST)
    for _ in range(3):
        bcrypt.hashpw(b"secret", hashed)
    assert seconds_used(auth) - before < 30 * (time.process_time() - began) / 3


def test_connections_wait_for_a_place_while_logins_wait():
    """They are not refused, and have their whole time to log in once they have a place."""
    with serve(max_sessions=3, login_seconds=60) as service, contextlib.ExitStack() as stack:
        stop_process(auth := pid_of(service, "auth"))
        for user in USERS[:3]:
            stack.enter_context(asking(service, user))
        said = []

        def come():
            with RawPop3(service, user="frank") as client:
                said.append(client.ask(b"STAT"))

        late = threading.Thread(target=come)
        late.start()
        late.join(0.5)
        assert late.is_alive() and not said
        for client in list(service.clients):
            client.send(b"QUIT\r\n")
        continue_process(auth)
        late.join(20)
        assert said == [b"+OK 1 %d\r\n" % int(said[0].split()[2])]
        assert "is met" not in service.read_log()


@pytest.mark.slow
def test_a_thousand_users_at_once():
    """The benchmark's own way; nobody is refused, and another address hardly waits."""
    crowd, other = measure(1000, 0.0, 8)
    assert (len(crowd.took), crowd.refused) == (1000, {})
    assert other.took and not other.refused and max(other.took) < max(crowd.took) / 3
