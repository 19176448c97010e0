"""Deliver twenty thousand messages to two hundred users who read and delete meanwhile; none is lost."""

import collections
import os
import poplib
import re
import threading
import time

import pytest

from tests.support.lmtp import lmtp
from tests.support.maildirs import messages, pop_all
from tests.support.service import Service

ID = re.compile(rb"^Message-ID: <([0-9]+)@load>\r?$", re.MULTILINE)
LINE = b"a line of a message that is to be counted and not to be lost\r\n"


def run(count, connections, users, octets, readers=4):
    names = [f"user{i:03}" for i in range(users)]
    with Service(mail=(), users=names, verbose=0) as service:
        read = collections.Counter()
        lock, stop, failures = threading.Lock(), threading.Event(), []
        body = LINE * max(1, octets // len(LINE))

        def send(k):
            try:
                with lmtp(service) as client:
                    for i in range(k, count, connections):
                        assert (
                            client.sendmail(
                                "s@x", [names[i % users]], b"Message-ID: <%d@load>\r\n\r\n" % i + body
                            )
                            == {}
                        )
            except BaseException as error:
                failures.append(error)

        def reading(k):
            """Log in as one user after another, read everything, delete it."""
            try:
                while not stop.is_set():
                    for name in names[k::readers]:
                        client = service.pop3(name)
                        got = [b"\r\n".join(client.retr(n + 1)[1]) for n in range(client.stat()[0])]
                        for n in range(len(got)):
                            client.dele(n + 1)
                        client.quit()
                        with lock:
                            read.update(int(ID.search(text)[1]) for text in got)
                        assert all(text.count(LINE[:-2]) == len(body) // len(LINE) for text in got)
                        if stop.is_set():
                            break
            except poplib.error_proto as error:
                failures.append(error)
            except BaseException as error:
                failures.append(error)

        senders = [threading.Thread(target=send, args=(k,)) for k in range(connections)]
        popping = [threading.Thread(target=reading, args=(k,)) for k in range(readers)]
        began = time.monotonic()
        for thread in senders + popping:
            thread.start()
        for thread in senders:
            thread.join()
        seconds = time.monotonic() - began
        stop.set()
        for thread in popping:
            thread.join()
        assert not failures, failures[:3]
        during = sum(read.values())
        for name in names:
            check_popcache(service, name)
            read.update(int(ID.search(text)[1]) for text in pop_all(service, name))
        assert sorted(read) == list(range(count)), "lost: " + str(sorted(set(range(count)) - set(read))[:10])
        assert max(read.values()) == 1, [n for n, times in read.items() if times > 1][:10]
        print(
            f"\n{count} messages to {users} users in {seconds:.1f} s, {count / seconds:.0f}/s, "
            f"{during} of them read and deleted meanwhile"
        )


def check_popcache(service, name):
    """After a session, compare the popcache with one built anew."""
    pop_all(service, name)
    with open(os.path.join(service.site.mail_users[name].maildir, "popcache"), "rb") as file:
        lines = [line.split() for line in file.read().splitlines() if not line.startswith(b"#")]
    there = {
        file.partition(":")[0].encode(): len(text) + text.count(b"\n")
        for file, text in messages(service, name).items()
    }
    assert {line[0]: int(line[1]) for line in lines} == there
    assert len(lines) == len(there)


def test_some_messages_while_they_are_read():
    run(600, 8, 20, 1000, readers=2)


@pytest.mark.load
def test_twenty_thousand_messages_while_they_are_read():
    run(20000, 8, 200, 4000)
