"""Send malformed input, and change maildirs under a session: memory is bounded, other clients are served."""

import os
import socket
import ssl
import time

import pytest

from tests.support import awkward
from tests.support.pop3 import RawPop3, connect
from tests.support.service import Service
from tests.support.waiting import wait_for

MAIL = [awkward.head(f"number {n}") + b"body\n" for n in range(1, 5)]
WIRE = [awkward.on_the_wire(m) for m in MAIL]
LARGE = awkward.big(1)
BIG = awkward.big(50)
MIB = 1 << 20
CAROLS = [f"carol{n:02}" for n in range(24)]  # each for one test
CAROL = [*MAIL, LARGE, *MAIL]
USERS = {"alice": MAIL, "bob": [BIG], "dave": [*MAIL, LARGE], "erin": [BIG], "frank": MAIL} | dict.fromkeys(
    CAROLS, CAROL
)
SMALL = {"alice": MAIL, "dave": [*MAIL, LARGE], "erin": [BIG]}


@pytest.fixture(scope="module")
def service():
    # Quiet: nobody reads its log meanwhile, and a full pipe would block the kernel.
    with Service(users=list(USERS), mail=USERS, lmtp=False, verbose=0) as running:
        yield running


@pytest.fixture
def fresh():
    """Run a service whose memory other tests have not raised."""
    with Service(users=list(SMALL), mail=SMALL, lmtp=False, verbose=0) as running:
        yield running


@pytest.fixture(scope="module")
def flooded():
    """Run a service for floods; return it and its listener's memory before them."""
    with Service(users=list(SMALL), mail=SMALL, lmtp=False, verbose=0) as running:
        _served(running)
        yield running, _memory(running, "listener")


def _memory(service, name, what="VmRSS"):
    """Return octets resident now (VmRSS) or at most so far (VmHWM)."""
    with open(f"/proc/{service.actor(name)['pid']}/status") as file:
        return int(next(line for line in file if line.startswith(what)).split()[1]) * 1024


def _served(service, seconds=5.0):
    """Check that another user logs in and reads within `seconds`."""
    begin = time.monotonic()
    with RawPop3(service, user="alice") as client:
        assert [client.many(b"RETR %d" % n) for n in range(1, 5)] == WIRE
        assert client.ask(b"QUIT") == b"+OK bye\r\n"
    assert time.monotonic() - begin < seconds


def _half_open(service, count):
    """Open connections that stop within the TLS handshake: after nothing, one octet, or half a hello."""
    context = ssl.create_default_context(cafile=service.site.cert)
    out = ssl.MemoryBIO()
    shaking = context.wrap_bio(ssl.MemoryBIO(), out, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        shaking.do_handshake()
    hello = out.read()
    beginnings = [b"", hello[:1], hello[:-1], hello]
    socks = []
    for n in range(count):
        sock = service.keep(connect(service.tls))
        sock.sendall(beginnings[n % 4])
        socks.append(sock)
    return socks


def _with_half_open(service, count, octets_each):
    before = _memory(service, "listener")
    socks = _half_open(service, count)
    try:
        _served(service)
        assert _memory(service, "listener") - before < count * octets_each + 4 * MIB
    finally:
        for sock in socks:
            sock.close()
    wait_for(lambda: service.actor("listener")["state"], until=lambda state: state == "serving")
    _served(service)


def test_500_half_open_handshakes(fresh):
    _with_half_open(fresh, 500, 160_000)


@pytest.mark.load
def test_10000_half_open_handshakes():
    with Service(users=list(SMALL), mail=SMALL, lmtp=False, login_seconds=120, verbose=0) as service:
        _with_half_open(service, 9800, 160_000)


def test_half_open_handshakes_end_with_the_time_to_log_in():
    with Service(mail=MAIL, lmtp=False, login_seconds=2) as service:
        socks = _half_open(service, 40)
        for sock in socks:
            with sock:
                data = b"-"
                while data:
                    data = sock.recv(65536)
        _served(service)


@pytest.mark.parametrize(
    "garbage",
    [
        b"\0" * 5000,
        os.urandom(5000),
        b"USER alice\r\nPASS secret\r\n",
        b"GET / HTTP/1.0\r\n\r\n",
        b"\x16\x03\x01\xff\xff" + b"\1" * 70000,
        b"\x80\x2e\1\0\2",
    ],
)
def test_garbage_instead_of_tls(service, garbage):
    for where, before in ((service.tls, b""), (service.plain, b"STLS\r\n")):
        with connect(where) as sock:
            if before:
                assert sock.recv(100) == b"+OK POP3 ready\r\n"
                sock.sendall(before)
                assert sock.recv(100) == b"+OK begin TLS\r\n"
            said = b""
            try:
                sock.sendall(garbage)
                sock.shutdown(socket.SHUT_WR)
                while data := sock.recv(4096):
                    said += data
            except OSError:  # the server has closed it already
                pass
            assert b"+OK" not in said and b"-ERR" not in said
    _served(service)
    log = service.read_log()
    assert "Traceback" not in log and "fault of its own" not in log


def test_tls_hello_on_the_plain_port(service):
    with RawPop3(service, "") as client:
        client.send(b"\x16\x03\x01\x02\0\1\0\1\xfc\3\3" + os.urandom(500) + b"\r\n")
        assert client.line().startswith(b"-ERR")
    _served(service)


def test_client_that_stops_reading_in_a_large_message(fresh):
    service = fresh
    with RawPop3(service, user="erin", buffer=4096) as client:
        before = {name: _memory(service, name) for name in ("listener", "maildir.erin")}
        client.send(b"RETR 1\r\n" * 50)
        assert client.line() == b"+OK %d octets\r\n" % len(awkward.sent(BIG))
        for _ in range(5):
            _served(service)
        for name, octets in before.items():
            assert _memory(service, name, "VmHWM") - octets < 5 * MIB, name
        client.sock.settimeout(60)
        assert client.rest() == awkward.on_the_wire(BIG)  # it may continue at any time


@pytest.mark.parametrize(
    "command", [b"CAPA\r\n", b"NOOP\r\n", b"LIST\r\n", b"TOP 5 9999\r\n", b"RETR 1\r\n", b"XYZZY\r\nNOOP\r\n"]
)
def test_client_that_only_asks_and_never_reads(flooded, command):
    service, before = flooded
    with RawPop3(service, user="dave", buffer=4096) as client:
        client.sock.setblocking(False)
        sent, end = 0, time.monotonic() + 0.5
        block = command * 4000
        while time.monotonic() < end:
            try:
                sent += client.sock.send(block)
            except (ssl.SSLWantWriteError, BlockingIOError):
                _served(service)
        assert _memory(service, "listener", "VmHWM") - before < 6 * MIB, sent
    _served(service)


def test_pre_login_client_that_only_asks_and_never_reads(flooded):
    service, before = flooded
    with RawPop3(service, "", buffer=4096) as client:
        client.sock.setblocking(False)
        end = time.monotonic() + 0.5
        while time.monotonic() < end:
            try:
                client.sock.send(b"CAPA\r\n" * 4000)
            except BlockingIOError:
                _served(service)
        assert _memory(service, "listener", "VmHWM") - before < 6 * MIB


@pytest.mark.load
def test_2_gigabytes_to_a_slow_client():
    """The message is a sparse file, NULs in one line of 2 GB.

    It is measured, and sent at 8 MB/s for a while and then at full speed.
    """
    size = 2 << 30
    with Service(users=list(USERS), mail=USERS, lmtp=False) as service:
        row = service.site.mail_users["frank"]
        path = f"{row.maildir}/new/1800000000.0000002a.localhost"
        with open(path, "wb") as file:
            file.truncate(size)
        os.chown(path, row.uid, row.gid)
        with RawPop3(service, user="frank", timeout=120, buffer=65536) as client:
            names = ("listener", "maildir.frank", "kernel")
            before = {name: _memory(service, name) for name in names}
            client.send(b"RETR 5\r\n")
            assert client.line() == b"+OK %d octets\r\n" % (size + 2)
            got, begin = len(client.data), time.monotonic()
            client.data.clear()
            buffer = bytearray(MIB)
            while got < size + 5:
                got += client.sock.recv_into(buffer)
                if got < 64 * MIB and (early := begin + got / (8 * MIB) - time.monotonic()) > 0:
                    time.sleep(early)  # the pace is what is tested
                if got % 97 == 0 and got < 64 * MIB:
                    _served(service)
            assert got == size + 5
            for name, octets in before.items():
                assert _memory(service, name, "VmHWM") - octets < 5 * MIB, name
            assert client.ask(b"NOOP") == b"+OK\r\n"


# A maildir that another program changes under a session


class Changing:
    """Hold a session of one carol, and her files."""

    def __init__(self, service, user):
        self.service = service
        self.user = user
        self.row = service.site.mail_users[user]
        self.cur = f"{self.row.maildir}/cur"
        self.client = service.keep(RawPop3(service, user=user))
        self.names = sorted(os.listdir(self.cur))
        self.wire = [awkward.on_the_wire(m) for m in CAROL]

    def path(self, number):
        return f"{self.cur}/{self.names[number - 1]}"

    def replace(self, number, data):
        new = f"{self.row.maildir}/tmp/new"
        with open(new, "wb") as file:
            file.write(data)
        os.chown(new, self.row.uid, self.row.gid)
        os.rename(new, self.path(number))


_carols = iter(CAROLS)


@pytest.fixture
def carol(service):
    changing = Changing(service, next(_carols))
    with changing.client:
        yield changing
    _served(service)


def test_changed_flags(carol):
    for n, name in enumerate(carol.names):
        os.rename(
            f"{carol.cur}/{name}", f"{carol.cur}/{name.split(':')[0]}:2,{('S', 'FS', 'RST', '', 'P')[n % 5]}"
        )
    for n in (9, 1, 5, 2, 3, 4, 6, 7, 8):
        assert carol.client.many(b"RETR %d" % n) == carol.wire[n - 1]
    carol.client.send(b"DELE 1\r\nDELE 9\r\nQUIT\r\n")
    assert carol.client.end() == b"+OK marked\r\n" * 2 + b"+OK bye\r\n"
    left = sorted(os.listdir(carol.cur))
    assert [name.split(":")[0] for name in left] == [name.split(":")[0] for name in carol.names[1:8]]

    def flags():
        return [set(name.split(",")[1]) for name in sorted(os.listdir(carol.cur))]

    # flags are set after the client has its reply
    assert wait_for(flags, until=lambda found: all("S" in f for f in found))[:2] == [set("FS"), set("RST")]


@pytest.mark.parametrize("number", [2, 5])
def test_removed_message(carol, number):
    os.unlink(carol.path(number))
    for n in range(1, 10):
        if n == number:
            assert carol.client.ask(b"RETR %d" % n).startswith(b"-ERR [SYS/TEMP] ")
            assert carol.client.ask(b"TOP %d 0" % n).startswith(b"-ERR [SYS/TEMP] ")
        else:
            assert carol.client.many(b"RETR %d" % n) == carol.wire[n - 1]
    carol.client.send(b"DELE %d\r\nQUIT\r\n" % number)
    assert carol.client.end() == b"+OK marked\r\n+OK bye\r\n"


def test_message_put_back_into_new(carol):
    os.rename(carol.path(3), f"{carol.row.maildir}/new/{carol.names[2].split(':')[0]}")
    for n in (2, 3, 4):
        assert carol.client.many(b"RETR %d" % n) == carol.wire[n - 1]


def test_new_mail_does_not_move_numbers(carol):
    path = f"{carol.cur}/1.first.localhost:2,"
    with open(path, "wb") as file:
        file.write(b"Subject: before all\n\n")
    os.chown(path, carol.row.uid, carol.row.gid)
    for n in range(1, 10):
        assert carol.client.many(b"RETR %d" % n) == carol.wire[n - 1]
    assert carol.client.ask(b"STAT").startswith(b"+OK 9 ")


@pytest.mark.parametrize("number", [2, 5], ids=["small", "large"])
@pytest.mark.parametrize(
    "other",
    [b"", b"Subject: shorter\n", awkward.big(1)[:-100], awkward.big(2)],
    ids=["empty", "short", "near", "long"],
)
def test_replaced_message(carol, number, other):
    """A file of another size takes its name: refused in this session, and served right in the next."""
    carol.replace(number, other)
    assert carol.client.many(b"RETR 1") == carol.wire[0]
    carol.client.send(b"RETR %d\r\nNOOP\r\n" % number)
    answer = carol.client.line()
    if answer.startswith(b"-ERR"):
        assert answer.startswith(b"-ERR [SYS/TEMP] ") and b"changed" in answer
        assert carol.client.line() == b"+OK\r\n"
        assert carol.client.many(b"RETR 6") == carol.wire[5]
        carol.client.ask(b"QUIT")
    else:  # sent before the change could be seen: the connection ends before the message does
        assert not carol.client.end().endswith(b"\r\n.\r\n+OK\r\n")
    with RawPop3(carol.service, user=carol.user) as again:
        assert again.ask(b"LIST %d" % number) == b"+OK %d %d\r\n" % (number, len(awkward.sent(other)))
        assert again.many(b"RETR %d" % number) == awkward.on_the_wire(other)


def test_message_cut_short_while_it_is_sent(service):
    with RawPop3(service, user="bob", buffer=4096) as client:
        client.send(b"RETR 1\r\nNOOP\r\n")
        assert client.line().startswith(b"+OK ")
        cur = f"{service.site.mail_users['bob'].maildir}/cur"
        os.truncate(f"{cur}/{os.listdir(cur)[0]}", 20_000_000)
        said = client.end()
        assert b"\r\n.\r\n" not in said[-100:] and awkward.on_the_wire(BIG).startswith(said)
    with RawPop3(service, user="bob") as client:
        assert client.many(b"RETR 1") == awkward.on_the_wire(BIG[:20_000_000])


def test_pipelined_messages_of_awkward_sizes_fit_their_frames():
    """127, 127 and 159 KB in one go must not make a frame larger than its edge allows."""
    mail = [b"Subject: %d\n\n" % n + b"x" * 70 * size + b"\n" for n, size in enumerate((1857, 1857, 2325))]
    with Service(mail=mail, lmtp=False) as service:
        with RawPop3(service, "tls", user="alice") as client:
            client.send(b"RETR 1\r\nRETR 2\r\nRETR 3\r\nNOOP\r\n")
            for raw in mail:
                assert client.line().startswith(b"+OK")
                assert len(client.rest()) == len(raw) + raw.count(b"\n") + len(b".\r\n")
        assert service.actor("listener")["restarts"] == 0
