"""Test POP3's messages over TLS, octet for octet: sizes, dot-stuffing, TOP, numbers, DELE, UIDL, QUIT."""

import hashlib
import itertools
import os
import re
import subprocess

import pytest

from tests.support import awkward
from tests.support.pop3 import RawPop3
from tests.support.service import POPKERNEL, Service
from tests.support.waiting import wait_for

MAIL = [
    awkward.head("one") + b"1\n2\n3\n",
    b".dot\n" + awkward.MESSAGES["lines of dots"],
    awkward.MESSAGES["CR LF in the file"],
    b"",
    awkward.MESSAGES["no last newline"],
]
TITLES = list(awkward.MESSAGES)
_fresh = (f"user{n:02}" for n in itertools.count())


@pytest.fixture(scope="module")
def service():
    users = ["alice", *(f"user{n:02}" for n in range(30))]
    with Service(
        users=users, mail={u: MAIL for u in users} | {"alice": list(awkward.MESSAGES.values())}, lmtp=False
    ) as running:
        yield running


@pytest.fixture
def user():
    """Provide a user that no other test uses."""
    return next(_fresh)


@pytest.fixture
def client(service, user):
    with RawPop3(service, user=user) as made:
        yield made


@pytest.fixture(scope="module")
def alice(service):
    with RawPop3(service, user="alice") as made:
        yield made


def _listed(client, command=b"LIST"):
    rows = client.many(command).split(b"\r\n")[:-2]
    return {int(number): value for number, value in (row.split(b" ") for row in rows)}


def test_octets_stat_list_and_retr_agree(alice):
    sizes = [len(awkward.sent(m)) for m in awkward.MESSAGES.values()]
    assert alice.ask(b"STAT") == b"+OK %d %d\r\n" % (len(sizes), sum(sizes))
    assert _listed(alice) == {n: b"%d" % size for n, size in enumerate(sizes, 1)}
    for n, size in enumerate(sizes, 1):
        assert alice.ask(b"LIST %d" % n) == b"+OK %d %d\r\n" % (n, size)
        assert alice.ask(b"RETR %d" % n) == b"+OK %d octets\r\n" % size
        body = alice.rest()
        assert len(body) - 3 - body.count(b"\r\n.", 0, -3) - body.startswith(b"..") == size


def test_octets_of_more_than_4_gib_are_right(service):
    directory = service.site.mail_users["user29"].maildir
    for n in (1, 2, 3):
        path = f"{directory}/cur/180000000{n}.0000000{n}.localhost:2,S"
        with open(path, "wb") as file:
            file.truncate((1 << 31) - 7)
        os.chown(path, service.site.mail_users["user29"].uid, -1)
    # 6 GB of NULs would take seconds to measure: a popcache has their sizes, as if a server had measured
    # them.
    with open(f"{directory}/popcache", "w") as file:
        for n in (1, 2, 3):
            name = f"180000000{n}.0000000{n}.localhost"
            file.write(f"{name} {(1 << 31) - 5} {hashlib.sha256(name.encode()).hexdigest()}\n")
    os.chown(
        f"{directory}/popcache", service.site.mail_users["user29"].uid, service.site.mail_users["user29"].gid
    )
    total = 3 * ((1 << 31) - 5) + sum(len(awkward.sent(m)) for m in MAIL)
    with RawPop3(service, user="user29", timeout=60) as client:
        assert client.ask(b"STAT") == b"+OK %d %d\r\n" % (len(MAIL) + 3, total)
        assert client.ask(b"LIST 8") == b"+OK 8 %d\r\n" % ((1 << 31) - 5)


@pytest.mark.parametrize("title", TITLES)
def test_dot_stuffing_and_line_ends(alice, title):
    assert alice.many(b"RETR %d" % (TITLES.index(title) + 1)) == awkward.on_the_wire(awkward.MESSAGES[title])


@pytest.mark.parametrize("title", TITLES)
def test_top(alice, title):
    for count in (0, 1, 2, 3, 1000000, 9999999999):
        assert alice.many(b"TOP %d %d" % (TITLES.index(title) + 1, count)) == awkward.top(
            awkward.MESSAGES[title], count
        ), count


def test_top_without_its_arguments_is_an_error(client):
    for command in (
        b"TOP",
        b"TOP ",
        b"TOP 1",
        b"TOP 1 ",
        b"TOP 1 -1",
        b"TOP 1 x",
        b"TOP 1 1 1",
        b"TOP 0 1",
        b"TOP 9 1",
        b"TOP x 1",
    ):
        assert client.ask(command).startswith(b"-ERR "), command
    assert client.many(b"TOP 1 1 ") == awkward.top(MAIL[0], 1)


@pytest.mark.parametrize("command", [b"RETR ", b"DELE ", b"TOP ", b"LIST ", b"UIDL "])
def test_message_numbers_that_are_none(client, command):
    bad = [
        b"0",
        b"-1",
        b"1x",
        b"x",
        b"+1",
        b"1.0",
        b"1,2",
        b"1 2",
        b"0x1",
        b"6",
        b"9" * 30,
        b"1" * 30,
        b"0" * 30,
        b"\xb2",
        b"1\0",
        b"4294967297",
    ]
    if command not in (b"LIST ", b"UIDL "):
        bad.append(b"")
    for number in bad:
        line = command + number + (b" 0" if command == b"TOP " else b"")
        assert client.ask(line).startswith(b"-ERR "), line
        assert client.ask(b"NOOP") == b"+OK\r\n"
    assert client.ask(b"STAT").startswith(b"+OK 5 ")


def test_message_numbers_that_are_forgiven(client):
    for number in (b"01", b"1 ", b"0000000000001", b"1   "):
        assert client.many(b"RETR " + number) == awkward.on_the_wire(MAIL[0])
    assert client.ask(b"LIST 01") == b"+OK 1 %d\r\n" % len(awkward.sent(MAIL[0]))


def test_after_dele(client):
    sizes = {n: len(awkward.sent(m)) for n, m in enumerate(MAIL, 1)}
    uids = _listed(client, b"UIDL")
    assert client.ask(b"DELE 2").startswith(b"+OK")
    assert client.ask(b"DELE 2").startswith(b"-ERR")
    left = {n: size for n, size in sizes.items() if n != 2}
    assert client.ask(b"STAT") == b"+OK 4 %d\r\n" % sum(left.values())
    assert _listed(client) == {n: b"%d" % size for n, size in left.items()}
    assert _listed(client, b"UIDL") == {n: uid for n, uid in uids.items() if n != 2}
    for command in (b"LIST 2", b"UIDL 2", b"TOP 2 0", b"RETR 2"):
        assert client.ask(command).startswith(b"-ERR "), command
    assert client.many(b"RETR 3") == awkward.on_the_wire(MAIL[2])
    assert client.ask(b"RSET").startswith(b"+OK")
    assert client.ask(b"STAT") == b"+OK 5 %d\r\n" % sum(sizes.values())
    assert _listed(client, b"UIDL") == uids
    assert client.many(b"RETR 2") == awkward.on_the_wire(MAIL[1])


def test_dele_of_a_message_read_ahead(client):
    """The listener may hold it already: it is deleted all the same, and RSET restores it."""
    for n in (1, 2, 3):
        client.many(b"RETR %d" % n)
    assert client.ask(b"DELE 4").startswith(b"+OK")
    assert client.ask(b"RETR 4").startswith(b"-ERR")
    assert client.ask(b"RSET").startswith(b"+OK")
    assert client.many(b"RETR 4") == awkward.on_the_wire(MAIL[3])
    assert client.many(b"RETR 5") == awkward.on_the_wire(MAIL[4])


def test_uidl_shape_and_stability(service, user):
    with RawPop3(service, user=user) as client:
        before = _listed(client, b"UIDL")
        assert client.ask(b"UIDL 1") == b"+OK 1 " + before[1] + b"\r\n"
        client.many(b"RETR 1")
        client.ask(b"QUIT")
    assert len(set(before.values())) == len(MAIL)
    assert all(re.fullmatch(rb"[\x21-\x7e]{1,70}", uid) for uid in before.values())
    cur = f"{service.site.mail_users[user].maildir}/cur"
    # flags are set after the client has its reply
    names = wait_for(lambda: sorted(os.listdir(cur)), until=lambda found: found[0].endswith("S"))
    assert before == {
        n: hashlib.sha256(name.split(":")[0].encode()).hexdigest().encode() for n, name in enumerate(names, 1)
    }
    for name, flags in zip(names, ("S", "FRS", "", "T", "RS"), strict=True):
        os.rename(f"{cur}/{name}", f"{cur}/{name.split(':')[0]}:2,{flags}")
    with RawPop3(service, user=user) as client:
        assert _listed(client, b"UIDL") == before
        client.ask(b"DELE 1")
        assert client.ask(b"QUIT") == b"+OK bye\r\n"
    with RawPop3(service, user=user) as client:
        assert _listed(client, b"UIDL") == {n - 1: uid for n, uid in before.items() if n > 1}


def test_uidl_survives_a_restart():
    with Service(mail={"alice": MAIL}, lmtp=False) as service:
        with RawPop3(service, user="alice") as client:
            before = _listed(client, b"UIDL")
        assert service.stop() == 0
        again = subprocess.Popen(
            [*POPKERNEL, "start", "-f", service.toml, "--log", "stderr"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        with again:
            try:
                while b"ready" not in (line := again.stderr.readline()):
                    assert line, "ended before it was ready"
                with RawPop3(service, user="alice") as client:
                    assert _listed(client, b"UIDL") == before
            finally:
                again.terminate()
                again.communicate(timeout=20)


def test_quit_removes_and_then_answers(service, user):
    cur = f"{service.site.mail_users[user].maildir}/cur"
    with RawPop3(service, user=user) as client:
        names = sorted(os.listdir(cur))
        client.ask(b"DELE 1")
        client.ask(b"DELE 5")
        assert sorted(os.listdir(cur)) == names
        assert client.ask(b"QUIT") == b"+OK bye\r\n"
        assert sorted(os.listdir(cur)) == names[1:4]
        assert client.end() == b""
    with RawPop3(service, user=user) as client:
        assert client.many(b"RETR 1") == awkward.on_the_wire(MAIL[1])
        assert client.ask(b"STAT").startswith(b"+OK 3 ")


def test_quit_reports_what_it_could_not_remove(service, user):
    maildir = service.site.mail_users[user].maildir
    if os.geteuid() != 0:
        pytest.skip("needs root, to take the maildir's cur from its user")
    with RawPop3(service, user=user) as client:
        client.ask(b"DELE 1")
        client.ask(b"DELE 2")
        os.chown(f"{maildir}/cur", 0, 0)
        os.chmod(f"{maildir}/cur", 0o755)
        assert client.ask(b"QUIT") == b"-ERR [SYS/TEMP] 2 messages could not be removed\r\n"
    assert len(os.listdir(f"{maildir}/cur")) == len(MAIL)


def test_quit_counts_a_message_another_program_removed_as_removed(service, user):
    cur = f"{service.site.mail_users[user].maildir}/cur"
    with RawPop3(service, user=user) as client:
        client.ask(b"DELE 1")
        os.unlink(f"{cur}/{sorted(os.listdir(cur))[0]}")
        assert client.ask(b"QUIT") == b"+OK bye\r\n"
    assert len(os.listdir(cur)) == len(MAIL) - 1


def test_no_quit_removes_nothing(service, user):
    for ending in ("close", "half a QUIT", "reset"):
        client = service.keep(RawPop3(service, user=user))
        assert client.ask(b"DELE 1").startswith(b"+OK")
        if ending == "half a QUIT":
            client.send(b"QUIT")
        if ending == "reset":
            client.sock.setsockopt(1, 13, b"\1\0\0\0\0\0\0\0")  # SOL_SOCKET, SO_LINGER: on, 0 seconds
        client.close()
        with RawPop3(service, user=user) as again:
            assert again.ask(b"STAT").startswith(b"+OK 5 "), ending
            again.ask(b"QUIT")
