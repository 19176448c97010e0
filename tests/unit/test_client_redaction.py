"""Feed redacted input to a session: it must get the same replies, octet for octet, and show no secret."""

from base64 import b64encode

from hypothesis import given, settings
from hypothesis import strategies as st
from popkernel.actors.listener.session.policy import Policy
from popkernel.actors.listener.session.session import Session
from popkernel.proto import messages as m
from popkernel.proto.pop3.commands import TOO_LONG
from popkernel.proto.pop3.sasl import AUTH_LINE_LIMIT, MECHANISMS

from tests.fuzz.pop3_session import MESSAGES, SIZES, Maildir
from tests.support.session_shell import SessionShell

WORD = b"hUnTeR2-hUnTeR2"
PLAIN = b64encode(b"\0alice\0" + WORD)
OTHER = b64encode(b"bob\0alice\0" + WORD)
XOAUTH2 = b64encode(b"user=alice\1auth=Bearer " + WORD + b"\1\1")
OAUTHBEARER = b64encode(b"n,a=alice,\1auth=Bearer " + WORD + b"\1\1")
LINES = [
    b"USER alice", b"PASS " + WORD, b"PASS", b"USER", b"USER a " + WORD, b"pass\t" + WORD, b"CAPA", b"QUIT",
    b"NOOP", b"STAT", b"STAT " + WORD, b"RSET", b"LIST",
    b"LIST 2", b"RETR 1", b"RETR " + WORD, b"TOP 1 0", b"DELE 1", b"UIDL", b"STLS", b"UTF8", b"UTF8 " + WORD,
    b"", b"*", b"=", b"AQ==", WORD, b"AUTH", b"AUTH ", b"AUTH " + WORD, b"AUTH PLAIN " + PLAIN,
    b"AUTH PLAIN", PLAIN, b"AUTH PLAIN " + OTHER, b"AUTH PLAIN =", b"auth login",
    b"AUTH LOGIN " + b64encode(b"alice"), b64encode(b"alice"), b64encode(b" " + WORD),
    b"AUTH XOAUTH2 " + XOAUTH2, b"AUTH XOAUTH2", XOAUTH2, b"AUTH OAUTHBEARER " + OAUTHBEARER, OAUTHBEARER,
    b"AUTH OAUTHBEARER  " + OAUTHBEARER,
    WORD * 30, b"PASS " + WORD * 30, b"AUTH PLAIN " + WORD * 100, WORD * 900, b"AUTH PLAIN " + b"A" * 300,
    b"\xff\0", TOO_LONG,
    b"stat", b"RETR", b"user", b"AUTH PLAIN  " + PLAIN, b"AUTH LOGIN =",
    b"AUTH OAUTHBEARER " + b64encode(b"n,a=alice,\1auth=\1\1"),
]  # fmt: skip
EVENTS = st.lists(
    st.one_of(st.lists(st.sampled_from(LINES), min_size=1, max_size=6), st.booleans()), max_size=12
)


def play(events, policy, *, tls, redacted):
    """Play packets of lines and results of logins; return replies and redacted packets.

    `redacted`: the packets are redacted ones already.
    """
    session, maildir, said = Session(1, policy, "192.0.2.1:1", tls=tls), Maildir(), []
    session.watch()
    shell = SessionShell(session)
    for event in events:
        if isinstance(event, bool):
            login = shell.take_login()
            if login is not None and session.state == "login":
                said.append((login.user, login.mechanism, bool(login.secret)))
                if event:
                    shell.tell("ready", m.MaildropReady(MESSAGES, sum(SIZES)))
                else:
                    shell.tell("denied", "AUTH", "wrong name or password")
        else:
            if redacted:  # as kernel/replay/runner.py does
                event = [b"x" * AUTH_LINE_LIMIT if line == TOO_LONG else line for line in event]
            shell.tell("received", b"".join(line + b"\r\n" for line in event))
        said += shell.serve(maildir)
        said.append(shell.take_said())
        shell.secure()
    return said, shell.typed


@settings(max_examples=300)
@given(events=EVENTS, tokens=st.booleans(), tls=st.booleans(), plaintext=st.booleans())
def test_redacted_input_gets_the_same_replies_and_has_no_secret(events, tokens, tls, plaintext):
    policy = Policy(
        "0",
        plaintext=plaintext,
        starttls=True,
        mechanisms=MECHANISMS if tokens else MECHANISMS[:2],
        scope="mail",
        most_errors=20,
    )
    said, shown = play(events, policy, tls=tls, redacted=False)
    shown_events = iter(shown)
    again, _ = play(
        [event if isinstance(event, bool) else next(shown_events) for event in events],
        policy,
        tls=tls,
        redacted=True,
    )
    assert again == said
    everything = b"\n".join(line for packet in shown for line in packet)
    for form in (WORD, WORD.lower(), *(b64encode(b"x" * n + WORD)[4:-4] for n in range(3))):
        assert form not in everything.lower() if form == WORD.lower() else form not in everything
