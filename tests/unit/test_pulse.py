"""kernel/pulse.py: who does not live, does not begin or does not end is found, and init's silence is said once."""

import signal
from types import SimpleNamespace

import pytest
from popkernel.kernel.core import Core, Settings
from popkernel.kernel.hung import START_SECONDS, Hung
from popkernel.kernel.process import Process
from popkernel.kernel.pulse import Pulse
from popkernel.kernel.stage import StageLoop
from popkernel.proto import messages as m
from popkernel.proto.tables import MailUser
from popkernel.proto.topology import edge

ALIVE = edge("kernel", "auth").deadline


class Line:
    def __init__(self):
        self.said = []

    def send(self, message):
        self.said.append(message)


class Kernel:
    """As much of the supervisor as there must be."""

    def __init__(self):
        self.loop, self.state, self.log, self.told, self.hang, self.ended, self.killed = StageLoop(), "running", [], [], [], [], []
        self.core = Core({"alice": MailUser(1000, 1000, "/mail/alice")}, Settings(warm_seconds=0))
        self.processes = {}
        self.actor_line = SimpleNamespace(end=lambda name, level, text: self.log.append(text))
        self.hung = Hung(self.loop, lambda process, seconds: self.hang.append(process.name))
        self.pulse = Pulse(self)

    def log_line(self, level, text):
        self.log.append(text)

    def tell_init(self, message):
        self.told.append(message)

    def kill(self, process):
        self.killed.append(process.name)

    def gone(self, message):
        self.ended.append(message)
        del self.processes[message.name]

    def has(self, name, parent="spawner", hello=True):
        process = self.processes[name] = Process(name, Line(), parent)
        process.hello, process.pid = m.Hello(7, "", "") if hello else None, 7 if hello else 0
        return process


@pytest.fixture
def kernel():
    return Kernel()


def test_singletons_are_asked_now_and_then_and_whoever_is_silent_hangs(kernel):
    silent, lively, waiting = kernel.has("auth", "init"), kernel.has("listener.0", "init"), kernel.has("mda", "init", hello=False)
    kernel.has("maildir.alice")
    kernel.pulse.begin()
    for second in range(1, 6 * ALIVE):
        kernel.loop.advance(second)
        if second % ALIVE == 1:
            lively.counters = m.Counters(second, 0, 0)
            kernel.pulse.init_answers()
    assert set(kernel.hang) == {"auth"} and silent.channel.said and not waiting.channel.said
    assert not kernel.processes["maildir.alice"].channel.said, "whoever waits for that one says so"
    assert not kernel.log and kernel.pulse.init_lives


def test_an_init_that_says_nothing_is_told_of_once(kernel):
    kernel.pulse.begin()
    kernel.loop.advance(10 * ALIVE)
    assert kernel.told == [m.Report()], "or its channel would overflow, and the kernel end"
    assert len(kernel.log) == 1 and "kill -CONT" in kernel.log[0] and not kernel.pulse.init_lives
    kernel.pulse.init_answers()
    assert kernel.log[1:] == ["init answers again"] and kernel.pulse.init_lives
    kernel.loop.advance(11 * ALIVE)
    assert kernel.told == [m.Report()] * 2


def test_a_kernel_that_was_stopped_itself_blames_nobody(kernel):
    kernel.has("auth", "init")
    kernel.pulse.begin()
    kernel.loop.advance(ALIVE)
    kernel.loop.advance(100 * ALIVE, late=True)
    assert not kernel.hang and not kernel.log


def test_one_that_never_says_hello(kernel):
    kernel.pulse.forked(kernel.has("maildir.alice", hello=False))
    kernel.loop.advance(ALIVE + START_SECONDS - 1)
    assert not kernel.hang
    kernel.loop.advance(ALIVE + START_SECONDS + 1)
    assert kernel.hang == ["maildir.alice"]


def test_one_that_does_not_retire(kernel):
    process = kernel.has("maildir.alice")
    kernel.core.start("alice", kernel.core.users["alice"])
    kernel.core.maildirs["alice"].retiring = True
    kernel.pulse.retires("maildir.alice")
    kernel.loop.advance(ALIVE + 1)
    assert process.channel.said == [m.Report()]
    kernel.loop.advance(2 * ALIVE + 1)
    assert kernel.hang == ["maildir.alice"]


def test_one_that_is_busy_and_stays_is_left_alone(kernel):
    process = kernel.has("maildir.alice")
    kernel.core.start("alice", kernel.core.users["alice"])
    kernel.core.maildirs["alice"].retiring = True
    kernel.pulse.retires("maildir.alice")
    kernel.core.stays("alice", 0.0)
    kernel.loop.advance(3 * ALIVE)
    assert not process.channel.said


def test_one_that_does_not_end(kernel):
    """Another takes a singleton's place, for it may wait for a disk that never answers; its end, should it come, is no news."""
    kernel.pulse.killed(kernel.has("auth", "init"))
    kernel.pulse.killed(kernel.has("maildir.alice"))
    kernel.loop.advance(START_SECONDS + 1)
    assert [text.partition(" (")[0] for text in kernel.log] == ["auth", "maildir.alice"]
    assert kernel.ended == [m.Exited("auth", 7, signal.SIGKILL)]
    assert kernel.pulse.late_end(7) and not kernel.pulse.late_end(7)


def test_one_that_has_another_in_its_place_and_stays(kernel):
    kernel.pulse.leaves(kernel.has("auth", "init"), 5)
    kernel.loop.advance(4 + ALIVE)
    assert not kernel.killed
    kernel.loop.advance(6 + ALIVE)
    assert kernel.killed == ["auth"]
