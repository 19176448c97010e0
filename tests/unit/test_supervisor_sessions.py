"""kernel/supervisor/sessions.py: who has to wait for a maildrop is answered by the kernel, in time."""

import pytest
from popkernel.kernel.config.keys import Config
from popkernel.kernel.decisions.leases import Core, Settings
from popkernel.kernel.replay.harness import StageLoop
from popkernel.kernel.supervisor.descriptor_room import Room
from popkernel.kernel.supervisor.sessions import _MOST_WAIT, Sessions
from popkernel.proto import messages as m
from popkernel.proto.files.tables import MailUser
from popkernel.proto.topology import edge

from tests.support.registry import Registry, Said


class Kernel:
    """What follows the sessions, and what that needs."""

    def __init__(self):
        self.loop, self.log = StageLoop(), Said()
        self.core = Core({"alice": MailUser(1000, 1000, "/mail/alice")}, Settings())
        self.processes = Registry(self.loop)
        self.said = self.processes.comes("listener.0", "init").channel.said
        room = Room(self.loop, self.core, self.log, Config())
        self.sessions = Sessions(self.loop, self.processes, self.core, self.log, self.log, room, None, None, lambda effects, about: None)

    def log_in(self, session):
        self.core.awaits("listener.0", m.Awaiting(session))
        self.sessions.granted(None, m.Granted("listener.0", session, "alice"), [])


@pytest.fixture
def kernel():
    made = Kernel()
    made.core.start("alice", made.core.users["alice"])
    made.core.ending("maildir.alice")
    return made


def test_a_login_that_waits_for_its_maildrop_in_vain_hears_that(kernel):
    """It heard that no password can be checked: the password was right."""
    kernel.log_in(1)
    kernel.loop.advance(_MOST_WAIT - 1)
    assert not kernel.said
    kernel.loop.advance(_MOST_WAIT)
    assert list(kernel.said) == [m.Turned(1, "SYS/TEMP", "the mailbox is not available now, try again")]
    assert kernel.log == [f"alice: a login waited {_MOST_WAIT:.0f} s for the mailbox, in vain"]
    assert not kernel.core.waiting and kernel.core.maildirs["alice"].waiting is None
    assert edge("listener", "auth").deadline > _MOST_WAIT


def test_one_that_has_it_or_went_meanwhile_hears_nothing(kernel):
    kernel.log_in(1)
    kernel.core.ended("listener.0", m.Ended(1, "", "", "", 0, 0, 0, 0, 0, 0, 0))
    kernel.loop.advance(10.0)
    kernel.log_in(1)
    kernel.loop.advance(_MOST_WAIT + 1)
    assert not kernel.said, "the time of the first"
    kernel.core.maildir_gone("maildir.alice", kernel.loop.now)
    kernel.loop.advance(2 * _MOST_WAIT)
    assert not kernel.said and not kernel.log
