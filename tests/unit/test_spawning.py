"""Test kernel/supervisor/spawning.py: the spawner gets a few requests at a time.

So it can answer a liveness check between them, however many are waiting.
"""

import os
from collections import deque
from types import SimpleNamespace

import pytest
from popkernel.kernel.config.keys import Config
from popkernel.kernel.decisions import leases
from popkernel.kernel.operator.tracing import Taps
from popkernel.kernel.replay.loop import ReplayLoop
from popkernel.kernel.supervisor.descriptor_room import Room
from popkernel.kernel.supervisor.hung_actors import HungActors
from popkernel.kernel.supervisor.liveness import Liveness
from popkernel.kernel.supervisor.spawning import _MOST as MOST
from popkernel.kernel.supervisor.spawning import Spawning
from popkernel.proto import messages as m
from popkernel.proto.files.tables import MailUser
from popkernel.proto.topology import edge

from tests.support.registry import LogRecorder, Registry

ALIVE = edge("kernel", "spawner").deadline
ROW = MailUser(1000, 1000, "/mail/someone")


class Kernel:
    """Hold what requests forks, and what that needs; parked sessions are names."""

    def __init__(self):
        self.loop, self.log, self.hang, self.never = ReplayLoop(), LogRecorder(), [], []
        self.processes, self.sleepers, self.woken = Registry(self.loop), deque(), []
        core = leases.Core({}, leases.Settings())
        self.singletons = SimpleNamespace(spawner="spawner")
        self.hung = HungActors(self.loop, lambda process, seconds: self.hang.append(process.name))
        self.liveness = Liveness(self.loop, self.processes, core, self.log, self.log, self.hung)
        taps = Taps(self.loop, self.processes, core, None, None, version="", nofile=0, left=None)
        self.spawning = Spawning(
            self.loop,
            self.processes,
            taps,
            Room(self.loop, core, self.log, Config()),
            self.liveness,
            self.singletons,
            lambda: self.wake_next(),
            self.never.append,
        )
        self.processes.on_exit += [self.spawning.on_exit]
        self.spawner = self.processes.comes("spawner", "init")

    @property
    def ended(self):
        return [name for name, _ in self.processes.ended]

    def wake_next(self):
        if not self.sleepers:
            return False
        self.woken.append(self.sleepers[0])
        self.spawn(self.sleepers.popleft())
        return True

    def spawn(self, *names):
        for name in names:
            self.spawning.spawn(f"maildir.{name}", ROW)

    def takes(self, seconds_a_fork):
        """Let the spawner take one message: return the actor that it forks, or "" if it answers a check."""
        message = self.spawner.channel.said.popleft()
        if type(message) is not m.ActorSpawn:
            self.spawner.counters = m.Counters(0, 0, 0)
            self.spawner.counters_answered += 1
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
    for end in made.processes.its:
        end.close()


def test_a_busy_spawner_is_not_ended(kernel):
    """Ten thousand sessions that wake at once must not delay its answer beyond 10 s."""
    many = [f"u{n}" for n in range(2000)]
    kernel.liveness.begin()
    kernel.spawn(*many)
    assert kernel.takes_all(0.02) == many, "each in turn"
    assert kernel.loop.now > 3 * ALIVE
    assert not kernel.hang, "an actor that was never requested is not ended for being late"
    assert not len(kernel.spawning) and all(end.fileno() < 0 for end in kernel.processes.its)


def test_an_inactive_spawner_is_ended(kernel):
    kernel.liveness.begin()
    kernel.spawn(*[f"u{n}" for n in range(2 * MOST)])
    kernel.loop.advance(2 * ALIVE + 1)
    assert "spawner" in kernel.hang


def test_parked_sessions_have_their_turn_among_endless_logins(kernel):
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


def test_all_woken_sessions_are_served(kernel):
    kernel.spawn(*[f"u{n}" for n in range(MOST)])
    assert not kernel.spawning.free
    left = deque(range(500))
    kernel.wake_next = lambda: bool(left) and left.popleft() is not None
    kernel.takes_all()
    assert not left


def test_an_actor_ended_while_waiting_is_never_forked(kernel):
    kernel.spawn(*[f"u{n}" for n in range(MOST + 36)])
    last = kernel.processes[f"maildir.u{MOST + 35}"]
    kernel.hung.suspect(last)
    assert not last.channel.said, "waiting for it means waiting for the spawner"
    kernel.processes.kill(last)
    kernel.processes.kill(kernel.processes["maildir.u0"])
    assert kernel.processes.killed == ["maildir.u0"] and kernel.spawner.channel.said.pop() == m.ProcessKill(
        "maildir.u0"
    )
    kernel.loop.settle()
    assert kernel.ended == [last.name] and kernel.processes.its[-1].fileno() < 0
    assert kernel.takes_all() == [f"u{n}" for n in range(MOST + 35)]


def test_waiting_actors_go_to_the_next_spawner(kernel):
    kernel.spawn(*[f"u{n}" for n in range(MOST + 36)])
    old, kernel.spawner = kernel.spawner, kernel.processes.comes("spawner~2", "init")
    kernel.singletons.spawner = "spawner~2"
    kernel.spawning.go_on()
    assert kernel.takes_all() == [f"u{n}" for n in range(MOST, MOST + 36)]
    assert (
        kernel.processes[f"maildir.u{MOST - 1}"].parent == "spawner"
        and kernel.processes[f"maildir.u{MOST}"].parent == "spawner~2"
    )
    old.counters_answered += 9
    kernel.spawning.counters(old)  # ignored
    kernel.spawn(*[f"v{n}" for n in range(2 * MOST)])
    assert kernel.takes_all() == [f"v{n}" for n in range(2 * MOST)]


def test_without_a_spawner_logins_fail_and_parked_sessions_stay(kernel):
    kernel.spawn(*[f"u{n}" for n in range(MOST + 36)])
    kernel.sleepers.append("sleeper")
    kernel.processes.exited(m.ProcessExited("spawner", 7, 9))
    assert kernel.ended == ["spawner", *(f"maildir.u{n}" for n in range(MOST))], "its children end with it"
    kernel.loop.settle()
    assert kernel.ended[MOST + 1 :] == [f"maildir.u{n}" for n in range(MOST, MOST + 36)] and not kernel.woken
    assert all(end.fileno() < 0 for end in kernel.processes.its)
    kernel.spawner = kernel.processes.comes("spawner", "init")
    kernel.spawning.go_on()
    assert kernel.takes_all() == ["sleeper"]


def test_no_room_for_a_channel(kernel):
    def enrol(name, parent):
        raise OSError(24, os.strerror(24))

    kernel.loop.now, kernel.processes.enrol = 60.0, enrol
    kernel.spawn("alice")
    kernel.loop.settle()
    assert kernel.log[0].startswith("no room for alice and others") and kernel.never == ["maildir.alice"]
