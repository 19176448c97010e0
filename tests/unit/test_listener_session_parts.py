"""Test the parts of a listener's session alone: reply queue, authorization, transaction."""

from base64 import b64encode

import pytest
from popkernel.actors.listener.session.actions import LogIn
from popkernel.actors.listener.session.authorization import Authorization
from popkernel.actors.listener.session.policy import Policy
from popkernel.actors.listener.session.replies import Awaited, Replies
from popkernel.actors.listener.session.transaction import Transaction
from popkernel.proto import messages as m
from popkernel.proto.pop3.commands import LineReader


def said(replies):
    out, replies.out = replies.out, []
    return b"".join(out)


# -- the queue
def test_a_ready_reply_waits_for_earlier_ones():
    replies, now = Replies(9), [1]
    replies.pending.append(Awaited("retr", 3))
    replies.say(b"+OK\r\n")
    replies.say_computed(lambda: b"+OK %d\r\n" % now[0])
    replies.close("quit")
    replies.settle()
    assert (said(replies), replies.over, replies.closing) == (b"", True, False)
    with pytest.raises(ValueError, match="without a request"):
        replies.expect("dele")
    assert replies.expect("retr", "top").number == 3
    now[0] = 2
    replies.pending.popleft()
    replies.settle()
    assert (said(replies), replies.closing, replies.why) == (b"+OK\r\n+OK 2\r\n", True, "quit")


@pytest.mark.parametrize("begun", [False, True])
def test_no_text_after_a_half_sent_answer(begun):
    replies = Replies(9)
    replies.pending.append(Awaited("retr", 1))
    replies.pending[0].begun = begun
    replies.end_with(b"-ERR\r\n", "the service ends")
    assert said(replies) == (b"" if begun else b"-ERR\r\n")
    assert replies.closing and not replies.pending


def test_too_many_bad_commands():
    replies = Replies(1)
    replies.bad("no")
    assert not replies.over
    replies.bad("no", "AUTH")
    assert (said(replies), replies.closing) == (
        b"-ERR no\r\n-ERR [AUTH] no\r\n-ERR too many errors\r\n",
        True,
    )


# -- authorization
def authorization(*, tls=True, **policy):
    replies = Replies(9)
    return Authorization(7, Policy("1", **policy), replies, "192.0.2.1:1", tls=tls), replies


def give(part, verb, rest=b""):
    type(part).COMMANDS[verb](part, rest)


def test_user_and_pass_become_a_login():
    part, replies = authorization()
    give(part, b"PASS", b"secret")
    give(part, b"USER", b" alice ")
    give(part, b"PASS", b" two words ")
    assert said(replies) == b"-ERR USER first\r\n+OK\r\n"
    assert (part.state, part.logins) == (
        "login",
        [LogIn(m.LoginRequest(7, "alice", b" two words ", "192.0.2.1:1", "PASS"))],
    )
    part.denied("AUTH", "wrong name or password")
    assert (part.state, part.user, said(replies)) == (
        "authorization",
        "",
        b"-ERR [AUTH] wrong name or password\r\n",
    )


def test_auth_with_a_challenge_becomes_the_same():
    part, replies = authorization()
    give(part, b"AUTH", b"PLAIN")
    assert (part.state, said(replies)) == ("sasl", b"+ \r\n")
    part.respond(b64encode(b"\0alice\0secret"))
    assert (part.state, part.logins) == (
        "login",
        [LogIn(m.LoginRequest(7, "alice", b"secret", "192.0.2.1:1", "PLAIN"))],
    )
    part.granted()
    assert (part.state, part.exchange) == ("transaction", None)


def test_no_password_without_tls():
    part, replies = authorization(tls=False, starttls=True)
    give(part, b"USER", b"alice")
    give(part, b"STLS")
    assert (said(replies), part.starttls) == (b"-ERR use TLS first (STLS)\r\n+OK begin TLS\r\n", True)
    part.secured()
    give(part, b"USER", b"alice")
    assert (said(replies), part.starttls, part.user) == (b"+OK\r\n", False, "alice")


# -- the transaction
@pytest.fixture
def transaction():
    part = Transaction(Replies(9), LineReader(), 1 << 18)
    part.begin(m.MaildropReady(5, 500))
    assert said(part._replies) == b"+OK 5 messages (500 octets)\r\n"
    return part


def test_neighbouring_commands_travel_together(transaction):
    for n in b"123":
        give(transaction, b"DELE", b"%c" % n)
    give(transaction, b"RETR", b"4")
    give(transaction, b"RETR", b"5")
    assert transaction.take_requests() == [m.Delete(1, 3), m.Retrieve(4, 2, 0)]


@pytest.mark.parametrize(
    ("between", "rest"), [(b"NOOP", b""), (b"STAT", b""), (b"DELE", b"9"), (b"RETR", b"5")]
)
def test_deletes_with_a_reply_between_are_not_joined(transaction, between, rest):
    for verb, argument in ((b"DELE", b"1"), (between, rest), (b"DELE", b"2")):
        give(transaction, verb, argument)
    assert [request for request in transaction.take_requests() if type(request) is m.Delete] == [
        m.Delete(1, 1),
        m.Delete(2, 1),
    ]


def test_stat_counts_what_is_left_in_its_turn(transaction):
    give(transaction, b"DELE", b"1")
    give(transaction, b"STAT")
    transaction.take_requests()
    assert said(transaction._replies) == b""
    transaction.answered(m.MessagesMarked(1, 1, [], 4, 400))
    assert said(transaction._replies) == b"+OK marked\r\n+OK 4 400\r\n"


def test_credit_is_returned_when_half_is_spent(transaction):
    give(transaction, b"RETR", b"1")
    transaction.take_requests()
    half = m.WINDOW // 2
    transaction.answered(m.MailContent([1, half, half, 1], b"x" * half))
    assert transaction.credit(1 << 18) == 0
    assert transaction.credit(0) >= half
    assert transaction.credit(0) == 0
