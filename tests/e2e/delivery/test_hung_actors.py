"""Hang an actor: its mail gets a temporary error, it is ended and replaced, and others notice nothing."""

import contextlib
import threading
import time

import pytest

from tests.support.lmtp import MAIL, RawLmtp, deliver, lmtp
from tests.support.maildirs import messages, pop_all
from tests.support.processes import gone, rss, stopped
from tests.support.service import IMPATIENT_SECONDS as SECONDS
from tests.support.service import Service, serve_with_short_deadlines
from tests.support.waiting import wait_for

LARGE = MAIL + b"a line of a large message\r\n" * 40000


@pytest.mark.parametrize("mail", [MAIL, LARGE], ids=["small", "large"])
def test_a_maildir_actor_that_hangs(mail):
    with serve_with_short_deadlines() as service:
        assert deliver(service)[:3] == b"250"
        pid = service.actor("maildir.alice")["pid"]
        with stopped(pid):
            began = time.monotonic()
            assert deliver(service, "bob")[:3] == b"250"
            answer = deliver(service, mail=mail)
            assert answer[:3] in (b"450", b"451"), answer
            assert SECONDS - 1 < time.monotonic() - began < SECONDS + 8, "checked once a second"
            wait_for(lambda: gone(pid))
        log = service.wait_log("maildir.alice is not alive")
        assert "maildir.alice has answered nothing" in log
        assert deliver(service, mail=mail)[:3] == b"250"
        assert len(pop_all(service, "alice")) == 2
        assert service.actor("mda")["restarts"] == 0


def test_many_copies_for_a_hung_actor():
    """Each copy is answered, and the mda keeps nothing of it."""
    with serve_with_short_deadlines() as service:
        assert deliver(service)[:3] == b"250"
        pid = service.actor("maildir.alice")["pid"]
        with stopped(pid), RawLmtp(service) as raw:
            raw.envelope(*[f"alice+{i}" for i in range(100)], "bob")
            raw.say(b"DATA\r\n", b"354")
            raw.send(MAIL + b".\r\n")
            answers = [raw.answer()[:3] for _ in range(101)]
            assert answers[-1] == b"250"
            # these were in flight; copies waiting for their turn go to the next actor
            assert set(answers[:8]) <= {b"450", b"451"}, answers
            wait_for(lambda: gone(pid))
        assert deliver(service)[:3] == b"250"
        assert len(messages(service, "alice")) == 2 + answers[:-1].count(b"250")


def test_an_idle_hung_actor_that_must_retire():
    """It was told to retire and hangs: a delivery waiting for its end gets it ended."""
    with serve_with_short_deadlines(warm_seconds=0) as service, RawLmtp(service) as raw:
        raw.envelope("alice")
        raw.say(b"DATA\r\n", b"354")
        raw.send(LARGE)
        pid = wait_for(lambda: (service.actor("maildir.alice") or {}).get("pid"))
        with stopped(pid):
            raw.close()
            answers = []
            wait_for(lambda: answers.append(deliver(service)[:3]) or answers[-1] == b"250", seconds=20)
            assert gone(pid)
        assert len(messages(service, "alice")) == 1


def test_an_mda_that_accuses_the_living():
    """Whatever the mda reports of a channel, an actor that answers is not ended, and mail goes on."""
    with serve_with_short_deadlines("accuse", warm_seconds=600) as service:
        assert deliver(service)[:3] == b"250"
        pid = service.actor("maildir.alice")["pid"]
        session, other = service.pop3("alice"), service.pop3("bob")
        count, end = 1, time.monotonic() + 2 * SECONDS + 2
        while time.monotonic() < end:
            count += deliver(service)[:3] == b"250"
        assert service.actor("maildir.alice")["pid"] == pid
        assert session.stat()[0] == 1
        session.quit()
        assert "a lie" in service.read_log()
        assert other.noop().startswith(b"+OK"), (
            "an actor without a channel to the mda is not ended by its complaint"
        )
        other.quit()
        assert "is not alive" not in service.read_log()
        assert len(messages(service, "alice")) == count > 10


def test_a_kernel_that_does_not_answer_about_a_recipient():
    with serve_with_short_deadlines() as service, RawLmtp(service) as raw:
        raw.say(b"LHLO x\r\nMAIL FROM:<>\r\n", b"250", b"250")
        kernel = service.actor("kernel")["pid"]
        with stopped(kernel):
            began = time.monotonic()
            (answer,) = raw.say(b"RCPT TO:<alice>\r\n", b"451")
            assert answer.startswith(b"451 4.3.2 ")
            assert SECONDS <= time.monotonic() - began < SECONDS + 8
        raw.say(b"RCPT TO:<alice>\r\nDATA\r\n", b"250", b"354")
        raw.say(b"late, and there\r\n.\r\n", b"250")
        with lmtp(service) as client:
            assert client.sendmail("a@b", ["alice", "carol"], MAIL) == {}
        assert len(messages(service, "alice")) == 2


def test_hung_again_and_again_under_load():
    """Four senders lose nothing while an actor is stopped repeatedly, and all mail is accepted in the end."""
    with serve_with_short_deadlines() as service:
        failures, sent, enough = [], set(), threading.Event()

        def send(k):
            try:
                for i in range(k, 100000, 4):
                    mail = b"Subject: %d\r\n\r\nx\r\n" % i
                    end = time.monotonic() + 60
                    while deliver(service, mail=mail)[:3] != b"250":
                        assert time.monotonic() < end
                    sent.add(i)
                    if enough.wait(0.01):
                        return
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=send, args=(k,)) for k in range(4)]
        for thread in threads:
            thread.start()
        for _ in range(2):
            pid = wait_for(lambda: (service.actor("maildir.alice") or {}).get("pid"))
            with stopped(pid):
                wait_for(lambda pid=pid: gone(pid))
        enough.set()
        for thread in threads:
            thread.join()
        assert not failures
        assert service.read_log().count("is not alive") == 2
        there = [int(text.split(b"Subject: ")[1].split()[0]) for text in messages(service, "alice").values()]
        assert set(there) == sent


def test_a_user_who_stops_his_actor_and_reconnects():
    """An actor that does not read is sent nothing more, and queued content goes with its client."""
    with Service(mail=()) as service:
        assert deliver(service)[:3] == b"250"
        mda, pid = service.actor("mda")["pid"], service.actor("maildir.alice")["pid"]
        before = rss(mda)
        with stopped(pid):
            for _ in range(150):
                with RawLmtp(service) as raw:
                    raw.say(b"LHLO t\r\nMAIL FROM:<>\r\n", b"250", b"250")
                    raw.send(b"RCPT TO:<alice+x>\r\n" * 200 + b"RCPT TO:<bob>\r\nDATA\r\n")
                    raw.expect(*[b"250"] * 201, b"354")
                    raw.sock.settimeout(0.02)
                    with contextlib.suppress(TimeoutError):
                        raw.send(LARGE[:200000])
            for _ in range(150):
                with RawLmtp(service) as raw:
                    raw.envelope("alice")
                    raw.say(b"DATA\r\n", b"354")
                    raw.send(LARGE[:100000] + b"\r\n.\r\n")
            assert rss(mda) < before + (12 << 20), (before, rss(mda))
            assert deliver(service, "bob", LARGE)[:3] == b"250"
        assert deliver(service, mail=LARGE)[:3] == b"250"
        assert service.actor("maildir.alice")["pid"] == pid
