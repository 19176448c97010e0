"""Test delivery by LMTP: each message is in the right maildir, octet for octet, and nowhere else."""

import hashlib
import os
import socket
import threading
import time

import pytest

from tests.support.lmtp import Lmtp, RawLmtp, lmtp
from tests.support.maildirs import bodies, left_in_tmp, messages, pop_all, without_trace
from tests.support.ports import free_ports
from tests.support.processes import peak, rss
from tests.support.service import Service
from tests.support.waiting import wait_for

MAIL = b"From: a@example.org\r\nSubject: hello\r\n\r\nbody\r\n"


@pytest.fixture(scope="module")
def service():
    with Service(mail=()) as one:
        yield one


@pytest.fixture
def fresh():
    with Service(mail=()) as one:
        yield one


def test_one_message_to_several(service):
    with lmtp(service) as client:
        assert client.sendmail("from@example.org", ["alice@example.org", "Bob+list@example.org"], MAIL) == {}
    trace = b"Return-Path: <from@example.org>\nDelivered-To: %s\n"
    assert list(messages(service, "alice").values())[-1] == trace % b"alice@example.org" + MAIL.replace(
        b"\r\n", b"\n"
    )
    assert list(messages(service, "bob").values())[-1] == trace % b"Bob+list@example.org" + MAIL.replace(
        b"\r\n", b"\n"
    )
    assert pop_all(service, "alice")[-1].endswith(b"\r\n\r\nbody\r\n")
    maildir = service.site.mail_users["alice"]
    # the flag S comes after QUIT has been answered
    name, *_ = wait_for(lambda: [n for n in os.listdir(f"{maildir.maildir}/cur") if n.endswith(":2,S")])
    status = os.stat(f"{maildir.maildir}/cur/{name}")
    assert (status.st_uid, status.st_mode & 0o777) == (maildir.uid, 0o600)


def test_each_recipient_has_an_answer_of_its_own(service):
    with RawLmtp(service) as raw:
        raw.say(b"LHLO x\r\n", b"250")
        raw.send(
            b"MAIL FROM:<>\r\nRCPT TO:<alice>\r\nRCPT TO:<nobody>\r\nRCPT TO:<carol>\r\nRCPT "
            b"TO:<alice+2>\r\nDATA\r\n"
        )
        answers = raw.expect(b"250", b"250", b"550", b"250", b"250", b"354")
        assert answers[2].startswith(b"550 5.1.1 ")
        raw.say(b"Subject: three\r\n\r\n.\r\nNOOP\r\n", b"250", b"250", b"250", b"250")
    assert list(messages(service, "alice").values())[-1].startswith(
        b"Return-Path: <>\nDelivered-To: alice+2\nSubject: three\n"
    )


AWKWARD = {
    "nul": b"Subject: x\r\n\r\na\0b\r\n",
    "bare cr": b"Subject: x\r\n\r\na\rb\r\r\n",
    "bare lf": b"Subject: x\r\n\r\na\nb\n\n.\nc\r\n",
    "1 MB line": b"Subject: x\r\n\r\n" + b"0123456789abcdef" * 65536 + b"\r\n",
    "8 bit": b"Subject: x\r\n\r\n" + bytes(set(range(128, 256))) + b"\r\n",
    "dots": b"..\r\n.dot\r\n\r\n.\r\n...\r\n",
    "headers only": b"Subject: x\r\n",
    "blank line only": b"\r\n",
    "empty": b"",
}


@pytest.mark.parametrize("name", AWKWARD)
def test_awkward_octets(service, name):
    mail = AWKWARD[name]
    stuffed = (b"\r\n" + mail).replace(b"\r\n.", b"\r\n..")[2:]
    with RawLmtp(service) as raw:
        raw.envelope("alice")
        raw.say(b"DATA\r\n", b"354")
        raw.send(stuffed + b".\r\n")
        raw.expect(b"250")
    assert bodies(service, "alice")[-1] == mail.replace(b"\r\n", b"\n")


def test_trace_fields_of_the_mail_server_stay(service):
    mail = b"Return-Path: <real@x>\r\nDelivered-To: there@x\r\nReceived: by mta\r\n\r\nx\r\n"
    with lmtp(service) as client:
        client.sendmail("other@x", ["carol"], mail)
        client.sendmail(
            "other@x",
            ["carol"],
            b"Received: by mta\r\nReturn-Path: <forged@x>\r\nDelivered-To: old\r\n\r\nx\r\n",
        )
    one, two = list(messages(service, "carol").values())[-2:]
    assert one == mail.replace(b"\r\n", b"\n")
    assert two.startswith(b"Return-Path: <other@x>\nDelivered-To: carol\nReceived: by mta\n")


def test_popcache_is_as_a_rebuilt_one(fresh):
    with lmtp(fresh) as client:
        for i in range(5):
            client.sendmail("a@b", ["alice"], MAIL + b"x\r\n" * i)
    path = fresh.site.mail_users["alice"].maildir
    with open(f"{path}/popcache", "rb") as file:
        lines = [line for line in file.read().splitlines() if not line.startswith(b"#")]
    found = messages(fresh, "alice")
    assert lines == [
        b"%s %d %s" % (n.encode(), len(d) + d.count(b"\n"), hashlib.sha256(n.encode()).hexdigest().encode())
        for n, d in found.items()
    ]


def test_an_open_session_does_not_see_new_mail(fresh):
    with lmtp(fresh) as client:
        client.sendmail("a@b", ["alice"], MAIL)
        session = fresh.pop3("alice")
        assert session.stat()[0] == 1
        client.sendmail("a@b", ["alice"], MAIL)
        assert session.stat()[0] == 1
        assert session.retr(1)[0].startswith(b"+OK")
        session.dele(1)
        session.quit()
    assert len(pop_all(fresh, "alice")) == 1


def test_a_delivery_by_another_program(fresh):
    maildir = fresh.site.mail_users["alice"]
    with lmtp(fresh) as client:
        client.sendmail("a@b", ["alice"], MAIL)
        path = f"{maildir.maildir}/new/{int(time.time())}.M1P2.elsewhere"
        with open(path, "wb") as file:
            file.write(b"foreign\n")
        os.chown(path, maildir.uid, maildir.gid)
        with open(f"{maildir.maildir}/popcache", "ab") as file:
            # a false size
            file.write(b"%s 99999 %s\n" % (os.path.basename(path).encode(), b"f" * 64))
        client.sendmail("a@b", ["alice"], MAIL)
    with open(f"{maildir.maildir}/popcache", "ab") as file:
        file.write(b"%d.never.there 5 %s\n" % (time.time(), b"e" * 64))
    got = pop_all(fresh, "alice")
    assert sorted(m.endswith(b"foreign\r\n") for m in got) == [False, False, True]


def test_thousand_recipients(service):
    before = {user: len(messages(service, user)) for user in service.site.passwords}
    names = [f"{('alice', 'bob', 'carol')[i % 3]}+{i}@example.org" for i in range(1000)]
    with lmtp(service) as client:
        assert client.sendmail("a@b", names, MAIL) == {}
    after = {user: len(messages(service, user)) for user in service.site.passwords}
    assert [after[u] - before[u] for u in ("alice", "bob", "carol")] == [334, 333, 333]


def test_large_message_bounded_memory(fresh):
    with lmtp(fresh) as client:
        client.sendmail("a@b", ["alice", "bob"], MAIL)  # their actors run
        pids = {a["name"]: a["pid"] for a in fresh.status()["actors"]}
        before = {name: peak(pid) for name, pid in pids.items()}
    line = b"0123456789" * 7 + b"\r\n"
    chunk = line * 10000
    with RawLmtp(fresh) as raw:
        raw.envelope("alice", "bob", "alice+again")
        raw.say(b"DATA\r\n", b"354")
        raw.send(b"Subject: large\r\n\r\n")
        for _ in range(100 * 1000 * 1000 // len(chunk)):
            raw.send(chunk)
        raw.say(b".\r\n", b"250", b"250", b"250")
    grown = {name: (peak(pid) - before[name]) >> 10 for name, pid in pids.items()}
    assert max(grown.values()) < 12 * 1024, grown
    expected = hashlib.sha256(
        b"Subject: large\n\n" + (line[:-2] + b"\n") * (10000 * (100 * 1000 * 1000 // len(chunk)))
    ).digest()
    for user, times in (("alice", 2), ("bob", 1)):
        assert [hashlib.sha256(b).digest() for b in bodies(fresh, user)[1:]] == [expected] * times


def test_too_large(service):
    with Service(mail=(), message_octets=1 << 20) as small, RawLmtp(small) as raw:
        raw.say(b"LHLO x\r\nMAIL FROM:<a> SIZE=2000000\r\n", b"250", b"552")
        raw.envelope("alice", "bob")
        raw.say(b"DATA\r\n", b"354")
        raw.send((b"x" * 70 + b"\r\n") * 30000)
        answers = raw.say(b".\r\n", b"552", b"552")
        assert answers[0].startswith(b"552 5.3.4 ")
        assert raw.deliver(MAIL, "alice")[0].startswith(b"250")
        wait_for(lambda: not left_in_tmp(small, "alice"))
        assert len(messages(small, "alice")) == 1


def test_sender_goes_before_the_dot(fresh):
    for body in (b"half a small one", b"half a large one\r\n" * 50000):
        with RawLmtp(fresh) as raw:
            raw.envelope("alice", "bob")
            raw.say(b"DATA\r\n", b"354")
            raw.send(body)
            if len(body) > 1000:
                wait_for(lambda: left_in_tmp(fresh, "alice"))
    wait_for(lambda: not left_in_tmp(fresh, "alice") and not left_in_tmp(fresh, "bob"))
    assert not messages(fresh, "alice")
    with lmtp(fresh) as client:
        assert client.sendmail("a@b", ["alice"], MAIL) == {}


def test_sender_stalls_in_data():
    with Service(mail=(), lmtp_seconds=5) as service, RawLmtp(service) as raw, RawLmtp(service) as large:
        raw.envelope("alice")
        raw.say(b"DATA\r\n", b"354")
        raw.send(b"and then nothing")
        large.envelope("alice")
        large.say(b"DATA\r\n", b"354")
        large.send(b"a large one, and then nothing\r\n" * 50000)
        with lmtp(service) as client:
            assert client.sendmail("a@b", ["alice"], MAIL) == {}, "others are served meanwhile"
            assert service.pop3("alice").quit()
        assert raw.answer().startswith(b"421 4.4.2 ")
        assert large.answer().startswith(b"421 4.4.2 ")
        assert raw.answer() == b""
        wait_for(lambda: not left_in_tmp(service, "alice"))
        assert len(messages(service, "alice")) == 1


def test_a_reader_that_does_not_read_its_answers(service):
    with RawLmtp(service) as raw:
        raw.send(b"LHLO x\r\n")
        raw.sock.settimeout(1)
        with pytest.raises(TimeoutError):
            while True:
                raw.send(b"NOOP\r\n" * 10000)
        assert rss(service.actor("mda")["pid"]) < 64 << 20
        with lmtp(service) as client:
            assert client.noop()[0] == 250


def test_many_connections(fresh):
    """As many as allowed, and one more."""
    with Service(mail=(), lmtp_connections=3) as few:
        raws = [few.keep(RawLmtp(few)) for _ in range(3)]
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(f"{few.config.run_dir}/lmtp.sock")
            assert sock.recv(100).startswith(b"421 4.3.2 ")
        raws.pop().close()
        wait_for(lambda: few.actor("mda"))
        wait_for(lambda: _greets(few))
        for raw in raws:
            raw.close()


def _greets(service):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(f"{service.config.run_dir}/lmtp.sock")
        return sock.recv(100).startswith(b"220")


def test_reload_while_mail_comes(fresh):
    """New users get mail, old ones go on, removed ones are refused, and nothing is lost meanwhile."""
    stop = threading.Event()
    taken, errors = [], []

    def send():
        client = lmtp(fresh)
        while not stop.is_set():
            try:
                client.sendmail("a@b", ["alice"], b"Subject: %d\r\n\r\n" % len(taken))
                taken.append(len(taken))
            except Exception as error:
                errors.append(error)
        client.quit()

    thread = threading.Thread(target=send)
    thread.start()
    try:
        with lmtp(fresh) as client:
            assert client.sendmail("a@b", ["carol"], MAIL) == {}
            with open(fresh.site.user_table) as file:
                lines = file.read()
            row = fresh.site.mail_users["carol"]
            dave = f"{row.maildir}-dave"
            os.mkdir(dave, 0o700)
            os.chown(dave, row.uid, row.gid)
            with open(fresh.site.user_table, "w") as file:
                file.write("".join(line for line in lines.splitlines(True) if not line.startswith("carol")))
                file.write(f"dave {row.uid}:{row.gid}:{dave}\n")
            for _ in range(3):
                fresh.command("reload")
            assert client.rcpt  # the same connection, and so the same mda
            with pytest.raises(Exception, match="no such user"):
                client.sendmail("a@b", ["carol"], MAIL)
            assert client.sendmail("a@b", ["dave@x"], MAIL) == {}
            assert len(os.listdir(f"{dave}/new")) == 1
    finally:
        stop.set()
        thread.join()
    assert not errors
    assert (
        sorted(int(m.split(b"Subject: ")[1].split()[0]) for m in messages(fresh, "alice").values()) == taken
    )


def test_warm_actors_retire_under_deliveries():
    """Mail that comes at the moment of retirement is not lost, doubled or refused."""
    with Service(mail=(), warm_seconds=0, warm_memory="0") as service:
        count = 0
        with lmtp(service) as client:
            end = time.monotonic() + 2
            while time.monotonic() < end:
                assert client.sendmail("a@b", ["alice", "bob", "carol"], b"Subject: %d\r\n\r\n" % count) == {}
                count += 1
        for user in ("alice", "bob", "carol"):
            subjects = [int(m.split(b"Subject: ")[1].split()[0]) for m in messages(service, user).values()]
            assert sorted(subjects) == list(range(count))
        wait_for(lambda: not [a for a in service.status()["actors"] if a["name"].startswith("maildir")])


def test_a_large_delivery_keeps_its_actor():
    with Service(mail=(), warm_seconds=0) as service, RawLmtp(service) as raw:
        raw.envelope("alice")
        raw.say(b"DATA\r\n", b"354")
        raw.send(b"large\r\n" * 50000)
        wait_for(lambda: left_in_tmp(service, "alice"))
        pid = service.actor("maildir")["pid"]
        end = time.monotonic() + 1.6
        while time.monotonic() < end:  # it is asked to retire every half second
            session = service.pop3("alice")
            assert session.stat()[0] == 0
            session.quit()
            assert service.actor("maildir")["pid"] == pid
        raw.send(b"end\r\n")
        raw.say(b".\r\n", b"250")
        assert bodies(service, "alice") == [b"large\n" * 50000 + b"end\n"]
        wait_for(lambda: service.actor("maildir") is None)


def test_old_leftovers_are_swept(fresh):
    maildir = fresh.site.mail_users["alice"].maildir
    for name, hours in (("old", 37), ("young", 35)):
        with open(f"{maildir}/tmp/{name}", "w"):
            pass
        then = time.time() - hours * 3600
        os.utime(f"{maildir}/tmp/{name}", (then, then))
    with lmtp(fresh) as client:
        client.sendmail("a@b", ["alice"], MAIL)
    wait_for(lambda: os.listdir(f"{maildir}/tmp") == ["young"])


def test_lmtp_off():
    with Service(mail=(), lmtp=False) as service:
        assert service.actor("mda") is None
        assert not os.path.exists(f"{service.config.run_dir}/lmtp.sock")


def test_over_loopback_tcp():
    (port,) = free_ports(1)
    with Service(mail=(), lmtp_listen=[f"127.0.0.1:{port}"]) as service, Lmtp("127.0.0.1", port) as client:
        assert client.sendmail("a@b", ["alice"], MAIL) == {}
        assert without_trace(next(iter(messages(service, "alice").values()))) == MAIL.replace(b"\r\n", b"\n")


@pytest.mark.root("only root can be several users")
def test_delivery_permissions():
    with Service(mail=(), mta_users=["64777:64777"]) as service:
        alice = service.site.mail_users["alice"].uid
        with RawLmtp(service, uid=alice) as raw:
            raw.envelope("alice")
            raw.say(b"DATA\r\n", b"354")
            raw.say(b"own\r\n.\r\n", b"250")
        with RawLmtp(service, uid=alice) as raw:
            raw.say(b"LHLO x\r\nMAIL FROM:<root@localhost>\r\n", b"250", b"250")
            own, other, none = raw.say(
                b"RCPT TO:<alice>\r\nRCPT TO:<bob>\r\nRCPT TO:<nobody>\r\n", b"250", b"550", b"550"
            )
            assert other.startswith(b"550 5.7.1 ")
            assert other == none, "a refused sender does not learn which users exist"
        with RawLmtp(service, uid=64777) as raw:
            assert raw.deliver(b"mta", "alice", "bob")[1].startswith(b"250")
        with RawLmtp(service, uid=64778) as raw:
            raw.say(b"LHLO x\r\nMAIL FROM:<>\r\n", b"250", b"250")
            raw.say(b"RCPT TO:<alice>\r\n", b"550")
    # the kernel's cache of recipients is per sender
    with Service(mail=()) as service:
        with RawLmtp(service) as raw:
            raw.deliver(b"x", "bob")
        with RawLmtp(service, uid=service.site.mail_users["alice"].uid) as raw:
            raw.say(b"LHLO x\r\nMAIL FROM:<>\r\n", b"250", b"250")
            raw.say(b"RCPT TO:<bob>\r\n", b"550")
