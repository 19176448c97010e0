"""Deliver concurrently: much mail for one mailbox, many recipients, a user who takes all connections."""

import contextlib
import hashlib
import os
import smtplib
import socket
import subprocess
import sys
import threading
import time

import pytest
from popkernel.actors.mda.transaction import MOST_STREAMS

from tests.support.lmtp import Lmtp, RawLmtp, connected_as, lmtp, socket_path
from tests.support.maildirs import bodies, left_in_tmp, messages
from tests.support.ports import free_ports
from tests.support.processes import peak, rss, stop_process
from tests.support.service import POPKERNEL, Service
from tests.support.waiting import wait_for

LINE = b"a line of a large message, of which there are many\r\n"
LARGE = b"Subject: large\r\n\r\n" + LINE * (300 * 1024 // len(LINE))
MAIL = b"Subject: x\r\n\r\nbody\r\n"


def unix(mail):
    return mail.replace(b"\r\n", b"\n")


def digest(mail):
    return hashlib.sha256(mail).hexdigest()


def pids(service):
    return {
        a["name"]: a["pid"] for a in service.status()["actors"] if a["name"].startswith(("mda", "maildir"))
    }


def test_a_large_message_for_a_thousand_addresses_of_one_user():
    """As many are accepted as may be in flight to a mailbox at once.

    The mail server sends to the others afterwards.
    """
    with Service(mail=()) as service, RawLmtp(service) as raw:
        assert raw.deliver(MAIL[:-2], "alice", "bob") != []
        before = {name: peak(pid) for name, pid in pids(service).items()}
        left = [f"alice+{i}{domain}" for i in range(500) for domain in ("", "@example.org")]
        taken = []
        for turn in range(3):
            raw.envelope("bob", *left, f"bob+{turn}")
            raw.say(b"DATA\r\n", b"354")
            raw.send(LARGE + b".\r\n")
            answers = [raw.answer()[:9] for _ in range(len(left) + 2)]
            assert answers == [b"250 2.0.0"] * (1 + MOST_STREAMS) + [b"452 4.5.3"] * (
                len(left) - MOST_STREAMS
            ) + [b"250 2.0.0"]
            taken, left = taken + left[:MOST_STREAMS], left[MOST_STREAMS:]
        grown = {name: (peak(pid) - before[name]) >> 10 for name, pid in pids(service).items()}
        print(f"\ngrown by KiB: {grown}")
        assert max(grown.values()) < 8 * 1024
        found = list(messages(service, "alice").values())[1:]
        heads = {text.partition(b"Subject: ")[0] for text in found}
        assert heads == {
            b"Return-Path: <s@example.org>\nDelivered-To: %s\n" % address.encode() for address in taken
        }
        assert len(found) == len(taken)
        assert {digest(text) for text in bodies(service, "alice")[1:]} == {digest(unix(LARGE))}
        assert [digest(text) for text in bodies(service, "bob")[1:]] == [digest(unix(LARGE))] * 6
        assert left_in_tmp(service, "alice") == []


@pytest.mark.parametrize("many", [100])
def test_many_large_messages_for_one_mailbox_at_once(many):
    """There are more than its actor may have open: the others wait, and small ones do not wait for them."""
    with Service(mail=()) as service, contextlib.ExitStack() as stack:
        raws = [stack.enter_context(RawLmtp(service)) for _ in range(many)]
        failures = []
        half = LARGE[: len(LARGE) // 2]
        begun = threading.Barrier(many + 1)
        go = threading.Event()

        def send(raw, number):
            try:
                raw.envelope("alice")
                raw.say(b"DATA\r\n", b"354")
                raw.send(b"Number: %d\r\n" % number + half)
                begun.wait(60)
                go.wait(60)
                raw.send(LARGE[len(half) :] + b".\r\n")
                raw.expect(b"250")
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=send, args=(raw, i)) for i, raw in enumerate(raws)]
        for thread in threads:
            thread.start()
        begun.wait(60)
        wait_for(lambda: len(left_in_tmp(service, "alice")) == MOST_STREAMS)
        with lmtp(service) as client:
            assert client.sendmail("a@b", ["alice"], MAIL) == {}, "slow senders delay no small message"
        go.set()
        for thread in threads:
            thread.join()
        assert not failures, failures[:3]
        texts = bodies(service, "alice")
        assert {digest(text.partition(b"\n")[2]) for text in texts if text.startswith(b"Number")} == {
            digest(unix(LARGE))
        }
        assert {int(text.split()[1]) for text in texts if text.startswith(b"Number")} == set(range(many))
        assert len(texts) == many + 1


def test_large_messages_to_the_same_users_in_different_order():
    """Messages for several recipients each must not deadlock.

    There are more of them than may be in flight to one mailbox.
    """
    with Service(mail=(), message_octets=1 << 24) as service:
        failures = []

        def send(k):
            users = ["alice", "bob", "carol"][k % 3 :] + ["alice", "bob", "carol"][: k % 3]
            try:
                with lmtp(service) as client:
                    for _ in range(2):
                        assert client.sendmail("a@b", users, LARGE) == {}
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=send, args=(k,)) for k in range(40)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert not failures, failures[:3]
        assert [len(messages(service, user)) for user in ("alice", "bob", "carol")] == [80] * 3


def test_quota_in_the_middle_of_the_copies():
    """As many as have room are accepted; others get a temporary error, then a final one."""
    with (
        Service(mail=(), quota_users=[f"alice={len(unix(LARGE)) * 3 + 1000}"]) as service,
        RawLmtp(service) as raw,
    ):
        for taken, refused in ((4, b"452 4.2.2"), (1, b"552 5.2.2")):
            raw.envelope(*[f"alice+{i}" for i in range(10)], "bob")
            raw.say(b"DATA\r\n", b"354")
            raw.send(LARGE + b".\r\n")
            answers = [raw.answer()[:9] for _ in range(11)]
            assert answers[-1] == b"250 2.0.0"
            assert answers.count(b"250 2.0.0") == taken
            assert answers.count(refused) == 11 - taken
        assert len(messages(service, "alice")) == 3
        assert left_in_tmp(service, "alice") == []


def test_memory_is_given_back():
    with Service(mail=()) as service:
        with lmtp(service) as client:
            assert client.sendmail("a@b", ["alice", "bob", "carol"], MAIL) == {}
        pid = service.actor("mda")["pid"]
        before = rss(pid)
        with contextlib.ExitStack() as stack:
            raws = [stack.enter_context(RawLmtp(service)) for _ in range(150)]
            for raw in raws:
                raw.envelope("alice")
                raw.say(b"DATA\r\n", b"354")
                raw.send(b"x" * (120 * 1024))
            wait_for(lambda: rss(pid) > before + 150 * 110 * 1024)
            high = rss(pid)
            # in the middle of the messages, as on a slow machine: the mda checks each second
            quiet = time.monotonic() + 2.5
            wait_for(lambda: time.monotonic() > quiet)
            for raw in raws:
                raw.send(b"\r\n.\r\n")
            for raw in raws:
                raw.expect(b"250")
        wait_for(lambda: rss(pid) < before + (4 << 20), seconds=10)
        print(f"\nmda: {before >> 10} KiB, {high >> 10} with 150 messages in it, {rss(pid) >> 10} afterwards")


def greeting(sock):
    with sock:
        sock.settimeout(10)
        return sock.recv(200)


@pytest.mark.root("only root can be several users")
def test_one_user_can_not_have_all_connections():
    (port,) = free_ports(1)
    settings = {
        "lmtp_connections": 20,
        "lmtp_connections_user": 4,
        "mta_users": ["64777:64777"],
        "lmtp_listen": [f"127.0.0.1:{port}"],
    }
    with Service(mail=(), **settings) as service, contextlib.ExitStack() as stack:
        path = socket_path(service)

        def fill(connect, most):
            """Open as many connections as possible; return the refusal of one more.

            Each has begun a message, since an idle one makes room.
            """
            for _ in range(most):
                sock = stack.enter_context(connect())
                sock.settimeout(10)
                assert sock.recv(200).startswith(b"220")
                sock.sendall(b"LHLO t\r\nMAIL FROM:<>\r\n")
                answers = b""
                while b"250 2.1.0" not in answers:
                    answers += sock.recv(200)
            return greeting(connect())

        def by_tcp():
            return socket.create_connection(("127.0.0.1", port))

        alice, bob = (service.site.mail_users[user].uid for user in ("alice", "bob"))
        refused = b"421 4.3.2 too many connections of yours"
        assert fill(lambda: connected_as(path, alice), 4).startswith(refused)
        assert fill(lambda: connected_as(path, bob), 1)[:3] == b"220", (
            "another user has connections of his own"
        )
        assert fill(by_tcp, 10).startswith(refused)
        with RawLmtp(service, uid=64777) as raw:
            assert raw.deliver(MAIL[:-2], "alice")[0].startswith(b"250"), "the mail server always gets in"
        with lmtp(service) as client:
            assert client.sendmail("a@b", ["bob"], MAIL) == {}
        stack.close()
        wait_for(lambda: greeting(connected_as(path, alice)).startswith(b"220"))
        with Lmtp("127.0.0.1", port) as client:
            assert client.sendmail("a@b", ["carol"], MAIL) == {}
        assert os.getuid() == 0


@pytest.mark.parametrize("mail", [MAIL, LARGE], ids=["small", "large"])
def test_a_user_who_stops_her_actor_stops_no_other_mailbox(mail):
    """A mail user with a shell may stop her own actor.

    Few connections wait for it; others are answered at once.
    """
    with Service(mail=()) as service, contextlib.ExitStack() as stack:
        with lmtp(service) as client:
            assert client.sendmail("a@b", ["alice"], MAIL) == {}
        pid = pids(service)["maildir.alice"]
        stop_process(pid)
        raws = [stack.enter_context(RawLmtp(service)) for _ in range(200)]
        lines = b"LHLO t\r\nMAIL FROM:<s@x>\r\nRCPT TO:<alice>\r\nDATA\r\n" + mail + b".\r\n"
        left, said = dict.fromkeys(raws, memoryview(lines)), dict.fromkeys(raws, b"")
        for raw in raws:
            raw.sock.setblocking(False)

        def answered():
            """Send all clients' mail as far as there is room: one that waits must not hold up the others."""
            for raw in raws:
                with contextlib.suppress(BlockingIOError):
                    while left[raw]:
                        left[raw] = left[raw][raw.sock.send(left[raw]) :]
                with contextlib.suppress(BlockingIOError):
                    while part := raw.sock.recv(4096):
                        said[raw] += part
            return [raw for raw in raws if b"\r\n451 4.3.2" in said[raw]]

        wait_for(answered, until=lambda found: len(found) >= 50, seconds=5)

        # all places are taken; within 0.25 s one of the answered connections makes room
        def another():
            with contextlib.suppress(smtplib.SMTPConnectError):
                return lmtp(service)

        began = time.monotonic()
        for _ in range(20):
            with wait_for(another, seconds=2) as client:
                assert client.sendmail("a@b", ["bob"], MAIL) == {}
        assert time.monotonic() - began < 4
        # the others when the kernel ends the actor: it must answer within 10 s, from a question on
        wait_for(answered, until=lambda found: len(found) >= 175, seconds=15)
        assert len(messages(service, "bob")) == 20
        assert service.actor("mda")["restarts"] == 0


_CONNECT_AND_CLOSE = """
import os, socket, sys
os.setgroups([]); os.setgid(int(sys.argv[2])); os.setuid(int(sys.argv[2]))
print("on", flush=True)
while True:
    with socket.socket(socket.AF_UNIX) as s:
        s.setblocking(False)
        try:
            s.connect(sys.argv[1])
        except OSError:
            pass
"""


@pytest.mark.root("needs another uid")
def test_endless_connections_do_not_keep_the_mail_server_out():
    """Root and mta_users have their own socket; other clients wait in the public one's queue."""
    with Service(mail=(), mta_users=["2525:2525", "2526:2526"]) as service, contextlib.ExitStack() as stack:
        own = [f"{service.config.run_dir}/{name}" for name in ("mta.sock", "mta-2526.sock")]
        assert [(os.stat(path).st_mode & 0o777, os.stat(path).st_gid) for path in own] == [
            (0o660, 2525),
            (0o660, 2526),
        ]
        with pytest.raises(subprocess.CalledProcessError):
            connected_as(own[0], 2001)
        command = [sys.executable, "-I", "-c", _CONNECT_AND_CLOSE, socket_path(service), "2001"]
        flood = [
            stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, cwd="/")) for _ in range(2)
        ]
        try:
            for process in flood:
                process.stdout.readline()
            for number in range(100):
                with RawLmtp(service, uid=2525 if number % 10 == 0 else None, path=own[0]) as raw:
                    (answer,) = raw.deliver(MAIL[:-2], "bob")
                    assert answer[:3] == b"250", (number, answer)
            with RawLmtp(service, uid=2526, path=own[1]) as raw:
                assert raw.deliver(MAIL[:-2], "bob")[0][:3] == b"250"
            done = subprocess.run(
                [*POPKERNEL, "deliver", "--run-dir", service.config.run_dir, "-u", "bob"],
                input=MAIL,
                timeout=60,
                check=False,
            )
            assert done.returncode == 0, "root may use the mail server's socket too"
        finally:
            for process in flood:
                process.kill()
        assert len(messages(service, "bob")) == 102
    assert not os.path.exists(own[0])


def test_a_silent_connection_makes_room():
    with Service(mail=(), lmtp_connections=4) as service, contextlib.ExitStack() as stack:
        for _ in range(4):
            stack.enter_context(RawLmtp(service))

        def delivered():
            with contextlib.suppress(AssertionError), RawLmtp(service) as raw:
                return raw.deliver(MAIL[:-2], "alice")[0][:3] == b"250"

        wait_for(delivered, seconds=10)
