"""Test proto/lmtp/session.py: commands, the end of a message, replies in order, any fragmentation."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from popkernel.proto.lmtp.actions import Cancel, Close, FindRecipient, Finish, PassOn, Refused, Reply
from popkernel.proto.lmtp.paths import parse_path
from popkernel.proto.lmtp.session import MOST_LINE, MOST_RECIPIENTS, Lmtp

HELLO = b"LHLO me\r\n"
ENVELOPE = b"MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\n"


class Owner:
    """Stand for the mda: accept every recipient that does not begin with "no", and answer "safe" to all."""

    def __init__(self, most=1 << 20, hold=False):
        self.lmtp = Lmtp("host", most)
        self.said = b""
        self.messages = []
        self.body = b""
        self.hold = hold
        self.cancelled = 0
        self.closed = False
        self.refused = []
        self.do(self.lmtp.begin())

    def feed(self, data, size=0):
        for at in range(0, len(data), size or len(data) or 1):
            self.do(self.lmtp.feed(data[at : at + (size or len(data))]))
        return self.said

    def do(self, actions):
        while actions:
            for action in actions:
                self.act(action)
            actions = self.lmtp.go_on()

    def reply(self, replies):
        for action in replies:
            assert isinstance(action, (Reply, Refused))
            self.act(action)

    def act(self, action):
        lmtp = self.lmtp
        match action:
            case Reply(octets):
                self.said += octets
            case FindRecipient(address) if address.startswith("no"):
                self.reply(lmtp.recipient("5.1.1 none", taken=False))
            case FindRecipient():
                self.reply(lmtp.recipient("2.1.5 ok"))
            case PassOn(data):
                assert data
                assert lmtp.feed(b"") == [], "it waits for `go_on`"
                self.body += data
            case Finish():
                self.messages.append((lmtp.sender, list(lmtp.recipients), self.body))
                self.body = b""
                if not self.hold:
                    for i in range(len(lmtp.recipients)):
                        self.reply(lmtp.answer(i, f"2.0.0 safe {i}"))
            case Cancel():
                self.cancelled += 1
                self.body = b""
            case Refused():
                self.refused.append(action)
            case Close():
                self.closed = True


def codes(said):
    return re.findall(rb"^(\d\d\d) ", said, re.MULTILINE)


def test_a_dialogue():
    owner = Owner()
    said = owner.feed(HELLO + ENVELOPE + b"RCPT TO:<no@d>\r\nDATA\r\nx\r\n.\r\nQUIT\r\n")
    assert codes(said) == [b"220", b"250", b"250", b"250", b"550", b"354", b"250", b"221"]
    assert owner.messages == [("a@b", ["c@d"], b"x\n")]
    assert owner.closed
    assert said.splitlines()[1:7] == [
        b"250-host", b"250-PIPELINING", b"250-ENHANCEDSTATUSCODES", b"250-8BITMIME", b"250-SMTPUTF8",
        b"250 SIZE 1048576",
    ]  # fmt: skip


BODIES = st.lists(
    st.sampled_from([b"\r", b"\n", b".", b"\r\n", b"a", b"\0", b"\xff", b"..", b"\r\n."]), max_size=40
).map(b"".join)


def slow_decode(wire):
    """Decode line by line what was sent after 354; return what is stored and what follows the end.

    None if there is no end.
    """
    out = []
    while True:
        line, sep, wire = wire.partition(b"\r\n")
        if not sep:
            return None
        if line == b".":
            return b"".join(out), wire
        out.append((line[1:] if line.startswith(b".") else line) + b"\n")


@given(BODIES, st.integers(1, 50))
@settings(max_examples=400)
def test_data_as_a_slow_reader_reads_it(body, size):
    wire = body + b"\r\n.\r\n"
    expected, rest = slow_decode(wire)
    owner = Owner()
    owner.feed(HELLO + ENVELOPE + b"DATA\r\n")
    owner.feed(wire, size)
    assert owner.messages[0][2] == expected
    again = Owner()
    again.feed(HELLO + ENVELOPE + b"DATA\r\n" + wire)
    assert again.messages[0] == owner.messages[0]


@given(st.binary(max_size=300), st.integers(1, 20))
@settings(max_examples=200)
def test_nothing_makes_it_fail(junk, size):
    owner = Owner()
    owner.feed(HELLO)
    owner.feed(junk, size)
    owner = Owner()
    owner.feed(HELLO + ENVELOPE)
    owner.feed(junk, size)
    owner = Owner()
    owner.feed(HELLO + ENVELOPE + b"DATA\r\n" + junk, size)


@pytest.mark.parametrize(
    "not_an_end", [b"\n.\n", b"\n.\r\n", b"\r.\r", b"\r\n.\n", b"\r\n.\r", b"\r\n..\r\n"]
)
def test_only_cr_lf_dot_cr_lf_ends_a_message(not_an_end):
    owner = Owner()
    owner.feed(HELLO + ENVELOPE + b"DATA\r\nx" + not_an_end + b"MAIL FROM:<evil@x>\r\n")
    assert owner.messages == []
    owner.feed(b"\r\n.\r\n")
    assert len(owner.messages) == 1
    assert b"evil@x" in owner.messages[0][2]


def test_byte_by_byte_is_the_same():
    talk = HELLO + ENVELOPE + b"DATA\r\n.\r\n" + ENVELOPE + b"DATA\r\n..\r\n\r\n.\r\n" + b"QUIT\r\n"
    whole, split = Owner(), Owner()
    assert whole.feed(talk) == split.feed(talk, 1)
    assert whole.messages == split.messages
    assert [body for _, _, body in whole.messages] == [b"", b".\n\n"]


def test_answers_go_out_in_the_order_of_the_recipients():
    owner = Owner(hold=True)
    owner.feed(
        HELLO
        + b"MAIL FROM:<>\r\n"
        + b"".join(b"RCPT TO:<u%d>\r\n" % i for i in range(3))
        + b"DATA\r\nx\r\n.\r\nNOOP\r\n"
    )
    owner.said = b""
    lmtp = owner.lmtp
    assert lmtp.answer(2, "4.3.1 full", taken=False) == [Refused("", "u2", "452 4.3.1 full")]
    # the second reply is still owed
    assert lmtp.answer(0, "2.0.0 safe") == [Reply(b"250 2.0.0 safe\r\n")]
    owner.do(lmtp.answer(1, "5.2.2 no room", taken=False))
    assert owner.said == b"552 5.2.2 no room\r\n452 4.3.1 full\r\n250 2.0.0 ok\r\n"


def test_too_large():
    owner = Owner(most=100)
    owner.feed(HELLO + b"MAIL FROM:<a@b> SIZE=101\r\n")
    assert owner.said.endswith(b"552 5.3.4 a message may have 100 octets\r\n")
    owner.said = b""
    owner.feed(ENVELOPE + b"RCPT TO:<e>\r\nDATA\r\n" + b"y" * 5000 + b"\r\n.\r\nNOOP\r\n", 64)
    assert codes(owner.said) == [b"250", b"250", b"250", b"354", b"552", b"552", b"250"]
    assert (owner.messages, owner.cancelled, owner.body) == ([], 1, b"")


def test_nothing_more_is_acted_on_until_a_question_is_answered():
    """However much input came, the owner gets the time that it needs."""
    lmtp = Lmtp("host", 100)
    lmtp.begin()
    actions = lmtp.feed(HELLO + ENVELOPE + b"DATA\r\nx\r\n.\r\nQUIT\r\n")
    assert actions[1:] == [FindRecipient("c@d")]
    assert lmtp.go_on() == lmtp.feed(b"") == []
    lmtp.recipient("2.1.5 ok")
    assert lmtp.go_on()[1:] == [PassOn(b"x\n")]
    assert lmtp.feed(b"") == []
    assert lmtp.go_on() == [Finish()]
    assert lmtp.go_on() == lmtp.feed(b"") == []
    lmtp.answer(0, "2.0.0 safe")
    assert lmtp.go_on() == [Reply(b"221 2.0.0 bye\r\n"), Close()]


def test_content_is_handed_on_and_not_kept():
    owner = Owner(most=1 << 30)
    owner.feed(HELLO + ENVELOPE + b"DATA\r\n")
    for _ in range(100):
        owner.feed(b"z" * 65536)
        owner.body = b""
        assert len(owner.lmtp._buffer) + len(owner.lmtp._held) <= 4


def test_long_lines_cost_nothing():
    owner = Owner()
    owner.feed(HELLO)
    owner.said = b""
    for _ in range(50):
        owner.feed(b"x" * 1000)
        assert len(owner.lmtp._buffer) <= MOST_LINE
    owner.feed(b"\r\nNOOP\r\n")
    assert codes(owner.said) == [b"500", b"250"]


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b"EHLO x", b"500"),
        (b"HELO x", b"500"),
        (b"LHLO", b"501"),
        (b"FOO", b"500"),
        (b"DATA", b"503"),
        (b"DATA x", b"501"),
        (b"VRFY x", b"252"),
        (b"MAIL FROM:a@b", b"501"),
        (b"MAIL FROM:<a@b> FOO=1", b"555"),
        (b"MAIL TO:<a>", b"501"),
        (b"RCPT TO:<a>", b"503"),
        (b"", b"500"),
        (b"NOOPX", b"500"),
        (b"mail from:<a@b> body=8bitmime smtputf8", b"250"),
        (b"MAIL FROM:<a b@c>", b"501"),
        (b"MAIL FROM:<\xff@c>", b"501"),
    ],
)
def test_single_commands(line, code):
    owner = Owner()
    owner.feed(HELLO)
    owner.said = b""
    owner.feed(line + b"\r\n")
    assert codes(owner.said) == [code]


def test_before_lhlo_nothing_goes():
    assert codes(Owner().feed(b"MAIL FROM:<a@b>\r\n")) == [b"220", b"503"]


def test_data_without_good_recipients():
    owner = Owner()
    assert codes(owner.feed(HELLO + b"MAIL FROM:<a@b>\r\nRCPT TO:<no>\r\nDATA\r\n"))[-1] == b"503"


def test_wrong_commands_end_it():
    owner = Owner()
    owner.feed(b"FOO\r\n" * 100)
    assert owner.said.count(b"500 ") == 51
    assert owner.closed
    assert owner.lmtp.feed(b"NOOP\r\n") == owner.lmtp.go_on() == []


def test_recipients_are_bounded():
    owner = Owner()
    owner.feed(HELLO + b"MAIL FROM:<a@b>\r\n" + b"RCPT TO:<a>\r\n" * (MOST_RECIPIENTS + 1))
    assert owner.said.endswith(
        b"452 4.5.3 too many recipients, send the message to the others after this\r\n"
    )


@pytest.mark.parametrize(
    ("text", "address"),
    [
        (b"<a@b>", "a@b"),
        (b"<@x,@y:a@b>", "a@b"),
        (b'<"a b"@c>', '"a b"@c'),
        (b'<"a>b"@c> SIZE=1', '"a>b"@c'),
        (b"<postmaster>", "postmaster"),
        ("<jürgen@example.org>".encode(), "jürgen@example.org"),
        (b'<"a\\"b"@c>', '"a\\"b"@c'),
        (b"<>", None),
        (b"a@b", None),
        (b"<a@b", None),
        (b"<a@>", None),
        (b"<@b>", None),
        (b"<a@b>x", None),
        (b"<a\0b@c>", None),
        (b"<" + b"a" * 255 + b">", None),
        (b"<a@b c>", None),
        (b'<"a@b>', None),
    ],
)
def test_paths(text, address):
    found = parse_path(text, null=False)
    assert (found[0] if found else None) == address


def test_the_null_sender():
    assert parse_path(b"<> SIZE=1", null=True) == ("", b"SIZE=1")


@pytest.mark.parametrize("size", [0, 1])
def test_refusals_come_with_the_client_s_reply(size):
    owner = Owner(most=10)
    owner.feed(HELLO + b"MAIL FROM:<a@b> SIZE=11\r\n" + ENVELOPE + b"RCPT TO:<no@d>\r\nDATA\r\n", size)
    large = "552 5.3.4 a message may have 10 octets"
    none = Refused("a@b", "no@d", "550 5.1.1 none")
    assert owner.refused == [Refused("a@b", "", large), none]
    owner.feed(b"x" * 20 + b"\r\n.\r\n", size)
    assert owner.refused[2:] == [Refused("a@b", "c@d", large)]
    owner.hold = True
    owner.feed(b"MAIL FROM:<>\r\nRCPT TO:<c@d>\r\nRCPT TO:<e@d>\r\nDATA\r\n.\r\n", size)
    owner.do(owner.lmtp.answer(1, "4.3.1 full", taken=False))
    owner.do(owner.lmtp.answer(0, "2.0.0 safe"))
    assert owner.refused[3:] == [Refused("", "e@d", "452 4.3.1 full")]
    assert owner.said.endswith(b"250 2.0.0 safe\r\n452 4.3.1 full\r\n")
