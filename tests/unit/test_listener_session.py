"""Test the listener's session alone: mail sent ahead, and changes before it was requested."""

import pytest
from popkernel.actors.listener.connection import Connection
from popkernel.actors.listener.session.actions import Ask, Close, LogIn, Say
from popkernel.actors.listener.session.policy import Policy
from popkernel.actors.listener.session.session import Session
from popkernel.proto import messages as m

from tests.support.session_shell import SessionShell


@pytest.fixture
def shell():
    s = SessionShell(Session(1, Policy("0"), "127.0.0.1:1", tls=True))
    s.tell("received", b"USER alice\r\nPASS secret\r\n")
    assert s.take_login() == m.LoginRequest(1, "alice", b"secret", "127.0.0.1:1", "PASS")
    s.tell("ready", m.MaildropReady(9, 900))
    s.tell("received", b"RETR 1\r\n")
    assert s.take_requests() == [m.Retrieve(1, 1, 0)]
    s.tell("answered", m.MailContent([1, 3, 3, 1], b"1\r\n"))
    s.take_said()
    return s


def test_mail_that_came_ahead_is_not_asked_for_again(shell):
    shell.tell("received", b"RETR 2\r\n")
    assert shell.take_requests() == [m.Retrieve(2, 1, 64)]
    shell.tell("answered", m.MailContent([2, 3, 3, 1, 3, 3, 3, 2], b"2\r\n3\r\n"))
    assert shell.take_said() == b"+OK 3 octets\r\n2\r\n.\r\n"
    shell.tell("received", b"RETR 3\r\n")
    assert shell.take_requests() == []
    assert shell.take_said() == b"+OK 3 octets\r\n3\r\n.\r\n"
    assert not shell.session.replies.pending


def test_each_call_says_all_that_is_to_be_done_in_its_order():
    """Replies come before the following login, the end after everything has been sent."""
    session = Session(1, Policy("0"), "127.0.0.1:1", tls=True)
    assert session.begin() == [Say([b"+OK POP3 ready\r\n"])]
    login = m.LoginRequest(1, "alice", b"x", "127.0.0.1:1", "PASS")
    assert session.received(b"USER alice\r\nPASS x\r\nSTAT\r\n") == [Say([b"+OK\r\n"]), LogIn(login)]
    assert session.sent(0) == []
    assert session.ready(m.MaildropReady(2, 200)) == [
        Say([b"+OK 2 messages (200 octets)\r\n", b"+OK 2 200\r\n"])
    ]
    assert session.received(b"DELE 1\r\nDELE 2\r\nQUIT\r\n") == [Ask([m.Delete(1, 2), m.Quit([])])]
    assert session.answered(m.MessagesMarked(1, 2, [], 0, 0)) == [Say([b"+OK marked\r\n"] * 2)]
    assert session.answered(m.QuitDone(2, 0)) == [Say([b"+OK bye\r\n"])]
    assert session.sent(9) == []
    assert session.sent(0) == [Close("quit")]


def test_a_client_that_says_no_more_has_its_answers_first(shell):
    shell.tell("received", b"RETR 2\r\n")
    shell.tell("hung_up")
    assert shell.session.sent(0) == []
    shell.tell("answered", m.MailContent([2, 3, 3, 1], b"2\r\n"))
    assert (shell.take_said(), shell.closed) == (b"+OK 3 octets\r\n2\r\n.\r\n", "hung up")


def test_who_is_refused_hears_that_in_the_place_of_the_greeting():
    session = Session(1, Policy("0"), "127.0.0.1:1", tls=True, refusal="too many")
    assert session.begin() == [Say([b"-ERR [SYS/TEMP] too many\r\n"])]
    assert session.received(b"CAPA\r\n") == []
    assert session.sent(0) == [Close("too many")]


@pytest.mark.parametrize(
    ("answers", "reply"),
    [
        ([m.MailContent([3, 5, 5, 1], b"new\r\n")], b"+OK 5 octets\r\nnew\r\n.\r\n"),
        (
            [m.MailContent([3, 8, 4, 0], b"ne\r\n"), m.MailContent([3, 8, 4, 1], b"wl\r\n")],
            b"+OK 8 octets\r\nne\r\nwl\r\n.\r\n",
        ),
        (
            [m.MessageMissing(3, "SYS/TEMP", "the message has changed, log in again")],
            b"-ERR [SYS/TEMP] the message has changed, log in again\r\n",
        ),
    ],
)
def test_a_message_that_changes_between_coming_ahead_and_being_asked_for(shell, answers, reply):
    """The client asked for 3 before 2 was answered, and 3 came ahead with 2; the later answer counts."""
    shell.tell("received", b"RETR 2\r\n")
    shell.take_requests()
    shell.tell("received", b"RETR 3\r\n")
    assert shell.take_requests() == [m.Retrieve(3, 1, 0)]
    shell.tell("answered", m.MailContent([2, 3, 3, 1, 3, 3, 3, 2], b"2\r\n3\r\n"))
    assert shell.take_said() == b"+OK 3 octets\r\n2\r\n.\r\n"
    for answer in answers:
        shell.tell("answered", answer)
    assert shell.take_said() == reply
    assert not shell.session.replies.pending


@pytest.mark.parametrize(
    "answer",
    [
        m.MailContent([3, 3, 3, 1], b"3\r\n"),  # another message than the one requested
        m.MailContent([2, 3, 9, 1], b"2\r\n"),  # parts beyond the data
        m.MailContent([2, 3, 2, 1], b"2\r\n"),  # data beyond the parts
        # the same data again and again, beyond all credit
        m.MailContent([2, 3, -1, 0, 2, 3, 4, 1], b"2\r\n"),
        m.MailContent([2, -1, 3, 1], b"2\r\n"),
        m.MailContent([2, 3, 3, 1, 3], b"2\r\n"),
        m.MessageMissing(3, "", "no such message"),
        m.QuitDone(0, 0),
        m.MaildropTotals(0, 0),
    ],
)
def test_an_answer_without_a_request(shell, answer):
    shell.tell("received", b"RETR 2\r\n")
    shell.take_requests()
    with pytest.raises(ValueError, match=r"answer|requested|parts"):
        shell.tell("answered", answer)


def test_an_end_before_the_answer_to_quit_is_reported(shell):
    """Nobody knows whether anything was removed."""
    shell.tell("received", b"DELE 1\r\n")
    shell.take_requests()
    shell.tell("answered", m.MessagesMarked(1, 1, [], 8, 800))
    ended = Connection(None, shell.session, 0.0).ended("connection lost", 1.0)
    assert (ended.why, ended.marked, ended.removed) == ("connection lost", 1, 0)
    shell.tell("received", b"QUIT\r\n")
    assert (
        Connection(None, shell.session, 0.0).ended("connection lost", 1.0).why
        == "connection lost, QUIT unanswered"
    )
    shell.tell("answered", m.QuitDone(1, 0))
    ended = Connection(None, shell.session, 0.0).ended("", 1.0)
    assert (ended.why, ended.marked, ended.removed) == ("quit", 1, 1)
