"""In which order a listener announces logins to the kernel and has auth judge them. Channels that are none."""

from types import SimpleNamespace

import pytest
from popkernel.actors.listener.peers import Peers
from popkernel.actors.listener.reports import Reports
from popkernel.kernel.replay.harness import StageLoop
from popkernel.kernel.runtime.loop import Loop
from popkernel.proto import messages as m


class Channel:
    def __init__(self, name, order):
        self.name, self.order, self.waiting, self.on_drained = name, order, False, None

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
    login = m.Login(session, "alice", b"secret", "192.0.2.7:1", "PASS")
    client = SimpleNamespace(asked=0, asked_at=0.0, session=SimpleNamespace(authorization=SimpleNamespace(login=login), id=session))
    listener.peers.awaiting[session] = client
    listener.peers.ask(client, login)
    return client


def turn(listener):
    listener.loop.later(0.0, lambda: None)
    listener.loop.turn()


def test_those_of_a_turn_travel_together(listener):
    log_in(listener, 1)
    log_in(listener, 2)
    assert listener.order == []
    turn(listener)
    assert listener.order == [("kernel", "Awaiting", 1), ("kernel", "Awaiting", 2), ("auth", "Login", 1), ("auth", "Login", 2)]
    turn(listener)
    assert len(listener.order) == 4


def test_whose_client_has_gone_is_not_asked_about(listener):
    log_in(listener, 1)
    log_in(listener, 2)
    del listener.peers.awaiting[1]
    turn(listener)
    assert listener.order == [("kernel", "Awaiting", 2), ("auth", "Login", 2)]


def test_auth_hears_of_none_that_the_kernel_can_not_have_heard_of(listener):
    listener.kernel.waiting = True
    log_in(listener, 1)
    turn(listener)
    log_in(listener, 2)
    turn(listener)
    assert [name for name, *_ in listener.order] == ["kernel", "kernel"]
    del listener.peers.awaiting[2]
    listener.kernel.waiting = False
    listener.kernel.on_drained()
    assert listener.order[2:] == [("auth", "Login", 1)]
    listener.kernel.on_drained()
    assert len(listener.order) == 3


def ended(user="", why="connection lost"):
    return m.Ended(1, user, "192.0.2.7:1", why, 1, 2, 3, 0, 0, 0, 4)


@pytest.mark.parametrize(("leased", "why", "at_once"), [(True, "connection lost", True), (False, "connection lost", False), (True, "quit", False)])
def test_who_may_come_again_at_once_is_told_of_at_once(listener, leased, why, at_once):
    """Also one whose mailbox was still being listed, and who has no name in the log for that."""
    listener.kernel.send_all = listener.order.extend
    reports = Reports(listener.actor)
    reports.add(ended(why=why), leased=leased)
    assert listener.order == ([ended(why=why)] if at_once else [])
    reports.send()
    assert listener.order == [ended(why=why)]


class Waiting:
    """A listener with one client, who waits for a maildir actor's answer, or for the kernel's or auth's."""

    def __init__(self, state, *, awaiting, always=True):
        self.told, self.over, self.loop = [], [], StageLoop()
        actor = SimpleNamespace(loop=self.loop, tell=self.told.append)
        authorization = SimpleNamespace(id=7, user="alice", address="", login=None)
        session = SimpleNamespace(id=7, state=state, authorization=authorization, entered=state != "login", denied=lambda *_: None)
        session.maildir_gone = lambda: self.over.append("maildir")
        self.client = SimpleNamespace(asked_at=0.001, unsent=0, session=session, channel=SimpleNamespace(close=lambda: None))
        limits = SimpleNamespace(logged_in=lambda session: self.over.append("login"))
        connections = SimpleNamespace(by_session={7: self.client}, progress=lambda client: None)
        peers = Peers(actor, SimpleNamespace(limits=limits), connections, always=always)
        peers.auth = SimpleNamespace(peer="auth")
        peers._auth_patience, peers._maildir_patience, peers._listing_patience = 60, 60, 10
        if awaiting:
            peers.awaiting[7] = self.client
        peers.watch_answers()
        self.peers = peers

    def late(self, seconds):
        self.loop.advance(seconds)
        return [x.peer for x in self.told if type(x) is m.Late]


@pytest.mark.parametrize("who", ["auth", "kernel"])
def test_a_kernel_that_never_answers(who):
    """Nor auth: who has not answered is not known here, and auth is the one that may hang."""
    waiting = Waiting("login", awaiting=True)
    assert waiting.late(59) == [] and waiting.late(63) == ["auth"] and waiting.over == ["login"]


def test_a_maildir_actor_that_never_answers():
    waiting = Waiting("transaction", awaiting=False)
    assert waiting.late(59) == [] and waiting.late(63) == ["maildir.alice"] and waiting.over == ["maildir"]


def test_a_maildir_actor_that_never_says_ready():
    """It may be listing, and then says that it lives; the client is not sent away for that, and the kernel asks as often as need be."""
    waiting = Waiting("login", awaiting=False)
    assert waiting.late(9) == [] and waiting.late(13) == ["maildir.alice"] and waiting.over == []
    assert waiting.late(24) == ["maildir.alice"] * 2 and waiting.client.channel is not None


@pytest.mark.parametrize("always", [True, False])
def test_answers_are_watched_for_while_they_are_owed(always):
    """A listener of one connection has no timer for it else: there may be ten thousand of them."""
    waiting = Waiting("transaction", awaiting=False, always=always)
    waiting.late(20)
    assert waiting.peers.watching
    waiting.client.asked_at = 0.0
    waiting.late(30)
    assert waiting.peers.watching is always
