"""Check CAPA on a session alone, for every configuration and state."""

from base64 import b64encode

from hypothesis import given, settings
from hypothesis import strategies as st
from popkernel.actors.listener.session.policy import Policy
from popkernel.actors.listener.session.session import Session
from popkernel.proto import messages as m
from popkernel.proto.pop3.sasl import MECHANISMS

from tests.fuzz.pop3_session import MESSAGES, SIZES, Maildir
from tests.support.capabilities import check, listed
from tests.support.session_shell import SessionShell

POLICIES = st.builds(
    Policy, version=st.just("7"), plaintext=st.booleans(), starttls=st.booleans(),
    mechanisms=st.sets(st.sampled_from(MECHANISMS), min_size=1).map(sorted),
    scope=st.sampled_from(["", "mail"]), expire=st.integers(-1, 400),
    login_delay=st.sampled_from([0, 1, 900]), most_errors=st.integers(20, 50),
    login_seconds=st.just(30), idle_seconds=st.just(600), most_commands=st.just(0), memory=st.just(1 << 18),
)  # fmt: skip
BEFORE = st.lists(
    st.sampled_from([b"USER alice", b"UTF8", b"NOPE", b"CAPA", b"AUTH PLAIN *", b"AUTH PLAIN\r\n*", b"PASS x",
                     b"STLS", b"AUTH PLAIN " + b64encode(b"\0alice\0x"), b"x" * 300]), max_size=4,
)  # fmt: skip


class Client:
    """Feed a session, with an honest maildir actor behind it."""

    def __init__(self, policy, *, tls, before, logged_in):
        self.session, self.maildir = Session(1, policy, "192.0.2.1:1", tls=tls), Maildir()
        self.shell, self.data = SessionShell(self.session), b""
        for line in before:
            self.feed(line)
            if self.shell.take_login() is not None:
                self.shell.tell("denied", "AUTH", "wrong name or password")
        if logged_in:
            self.session.authorization.state = "login"
            self.shell.tell("ready", m.MaildropReady(MESSAGES, sum(SIZES)))
        self.drop()

    def feed(self, line):
        self.shell.tell("received", line + b"\r\n")
        self.shell.serve(self.maildir)
        self.data += self.shell.take_said()
        self.shell.secure()

    def drop(self):
        self.shell.take_said()
        self.data = b""

    def line(self):
        line, end, self.data = self.data.partition(b"\r\n")
        return line + end

    def ask(self, line):
        self.feed(line)
        return self.line()

    def many(self, line):
        assert self.ask(line).startswith(b"+OK")
        data, self.data = self.data, b""
        return data


@settings(max_examples=150)
@given(policy=POLICIES, tls=st.booleans(), before=BEFORE, logged_in=st.booleans())
def test_capa_tells_the_truth(policy, tls, before, logged_in):
    check(
        lambda: Client(policy, tls=tls, before=before, logged_in=logged_in), logged_in=logged_in,
        expire=policy.expire, login_delay=policy.login_delay, version=b"7",
    )  # fmt: skip


def test_capa_differs_with_configuration_and_state():
    """The listed capabilities differ with configuration and state as they should."""
    open_, shut = Policy("7", plaintext=True, starttls=True), Policy("7", starttls=False)
    assert b"SASL" in listed(Client(open_, tls=False, before=[], logged_in=False))
    assert not {b"SASL", b"USER", b"STLS"} & set(listed(Client(shut, tls=False, before=[], logged_in=False)))
    assert not {b"SASL", b"USER", b"STLS"} & set(listed(Client(open_, tls=False, before=[], logged_in=True)))
    assert b"STLS" not in listed(Client(open_, tls=False, before=[b"UTF8"], logged_in=False))
