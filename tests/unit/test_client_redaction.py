"""What a watcher is shown of what was typed: fed to a session in its place, it is answered as the lines themselves were, octet for octet."""

from base64 import b64encode

from hypothesis import given, settings
from hypothesis import strategies as st
from popkernel.actors.listener.session.policy import Policy
from popkernel.actors.listener.session.session import Session
from popkernel.proto import messages as m
from popkernel.proto.pop3.commands import TOO_LONG
from popkernel.proto.pop3.sasl import AUTH_LINE_LIMIT, MECHANISMS

from tests.fuzz.pop3_session import MESSAGES, SIZES, Maildir

WORD = b"hUnTeR2-hUnTeR2"
PLAIN = b64encode(b"\0alice\0" + WORD)
OTHER = b64encode(b"bob\0alice\0" + WORD)
XOAUTH2 = b64encode(b"user=alice\1auth=Bearer " + WORD + b"\1\1")
OAUTHBEARER = b64encode(b"n,a=alice,\1auth=Bearer " + WORD + b"\1\1")
LINES = [
    b"USER alice", b"PASS " + WORD, b"PASS", b"USER", b"USER a " + WORD, b"pass\t" + WORD, b"CAPA", b"QUIT", b"NOOP", b"STAT", b"STAT " + WORD, b"RSET", b"LIST",
    b"LIST 2", b"RETR 1", b"RETR " + WORD, b"TOP 1 0", b"DELE 1", b"UIDL", b"STLS", b"UTF8", b"UTF8 " + WORD, b"", b"*", b"=", b"AQ==", WORD, b"AUTH", b"AUTH ", b"AUTH " + WORD, b"AUTH PLAIN " + PLAIN,
    b"AUTH PLAIN", PLAIN, b"AUTH PLAIN " + OTHER, b"AUTH PLAIN =", b"auth login", b"AUTH LOGIN " + b64encode(b"alice"), b64encode(b"alice"), b64encode(b" " + WORD),
    b"AUTH XOAUTH2 " + XOAUTH2, b"AUTH XOAUTH2", XOAUTH2, b"AUTH OAUTHBEARER " + OAUTHBEARER, OAUTHBEARER, b"AUTH OAUTHBEARER  " + OAUTHBEARER,
    WORD * 30, b"PASS " + WORD * 30, b"AUTH PLAIN " + WORD * 100, WORD * 900, b"AUTH PLAIN " + b"A" * 300, b"\xff\0", TOO_LONG,
    b"stat", b"RETR", b"user", b"AUTH PLAIN  " + PLAIN, b"AUTH LOGIN =",
    b"AUTH OAUTHBEARER " + b64encode(b"n,a=alice,\1auth=\1\1"),
]  # fmt: skip
EVENTS = st.lists(st.one_of(st.lists(st.sampled_from(LINES), min_size=1, max_size=6), st.booleans()), max_size=12)


def play(events, policy, *, tls, overheard):
    """Packets of lines and outcomes of logins; what is said, and what was shown of the packets. `overheard`: they are that."""
    session, maildir, said, shown = Session(1, policy, "192.0.2.1:1", tls=tls), Maildir(), [], []
    session.replies.shown = []
    for event in events:
        if isinstance(event, bool):
            if session.authorization.login is not None and session.state == "login":
                said.append((session.authorization.login.user, session.authorization.login.mechanism, bool(session.authorization.login.secret)))
                session.authorization.login = None
                session.ready(m.Ready(MESSAGES, sum(SIZES))) if event else session.denied("AUTH", "wrong name or password")
        else:
            if overheard:  # as kernel/replay/runner.py does
                event = [b"x" * AUTH_LINE_LIMIT if line == TOO_LONG else line for line in event]
            session.received(b"".join(line + b"\r\n" for line in event))
            shown.append(session.take_typed())
        while tell := session.transaction.take_requests():
            for message in tell:
                said.append(message)
                for answer in maildir.answer(message):
                    session.answered(answer)
        said.append(b"".join(session.replies.take_out()))
        session.replies.out_octets = 0
        if session.authorization.starttls:
            session.secured()
    return said, shown


@settings(max_examples=300)
@given(events=EVENTS, tokens=st.booleans(), tls=st.booleans(), plaintext=st.booleans())
def test_it_is_answered_as_the_lines_were_and_no_secret_is_in_it(events, tokens, tls, plaintext):
    policy = Policy("0", plaintext=plaintext, starttls=True, mechanisms=MECHANISMS if tokens else MECHANISMS[:2], scope="mail", most_errors=20)
    said, shown = play(events, policy, tls=tls, overheard=False)
    shown_events = iter(shown)
    again, _ = play([event if isinstance(event, bool) else next(shown_events) for event in events], policy, tls=tls, overheard=True)
    assert again == said
    everything = b"\n".join(line for packet in shown for line in packet)
    for form in (WORD, WORD.lower(), *(b64encode(b"x" * n + WORD)[4:-4] for n in range(3))):
        assert form not in everything.lower() if form == WORD.lower() else form not in everything
