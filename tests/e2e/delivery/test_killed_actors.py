"""Kill actors at every step of a delivery: accepted messages are whole, others are not half there.

The sender below acts as a mail server: it keeps a message until it has seen 250, and tries again until then.
"""

import contextlib
import os
import random
import re
import threading
import time

import pytest

from tests.support.faults.deaths_in_delivery import COMMAND
from tests.support.lmtp import Lmtp, socket_path
from tests.support.maildirs import messages, pop_all, without_trace
from tests.support.processes import kill
from tests.support.service import Service
from tests.support.waiting import wait_for

SMALL, LARGE = b"a line of a small message\r\n" * 300, b"a line of a large message\r\n" * 12000
MOST_POINTS = 400


def faulty(**settings):
    return Service(command=COMMAND, mail=(), restart_intensity=1000, restart_seconds=1, **settings)


class Sender:
    """Act as the queue of a mail server."""

    def __init__(self, service):
        self.service = service
        self.sent = {}  # (user, id) -> number of tries, each of which ended in anything but a refusal
        self.lost_answers = {}
        self.lock = threading.Lock()

    def once(self, user, number, body, sender="s@example.org", recipient=None):
        """Try once; return True if accepted, False for a later try."""
        mail = self.mail(number, body)
        try:
            with Lmtp(socket_path(self.service), timeout=30) as client:
                client.ehlo_or_helo_if_needed()
                if client.mail(sender)[0] != 250 or client.rcpt(recipient or user)[0] != 250:
                    return False
                client.docmd("DATA")
                client.send(mail + b".\r\n")
                code, text = client.getreply()
                assert code == 250 or 400 <= code < 500, (code, text)
                return code == 250
        except OSError:
            return False  # includes SMTPServerDisconnected

    def until_accepted(self, user, number, body, **first):
        """Send as a mail server would; return the number of tries. The fault is in the first one only."""
        tries = 1
        end = time.monotonic() + 60
        if not self.once(user, number, body, **first):
            while True:
                tries += 1
                if self.once(user, number, body):
                    break
                assert time.monotonic() < end, "never accepted"
                time.sleep(0.02)
        with self.lock:
            self.sent[user, number] = (tries, self.mail(number, body))
        return tries

    @staticmethod
    def mail(number, body):
        return b"Message-ID: <%d@test>\r\n\r\n" % number + body

    def check(self):
        """Check that everything accepted is there, whole, at most once for each try, and nothing else.

        Returns the number of messages that came more than once.
        """
        doubles = 0
        for user in self.service.site.passwords:
            counted = {}
            for name, text in messages(self.service, user).items():
                found = re.search(rb"Message-ID: <([0-9]+)@test>", text)
                assert found, (user, name, text[:200])
                number = int(found[1])
                assert without_trace(text) == self.sent[user, number][1].replace(b"\r\n", b"\n"), (
                    f"{user}: {name} is not whole"
                )
                counted[number] = counted.get(number, 0) + 1
            expected = {number: tries for (to, number), (tries, _) in self.sent.items() if to == user}
            assert counted.keys() == expected.keys(), (user, sorted(expected.keys() - counted.keys()))
            for number, times in counted.items():
                assert 1 <= times <= expected[number], (user, number, times)
                doubles += times - 1
        return doubles

    def check_popcache(self):
        """After a session, compare the popcache with one built anew."""
        for user in self.service.site.passwords:
            pop_all(self.service, user)
            path = self.service.site.mail_users[user].maildir
            with open(f"{path}/popcache", "rb") as file:
                lines = [line.split() for line in file.read().splitlines() if not line.startswith(b"#")]
            found = {name.partition(":")[0]: text for name, text in messages(self.service, user).items()}
            assert {line[0].decode(): int(line[1]) for line in lines} == {
                n: len(t) + t.count(b"\n") for n, t in found.items()
            }
            assert len(lines) == len(found)


@pytest.mark.parametrize(("body", "step"), [(SMALL, 1), (LARGE, 1)], ids=["small", "large"])
def test_kill_maildir_at_every_step(body, step):
    with faulty() as service:
        sender = Sender(service)
        points = 0
        for point in range(1, MOST_POINTS, step):
            if sender.until_accepted("alice", point, body, sender=f"die-{point}@maildir") == 1:
                break
            points += 1
        assert points >= 20
        doubles = sender.check()
        print(f"\nmaildir actor killed at {points} points, {doubles} messages came twice")
        assert doubles <= points * 0.7  # a kill between the message's appearance and the 250 doubles it
        assert service.read_log().count("SIGKILL") >= points
        sender.check_popcache()
        assert sender.until_accepted("alice", 0, body) == 1


def test_kill_maildir_with_a_message_for_several_addresses():
    """Every address answered with 250 has its whole message, and no other has half of one."""
    with faulty() as service:
        mail, points, taken = Sender.mail(1, LARGE), 0, []
        addresses = [f"alice+{i}" for i in range(4)]
        for point in range(20, MOST_POINTS, 3):
            answers = []
            with contextlib.suppress(OSError), Lmtp(socket_path(service), timeout=30) as client:
                client.ehlo_or_helo_if_needed()
                client.mail(f"die-{point}@maildir")
                assert [client.rcpt(f"{address}.{point}")[0] for address in addresses] == [250] * 4
                client.docmd("DATA")
                client.send(mail + b".\r\n")
                for _ in addresses:
                    answers.append(client.getreply()[0])
            assert set(answers) <= {250, 450, 451}, answers
            taken += [f"{address}.{point}" for address, code in zip(addresses, answers) if code == 250]
            if answers == [250] * 4:
                break
            points += 1
        there = {
            text.split(b"\n")[1].split()[1].decode(): text for text in messages(service, "alice").values()
        }
        assert all(without_trace(text) == mail.replace(b"\r\n", b"\n") for text in there.values())
        assert set(taken) <= set(there)
        assert len(there) == len(messages(service, "alice"))
        print(f"\nmaildir actor killed at {points} points, {len(taken)} copies accepted, {len(there)} there")
        assert points >= 10
        assert 4 < len(taken) < len(addresses) * points


@pytest.mark.parametrize(
    ("body", "step", "most"),
    [
        (SMALL, 2, 7),
        (LARGE, 5, 7),  # a singleton's restarts take longer
        pytest.param(SMALL, 1, MOST_POINTS, marks=pytest.mark.soak),
        pytest.param(LARGE, 1, MOST_POINTS, marks=pytest.mark.soak),
    ],
    ids=["small", "large", "small all", "large all"],
)
def test_kill_mda_at_every_step(body, step, most):
    with faulty() as service:
        sender = Sender(service)
        points = 0
        for point in range(1, MOST_POINTS, step):
            pid = service.process.pid  # init stays
            if sender.until_accepted("bob", point, body, sender=f"die-{point}@mda") == 1:
                break
            points += 1
            assert service.process.pid == pid
            if points >= most:
                break
        print(f"\nmda killed at {points} points, {sender.check()} messages came twice")
        assert points >= 6
        sender.check_popcache()


def test_kill_kernel_during_a_recipient_lookup():
    """The kernel's end ends the service, which is started again, as by a service manager."""
    points, kept = 0, None
    for point in (1, 2, 3, 5, 8, 13):
        with faulty() as service:
            sender = Sender(service)
            mail = sender.once("carol", point, SMALL, recipient=f"carol+die-{point}@kernel")
            if mail:
                sender.sent["carol", point] = (1, sender.mail(point, SMALL))
            else:
                points += 1
                assert service.process.wait(20) != 0
                assert not os.path.exists(socket_path(service))
                assert not messages(service, "carol")
            kept = mail
            if not mail:
                continue
            sender.check()
            break
    assert points >= 2, kept


@pytest.mark.parametrize("victim", ["kernel", "init", "spawner", "listener", "auth", "mda", "maildir"])
def test_kill_from_outside_in_the_middle_of_a_large_message(victim):
    with faulty() as service:
        sender = Sender(service)
        assert sender.until_accepted("alice", 1, SMALL) == 1
        session = service.pop3("alice") if victim != "listener" else None
        with Lmtp(socket_path(service), timeout=30) as client:
            client.ehlo_or_helo_if_needed()
            assert client.mail("s@example.org")[0] == 250
            assert client.rcpt("alice")[0] == 250
            client.docmd("DATA")
            client.send(Sender.mail(2, LARGE))
            tmp = f"{service.site.mail_users['alice'].maildir}/tmp"
            wait_for(lambda: os.listdir(tmp))
            holder = service.actor("maildir.alice")["pid"]
            pid = service.process.pid if victim == "init" else service.actor(victim)["pid"]
            kill(pid)
            harmless = victim in ("listener", "auth")
            try:
                client.send(b".\r\n")
                accepted = client.getreply()[0] == 250
            except OSError:
                accepted = False
                client.close()
        assert accepted or not harmless
        if victim in ("kernel", "init") and not accepted:
            service.process.wait(20)
            # the reply was lost, not the message: it will be sent again
            accepted = len(messages(service, "alice")) == 2
        if accepted:
            sender.sent["alice", 2] = (1, Sender.mail(2, LARGE))
        elif victim in ("kernel", "init"):
            service.process.wait(20)
            wait_for(lambda: not os.path.exists(socket_path(service)))
        else:
            # The spawner's children end a moment after it: mail written in between has no reply, and comes
            # twice.
            if victim in ("spawner", "maildir"):
                wait_for(lambda: not os.path.exists(f"/proc/{holder}"))
            written = len(messages(service, "alice")) == 2
            assert not written or victim == "spawner"
            tries = sender.until_accepted("alice", 2, LARGE)
            sender.sent["alice", 2] = (tries + written, sender.sent["alice", 2][1])
        sender.check()
        if session is not None:
            session.close()


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(4))
def test_hundreds_of_kills_under_load(seed):
    """Eight senders send while an actor is killed every few milliseconds; some mail requests faults too."""
    dice = random.Random(seed)
    kills = 0
    with faulty() as service:
        sender = Sender(service)
        stop = threading.Event()
        failures = []

        def work(k):
            mine = random.Random(f"{seed} {k}")
            try:
                for i in range(60):
                    user = mine.choice(["alice", "bob", "carol"])
                    where = mine.choice(["maildir", "maildir", "mda"])
                    body = LARGE if mine.random() < 0.1 else SMALL
                    sender.until_accepted(
                        user, k * 1000 + i, body, sender=f"die-{mine.randrange(1, 60)}@{where}"
                    )
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            time.sleep(dice.uniform(0.05, 0.3))
            actors = [
                a
                for a in service.status()["actors"]
                if a["name"].split(".")[0] in ("mda", "maildir", "listener", "spawner") and a["pid"]
            ]
            if actors:
                try:
                    kill(dice.choice(actors)["pid"])
                    kills += 1
                except ProcessLookupError:
                    pass
        stop.set()
        for thread in threads:
            thread.join()
        assert not failures, failures
        doubles = sender.check()
        sender.check_popcache()
        deaths = service.read_log().count("SIGKILL")
        print(
            f"\n{len(sender.sent)} messages, {deaths} deaths ({kills} from outside), "
            f"{sum(t for t, _ in sender.sent.values())} tries, {doubles} came more than once"
        )
