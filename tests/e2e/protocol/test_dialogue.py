"""Test POP3's dialogue: commands, CAPA, response codes, lines, STLS, USER and PASS, timers."""

import base64
import os
import select
import socket
import ssl
import time

import pytest
from popkernel.kernel.config.loading import ConfigError, load

from tests.support import awkward
from tests.support.pop3 import RawPop3, connect
from tests.support.processes import kill
from tests.support.service import Service

MAIL = [awkward.head(f"number {n}") + b"." * n + b"\n" for n in range(1, 9)]
TOTAL = sum(len(text) + text.count(b"\n") for text in MAIL)
SLOW = awkward.big(8)
SPACED = "  two blanks, gr\u00fc\u00dfe \tand a tab "
EVERYONE = ["TOP", "UIDL", "RESP-CODES", "AUTH-RESP-CODE", "PIPELINING", "UTF8 USER", "EXPIRE NEVER"]


@pytest.fixture(scope="module")
def service():
    users = {name: "secret" for name in ("alice", "bob", "carol", "dave")} | {
        "spaced": SPACED,
        "long": "p" * 72,
    }
    with Service(
        users=users, mail=MAIL, lmtp=False, cost=8, auth_cache_seconds=0, penalty_seconds=0
    ) as running:
        yield running


@pytest.fixture(scope="module")
def quick():
    """Run a service with short timers."""
    users = ("alice", "bob", "slow")
    with Service(
        users=users,
        mail={"alice": MAIL, "bob": MAIL, "slow": [SLOW]},
        lmtp=False,
        login_seconds=2,
        idle_seconds=10,
        allow_plaintext=True,
    ) as running:
        yield running


def _memory(service, name):
    with open(f"/proc/{service.actor(name)['pid']}/status") as file:
        return int(next(line for line in file if line.startswith("VmRSS")).split()[1])


# Commands


def test_commands_before_login(service):
    with RawPop3(service) as client:
        for command in (
            b"STAT",
            b"LIST",
            b"RETR 1",
            b"DELE 1",
            b"NOOP",
            b"RSET",
            b"TOP 1 1",
            b"UIDL",
            b"XYZZY",
            b"AUTH SCRAM-SHA-256",
            b"APOP a b",
        ):
            assert client.ask(command).startswith(b"-ERR "), command
        for command in (b"CAPA", b"capa", b"CaPa", b"CAPA "):
            assert client.many(command).endswith(b"\r\n.\r\n")
        assert client.ask(b"uSeR alice") == b"+OK\r\n"
        assert client.ask(b"pAsS secret").startswith(b"+OK")


def test_commands_after_login(service):
    with RawPop3(service, user="alice") as client:
        for command in (
            b"USER bob",
            b"PASS secret",
            b"STLS",
            b"XYZZY",
            b"STAT 1",
            b"RSET 1",
            b"NOOP 1",
            b"RETR1",
            b"\tSTAT",
        ):
            assert client.ask(command).startswith(b"-ERR "), command
        assert client.ask(b"noop") == b"+OK\r\n"
        assert client.ask(b"stat").startswith(b"+OK 8 ")
        assert client.many(b"Retr 1") == awkward.on_the_wire(MAIL[0])
        assert client.ask(b"qUIT") == b"+OK bye\r\n"


# CAPA


def _capa(client):
    return client.many(b"CAPA").decode().split("\r\n")[:-2]


def test_capa_is_true_in_each_state(service, quick):
    for running in (service, quick):
        with RawPop3(running, "") as client:
            said = _capa(client)
            assert set(EVERYONE) <= set(said) and "STLS" in said
            assert ("USER" in said) == (running is quick)
            assert client.ask(b"USER alice").startswith(b"+OK" if "USER" in said else b"-ERR")
            assert client.ask(b"STLS").startswith(b"+OK")
            client.secure()
            said = _capa(client)
            assert set(EVERYONE) <= set(said) and "USER" in said and "STLS" not in said
            assert client.ask(b"STLS").startswith(b"-ERR")
    with RawPop3(service, user="alice") as client:
        said = _capa(client)
        assert set(EVERYONE) <= set(said) and not {"USER", "STLS"} & set(said)
        assert any(line.startswith("IMPLEMENTATION popkernel-") for line in said)
        assert not [line for line in said if line.startswith(("SASL", "LOGIN-DELAY"))]


# Response codes


def test_code_auth(service):
    with RawPop3(service) as client:
        client.ask(b"USER alice")
        assert client.ask(b"PASS wrong") == b"-ERR [AUTH] wrong name or password\r\n"


def test_code_in_use(service):
    with RawPop3(service, user="alice"), RawPop3(service) as second:
        second.ask(b"USER alice")
        assert second.ask(b"PASS secret").startswith(b"-ERR [IN-USE] ")
        second.ask(b"USER bob")
        assert second.ask(b"PASS secret").startswith(b"+OK")


def test_code_sys_temp_when_the_maildir_actor_dies(service):
    with RawPop3(service, user="carol") as client:
        assert client.ask(b"DELE 1").startswith(b"+OK")
        kill(service.actor("maildir.carol")["pid"])
        assert client.line().startswith(b"-ERR [SYS/TEMP] ")
        assert client.end() == b""
    with RawPop3(service, user="carol") as client:
        assert client.ask(b"STAT").startswith(b"+OK 8 ")


def test_code_sys_perm_when_the_mailbox_must_be_mended(service):
    maildir = service.site.mail_users["dave"].maildir
    with RawPop3(service) as client:
        os.rename(maildir, maildir + ".away")
        try:
            with open(maildir, "wb"):
                pass
            # each attempt at once after the other, and told so
            for line in (b"PASS secret", b"AUTH PLAIN AGRhdmUAc2VjcmV0") * 8:
                if line.startswith(b"PASS"):
                    client.ask(b"USER dave")
                assert client.ask(line).startswith(b"-ERR [SYS/PERM] "), line
        finally:
            os.unlink(maildir)
            os.rename(maildir + ".away", maildir)
        client.ask(b"USER bob")
        assert client.ask(b"PASS secret").startswith(b"+OK")


# USER and PASS


def test_pass_keeps_blanks_and_8_bit(service):
    with RawPop3(service) as client:
        client.ask(b"USER spaced")
        assert client.ask(b"PASS " + SPACED.strip().encode()).startswith(b"-ERR [AUTH]")
        client.ask(b"USER spaced")
        assert client.ask(b"PASS " + SPACED.encode()).startswith(b"+OK 8 ")
    assert "blanks" not in service.read_log()


def test_pass_of_more_than_72_octets_is_not_its_beginning(service):
    with RawPop3(service) as client:
        client.ask(b"USER long")
        assert client.ask(b"PASS " + b"p" * 73).startswith(b"-ERR [AUTH]")
        client.ask(b"USER long")
        assert client.ask(b"PASS " + b"p" * 72).startswith(b"+OK")


def test_pass_is_valid_behind_user_only(service):
    with RawPop3(service) as client:
        assert client.ask(b"PASS secret").startswith(b"-ERR")
        for between in (
            b"STAT",
            b"XYZZY",
            b"",
            b"USER",
            b"USER a b",
            b"PASS wrong",
            b"Z" * 300,
            b"AUTH PLAIN x",
        ):
            client.ask(b"USER alice")
            assert client.ask(between).startswith(b"-ERR"), between
            assert client.ask(b"PASS secret") == b"-ERR USER first\r\n", between
        client.ask(b"USER bob")
        client.ask(b"USER alice")  # the last USER counts
        assert client.ask(b"PASS secret").startswith(b"+OK")
        assert service.status()["leases"][-1]["user"] == "alice"


def test_user_is_kept_over_capa_and_noop(service):
    """CAPA keeps it, and NOOP too, though an error in this state."""
    with RawPop3(service) as client:
        assert client.ask(b"USER  alice ") == b"+OK\r\n"
        client.many(b"CAPA")
        assert client.ask(b"NOOP").startswith(b"-ERR") and client.ask(b"UTF8").startswith(b"+OK")
        assert client.ask(b"PASS secret").startswith(b"+OK")


def test_blanks_between_words_are_forgiven(service):
    with RawPop3(service) as client:
        assert client.ask(b"AUTH  PLAIN  " + base64.b64encode(b"\0alice\0wrong")).startswith(b"-ERR [AUTH]")
        assert client.ask(b"AUTH  PLAIN  " + base64.b64encode(b"\0alice\0secret")).startswith(b"+OK")
        for one, two in ((b"RETR 1", b"RETR  1"), (b"TOP 1 0", b"TOP   1   0 ")):
            assert client.many(one) == client.many(two)
        for one, two in ((b"LIST 1", b"LIST  1"), (b"UIDL 1", b"UIDL   1 "), (b"LIST 9", b"LIST  9")):
            assert client.ask(one) == client.ask(two)
        assert client.ask(b"DELE  1") == b"+OK marked\r\n"
        assert client.ask(b"RSET").startswith(b"+OK")


def test_unknown_user_gets_the_same_answer_in_the_same_time(service):
    times = {b"alice": [], b"nobody-here": []}
    answers = set()
    with RawPop3(service) as client:
        for n in range(12):  # a different password each time: a repeated one is not hashed
            for name, took in times.items():
                client.ask(b"USER " + name)
                begin = time.perf_counter()
                answers.add(client.ask(b"PASS wrong%d" % n))
                took.append(time.perf_counter() - begin)
    assert answers == {b"-ERR [AUTH] wrong name or password\r\n"}
    known, unknown = map(min, times.values())  # other load can only add to the time
    assert known > 0.005, "bcrypt was not run"
    assert 0.6 < known / unknown < 1.6


# Plain text


def test_plain_text_is_refused_before_tls(service, quick):
    with RawPop3(service, "") as client:
        assert client.ask(b"USER alice") == b"-ERR use TLS first (STLS)\r\n"
        assert client.ask(b"PASS secret") == b"-ERR use TLS first (STLS)\r\n"
    with RawPop3(quick, "", user="alice") as client:  # the operator allows it
        assert client.ask(b"STAT").startswith(b"+OK 8 ")


# STLS


@pytest.mark.parametrize(
    "injected", [b"USER alice\r\nPASS secret\r\nDELE 1\r\n", b"USER al", b"CAPA\r\nQUIT\r\n", b"\0" * 1000]
)
def test_stls_discards_pipelined_clear_text(service, injected):
    """CVE-2011-0411 and its family, in one packet with STLS."""
    with RawPop3(service, "") as client:
        client.send(b"STLS\r\n" + injected)
        assert client.line() == b"+OK begin TLS\r\n"
        client.secure()
        assert client.ask(b"PASS secret") == b"-ERR USER first\r\n"
        assert client.ask(b"STAT") == b"-ERR not now\r\n"
        assert client.ask(b"USER alice") == b"+OK\r\n"


def test_stls_forgets_user(quick):
    with RawPop3(quick, "") as client:
        assert client.ask(b"USER alice") == b"+OK\r\n"
        assert client.ask(b"STLS") == b"+OK begin TLS\r\n"
        client.secure()
        assert client.ask(b"PASS secret") == b"-ERR USER first\r\n"


def test_stls_takes_no_arguments(service):
    with RawPop3(service, "") as client:
        assert client.ask(b"STLS now").startswith(b"-ERR")
        assert client.ask(b"STLS ") == b"+OK begin TLS\r\n"


# Lines


def test_lines_up_to_255_octets(service):
    with RawPop3(service) as client:
        client.ask(b"USER alice")
        # 255 octets with CR LF
        assert client.ask(b"PASS " + b"x" * 248) == b"-ERR [AUTH] wrong name or password\r\n"
        client.ask(b"USER alice")
        assert client.ask(b"PASS " + b"x" * 249) == b"-ERR line too long\r\n"
        assert client.ask(b"NOOP" + b" " * 300) == b"-ERR line too long\r\n"
        assert client.ask(b"CAPA" + b" " * 200).startswith(b"+OK")


def test_first_reply_lines_are_short(service):
    with RawPop3(service, user="alice") as client:
        for command in (b"\xff" * 250, b"RETR " + b"9" * 245, b"USER " + b"x" * 240):
            assert len(client.ask(command)) <= 512


@pytest.mark.parametrize(
    "line",
    [b"", b":", b"\0", b" ", b"\0" * 100, b"\r", b"\xff\xfe", b"STAT\0", b"%s%n", b"\x1b[2J", b"." * 100],
)
def test_odd_lines_only_give_errors(service, line):
    for user in ("", "bob"):
        with RawPop3(service, user=user) as client:
            assert client.ask(line).startswith(b"-ERR "), line
            client.send(b"CAPA\n")  # LF alone is accepted
            assert client.line().startswith(b"+OK")
            client.rest()
            client.ask(b"QUIT")


def test_too_many_errors_end_the_connection(service):
    with RawPop3(service) as client:
        client.send(b"\r\n" * 60)
        said = client.end()
    assert said.count(b"-ERR ") == 52 and said.endswith(b"-ERR too many errors\r\n")


def test_endless_line_takes_no_memory(service):
    for user in ("", "dave"):
        with RawPop3(service, user=user) as client:
            before = _memory(service, "listener")
            for _ in range(64):
                client.send(b"A" * 262144)
            assert client.line() == b"-ERR line too long\r\n"
            assert _memory(service, "listener") - before < 2048, "KiB"
            client.send(b"\r\nCAPA\r\n")
            assert client.line() == b"+OK capabilities follow\r\n"


# Timers


def test_timer_for_login_cannot_be_stretched(quick):
    """Whatever a client sends, it has login_seconds to log in."""
    begin = time.monotonic()
    with RawPop3(quick, "") as silent, RawPop3(quick) as secured, RawPop3(quick) as busy:
        try:
            while time.monotonic() < begin + 15:
                busy.many(b"CAPA")
        except (EOFError, OSError):
            pass
        assert 1.5 < time.monotonic() - begin < 15
        assert silent.end() == b"" and secured.end() == b""
        assert 1.5 < time.monotonic() - begin < 15


def test_timer_when_idle_and_a_client_that_takes_mail_slowly_is_not(quick):
    with (
        RawPop3(quick, user="bob", timeout=30) as idle,
        RawPop3(quick, user="alice", timeout=30) as active,
        RawPop3(quick, user="slow", timeout=30, buffer=4096) as slow,
    ):
        slow.send(b"RETR 1\r\nQUIT\r\n")
        begin = time.monotonic()
        assert idle.ask(b"DELE 1").startswith(b"+OK")
        while time.monotonic() < begin + 25:
            idle.sock.settimeout(0.5)
            try:
                assert not idle.more(), "a reply without a command"
                break
            except TimeoutError:
                assert active.ask(b"NOOP") == b"+OK\r\n"
                # at this rate, what the server has buffered lasts longer than idle_seconds
                slow.data += slow.sock.recv(16384)
        assert 9.5 < time.monotonic() - begin < 25
        assert active.ask(b"NOOP") == b"+OK\r\n"
        end = time.monotonic() + 2
        while time.monotonic() < end:
            slow.sock.settimeout(0.3)
            try:
                slow.data += slow.sock.recv(16384)
                select.select([], [], [], 0.1)
            except TimeoutError:
                continue
        slow.sock.settimeout(30)
        assert (
            slow.end()
            == b"+OK %d octets\r\n" % len(awkward.sent(SLOW)) + awkward.on_the_wire(SLOW) + b"+OK bye\r\n"
        )
    with RawPop3(quick, user="bob") as again:
        assert again.ask(b"STAT").startswith(b"+OK 8 ")


@pytest.mark.parametrize(
    ("key", "value"),
    [("idle_seconds", 9), ("idle_seconds", 86401), ("login_seconds", 0), ("login_seconds", 3601)],
)
def test_timers_have_bounds(service, key, value):
    with pytest.raises(ConfigError, match=key):
        load({key: value}, service.toml)


# A client that ends its sending direction


HALF = b"USER alice\r\nPASS secret\r\nSTAT\r\nRETR 2\r\nNOOP\r\n"


def _all_of_it():
    second = b"+OK %d octets\r\n" % (len(MAIL[1]) + MAIL[1].count(b"\n")) + awkward.on_the_wire(MAIL[1])
    return b"+OK\r\n+OK 8 messages (%d octets)\r\n+OK 8 %d\r\n%b+OK\r\n" % (TOTAL, TOTAL, second)


def test_commands_before_a_half_close_are_answered(quick):
    """With `printf ... | nc -N` everything is answered, then the connection ends."""
    with RawPop3(quick, "") as client:
        client.send(HALF)
        client.sock.shutdown(socket.SHUT_WR)
        said = b""
        while part := client.sock.recv(65536):
            said += part
    assert said == _all_of_it()


def test_commands_before_a_close_notify_are_answered(service):
    """With TLS the end of one direction is a close_notify; an end of TCP alone would be an error."""
    context = ssl.create_default_context(cafile=service.site.cert)
    context.check_hostname = False
    coming, going = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(coming, going)
    with connect(service.tls) as sock:

        def pump(step, *, waits=True):
            while True:
                try:
                    result = step()
                except ssl.SSLWantReadError:
                    result = None
                sock.sendall(going.read())
                if result is not None or not waits:
                    return result
                coming.write(sock.recv(65536))

        pump(lambda: tls.do_handshake() or True)
        assert pump(lambda: tls.read(100)).startswith(b"+OK")
        pump(lambda: tls.write(HALF))
        pump(tls.unwrap, waits=False)
        sock.shutdown(socket.SHUT_WR)
        while part := sock.recv(65536):
            coming.write(part)
    said = b""
    while coming.pending or tls.pending():
        try:
            said += tls.read(65536)
        except (ssl.SSLWantReadError, ssl.SSLZeroReturnError):
            break
    assert said == _all_of_it()


def test_a_half_close_without_quit_removes_nothing(quick):
    with RawPop3(quick, "", user="bob") as client:
        client.send(b"DELE 1\r\n")
        client.sock.shutdown(socket.SHUT_WR)
        assert client.sock.recv(100).startswith(b"+OK")
        assert client.sock.recv(100) == b""
    with RawPop3(quick, user="bob") as client:
        assert client.ask(b"STAT") == b"+OK 8 %d\r\n" % TOTAL
