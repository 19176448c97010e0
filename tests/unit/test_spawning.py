"""kernel/supervisor/spawning.py: the spawner is told of a few actors at a time, so that it can say that it lives whatever is asked of it."""

import os
from collections import deque
from types import SimpleNamespace

import pytest
from popkernel.kernel.decisions import leases
from popkernel.kernel.processes import Process
from popkernel.kernel.replay.harness import StageLoop
from popkernel.kernel.runtime.channel import pair
from popkernel.kernel.supervisor.execution import Effects
from popkernel.kernel.supervisor.hung_actors import Hung
from popkernel.kernel.supervisor.liveness import Pulse
from popkernel.kernel.supervisor.spawning import _MOST as MOST
from popkernel.kernel.supervisor.spawning import Spawning
from popkernel.proto import messages as m
from popkernel.proto.files.tables import MailUser
from popkernel.proto.topology import edge

ALIVE = edge("kernel", "spawner").deadline
ROW = MailUser(1000, 1000, "/mail/someone")


class Line:
    """A channel to an actor that takes what it is told in order."""

    def __init__(self):
        self.said, self.gone = deque(), False

    def send(self, message, fds=()):
        self.said.append(message)

    def read(self):
        pass

    def close(self):
        self.gone = True


class Kernel:
    """As much of the supervisor as there must be."""

    def __init__(self):
        self.loop, self.state, self.hang, self.ended, self.ends = StageLoop(), "running", [], [], []
        self.processes, self.sleepers, self.woken = {}, deque(), []
        self.core = leases.Core({}, leases.Settings())
        self.singletons = SimpleNamespace(spawner="spawner")
        self.taps = SimpleNamespace(started=lambda process: None)
        self.hung = Hung(self.loop, lambda process, seconds: self.hang.append(process.name))
        self.pulse = Pulse(self)
        self.spawning = Spawning(self)
        self.parking = SimpleNamespace(wake_next=self.wake_next)
        self.do = Effects(self).do
        self.spawner = self.has("spawner")

    def has(self, name):
        process = self.processes[name] = Process(name, Line(), "init")
        process.hello = m.Hello(7, "", "")
        return process

    def tell_init(self, message):
        pass

    def log_line(self, level, text):
        pass

    def enrol(self, name, parent):
        mine, its = pair()
        mine.close()
        self.ends.append(its)
        process = self.processes[name] = Process(name, Line(), parent)
        return process, its

    def gone(self, message):
        self.ended.append(message.name)
        del self.processes[message.name]

    def wake_next(self):
        if not self.sleepers:
            return False
        self.woken.append(self.sleepers[0])
        self.spawn(self.sleepers.popleft())
        return True

    def spawn(self, *names):
        self.do([leases.Spawn(f"maildir.{name}", ROW) for name in names])

    def takes(self, seconds_a_fork):
        """The spawner takes one message more: the name of the actor that it forks, or it answers."""
        message = self.spawner.channel.said.popleft()
        if type(message) is not m.Spawn:
            self.spawner.counters = m.Counters(0, 0, 0)
            self.spawner.answered += 1
            self.spawning.counters(self.spawner)
            return ""
        self.loop.advance(self.loop.now + seconds_a_fork)
        self.processes[message.name].hello = m.Hello(8, "", "")
        return message.name

    def takes_all(self, seconds_a_fork=0.0):
        names = []
        while self.spawner.channel.said:
            names.append(self.takes(seconds_a_fork))
        return [name.removeprefix("maildir.") for name in names if name]


@pytest.fixture
def kernel():
    made = Kernel()
    yield made
    for end in made.ends:
        end.close()


def test_a_spawner_that_has_much_to_do_is_not_ended(kernel):
    """Of ten thousand sessions that woke together four thousand were lost: it came to the question whether it lives after 10 s."""
    many = [f"u{n}" for n in range(2000)]
    kernel.pulse.begin()
    kernel.spawn(*many)
    assert kernel.takes_all(0.02) == many, "each in its turn"
    assert kernel.loop.now > 3 * ALIVE
    assert not kernel.hang, "nor is an actor ended for being late that nobody was told to fork"
    assert not len(kernel.spawning) and all(end.fileno() < 0 for end in kernel.ends)


def test_one_that_does_nothing_is_ended_all_the_same(kernel):
    kernel.pulse.begin()
    kernel.spawn(*[f"u{n}" for n in range(2 * MOST)])
    kernel.loop.advance(2 * ALIVE + 1)
    assert "spawner" in kernel.hang


def test_sessions_that_sleep_have_their_turn_among_logins_without_end(kernel):
    kernel.spawn(*[f"login{n}" for n in range(2 * MOST)])
    assert not kernel.spawning.free
    kernel.sleepers.extend(f"sleeper{n}" for n in range(100))
    names, logins = [], 2 * MOST
    while len(kernel.woken) < 100 or kernel.spawner.channel.said:
        names.append(kernel.takes(0.0))
        if names[-1] and logins < 2000:
            kernel.spawn(f"login{logins}")
            logins += 1
    assert logins == 2000 and names.index("maildir.sleeper99") < names.index("maildir.login1000")


def test_sessions_that_sleep_are_all_woken_though_some_need_no_process(kernel):
    kernel.spawn(*[f"u{n}" for n in range(MOST)])
    assert not kernel.spawning.free
    left = deque(range(500))
    kernel.parking.wake_next = lambda: bool(left) and left.popleft() is not None
    kernel.takes_all()
    assert not left


def test_one_that_is_ended_while_it_waits_is_never_forked(kernel):
    kernel.spawn(*[f"u{n}" for n in range(MOST + 36)])
    last = kernel.processes[f"maildir.u{MOST + 35}"]
    kernel.hung.suspect(last)
    assert not last.channel.said, "whoever waits for it waits for the spawner"
    assert kernel.spawning.forget(last) and not kernel.spawning.forget(kernel.processes["maildir.u0"])
    kernel.loop.settle()
    assert kernel.ended == [last.name] and kernel.ends[-1].fileno() < 0
    assert kernel.takes_all() == [f"u{n}" for n in range(MOST + 35)]


def test_another_spawner_is_told_of_those_that_wait(kernel):
    kernel.spawn(*[f"u{n}" for n in range(MOST + 36)])
    old, kernel.spawner = kernel.spawner, kernel.has("spawner~2")
    kernel.singletons.spawner = "spawner~2"
    kernel.spawning.go_on()
    assert kernel.takes_all() == [f"u{n}" for n in range(MOST, MOST + 36)]
    assert kernel.processes[f"maildir.u{MOST - 1}"].parent == "spawner" and kernel.processes[f"maildir.u{MOST}"].parent == "spawner~2"
    old.answered += 9
    kernel.spawning.counters(old)  # counts for nothing
    kernel.spawn(*[f"v{n}" for n in range(2 * MOST)])
    assert kernel.takes_all() == [f"v{n}" for n in range(2 * MOST)]


def test_without_a_spawner_those_that_wait_hear_so_and_those_that_sleep_sleep_on(kernel):
    kernel.spawn(*[f"u{n}" for n in range(MOST + 36)])
    kernel.sleepers.append("sleeper")
    del kernel.processes["spawner"]
    kernel.spawning.go_on()
    kernel.loop.settle()
    assert kernel.ended == [f"maildir.u{n}" for n in range(MOST, MOST + 36)] and not kernel.woken
    assert all(end.fileno() < 0 for end in kernel.ends)
    kernel.spawner = kernel.has("spawner")
    kernel.spawning.go_on()
    assert kernel.takes_all() == ["sleeper"]


def test_no_room_for_a_channel(kernel):
    full, gone = [], []
    kernel.room = SimpleNamespace(full=full.append)
    kernel.maildir_gone = gone.append

    def enrol(name, parent):
        raise OSError(24, os.strerror(24))

    kernel.enrol = enrol
    kernel.spawn("alice")
    kernel.loop.settle()
    assert full == ["alice"] and gone == ["maildir.alice"]
