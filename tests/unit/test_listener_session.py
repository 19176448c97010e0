"""The session of the listener by itself: answers that came ahead of being asked, and what changed before they were."""

import pytest
from popkernel.actors.listener.connection import Connection
from popkernel.actors.listener.session.policy import Policy
from popkernel.actors.listener.session.session import Session
from popkernel.proto import messages as m


@pytest.fixture
def session():
    s = Session(1, Policy("0"), "127.0.0.1:1", tls=True)
    s.received(b"USER alice\r\nPASS secret\r\n")
    s.authorization.login = None
    s.ready(m.Ready(9, 900))
    s.received(b"RETR 1\r\n")
    assert s.transaction.take_requests() == [m.Retrieve(1, 1, 0)]
    s.answered(m.Mail([1, 3, 3, 1], b"1\r\n"))
    s.replies.take_out()
    return s


def said(s):
    return b"".join(s.replies.take_out())


def test_mail_that_came_ahead_is_not_asked_for_again(session):
    session.received(b"RETR 2\r\n")
    assert session.transaction.take_requests() == [m.Retrieve(2, 1, 64)]
    session.answered(m.Mail([2, 3, 3, 1, 3, 3, 3, 2], b"2\r\n3\r\n"))
    assert said(session) == b"+OK 3 octets\r\n2\r\n.\r\n"
    session.received(b"RETR 3\r\n")
    assert session.transaction.take_requests() == []
    assert said(session) == b"+OK 3 octets\r\n3\r\n.\r\n"
    assert not session.replies.pending


@pytest.mark.parametrize(
    ("answers", "reply"),
    [
        ([m.Mail([3, 5, 5, 1], b"new\r\n")], b"+OK 5 octets\r\nnew\r\n.\r\n"),
        ([m.Mail([3, 8, 4, 0], b"ne\r\n"), m.Mail([3, 8, 4, 1], b"wl\r\n")], b"+OK 8 octets\r\nne\r\nwl\r\n.\r\n"),
        ([m.Missing(3, "SYS/TEMP", "the message has changed, log in again")], b"-ERR [SYS/TEMP] the message has changed, log in again\r\n"),
    ],
)
def test_a_message_that_changes_between_coming_ahead_and_being_asked_for(session, answers, reply):
    """The client asked for 3 before 2 was answered, with which 3 came along as it was then: the answer to the question counts."""
    session.received(b"RETR 2\r\n")
    session.transaction.take_requests()
    session.received(b"RETR 3\r\n")
    assert session.transaction.take_requests() == [m.Retrieve(3, 1, 0)]
    session.answered(m.Mail([2, 3, 3, 1, 3, 3, 3, 2], b"2\r\n3\r\n"))
    assert said(session) == b"+OK 3 octets\r\n2\r\n.\r\n"
    for answer in answers:
        session.answered(answer)
    assert said(session) == reply
    assert not session.replies.pending


@pytest.mark.parametrize(
    "answer",
    [
        m.Mail([3, 3, 3, 1], b"3\r\n"),  # another message than the one asked for
        m.Mail([2, 3, 9, 1], b"2\r\n"),  # parts beyond the data
        m.Mail([2, 3, 2, 1], b"2\r\n"),  # data beyond the parts
        m.Mail([2, 3, -1, 0, 2, 3, 4, 1], b"2\r\n"),  # the same data again and again, past all credit
        m.Mail([2, -1, 3, 1], b"2\r\n"),
        m.Mail([2, 3, 3, 1, 3], b"2\r\n"),
        m.Missing(3, "", "no such message"),
        m.Bye(0, 0),
        m.Totals(0, 0),
    ],
)
def test_an_answer_to_nothing_that_was_asked(session, answer):
    session.received(b"RETR 2\r\n")
    session.transaction.take_requests()
    with pytest.raises(ValueError, match=r"answer|asked|parts"):
        session.answered(answer)


def test_an_end_before_quit_was_answered_is_said_as_such(session):
    """D10: whether anything was removed, nobody has told."""
    session.received(b"DELE 1\r\n")
    session.transaction.take_requests()
    session.answered(m.Deleted(1, 1, [], 8, 800))
    ended = Connection(None, session, 0.0).ended("connection lost", 1.0)
    assert (ended.why, ended.marked, ended.removed) == ("connection lost", 1, 0)
    session.received(b"QUIT\r\n")
    assert Connection(None, session, 0.0).ended("connection lost", 1.0).why == "connection lost, QUIT unanswered"
    session.answered(m.Bye(1, 0))
    ended = Connection(None, session, 0.0).ended("", 1.0)
    assert (ended.why, ended.marked, ended.removed) == ("quit", 1, 1)
