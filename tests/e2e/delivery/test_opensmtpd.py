"""Deliver from OpenSMTPD by `lmtp … rcpt-to` and by `mda`, with virtual users of the same user table."""

import contextlib
import re
import threading

import pytest

from tests.support.maildirs import messages, pop_all
from tests.support.processes import kill
from tests.support.programs.mail_servers import (
    leftovers,
    opensmtpd,
    passable_directory,
    reachable_popkernel,
    swaks,
    wait_settled,
)
from tests.support.service import Service

MAIL = b"""From: sender@example.net
To: alice@example.org
Subject: %s
Message-ID: <%s@example.net>

a body
.
..two dots
8-bit \xc3\xa9
"""

LMTP = """
table users file:{users}
listen on 127.0.0.1 port {port}
action "pop" lmtp "{run}/lmtp.sock" rcpt-to userbase <users>
match from any for domain "example.org" action "pop"
"""

# a user that every system has
OWN = LMTP.replace("lmtp.sock", "mta.sock").replace("userbase <users>", "userbase <users> user games")

MDA = """
table users file:{users}
listen on 127.0.0.1 port {port}
action "pop" mda "{program} deliver --run-dir {run} -u %{user.username}" userbase <users>
match from any for domain "example.org" action "pop"
"""

VIRTUAL = """
table users file:{users}
table virtuals { "sales@example.org" = "alice", "info@example.org" = "bob" }
listen on 127.0.0.1 port {port}
action "pop" lmtp "{run}/lmtp.sock" virtual <virtuals> userbase <users>
match from any for domain "example.org" action "pop"
"""


@pytest.fixture
def place():
    with passable_directory() as directory:
        yield directory


def conf(template, service, directory):
    text = template.replace("{users}", service.site.user_table).replace("{run}", service.config.run_dir)
    return text.replace("{program}", reachable_popkernel(directory) if "{program}" in text else "")


def queue(place):
    """Return the Message-IDs that OpenSMTPD still holds."""
    found = set()
    for path in leftovers(f"{place}/spool"):
        with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
            found |= {line for line in file.read().splitlines() if line.startswith(b"Message-ID:")}
    return found


def bounced(log):
    """Return the numbers, in order of arrival, of messages that OpenSMTPD bounced.

    Its mail.lmtp does not ignore SIGPIPE: it dies with an mda killed during a write, and smtpd takes "exited
    abnormally" for a permanent failure. Any other permanent failure would be popkernel's fault.
    """
    arrived = re.findall(r"smtp message msgid=(\w+)", log)
    failed = re.findall(r"evpid=(\w{8})\w+ .* result=PermFail stat=(.*)", log)
    assert all(why == "Error (exited abnormally)" for _, why in failed), failed
    return {arrived.index(message) for message, _ in failed}


def body(text):
    """Return the text after the header fields that the mail server added."""
    return text.partition(b"\r\n\r\n")[2] if b"\r\n\r\n" in text else text.partition(b"\n\n")[2]


@pytest.mark.parametrize("way", [LMTP, OWN, MDA], ids=["lmtp", "own", "mda"])
def test_delivered_octet_for_octet(way, place):
    with (
        Service(mail=(), mta_users=["games"] * (way is OWN)) as service,
        opensmtpd(place, conf(way, service, place)) as mta,
    ):
        mail = MAIL % (b"one", b"1")
        swaks(mta.port, ["alice@example.org", "bob+list@example.org"], mail)
        try:
            wait_settled(lambda: messages(service, "alice") and messages(service, "bob"))
        except AssertionError:
            raise AssertionError(mta.said() + service.read_log()) from None
        for user, address in (("alice", b"alice"), ("bob", b"bob")):
            (got,) = pop_all(service, user)
            assert body(got) == body(mail).replace(b"\n", b"\r\n")
            head = got.partition(b"\r\n\r\n")[0]
            assert head.lower().count(b"return-path: <sender@example.net>") == 1, head
            assert head.lower().count(b"delivered-to: " + address) == 1, head
        wait_settled(lambda: not leftovers(f"{place}/spool"))


def test_virtual_users(place):
    with Service(mail=()) as service, opensmtpd(place, conf(VIRTUAL, service, place)) as mta:
        swaks(mta.port, ["sales@example.org", "info@example.org"], MAIL % (b"v", b"2"))
        wait_settled(lambda: len(messages(service, "alice")) == len(messages(service, "bob")) == 1)


def test_kills_with_a_real_mail_server(place):
    """No message is lost: it is delivered, queued, or bounced to its sender."""
    with (
        Service(mail=(), restart_seconds=1, restart_intensity=1000) as service,
        opensmtpd(place, conf(LMTP, service, place)) as mta,
    ):
        done = threading.Event()

        def kill_actors():
            while not done.wait(0.15):
                for actor in service.status()["actors"]:
                    if actor["name"].startswith(("mda", "maildir")) and actor["pid"]:
                        try:
                            kill(actor["pid"])
                        except ProcessLookupError:
                            continue

        thread = threading.Thread(target=kill_actors)
        thread.start()
        try:
            for i in range(15):
                swaks(mta.port, ["alice@example.org"], MAIL % (b"k", b"k%d" % i))
        finally:
            done.set()
            thread.join()

        def ids():
            return {
                line
                for text in messages(service, "alice").values()
                for line in text.splitlines()
                if line.startswith(b"Message-ID:")
            }

        def accounted():
            with open(mta.log, errors="replace") as file:
                return (
                    ids()
                    | queue(place)
                    | {b"Message-ID: <k%d@example.net>" % i for i in bounced(file.read())}
                )

        # refused mail comes at the queue's next try, minutes later; it must be delivered whole or queued
        wait_settled(lambda: len(accounted()) == 15)
        assert all(body(text) == body(MAIL) for text in messages(service, "alice").values())
