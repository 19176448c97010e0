"""kernel/supervisor/liveness.py: who does not live, does not begin or does not end is found, and init's silence is said once."""

import signal

import pytest
from popkernel.kernel.decisions.leases import Core, Key, Settings
from popkernel.kernel.replay.harness import StageLoop
from popkernel.kernel.supervisor.hung_actors import START_SECONDS, HungActors
from popkernel.kernel.supervisor.liveness import Liveness
from popkernel.proto import messages as m
from popkernel.proto.files.tables import MailUser
from popkernel.proto.topology import actor, edge

from tests.support.registry import Registry, Said

ALIVE = edge("kernel", "auth").deadline
SHUTDOWN = actor("maildir.alice").shutdown


class Kernel:
    """What asks who lives, and what that needs."""

    def __init__(self):
        self.loop, self.log, self.hang = StageLoop(), Said(), []
        self.core = Core({"alice": MailUser(1000, 1000, "/mail/alice")}, Settings(warm_seconds=0))
        self.processes = Registry(self.loop)
        self.hung = HungActors(self.loop, lambda process, seconds: self.hang.append(process.name))
        self.liveness = Liveness(self.loop, self.processes, self.core, self.log, self.log, self.hung)
        self.has, self.killed, self.told = self.processes.comes, self.processes.killed, self.processes.init.said


@pytest.fixture
def kernel():
    return Kernel()


def test_singletons_are_asked_now_and_then_and_whoever_is_silent_hangs(kernel):
    silent, lively, waiting = kernel.has("auth", "init"), kernel.has("listener.0", "init"), kernel.has("mda", "init", hello=False)
    kernel.has("maildir.alice")
    kernel.liveness.begin()
    for second in range(1, 6 * ALIVE):
        kernel.loop.advance(second)
        if second % ALIVE == 1:
            lively.counters = m.Counters(second, 0, 0)
            kernel.liveness.init_answers()
    assert set(kernel.hang) == {"auth"} and silent.channel.said and not waiting.channel.said
    assert not kernel.processes["maildir.alice"].channel.said, "whoever waits for that one says so"
    assert not kernel.log and kernel.liveness.init_lives


def test_an_init_that_says_nothing_is_told_of_once(kernel):
    kernel.liveness.begin()
    kernel.loop.advance(10 * ALIVE)
    assert list(kernel.told) == [m.Report()], "or its channel would overflow, and the kernel end"
    assert len(kernel.log) == 1 and "kill -CONT" in kernel.log[0] and not kernel.liveness.init_lives
    kernel.liveness.init_answers()
    assert kernel.log[1:] == ["init answers again"] and kernel.liveness.init_lives
    kernel.loop.advance(11 * ALIVE)
    assert list(kernel.told) == [m.Report()] * 2


def test_a_kernel_that_was_stopped_itself_blames_nobody(kernel):
    kernel.has("auth", "init")
    kernel.liveness.begin()
    kernel.loop.advance(ALIVE)
    kernel.loop.advance(100 * ALIVE, late=True)
    assert not kernel.hang and not kernel.log


def test_one_that_never_says_hello(kernel):
    kernel.liveness.forked(kernel.has("maildir.alice", hello=False))
    kernel.loop.advance(ALIVE + START_SECONDS - 1)
    assert not kernel.hang
    kernel.loop.advance(ALIVE + START_SECONDS + 1)
    assert kernel.hang == ["maildir.alice"]


def test_one_that_does_not_retire(kernel):
    process = kernel.has("maildir.alice")
    kernel.core.start("alice", kernel.core.users["alice"])
    kernel.core.maildirs["alice"].retiring = True
    kernel.liveness.retires("maildir.alice")
    kernel.loop.advance(ALIVE + 1)
    assert list(process.channel.said) == [m.Report()]
    kernel.loop.advance(2 * ALIVE + 1)
    assert kernel.hang == ["maildir.alice"]


def test_one_that_is_busy_and_stays_is_left_alone(kernel):
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
def test_one_that_goes_and_stays_is_ended_though_it_lives(kernel, told):
    """A user was locked out for as long as an actor that had said Leaving stayed, and no word of it in the log."""
    process = kernel.has("maildir.alice")
    kernel.core.start("alice", kernel.core.users["alice"])
    kernel.core.ending("maildir.alice")
    (kernel.liveness.retires if told else kernel.liveness.goes)("maildir.alice")
    lives(kernel, process, 1, SHUTDOWN)
    assert not kernel.killed
    lives(kernel, process, SHUTDOWN, SHUTDOWN + 2)
    assert kernel.killed == ["maildir.alice"]
    assert kernel.log == [f"maildir.alice was to go and has not gone in {SHUTDOWN} s; ended"] and not kernel.hang


def test_leaving_said_again_does_not_put_the_end_off(kernel):
    process = going(kernel)
    for second in range(1, SHUTDOWN + 2):
        lives(kernel, process, second, second + 1)
        kernel.liveness.goes("maildir.alice")
    assert kernel.killed == ["maildir.alice"]


def test_one_that_goes_serves_the_session_that_is_open(kernel):
    process = going(kernel)
    kernel.core.maildirs["alice"].key = Key("listener.0", 1)
    lives(kernel, process, 1, 3 * SHUTDOWN + 5)
    assert not kernel.killed
    kernel.core.closed("maildir.alice", m.Closed(1, 0, 0), kernel.loop.now)
    lives(kernel, process, 3 * SHUTDOWN + 5, 4 * SHUTDOWN + 4)
    assert not kernel.killed
    lives(kernel, process, 4 * SHUTDOWN + 4, 4 * SHUTDOWN + 8)
    assert kernel.killed == ["maildir.alice"]


def test_the_end_of_one_that_goes_is_no_other_s(kernel):
    """Nor is anybody ended whom the kernel itself has kept waiting."""
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


def test_one_that_does_not_end(kernel):
    """Another takes a singleton's place, for it may wait for a disk that never answers; its end, should it come, is no news."""
    kernel.liveness.killed(kernel.has("auth", "init"))
    kernel.liveness.killed(kernel.has("maildir.alice"))
    kernel.loop.advance(START_SECONDS + 1)
    assert [text.partition(" (")[0] for text in kernel.log] == ["auth", "maildir.alice"]
    assert [(name, end.status) for name, end in kernel.processes.ended] == [("auth", signal.SIGKILL)]
    assert kernel.liveness.late_end(7) and not kernel.liveness.late_end(7)


def test_one_that_has_another_in_its_place_and_stays(kernel):
    kernel.liveness.leaves(kernel.has("auth", "init"), 5)
    kernel.loop.advance(4 + ALIVE)
    assert not kernel.killed
    kernel.loop.advance(6 + ALIVE)
    assert kernel.killed == ["auth"]
