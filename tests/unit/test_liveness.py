"""Test kernel/supervisor/liveness.py: find processes that hang, never begin or never end.

Init's silence is reported once.
"""

import signal

import pytest
from popkernel.kernel.decisions.leases import Core, Key, Settings
from popkernel.kernel.replay.loop import ReplayLoop
from popkernel.kernel.supervisor.hung_actors import START_SECONDS, HungActors
from popkernel.kernel.supervisor.liveness import Liveness
from popkernel.proto import messages as m
from popkernel.proto.files.tables import MailUser
from popkernel.proto.topology import actor, edge

from tests.support.registry import LogRecorder, Registry

ALIVE = edge("kernel", "auth").deadline
SHUTDOWN = actor("maildir.alice").shutdown


class Kernel:
    """Build the liveness checks and what they need."""

    def __init__(self):
        self.loop, self.log, self.hang = ReplayLoop(), LogRecorder(), []
        self.core = Core({"alice": MailUser(1000, 1000, "/mail/alice")}, Settings(warm_seconds=0))
        self.processes = Registry(self.loop)
        self.hung = HungActors(self.loop, lambda process, seconds: self.hang.append(process.name))
        self.liveness = Liveness(self.loop, self.processes, self.core, self.log, self.log, self.hung)
        self.has, self.killed, self.told = (
            self.processes.comes,
            self.processes.killed,
            self.processes.init.said,
        )


@pytest.fixture
def kernel():
    return Kernel()


def test_singletons_are_checked_and_silent_ones_hang(kernel):
    silent, lively, waiting = (
        kernel.has("auth", "init"),
        kernel.has("listener.0", "init"),
        kernel.has("mda", "init", hello=False),
    )
    kernel.has("maildir.alice")
    kernel.liveness.begin()
    for second in range(1, 6 * ALIVE):
        kernel.loop.advance(second)
        if second % ALIVE == 1:
            lively.counters = m.Counters(second, 0, 0)
            kernel.liveness.init_answers()
    assert set(kernel.hang) == {"auth"} and silent.channel.said and not waiting.channel.said
    assert not kernel.processes["maildir.alice"].channel.said, "processes that wait for that one report it"
    assert not kernel.log and kernel.liveness.init_lives


def test_a_silent_init_is_reported_once(kernel):
    kernel.liveness.begin()
    kernel.loop.advance(10 * ALIVE)
    assert list(kernel.told) == [m.CountersRequest()], (
        "otherwise its channel would overflow and the kernel end"
    )
    assert len(kernel.log) == 1 and "kill -CONT" in kernel.log[0] and not kernel.liveness.init_lives
    kernel.liveness.init_answers()
    assert kernel.log[1:] == ["init answers again"] and kernel.liveness.init_lives
    kernel.loop.advance(11 * ALIVE)
    assert list(kernel.told) == [m.CountersRequest()] * 2


def test_after_a_pause_of_the_kernel_nobody_is_ended(kernel):
    kernel.has("auth", "init")
    kernel.liveness.begin()
    kernel.loop.advance(ALIVE)
    kernel.loop.advance(100 * ALIVE, late=True)
    assert not kernel.hang and not kernel.log


def test_an_actor_without_a_hello(kernel):
    kernel.liveness.forked(kernel.has("maildir.alice", hello=False))
    kernel.loop.advance(ALIVE + START_SECONDS - 1)
    assert not kernel.hang
    kernel.loop.advance(ALIVE + START_SECONDS + 1)
    assert kernel.hang == ["maildir.alice"]


def test_an_actor_that_does_not_retire(kernel):
    process = kernel.has("maildir.alice")
    kernel.core.start("alice", kernel.core.users["alice"])
    kernel.core.maildirs["alice"].retiring = True
    kernel.liveness.retires("maildir.alice")
    kernel.loop.advance(ALIVE + 1)
    assert list(process.channel.said) == [m.CountersRequest()]
    kernel.loop.advance(2 * ALIVE + 1)
    assert kernel.hang == ["maildir.alice"]


def test_an_actor_that_refuses_to_retire_stays(kernel):
    process = kernel.has("maildir.alice")
    kernel.core.start("alice", kernel.core.users["alice"])
    kernel.core.maildirs["alice"].retiring = True
    kernel.liveness.retires("maildir.alice")
    kernel.core.stays("alice", 0.0)
    kernel.loop.advance(3 * ALIVE)
    assert not process.channel.said


def going(kernel):
    process = kernel.has("maildir.alice")
    kernel.core.start("alice", kernel.core.users["alice"])
    kernel.core.ending("maildir.alice")
    kernel.liveness.goes("maildir.alice")
    return process


def lives(kernel, process, first, last):
    for second in range(first, last):
        process.counters = m.Counters(second, 0, 0)
        kernel.loop.advance(second)


@pytest.mark.parametrize("told", [False, True])
def test_a_leaving_actor_that_stays_is_ended(kernel, told):
    """An actor that has sent Leaving and stays would lock its user out, so it is ended and logged."""
    process = kernel.has("maildir.alice")
    kernel.core.start("alice", kernel.core.users["alice"])
    kernel.core.ending("maildir.alice")
    (kernel.liveness.retires if told else kernel.liveness.goes)("maildir.alice")
    lives(kernel, process, 1, SHUTDOWN)
    assert not kernel.killed
    lives(kernel, process, SHUTDOWN, SHUTDOWN + 2)
    assert kernel.killed == ["maildir.alice"]
    assert (
        kernel.log == [f"maildir.alice was to go and has not gone in {SHUTDOWN} s; ended"] and not kernel.hang
    )


def test_a_second_leaving_does_not_delay_the_end(kernel):
    process = going(kernel)
    for second in range(1, SHUTDOWN + 2):
        lives(kernel, process, second, second + 1)
        kernel.liveness.goes("maildir.alice")
    assert kernel.killed == ["maildir.alice"]


def test_a_leaving_actor_serves_its_open_session(kernel):
    process = going(kernel)
    kernel.core.maildirs["alice"].key = Key("listener.0", 1)
    lives(kernel, process, 1, 3 * SHUTDOWN + 5)
    assert not kernel.killed
    kernel.core.closed("maildir.alice", m.SessionClosed(1, 0, 0, 0, []), kernel.loop.now)
    lives(kernel, process, 3 * SHUTDOWN + 5, 4 * SHUTDOWN + 4)
    assert not kernel.killed
    lives(kernel, process, 4 * SHUTDOWN + 4, 4 * SHUTDOWN + 8)
    assert kernel.killed == ["maildir.alice"]


def test_a_leaving_actor_s_deadline_is_its_own(kernel):
    """An actor that waits for the kernel itself is not ended."""
    going(kernel)
    kernel.core.maildirs.clear()
    other = kernel.has("maildir.alice")
    kernel.loop.advance(SHUTDOWN - 1)
    kernel.core.start("alice", kernel.core.users["alice"])
    kernel.core.ending("maildir.alice")
    kernel.liveness.goes("maildir.alice")
    lives(kernel, other, SHUTDOWN, 2 * SHUTDOWN - 1)
    assert not kernel.killed
    kernel.loop.advance(10 * SHUTDOWN, late=True)
    assert not kernel.killed


def test_a_process_that_does_not_end(kernel):
    """A process may wait for a disk that never answers.

    Another takes its place, and its later end is ignored.
    """
    kernel.liveness.killed(kernel.has("auth", "init"))
    kernel.liveness.killed(kernel.has("maildir.alice"))
    kernel.loop.advance(START_SECONDS + 1)
    assert [text.partition(" (")[0] for text in kernel.log] == ["auth", "maildir.alice"]
    assert [(name, end.status) for name, end in kernel.processes.ended] == [("auth", signal.SIGKILL)]
    assert kernel.liveness.late_end(7) and not kernel.liveness.late_end(7)


def test_a_replaced_process_that_stays(kernel):
    kernel.liveness.leaves(kernel.has("auth", "init"), 5)
    kernel.loop.advance(4 + ALIVE)
    assert not kernel.killed
    kernel.loop.advance(6 + ALIVE)
    assert kernel.killed == ["auth"]
