"""Test connection limits: a clear refusal, other clients served, counts that return to zero."""

import contextlib
import socket
import types

import pytest

from tests.e2e.login.test_fail2ban import has_ipv6
from tests.e2e.reload.test_reload import write
from tests.support.limits import (
    TOO_FAST,
    TOO_MANY,
    TOO_MANY_ADDRESS,
    USERS,
    greeting,
    hangs_up,
    refused_and_served,
    resets,
    serve,
)
from tests.support.pop3 import RawPop3, connect
from tests.support.ports import free_ports
from tests.support.processes import kill, pid_of
from tests.support.waiting import wait_for

HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"  # the beginning of a ClientHello


@pytest.fixture(scope="module")
def three():
    with serve(max_sessions=3, login_seconds=3, most_errors=2, max_commands=9, lmtp=False) as running:
        yield running


def test_sessions_in_all(three):
    with (
        RawPop3(three, user="alice") as one,
        RawPop3(three, "stls", user="bob") as two,
        RawPop3(three, "", user="carol") as last,
    ):
        refused_and_served(three, [one, two, last], TOO_MANY)
        assert last.ask(b"QUIT") == b"+OK bye\r\n"
        with RawPop3(three, user="carol") as again:
            refused_and_served(three, [one, two, again], TOO_MANY)
    wait_for(lambda: "too many connections" in three.read_log())


# Ways to end a connection; each must free its place


def quits(service, client):
    client.ask(b"QUIT")


def loses_its_maildir_actor(service, client):
    client.ask(b"USER carol")
    client.ask(b"PASS secret")
    kill(pid_of(service, "maildir.carol"))
    assert client.end().startswith(b"-ERR [SYS/TEMP]")


def is_too_slow(service, client):
    assert client.end() == b""
    service.wait_log('why="logged in too slowly"')


def errs_too_often(service, client):
    client.send(b"X\r\n" * 5)
    assert client.end().endswith(b"-ERR too many errors\r\n")


def asks_too_often(service, client):
    client.send(b"CAPA\r\n" * 20)
    said = client.end()
    assert said.count(b"+OK") == 9 and said.endswith(b"-ERR too many commands\r\n")


def quits_logged_in(service, client):
    client.send(b"USER carol\r\nPASS secret\r\nRETR 1\r\nQUIT\r\n")
    assert client.end().endswith(b"+OK bye\r\n")


def half_closes(service, client):
    client.sock.shutdown(socket.SHUT_WR)
    assert client.end() == b""


ENDS = (
    quits, hangs_up, resets, loses_its_maildir_actor, is_too_slow, errs_too_often, asks_too_often,
    quits_logged_in, half_closes,
)  # fmt: skip


@contextlib.contextmanager
def two_of_three(service):
    """Hold two sessions, so that there is room for one."""
    with RawPop3(service, user="alice") as one, RawPop3(service, user="bob") as two:
        yield
        assert one.ask(b"STAT").startswith(b"+OK 1 ") and two.ask(b"STAT").startswith(b"+OK 1 ")
        one.ask(b"QUIT"), two.ask(b"QUIT")


def room_for_one(service):
    """Check that one more client gets in, and no second."""
    wait_for(lambda: greeting(service), until=lambda said: said.startswith(b"+OK"))
    wait_for(lambda: service.status()["sessions"], until=lambda there: len(there) == 2)

    def one_and_no_second():
        with contextlib.suppress(EOFError, OSError), RawPop3(service, user="carol") as client:
            return (greeting(service), greeting(service, "")) == (TOO_MANY, TOO_MANY) and client.ask(b"QUIT")
        return False

    wait_for(one_and_no_second)


@pytest.mark.parametrize(
    ("end", "tls"), [*((end, "tls") for end in ENDS if end is not half_closes), *((end, "") for end in ENDS)]
)
def test_every_end_frees_its_place(three, end, tls):
    with two_of_three(three):
        with RawPop3(three, tls) as client:
            assert client.greeting.startswith(b"+OK")
            end(three, client)
        room_for_one(three)


@pytest.mark.parametrize("data", [b"", b"GET / HTTP/1.0\r\n\r\n", HELLO, b"\0" * 3000])
def test_every_end_of_a_handshake_frees_its_place(three, data):
    for before in (b"", b"STLS\r\n"):
        with two_of_three(three):
            where = three.plain if before else three.tls
            with connect(where) as sock:
                sock.sendall(before)
                while before and not sock.recv(100).endswith(b"begin TLS\r\n"):
                    continue
                with contextlib.suppress(OSError):
                    sock.sendall(data)
            room_for_one(three)


def test_a_silent_client_makes_room():
    """If all places are taken, a client before login makes room at once.

    At an address's limit, one of its own clients does.
    """
    for bound in ("max_sessions", "max_sessions_address"):
        with (
            serve(**{bound: 2}, login_seconds=60) as service,
            RawPop3(service, user="alice") as one,
            RawPop3(service) as silent,
        ):
            assert greeting(service).startswith(b"+OK")
            assert silent.end() == b""
            assert one.ask(b"STAT").startswith(b"+OK 1 ")
            service.wait_log('why="made room for another"')
            service.wait_log(
                f"warning: listener.0: 127.0.0.1: another made room: {bound} is met (2 in this process)"
            )


def test_idle_sessions_end_and_free_their_place():
    with serve(max_sessions=1, idle_seconds=10) as service, RawPop3(service, user="alice") as client:
        assert client.ask(b"DELE 1").startswith(b"+OK")
        assert greeting(service) == TOO_MANY
        assert client.end() == b""
        service.wait_log('why="idle too long"')
        with RawPop3(service, user="alice") as again:
            assert again.ask(b"STAT").startswith(b"+OK 1 ")  # nothing was removed


# Limits for one address


def test_sessions_of_one_address():
    with serve(max_sessions_address=2) as service:
        with (
            RawPop3(service, user="alice") as one,
            RawPop3(service, "", user="bob") as two,
            RawPop3(service, user="carol", source="127.0.0.2") as other,
        ):
            refused_and_served(service, [one, two, other], TOO_MANY_ADDRESS)
            assert greeting(service, source="127.0.0.2").startswith(b"+OK")
            resets(service, two)
            wait_for(lambda: greeting(service), until=lambda said: said.startswith(b"+OK"))
            with RawPop3(service, user="bob"):
                refused_and_served(service, [one, other], TOO_MANY_ADDRESS)
        line = "warning: listener.0: 127.0.0.1: refused: max_sessions_address is met (2 in this process)"
        assert service.read_log().count(line) == 1  # once a minute


@pytest.mark.skipif(not has_ipv6(), reason="needs ::1")
def test_sessions_of_one_address_of_ipv6():
    """It is not counted as 127.0.0.1, and is written in brackets."""
    ports = free_ports(4)
    with serve(
        max_sessions_address=1,
        listen=[f"127.0.0.1:{ports[0]}", f"[::1]:{ports[1]}"],
        listen_starttls=[f"[::1]:{ports[2]}"],
    ) as service:
        six = types.SimpleNamespace(
            tls=service.config.listen[1], plain=service.config.listen_starttls[0], site=service.site
        )
        with RawPop3(six, user="alice") as one, RawPop3(service, user="bob") as other:
            refused_and_served(six, [one, other], TOO_MANY_ADDRESS)
            assert greeting(service) == TOO_MANY_ADDRESS
        service.wait_log("address=[::1]:")


def test_connections_a_minute():
    with serve(connects_per_minute=4, listeners=1) as service, RawPop3(service, user="alice") as client:
        assert [greeting(service, tls)[:3] for tls in ("tls", "", "tls")] == [b"+OK"] * 3
        refused_and_served(service, [client], TOO_FAST)
        assert greeting(service, source="127.0.0.2").startswith(b"+OK")


# Several listeners


def test_two_listeners_share():
    """A listener refuses connections beyond its share, so the total never exceeds the limit."""
    with (
        serve(max_sessions=4, max_sessions_address=0, listeners=2, restart_intensity=100) as service,
        contextlib.ExitStack() as stack,
    ):
        for _ in range(2):
            clients = []
            wait_for(
                lambda: (
                    len(clients) == 4
                    or not clients.append(stack.enter_context(kept(service, clients)))
                    and trim(clients)
                )
            )  # noqa: B023
            names = {row["listener"] for row in service.status()["sessions"]}
            assert names <= {"listener.0", "listener.1"}
            for _ in range(20):
                assert greeting(service) == greeting(service, "") == TOO_MANY
            for client in clients:  # a logged-in client makes no room
                assert client.ask(b"CAPA") == b"+OK capabilities follow\r\n"
                client.rest()
                client.ask(b"QUIT")


def kept(service, others):
    client = service.keep(RawPop3(service))
    if client.greeting.startswith(b"+OK"):
        assert client.ask(b"USER " + USERS[len(others)].encode()) == b"+OK\r\n"
        assert client.ask(b"PASS secret").startswith(b"+OK")
    return client


def trim(clients):
    """Close refused clients; return whether none was refused."""
    clients[:] = [client for client in clients if client.greeting.startswith(b"+OK")]
    return len(clients) == 4


# The block list


def test_block_list_at_the_start_and_after_a_reload(tmp_path):
    path = str(tmp_path / "blocked")
    with open(path, "wb") as file:
        file.write(b"# spammers\n192.0.2.0/24\n127.0.0.2  # one\n")
    with serve(block_list=path) as service, RawPop3(service, user="alice") as client:
        for tls in ("tls", ""):
            assert greeting(service, tls, source="127.0.0.2") == b""
            assert greeting(service, tls).startswith(b"+OK")
        write(path, b"127.0.0.1\n")
        assert greeting(service, source="127.0.0.2") == b""  # not yet in force
        service.command("reload")
        for tls in ("tls", ""):
            assert greeting(service, tls, source="127.0.0.2").startswith(b"+OK")
            assert greeting(service, tls) == b""
        assert client.ask(b"STAT").startswith(b"+OK 1 ")  # existing sessions stay
        write(path, b"127.0.0.1\n127.0.0.300\n")
        result = service.command("reload", check=False)
        assert result.returncode == 65 and f"{path}:2: " in result.stderr
        assert greeting(service) == b""  # the old list stays in force
        assert service.actor("listener")["restarts"] == 0
