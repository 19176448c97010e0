"""Test kernel/supervisor/sessions.py: the kernel answers, in time, sessions that wait for a maildrop."""

import pytest
from popkernel.kernel.config.keys import Config
from popkernel.kernel.decisions.leases import Core, Settings
from popkernel.kernel.operator.history import History
from popkernel.kernel.replay.loop import ReplayLoop
from popkernel.kernel.supervisor.descriptor_room import Room
from popkernel.kernel.supervisor.sessions import _MOST_WAIT, Sessions
from popkernel.proto import messages as m
from popkernel.proto.files.tables import MailUser
from popkernel.proto.topology import edge

from tests.support.messages import login_started
from tests.support.registry import LogRecorder, Registry


class Kernel:
    """Hold the session registry, and what it needs."""

    def __init__(self):
        self.loop, self.log = ReplayLoop(), LogRecorder()
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
