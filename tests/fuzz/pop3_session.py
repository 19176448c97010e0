"""Feed a session any octets and events: no error, no surplus replies, no unasked mail, bounded memory."""

from popkernel.actors.listener.session.policy import Policy
from popkernel.actors.listener.session.session import Session
from popkernel.proto import messages as m
from popkernel.proto.pop3.sasl import MECHANISMS

from tests.support.session_shell import SessionShell

MESSAGES = 7
MAIL = [b"mail %d\r\n..stuffed\r\n" % n * n for n in range(1, MESSAGES + 1)]
SIZES = [len(mail) - mail.count(b"\r\n..") for mail in MAIL]
CAPABILITIES = (b"TOP", b"UIDL", b"RESP-CODES", b"AUTH-RESP-CODE", b"PIPELINING", b"USER", b"STLS", b"EXPIRE",
                b"IMPLEMENTATION", b"SASL", b"UTF8",
                b"LOGIN-DELAY", b"PLAIN", b"LOGIN", b"XOAUTH2", b"OAUTHBEARER")  # fmt: skip


class Maildir:
    """Answer as an honest maildir actor."""

    def __init__(self):
        self.deleted = set()
        self.asked = set()

    def answer(self, message):
        if type(message) is m.Retrieve:
            for n in range(message.first, message.first + message.many):
                self.asked.add(n)
                yield m.MessageMissing(n, "", "no such message") if n in self.deleted else mail(n)
        elif type(message) is m.Top:
            self.asked.add(message.number)
            gone = message.number in self.deleted
            yield m.MessageMissing(message.number, "", "no such message") if gone else mail(message.number)
        elif type(message) is m.List:
            span = range(message.first, message.first + message.many)
            yield m.MessageSizes(
                message.first, [-1 if n in self.deleted else SIZES[n - 1] for n in span], True
            )
        elif type(message) is m.Uidl:
            span = range(message.first, message.first + message.many)
            yield m.MessageUidls(message.first, ["" if n in self.deleted else f"uid{n}" for n in span], True)
        elif type(message) is m.Delete:
            span = set(range(message.first, message.first + message.many))
            refused = sorted(span & self.deleted)
            self.deleted |= span
            yield m.MessagesMarked(message.first, message.many, refused, *self.totals())
        elif type(message) is m.Reset:
            self.deleted.clear()
            yield m.MaildropTotals(*self.totals())
        elif type(message) is m.Quit:
            yield m.QuitDone(len(self.deleted), 0)
        else:
            assert type(message) is m.FlowCredit, message

    def totals(self):
        left = [n for n in range(1, MESSAGES + 1) if n not in self.deleted]
        return len(left), sum(SIZES[n - 1] for n in left)


def mail(n):
    return m.MailContent([n, SIZES[n - 1], len(MAIL[n - 1]), 1], MAIL[n - 1])


def hostile(octets):
    """Build a well-formed message of a maildir actor, possibly out of place."""
    kind, a, b, *_ = *octets[:3], 0, 0, 0
    data = bytes(octets[3:])
    return [
        m.MailContent([a, b, len(data), 1], data), m.MailContent([a, b, len(data) + 1, 1], data),
        m.MailContent([a, b, len(data), 0], data), m.MailContent([a, b], data),
        m.MessageMissing(a, "SYS/TEMP", "no"), m.MessageSizes(a, [b - 1] * (b % 5), bool(a & 1)),
        m.MessageUidls(a, ["u"] * (b % 5), bool(a & 1)),
        m.MessagesMarked(a, b, [a], a, b), m.MaildropTotals(a, b), m.QuitDone(a, b),
        m.MessagesMarked(1, MESSAGES, [], 0, 0), m.MessageSizes(1, [1], False),
    ][kind % 12]  # fmt: skip


def _policy(head):
    mechanisms = MECHANISMS if head & 8 else ("PLAIN", "LOGIN")
    return Policy(
        "1",
        plaintext=bool(head & 1),
        starttls=bool(head & 2),
        mechanisms=mechanisms,
        most_commands=40 if head & 16 else 0,
    )


def one(data):
    """Run a session.

    The first octet chooses the policy. Each event is one octet; some are followed by a length and that many
    octets.
    """
    head, at = data[:1] or b"\0", 1
    session = Session(9, _policy(head[0]), "192.0.2.1:1", tls=bool(head[0] & 4))
    maildir, honest, stopping, lines = Maildir(), True, False, 0
    shell = SessionShell(session)
    while at < len(data):
        event, size = data[at], data[at + 1] if at + 1 < len(data) else 0
        octets = data[at + 2 : at + 2 + size]
        at += 2 + len(octets)
        match event % 16:
            case 0 | 1 | 2 | 3 | 4:
                lines += octets.count(b"\n") + 1
                shell.tell("received", octets)
            case 5:
                shell.tell("received", octets + b"\r\n")
                lines += octets.count(b"\n") + 2
            case 6 | 7:
                if shell.take_login() is not None and session.state == "login":
                    shell.tell("ready", m.MaildropReady(MESSAGES, sum(SIZES)))
            case 8:
                if shell.take_login() is not None:
                    shell.tell("denied", "AUTH", "wrong name or password")
            case 9 if session.entered and octets:
                honest = False
                try:
                    shell.tell("answered", hostile(octets))
                except ValueError:
                    return
            case 10 if session.authorization.starttls:
                shell.secure()
            case 11 if event == 11:
                shell.tell("maildir_gone")
                honest = honest and not session.entered
            case 12 if event == 12 and not stopping:
                stopping = True
                shell.tell("stopping")
            case 13 if event == 13:
                shell.tell("timed_out")
            case _:
                pass
        try:
            shell.serve(maildir)
        except ValueError:
            assert not honest, "an honest answer was refused"
            return
        assert session.wants or session.replies.closing or lines
    if honest:
        check(shell.said, session.commands, maildir)


def check(said, commands, maildir):
    """Check that output is whole lines of known forms, and count the replies.

    There are no more than commands, a greeting and a farewell.
    """
    *lines, rest = said.split(b"\r\n")
    assert rest == b"", "a partial line"
    answers = 0
    for line in lines:
        if line.startswith((b"+OK", b"-ERR", b"+ ")):
            answers += 1
            assert len(line) <= 510
        elif line.startswith(b"mail "):
            assert int(line[5:]) in maildir.asked or maildir.asked, "unrequested mail"
        else:
            assert line in (b".", b"..stuffed") or line.startswith(CAPABILITIES) or line[:1].isdigit(), line
    assert answers <= commands + 3


SEEDS = [
    b"\x05" + b"".join(bytes((0, len(line))) + line for line in (b"USER a\r\n", b"PASS b\r\n")) + b"\x06\x00"
    + b"".join(bytes((0, len(line))) + line for line in (
        b"STAT\r\nLIST\r\nUIDL 2\r\n",
        b"RETR 1\r\nRETR 2\r\nTOP 3 0\r\n",
        b"DELE 1\r\nDELE 2\r\nLIST 1\r\nRSET\r\n", b"CAPA\r\nNOOP\r\nQUIT\r\n")),
    (
        b"\x02\x00\x06STLS\r\n\x0a\x00\x00\x06CAPA\r\n\x00\x08USER a\r\n\x00\x08PASS b\r\n"
        b"\x08\x00\x00\x08PASS b\r\n"
    ),
    b"\x04\x00\x08USER a\r\n\x00\x08PASS b\r\n\x06\x00\x00\x08RETR 1\r\n\x09\x06\x00\x01\x05hello\x0b\x00",
    b"\x0c" + b"".join(bytes((0, len(line))) + line for line in (
        b"AUTH\r\n", b"AUTH PLAIN\r\n", b"AGEAYg==\r\n", b"AUTH LOGIN YQ==\r\n", b"*\r\n",
        b"CAPA\r\nUTF8\r\n")) + b"\x08\x00",
    b"\x0c\x00\x28AUTH XOAUTH2 dXNlcj1hAWF1dGg9QmVhcmVyIGIBAQ==\r\n\x08\x00\x00\x02\r\n\x00\x06CAPA\r\n",
    b"\x01\x00\xff" + b"X" * 255 + b"\x00\x02\r\n\x0c\x00\x0d\x00",
]  # fmt: skip
