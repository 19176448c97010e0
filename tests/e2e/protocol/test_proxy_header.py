"""Test PROXY headers: from configured networks only, first of all; the client's address counts."""

import contextlib
import socket

import pytest
from popkernel.kernel.client import Client

from tests.e2e.reload.test_reload import rewrite
from tests.support import awkward
from tests.support.limits import MAIL, TOO_MANY_ADDRESS, greeting, refused_and_served, serve
from tests.support.pop3 import RawPop3, connect
from tests.support.waiting import wait_for
from tests.unit.test_proxy_header import checked, tcp4, tcp6, tlv, v2

PROXY, ELSEWHERE = "127.0.0.1", "127.0.0.2"
HEADERS = {
    "version 1, IPv4": (b"PROXY TCP4 192.0.2.7 192.0.2.1 51234 995\r\n", "192.0.2.7:51234"),
    "version 1, IPv6": (b"PROXY TCP6 2001:db8::7 2001:db8::1 51234 995\r\n", "[2001:db8::7]:51234"),
    "version 2, IPv4": (v2(body=tcp4()), "192.0.2.7:51234"),
    "version 2, IPv6": (v2(kind=0x21, body=tcp6()), "[2001:db8::7]:51234"),
    "version 2, with fields": (checked(tcp4() + tlv(4, bytes(400))), "192.0.2.7:51234"),
    "IPv4 in IPv6": (b"PROXY TCP6 ::ffff:192.0.2.7 ::1 51234 995\r\n", "192.0.2.7:51234"),
}
OWN = {
    "version 1, UNKNOWN": b"PROXY UNKNOWN\r\n",
    "version 1, UNKNOWN with words": b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n",
    "version 2, LOCAL": v2(0x20, 0, b""),
    "version 2, LOCAL with an address": v2(0x20, 0x11, tcp4()),
    "version 2, no address": v2(0x21, 0, b""),
}
GARBAGE = {
    "a command": b"CAPA\r\n",
    "a hello": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "no address": b"PROXY TCP4 300.0.2.7 192.0.2.1 1 2\r\n",
    "LF alone": b"PROXY TCP4 192.0.2.7 192.0.2.1 1 2\n",
    "a long line": b"PROXY UNKNOWN " + b"x" * 200,
    "version 3": v2(0x31, 0x11, tcp4()),
    "a wrong checksum": checked(tcp4(), wrong=1),
    "too long": v2(body=tcp4(), length=60000),
    "datagrams": v2(0x21, 0x12, tcp4()),
    "NULs": bytes(600),
    "a name": b"PROXY TCP4 localhost 192.0.2.1 1 2\r\n",
}
HALVES = (b"", b"PROXY TCP4 192.0", v2(body=tcp4())[:20])


def client1(address, port=51234):
    """Return a header of version 1."""
    return (b"PROXY TCP6 %b ::1 %d 995\r\n" if b":" in address else b"PROXY TCP4 %b 192.0.2.1 %d 995\r\n") % (
        address,
        port,
    )


@pytest.fixture(scope="module")
def service():
    with serve(proxy_networks=[PROXY]) as running:
        yield running


def use(client, user=b"alice"):
    """Do a failing and a successful login, read a message, QUIT."""
    client.ask(b"USER " + user)
    assert client.ask(b"PASS wrong").startswith(b"-ERR [AUTH]")
    client.ask(b"USER " + user)
    assert client.ask(b"PASS secret").startswith(b"+OK 1 ")
    assert client.many(b"RETR 1") == awkward.on_the_wire(MAIL[0])
    assert client.ask(b"QUIT") == b"+OK bye\r\n"


@pytest.mark.parametrize("tls", ["tls", "stls", ""])
@pytest.mark.parametrize("title", HEADERS)
def test_the_address_is_the_client_s(service, title, tls):
    """The log and a viewer see it.

    The header comes in one segment with the ClientHello.
    """
    header, address = HEADERS[title]
    failed, over = (
        service.read_log().count(f"{what}: address={address} ") for what in ("login failed", "session over")
    )
    with Client(service.config.run_dir).follow(types=["Connected"]) as watched:
        with RawPop3(service, tls, before=header) as client:
            use(client)
        assert (
            wait_for(lambda: watched.next_frame(1), until=lambda f: f.name == "Connected").fields["address"]
            == address
        )
    service.wait_log(f"login failed: address={address} ", count=failed + 1)
    service.wait_log(f"session over: address={address} ", count=over + 1)


@pytest.mark.parametrize("tls", ["tls", ""])
@pytest.mark.parametrize("title", OWN)
def test_a_proxy_s_own_connection_is_its_own(service, title, tls):
    before = service.read_log().count(f"session over: address={PROXY}:")
    with RawPop3(service, tls, before=OWN[title]) as client:
        use(client)
    service.wait_log(f"session over: address={PROXY}:", count=before + 1)


@pytest.mark.parametrize("title", [*HEADERS, *OWN])
def test_octet_by_octet(service, title):
    header = HEADERS[title][0] if title in HEADERS else OWN[title]
    for where, hello in ((service.plain, b""), (service.tls, b"\x16\x03\x01")):
        with connect(where) as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for octet in header + hello:
                sock.send(bytes([octet]))
            if not hello:
                assert sock.recv(100) == b"+OK POP3 ready\r\n"
                sock.sendall(b"QUIT\r\n")
                assert sock.recv(100) == b"+OK bye\r\n"
            else:  # the handshake begins after it, so a malformed record is reported
                sock.sendall(b"\xff" * 20)
                assert sock.recv(100)[:2] == b"\x15\x03"


@pytest.mark.parametrize("title", GARBAGE)
def test_a_malformed_header_ends_the_connection_silently(service, title):
    with RawPop3(service, before=HEADERS["version 1, IPv4"][0], user="bob") as other:
        count = service.read_log().count(f"warning: listener.0: {PROXY}: connection closed: ")
        for where in (service.tls, service.plain):
            with connect(where) as sock:
                with contextlib.suppress(ConnectionError):
                    sock.sendall(GARBAGE[title])
                    assert sock.recv(100) == b""
        log = service.wait_log(f"warning: listener.0: {PROXY}: connection closed: ", count=count + 2)
        assert (
            "Traceback" not in log
            and "fault of its own" not in log
            and service.actor("listener")["restarts"] == 0
        )
        assert other.ask(b"STAT").startswith(b"+OK 1 ")


def test_a_header_that_does_not_come(service):
    """The client hangs up before it, or waits for five seconds."""
    for waits in (False, True):
        with contextlib.ExitStack() as stack:
            socks = [stack.enter_context(connect(service.plain)) for _ in HALVES]
            for sock, half in zip(socks, HALVES, strict=True):
                sock.sendall(half)
                if not waits:
                    sock.shutdown(socket.SHUT_WR)
            assert [sock.recv(100) for sock in socks] == [b""] * len(HALVES)
    with RawPop3(service, before=HEADERS["version 2, IPv4"][0]) as client:
        use(client)


def test_a_header_from_elsewhere_is_an_unknown_command(service):
    for header in (HEADERS["version 1, IPv4"][0], HEADERS["version 2, IPv4"][0]):
        with RawPop3(service, "", source=ELSEWHERE, before=header + b"\r\n") as client:
            assert client.greeting.startswith(b"+OK")
            assert client.line() == b"-ERR unknown command\r\n"
            client.send(b"QUIT\r\n")
            assert client.end().endswith(b"+OK bye\r\n")
        assert greeting(service, source=ELSEWHERE, before=header) == b""  # and no TLS
    with RawPop3(service, source=ELSEWHERE) as client:  # a client from elsewhere sends none
        use(client)
    log = service.wait_log(f"session over: address={ELSEWHERE}:")
    assert f"login failed: address={ELSEWHERE}:" in log


def test_two_headers_are_one_too_many(service):
    header = HEADERS["version 1, IPv4"][0]
    with RawPop3(service, "", before=header + header) as client:
        assert client.line() == b"-ERR unknown command\r\n"


def test_bounds_and_bans_go_by_the_client_s_address(tmp_path):
    """IPv6 counts by network; an IPv4 address is the same in every notation."""
    path = tmp_path / "blocked"
    path.write_bytes(b"203.0.113.0/24\n2001:db8:bad::/48\n")
    with (
        serve(proxy_networks=[PROXY], max_sessions_address=2, block_list=str(path)) as service,
        contextlib.ExitStack() as stack,
    ):

        def come(address, tls="", user=""):
            return stack.enter_context(RawPop3(service, tls, before=client1(address), user=user))

        served = [
            come(b"192.0.2.7", user="alice"),
            come(b"::ffff:192.0.2.7", "tls", "bob"),
            come(b"192.0.2.8", user="carol"),
        ]
        refused_and_served(service, served, TOO_MANY_ADDRESS, before=client1(b"192.0.2.7"))
        served += [
            come(b"2001:db8::1", "tls", "dave"),
            come(b"2001:db8::2:1", user="erin"),
            come(b"2001:db8:0:1::1", user="frank"),
        ]
        refused_and_served(service, served, TOO_MANY_ADDRESS, before=client1(b"2001:db8::3:ffff"))
        assert greeting(service, before=client1(b"192.0.2.9")).startswith(b"+OK")
        for blocked in (b"203.0.113.5", b"2001:db8:bad::5", b"::ffff:203.0.113.9"):
            for tls in ("tls", ""):
                assert greeting(service, tls, before=client1(blocked)) == b""
        assert served[0].ask(b"QUIT") == b"+OK bye\r\n"
        wait_for(
            lambda: greeting(service, before=client1(b"192.0.2.7")),
            until=lambda said: said.startswith(b"+OK"),
        )


def test_connections_before_their_header_are_bounded():
    with serve(proxy_networks=[PROXY], max_sessions=3) as service, contextlib.ExitStack() as stack:
        with RawPop3(service, before=client1(b"192.0.2.7"), user="alice") as client:
            for _ in range(2):
                stack.enter_context(connect(service.plain))
            assert greeting(service, before=client1(b"192.0.2.8")) == b""
            assert client.ask(b"STAT").startswith(b"+OK 1 ")
            stack.close()
            wait_for(
                lambda: greeting(service, before=client1(b"192.0.2.8")),
                until=lambda said: said.startswith(b"+OK"),
            )


def test_networks_change_with_a_reload():
    with serve(proxy_networks=[PROXY, "::1"]) as running:
        with RawPop3(running, "", before=HEADERS["version 1, IPv4"][0]) as held:
            rewrite(running.toml, lambda text: text.replace(f'"{PROXY}", ', f'"{ELSEWHERE}", '))
            running.command("reload")
            assert greeting(running).startswith(b"+OK")
            with RawPop3(running, source=ELSEWHERE, before=HEADERS["version 1, IPv4"][0]) as client:
                use(client)
            use(held)  # existing sessions stay
