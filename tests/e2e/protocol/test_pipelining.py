"""Pipeline commands: any number in one packet, cut anywhere, answered in order."""

import random

import pytest

from tests.support import awkward
from tests.support.pop3 import RawPop3
from tests.support.service import Service
from tests.support.waiting import wait_for

MAIL = [awkward.head(f"number {n}") + b"." * n + b"\n" for n in range(1, 9)]


@pytest.fixture(scope="module")
def service():
    with Service(users=("alice", "bob", "erin", "frank"), mail=MAIL, lmtp=False) as running:
        yield running


def _script():
    """Return commands and their whole replies."""
    commands, answers = [], []
    wire = [awkward.on_the_wire(m) for m in MAIL]
    sizes = [len(awkward.sent(m)) for m in MAIL]
    for n in (1, 2, 3, 2, 8, 4, 5):
        commands.append(b"RETR %d" % n)
        answers.append(b"+OK %d octets\r\n" % sizes[n - 1] + wire[n - 1])
    commands += [
        b"DELE 1",
        b"NOOP",
        b"DELE 2",
        b"STAT",
        b"DELE 3",
        b"BAD",
        b"DELE 4",
        b"STAT",
        b"RETR 4",
        b"DELE 4",
        b"RSET",
        b"STAT",
    ]
    answers += [
        b"+OK marked\r\n",
        b"+OK\r\n",
        b"+OK marked\r\n",
        b"+OK 6 %d\r\n" % sum(sizes[2:]),
        b"+OK marked\r\n",
        b"-ERR unknown command\r\n",
        b"+OK marked\r\n",
        b"+OK 4 %d\r\n" % sum(sizes[4:]),
        b"-ERR no such message\r\n",
        b"-ERR no such message\r\n",
        b"+OK 8 messages (%d octets)\r\n" % sum(sizes),
        b"+OK 8 %d\r\n" % sum(sizes),
    ]
    commands += [b"LIST", b"LIST 2", b"TOP 8 0", b"RETR 99"]
    answers += [
        b"+OK 8 messages (%d octets)\r\n" % sum(sizes)
        + b"".join(b"%d %d\r\n" % row for row in enumerate(sizes, 1))
        + b".\r\n",
        b"+OK 2 %d\r\n" % sizes[1],
        b"+OK\r\n" + awkward.top(MAIL[7], 0),
        b"-ERR no such message\r\n",
    ]
    return b"".join(c + b"\r\n" for c in commands), b"".join(answers)


def test_pipelining_hundreds_of_commands_in_one_packet(service):
    commands, answers = _script()
    with RawPop3(service, user="alice") as client:
        client.send(commands * 20)
        assert client.take(len(answers) * 20) == answers * 20
        client.send(b"NOOP\r\n" * 5000 + b"QUIT\r\n")
        assert client.end() == b"+OK\r\n" * 5000 + b"+OK bye\r\n"


@pytest.mark.parametrize("login", [True, False])
def test_pipelining_thousands_of_questions_that_cannot_be_joined(service, login):
    """More pieces than sendmsg(2) takes (IOV_MAX) are on their way to the maildir actor.

    The first message ever sent to it is among them.
    """
    with RawPop3(service, user="alice" if login else "") as client:
        begin = b"" if login else b"USER alice\r\nPASS secret\r\n"
        client.send(begin + b"TOP 8 0\r\nLIST 2\r\n" * 1500)
        if not login:
            assert client.line() + client.line()[:5] == b"+OK\r\n+OK 8"
        wanted = (b"+OK\r\n" + awkward.top(MAIL[7], 0) + b"+OK 2 %d\r\n" % len(awkward.sent(MAIL[1]))) * 1500
        assert client.take(len(wanted)) == wanted


def test_pipelining_with_login_in_one_packet(service):
    commands, answers = _script()
    with RawPop3(service) as client:
        client.send(b"USER erin\r\nPASS secret\r\n" + commands + b"QUIT\r\n")
        assert client.line() == b"+OK\r\n"
        assert client.line().startswith(b"+OK 8 ")
        assert client.end() == answers + b"+OK bye\r\n"


def test_pipelining_split_at_every_octet(service):
    commands, answers = _script()
    with RawPop3(service, user="alice") as client:
        for at in range(1, len(commands)):
            client.send(commands[:at])
            client.send(commands[at:])
        wanted = answers * (len(commands) - 1)
        assert client.take(len(wanted)) == wanted
        for octet in commands:
            client.send(bytes((octet,)))
        assert client.take(len(answers)) == answers


def test_pipelining_at_random(service):
    """Commands in any order and grouping, compared with a model."""
    chance = random.Random(1939)
    with RawPop3(service, user="frank") as client:
        for _ in range(40):
            packet, wanted = b"RSET\r\n", None
            deleted = set()
            sizes = [len(awkward.sent(m)) for m in MAIL]
            wanted = b"+OK 8 messages (%d octets)\r\n" % sum(sizes)
            for _ in range(chance.randrange(1, 40)):
                n, verb = (
                    chance.randrange(1, 9),
                    chance.choice([b"RETR", b"DELE", b"STAT", b"NOOP", b"LIST", b"DELE"]),
                )
                packet += verb + (b" %d" % n if verb in (b"RETR", b"DELE", b"LIST") else b"") + b"\r\n"
                left = [s for i, s in enumerate(sizes, 1) if i not in deleted]
                if verb == b"STAT":
                    wanted += b"+OK %d %d\r\n" % (len(left), sum(left))
                elif verb == b"NOOP":
                    wanted += b"+OK\r\n"
                elif n in deleted:
                    wanted += b"-ERR no such message\r\n"
                elif verb == b"LIST":
                    wanted += b"+OK %d %d\r\n" % (n, sizes[n - 1])
                elif verb == b"DELE":
                    deleted.add(n)
                    wanted += b"+OK marked\r\n"
                else:
                    wanted += b"+OK %d octets\r\n" % sizes[n - 1] + awkward.on_the_wire(MAIL[n - 1])
            client.send(packet)
            assert client.take(len(wanted)) == wanted, packet


def test_commands_pipelined_after_quit_are_ignored(service):
    """A login after QUIT is not made, and nothing is deleted."""
    with RawPop3(service, user="alice") as client:
        client.send(b"DELE 99\r\nQUIT\r\nUSER bob\r\nPASS secret\r\nDELE 1\r\n")
        assert client.end() == b"-ERR no such message\r\n+OK bye\r\n"
    wait_for(lambda: service.status()["sessions"], until=lambda s: s == [])
