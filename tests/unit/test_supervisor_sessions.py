"""Test kernel/supervisor/sessions.py: the kernel answers, in time, sessions that wait for a maildrop."""

from types import SimpleNamespace

import pytest
from popkernel.kernel.config.keys import Config
from popkernel.kernel.decisions.leases import Core, Key, Settings
from popkernel.kernel.operator.history import History, Wanted
from popkernel.kernel.replay.loop import ReplayLoop
from popkernel.kernel.supervisor.descriptor_room import Room
from popkernel.kernel.supervisor.gates import Gates
from popkernel.kernel.supervisor.sessions import _MOST_WAIT, Sessions
from popkernel.proto import messages as m
from popkernel.proto.files.tables import MailUser
from popkernel.proto.topology import edge

from tests.support.messages import login_started
from tests.support.registry import LogRecorder, Registry


class Lines(LogRecorder):
    """Record of the events of sessions the addresses only: they are kept in the history."""

    def __init__(self):
        super().__init__()
        self.events = []

    def event(self, name, level, event, fields, **_):
        self.events.append(fields["address"])

    def fault(self, name, event, address, reason, **_):
        self.events.append(address)
        return True


class Kernel:
    """Hold the session registry, and what it needs."""

    def __init__(self):
        self.loop, self.log = ReplayLoop(), Lines()
        self.core = Core({"alice": MailUser(1000, 1000, "/mail/alice")}, Settings())
        self.processes = Registry(self.loop)
        self.said = self.processes.comes("listener.0", "init").channel.said
        room = Room(self.loop, self.core, self.log, Config())
        self.sessions = Sessions(
            self.loop,
            self.processes,
            self.core,
            self.log,
            self.log,
            room,
            None,
            None,
            History(10),
            lambda actions, about: None,
        )

    def log_in(self, session):
        self.core.awaits("listener.0", login_started(session))
        self.sessions.login_granted(None, m.LoginGranted("listener.0", session, "alice"), [])


@pytest.fixture
def kernel():
    made = Kernel()
    made.core.start("alice", made.core.users["alice"])
    made.core.ending("maildir.alice")
    return made


def test_a_login_that_waits_too_long_for_its_maildrop_is_told(kernel):
    """It must not hear that no password can be checked: the password was right."""
    kernel.log_in(1)
    kernel.loop.advance(_MOST_WAIT - 1)
    assert not kernel.said
    kernel.loop.advance(_MOST_WAIT)
    assert list(kernel.said) == [
        m.SessionRefused(1, "SYS/TEMP", "the mailbox is not available now, try again")
    ]
    assert kernel.log == [f"alice: a login waited {_MOST_WAIT:.0f} s for the mailbox, in vain"]
    assert not kernel.core.waiting and kernel.core.maildirs["alice"].waiting is None
    assert edge("listener", "auth").deadline > _MOST_WAIT


def test_an_opened_or_lost_session_is_told_nothing(kernel):
    kernel.log_in(1)
    kernel.core.ended("listener.0", m.ConnectionEnded(1, "", "", "", 0, 0, 0, 0, 0, 0, 0))
    kernel.loop.advance(10.0)
    kernel.log_in(1)
    kernel.loop.advance(_MOST_WAIT + 1)
    assert not kernel.said, "the first session's deadline"
    kernel.core.maildir_gone("maildir.alice", kernel.loop.now)
    kernel.loop.advance(2 * _MOST_WAIT)
    assert not kernel.said and not kernel.log


def ended(kernel, session, user):
    message = m.ConnectionEnded(session, user, "192.0.2.7:1", "quit", 0, 0, 0, 0, 0, 0, 0)
    kernel.sessions.connection_ended(kernel.processes["listener.0"], message, [])


def test_a_listener_cannot_tell_of_sessions_that_there_were_not(kernel):
    """It named any user, and filled the history with that."""
    history = kernel.sessions._history
    for session in range(50, 60):
        ended(kernel, session, "bob")
    assert len(history) == 0
    kernel.core.maildir_gone("maildir.alice", kernel.loop.now)
    kernel.log_in(1)
    kernel.sessions.opened(Key("listener.0", 1))
    ended(kernel, 1, "bob")
    ended(kernel, 1, "bob")
    (*_, (record,)) = history.find("session", Wanted(user="alice"), 10)
    assert record.fields["user"] == "alice" and len(history) == 1


def failed(kernel, session, why):
    listener = kernel.processes["listener.0"]
    kernel.sessions.login_failed(listener, m.LoginFailed(session, "alice", "192.0.2.7:1", why, 5), [])


def test_only_a_login_that_auth_granted_is_kept_with_those_that_were_checked(kernel):
    rings = kernel.sessions._history._rings
    listener = kernel.processes["listener.0"]
    for granted in (False, True):
        kernel.sessions.login_started(listener, login_started(7), [])
        if granted:
            kernel.sessions.login_granted(None, m.LoginGranted("listener.0", 7, "alice"), [])
        failed(kernel, 7, "IN-USE")
        failed(kernel, 7, "IN-USE")
        assert len(rings["login"]) == granted
    assert len(rings["unchecked"]) == 3


def test_a_client_of_a_gate_has_the_address_that_the_gate_says(kernel):
    """Its listener could have another address banned by fail2ban, and hide its client's."""
    child = kernel.processes.comes("listener.5.7", "gate.0")
    child.session = session = (5 << 40) + 7
    kernel.sessions._gates = SimpleNamespace(login=lambda *_, **__: None)
    gate = kernel.processes.comes("gate.0", "init")
    told = m.GateSeatTaken(session, "203.0.113.9:7")
    # its own channel, which the kernel may read later than the listener's
    gate.channel.receive = lambda: Gates.seat_taken(
        SimpleNamespace(_processes=kernel.processes), gate, told, []
    )
    sessions, history = kernel.sessions, kernel.sessions._history
    sessions.login_started(child, m.LoginStarted(session, "alice", "192.0.2.1:1", 13, "PASS"), [])
    assert sessions.clients[Key("listener.5.7", session)].address == "203.0.113.9:7"
    denied = m.LoginDenied("listener.5.7", session, "alice", "192.0.2.1:1", "password", 0, 1)
    sessions.login_denied(None, denied, [])
    sessions.login_failed(child, m.LoginFailed(session, "alice", "192.0.2.1:1", "IN-USE", 5), [])
    sessions.connection_ended(
        child,
        m.ConnectionEnded(
            session, "", "192.0.2.1:1", "x", 0, 0, 0, 0, 0, 0, 0, fault="client", reason="no TLS"
        ),
        [],
    )
    assert kernel.log.events == ["203.0.113.9:7"] * 4
    (*_, records) = history.find("login", Wanted(address="203.0.113.9"), 10)
    assert len(records) == 3

    kernel.processes.exited(m.ProcessExited("listener.5.7", 7, 0))
    sessions.login_denied(gate, denied, [])
    assert kernel.log.events[4:] == [""], "nobody knows whose it was"
