"""Test the order in which a listener announces logins to the kernel and requests them of auth.

Uses fake channels.
"""

from types import SimpleNamespace

import pytest
from popkernel.actors.listener.peers import Peers
from popkernel.actors.listener.reports import Reports
from popkernel.kernel.replay.loop import ReplayLoop
from popkernel.kernel.runtime.loop import Loop
from popkernel.proto import messages as m


class Channel:
    def __init__(self, name, order):
        self.name, self.order, self.waiting, self.on_drained = name, order, False, None

    def send(self, message):
        self.order.append((self.name, type(message).__name__, message.session))

    def send_all(self, messages):
        self.order += [(self.name, type(message).__name__, message.session) for message in messages]


@pytest.fixture
def listener():
    order = []
    actor = SimpleNamespace(loop=Loop(), kernel=Channel("kernel", order))
    peers = Peers(actor, None, None, always=True)
    peers.auth = Channel("auth", order)
    return SimpleNamespace(order=order, loop=actor.loop, kernel=actor.kernel, actor=actor, peers=peers)


def log_in(listener, session):
    login = m.LoginRequest(session, "alice", b"secret", "192.0.2.7:1", "PASS")
    client = SimpleNamespace(
        login=login,
        asked=0,
        asked_at=0.0,
        login_at=0.0,
        tls=0,
        eof=False,
        channel=None,
        session=SimpleNamespace(id=session),
    )
    listener.peers.awaiting[session] = client
    listener.peers.ask(client, login)
    return client


def turn(listener):
    listener.loop.later(0.0, lambda: None)
    listener.loop.turn()


def test_logins_of_a_turn_travel_together(listener):
    log_in(listener, 1)
    log_in(listener, 2)
    assert listener.order == []
    turn(listener)
    assert listener.order == [
        ("kernel", "LoginStarted", 1),
        ("kernel", "LoginStarted", 2),
        ("auth", "LoginRequest", 1),
        ("auth", "LoginRequest", 2),
    ]
    turn(listener)
    assert len(listener.order) == 4


def test_a_login_of_a_lost_client_is_not_requested(listener):
    log_in(listener, 1)
    log_in(listener, 2)
    del listener.peers.awaiting[1]
    turn(listener)
    assert listener.order == [("kernel", "LoginStarted", 2), ("auth", "LoginRequest", 2)]


def test_auth_gets_no_login_before_the_kernel(listener):
    listener.kernel.waiting = True
    log_in(listener, 1)
    turn(listener)
    log_in(listener, 2)
    turn(listener)
    assert [name for name, *_ in listener.order] == ["kernel", "kernel"]
    del listener.peers.awaiting[2]
    listener.kernel.waiting = False
    listener.kernel.on_drained()
    assert listener.order[2:] == [("auth", "LoginRequest", 1)]
    listener.kernel.on_drained()
    assert len(listener.order) == 3


@pytest.mark.parametrize(("died", "sent"), [(False, 9), (True, 2)])
def test_a_login_that_waits_outlasts_reloads_but_not_auths_that_die(listener, died, sent, monkeypatch):
    """It may be the very login that makes auth fail."""
    opened = []
    listener.actor.boot = SimpleNamespace(name="listener.0")
    listener.actor.world = SimpleNamespace(channel=lambda *_: opened.append(auth()) or opened[-1])
    refused = []
    monkeypatch.setattr(Peers, "refuse_login", lambda self, session, *_: refused.append(session))

    def auth():
        channel = Channel("auth", listener.order)
        channel.closed, channel.close = False, lambda: None
        return channel

    listener.peers.auth = auth()
    log_in(listener, 1)
    turn(listener)
    for _ in range(8):
        listener.peers.auth.closed = died
        listener.peers.take_auth(m.PeerChannel("auth"), [0])
        turn(listener)
        if refused:
            break
    assert listener.order.count(("auth", "LoginRequest", 1)) == sent and bool(refused) is died


def ended(user="", why="connection lost"):
    return m.ConnectionEnded(1, user, "192.0.2.7:1", why, 1, 2, 3, 0, 0, 0, 4)


@pytest.mark.parametrize(
    ("leased", "why", "at_once"),
    [(True, "connection lost", True), (False, "connection lost", False), (True, "quit", False)],
)
def test_an_end_that_permits_a_new_login_is_reported_at_once(listener, leased, why, at_once):
    """This includes a client whose mailbox was still being listed, and who has no name in the log yet."""
    listener.kernel.send_all = listener.order.extend
    reports = Reports(listener.actor)
    reports.add(ended(why=why), leased=leased)
    assert listener.order == ([ended(why=why)] if at_once else [])
    reports.send()
    assert listener.order == [ended(why=why)]


class Waiting:
    """Hold a listener with one client that waits for the maildir actor, the kernel or auth."""

    def __init__(self, state, *, awaiting, always=True):
        self.told, self.over, self.refused, self.loop = [], [], [], ReplayLoop()
        actor = SimpleNamespace(loop=self.loop, send=self.told.append)
        authorization = SimpleNamespace(id=7, user="alice", address="")
        session = SimpleNamespace(
            id=7, state=state, authorization=authorization, entered=state != "login", denied=lambda *_: None
        )
        session.maildir_gone = lambda: self.over.append("maildir")
        self.client = SimpleNamespace(
            asked_at=0.001,
            login_at=0.0,
            unsent=0,
            session=session,
            channel=SimpleNamespace(close=lambda: None),
            deadline=180.0,
            host="192.0.2.7",
        )
        limits = SimpleNamespace(
            logged_in=lambda session: self.over.append("login"), waits=lambda session, host, now: None
        )
        policy = SimpleNamespace(login_seconds=180)
        connections = SimpleNamespace(
            by_session={7: self.client}, act=lambda client, actions: None, policy=policy
        )
        admission = SimpleNamespace(limits=limits, count=self.refused.append)
        peers = Peers(actor, admission, connections, always=always)
        peers.auth = SimpleNamespace(peer="auth", send=self.told.append)
        peers._auth_patience, peers._maildir_patience, peers._listing_patience = 60, 60, 10
        if awaiting:
            peers.awaiting[7] = self.client
        peers.watch_answers()
        self.peers = peers

    def late(self, seconds):
        self.loop.advance(seconds)
        return [x.peer for x in self.told if type(x) is m.PeerTimeout]


@pytest.mark.parametrize("who", ["auth", "kernel"])
def test_a_kernel_that_never_answers(who):
    """Nor auth: the listener cannot tell which of the two is silent, and auth is the likelier one."""
    waiting = Waiting("login", awaiting=True)
    assert waiting.late(59) == [] and waiting.late(63) == ["auth"] and waiting.over == []
    # its client is answered a moment before its time to log in is over
    assert waiting.late(174) == ["auth"] * 2 and waiting.over == []
    assert waiting.late(178) == ["auth"] * 2 and waiting.over == ["login"]
    assert waiting.refused == ["login_seconds"]
    assert [x for x in waiting.told if type(x) is m.LoginWithdrawn] == [m.LoginWithdrawn(7, False)]


def test_an_auth_that_answers_others_is_not_complained_about():
    """Ten thousand may wait for their turn, each for minutes."""
    waiting = Waiting("login", awaiting=True)
    for second in range(10, 170, 10):
        waiting.peers.on_auth(None, m.LoginRefused(99, "AUTH", "wrong"), [])
        assert waiting.late(second) == []


@pytest.mark.parametrize(
    ("follows", "told"), [(False, ["LoginRequest", "LoginWithdrawn"]), (True, ["LoginRequest"])]
)
def test_auth_is_told_of_a_client_that_can_say_no_more(listener, follows, told):
    client = log_in(listener, 1)
    client.eof, client.session.nothing_follows = True, not follows
    listener.actor.send = lambda message: None
    turn(listener)
    assert [name for to, name, _ in listener.order if to == "auth"] == told


def test_auth_is_told_of_a_client_that_is_gone(listener):
    log_in(listener, 1)
    turn(listener)
    listener.peers._admission = SimpleNamespace(limits=SimpleNamespace(logged_in=lambda session: None))
    assert listener.peers.withdraw(1) and not listener.peers.withdraw(1)
    assert listener.order[-1] == ("auth", "LoginWithdrawn", 1)


def test_a_maildir_actor_that_never_answers():
    waiting = Waiting("transaction", awaiting=False)
    assert waiting.late(59) == [] and waiting.late(63) == ["maildir.alice"] and waiting.over == ["maildir"]


def test_a_maildir_actor_that_never_says_ready():
    """A listing may take long while the actor says that it lives: the client stays."""
    waiting = Waiting("login", awaiting=False)
    assert waiting.late(9) == [] and waiting.late(13) == ["maildir.alice"] and waiting.over == []
    assert waiting.late(24) == ["maildir.alice"] * 2 and waiting.client.channel is not None


@pytest.mark.parametrize("always", [True, False])
def test_answers_are_awaited_while_they_are_owed(always):
    """A listener of one connection has no timer otherwise: there may be ten thousand of them."""
    waiting = Waiting("transaction", awaiting=False, always=always)
    waiting.late(20)
    assert waiting.peers.watching
    waiting.client.asked_at = 0.0
    waiting.late(30)
    assert waiting.peers.watching is always


def test_a_maildir_actor_cannot_say_that_the_password_was_wrong():
    """The log would blame the client's address, and get it banned."""
    waiting = Waiting("login", awaiting=False)
    refused = []
    waiting.peers._actor.refuse = lambda channel, why: refused.append(why)
    waiting.peers._unready(waiting.client, m.MaildropUnready("AUTH", "wrong name or password"))
    assert refused and [x.why for x in waiting.told if type(x) is m.LoginFailed] == ["SYS/TEMP"]
