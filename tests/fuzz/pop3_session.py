"""No octets and no order of events make a session raise, answer more than it was asked, send mail nobody asked for, or hold without bound."""

from popkernel.actors.listener.session.policy import Policy
from popkernel.actors.listener.session.session import Session
from popkernel.proto import messages as m
from popkernel.proto.pop3.sasl import MECHANISMS

MESSAGES = 7
MAIL = [b"mail %d\r\n..stuffed\r\n" % n * n for n in range(1, MESSAGES + 1)]
SIZES = [len(mail) - mail.count(b"\r\n..") for mail in MAIL]
CAPABILITIES = (b"TOP", b"UIDL", b"RESP-CODES", b"AUTH-RESP-CODE", b"PIPELINING", b"USER", b"STLS", b"EXPIRE", b"IMPLEMENTATION", b"SASL", b"UTF8",
                b"LOGIN-DELAY", b"PLAIN", b"LOGIN", b"XOAUTH2", b"OAUTHBEARER")  # fmt: skip


class Maildir:
    """An honest maildir actor: what it answers to what it is told."""

    def __init__(self):
        self.deleted = set()
        self.asked = set()

    def answer(self, message):
        if type(message) is m.Retrieve:
            for n in range(message.first, message.first + message.many):
                self.asked.add(n)
                yield m.Missing(n, "", "no such message") if n in self.deleted else mail(n)
        elif type(message) is m.Top:
            self.asked.add(message.number)
            gone = message.number in self.deleted
            yield m.Missing(message.number, "", "no such message") if gone else mail(message.number)
        elif type(message) is m.List:
            span = range(message.first, message.first + message.many)
            yield m.Sizes(message.first, [-1 if n in self.deleted else SIZES[n - 1] for n in span], True)
        elif type(message) is m.Uidl:
            span = range(message.first, message.first + message.many)
            yield m.Ids(message.first, ["" if n in self.deleted else f"uid{n}" for n in span], True)
        elif type(message) is m.Delete:
            span = set(range(message.first, message.first + message.many))
            refused = sorted(span & self.deleted)
            self.deleted |= span
            yield m.Deleted(message.first, message.many, refused, *self.totals())
        elif type(message) is m.Reset:
            self.deleted.clear()
            yield m.Totals(*self.totals())
        elif type(message) is m.Quit:
            yield m.Bye(len(self.deleted), 0)
        else:
            assert type(message) is m.Credit, message

    def totals(self):
        left = [n for n in range(1, MESSAGES + 1) if n not in self.deleted]
        return len(left), sum(SIZES[n - 1] for n in left)


def mail(n):
    return m.Mail([n, SIZES[n - 1], len(MAIL[n - 1]), 1], MAIL[n - 1])


def hostile(octets):
    """A message that a maildir actor may send by its form, in whatever place."""
    kind, a, b, *_ = *octets[:3], 0, 0, 0
    data = bytes(octets[3:])
    return [
        m.Mail([a, b, len(data), 1], data), m.Mail([a, b, len(data) + 1, 1], data), m.Mail([a, b, len(data), 0], data), m.Mail([a, b], data),
        m.Missing(a, "SYS/TEMP", "no"), m.Sizes(a, [b - 1] * (b % 5), bool(a & 1)), m.Ids(a, ["u"] * (b % 5), bool(a & 1)),
        m.Deleted(a, b, [a], a, b), m.Totals(a, b), m.Bye(a, b), m.Deleted(1, MESSAGES, [], 0, 0), m.Sizes(1, [1], False),
    ][kind % 12]  # fmt: skip


def _policy(head):
    mechanisms = MECHANISMS if head & 8 else ("PLAIN", "LOGIN")
    return Policy("1", plaintext=bool(head & 1), starttls=bool(head & 2), mechanisms=mechanisms, most_commands=40 if head & 16 else 0)


def one(data):
    """The first octet chooses the policy; then each event is one octet, and what some events take: a length and so many octets."""
    head, at = data[:1] or b"\0", 1
    session = Session(9, _policy(head[0]), "192.0.2.1:1", tls=bool(head[0] & 4))
    maildir, honest, stopping, said, lines = Maildir(), True, False, [], 0
    while at < len(data):
        event, size = data[at], data[at + 1] if at + 1 < len(data) else 0
        octets = data[at + 2 : at + 2 + size]
        at += 2 + len(octets)
        match event % 16:
            case 0 | 1 | 2 | 3 | 4:
                lines += octets.count(b"\n") + 1
                session.received(octets)
            case 5:
                session.received(octets + b"\r\n")
                lines += octets.count(b"\n") + 2
            case 6 | 7:
                if session.authorization.login is not None and session.state == "login":
                    session.authorization.login = None
                    session.ready(m.Ready(MESSAGES, sum(SIZES)))
            case 8:
                if session.authorization.login is not None:
                    session.authorization.login = None
                    session.denied("AUTH", "wrong name or password")
            case 9 if session.entered and octets:
                honest = False
                try:
                    session.answered(hostile(octets))
                except ValueError:
                    return
            case 10 if session.authorization.starttls:
                session.secured()
            case 11 if event == 11:
                session.maildir_gone()
                honest = honest and not session.entered
            case 12 if event == 12 and not stopping:
                stopping = True
                session.stopping()
            case 13 if event == 13:
                session.timed_out()
            case _:
                pass
        for message in session.transaction.take_requests():
            for answer in maildir.answer(message):
                try:
                    session.answered(answer)
                except ValueError:
                    assert not honest, "an honest answer was refused"
                    return
        said += session.replies.take_out()
        session.replies.out_octets = 0
        while session.go_on():
            said += session.replies.take_out()
            session.replies.out_octets = 0
            if session.authorization.login is not None or session.transaction.requests:
                break
        assert not session.backlog or lines
        assert session.transaction.credit(0) >= 0
    if honest:
        check(b"".join(said), session.commands, maildir)


def check(said, commands, maildir):
    """Whole lines of the forms there are, and no more answers than commands, the greeting and a last word."""
    *lines, rest = said.split(b"\r\n")
    assert rest == b"", "half a line"
    answers = 0
    for line in lines:
        if line.startswith((b"+OK", b"-ERR", b"+ ")):
            answers += 1
            assert len(line) <= 510
        elif line.startswith(b"mail "):
            assert int(line[5:]) in maildir.asked or maildir.asked, "mail that nobody asked for"
        else:
            assert line in (b".", b"..stuffed") or line.startswith(CAPABILITIES) or line[:1].isdigit(), line
    assert answers <= commands + 3


SEEDS = [
    b"\x05" + b"".join(bytes((0, len(line))) + line for line in (b"USER a\r\n", b"PASS b\r\n")) + b"\x06\x00"
    + b"".join(bytes((0, len(line))) + line for line in (
        b"STAT\r\nLIST\r\nUIDL 2\r\n", b"RETR 1\r\nRETR 2\r\nTOP 3 0\r\n", b"DELE 1\r\nDELE 2\r\nLIST 1\r\nRSET\r\n", b"CAPA\r\nNOOP\r\nQUIT\r\n")),
    b"\x02\x00\x06STLS\r\n\x0a\x00\x00\x06CAPA\r\n\x00\x08USER a\r\n\x00\x08PASS b\r\n\x08\x00\x00\x08PASS b\r\n",
    b"\x04\x00\x08USER a\r\n\x00\x08PASS b\r\n\x06\x00\x00\x08RETR 1\r\n\x09\x06\x00\x01\x05hello\x0b\x00",
    b"\x0c" + b"".join(bytes((0, len(line))) + line for line in (
        b"AUTH\r\n", b"AUTH PLAIN\r\n", b"AGEAYg==\r\n", b"AUTH LOGIN YQ==\r\n", b"*\r\n", b"CAPA\r\nUTF8\r\n")) + b"\x08\x00",
    b"\x0c\x00\x28AUTH XOAUTH2 dXNlcj1hAWF1dGg9QmVhcmVyIGIBAQ==\r\n\x08\x00\x00\x02\r\n\x00\x06CAPA\r\n",
    b"\x01\x00\xff" + b"X" * 255 + b"\x00\x02\r\n\x0c\x00\x0d\x00",
]  # fmt: skip
