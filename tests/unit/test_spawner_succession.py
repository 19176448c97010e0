"""Another spawner in the place of one: when one is started, and when not."""

from types import SimpleNamespace

import pytest
from popkernel.kernel.replay.harness import StageLoop
from popkernel.kernel.supervisor.spawner_succession import LAST_CHILD_SECONDS, Succession
from popkernel.proto import messages as m

from tests.support.registry import Registry, Said


class Kernel:
    """What has one spawner take the place of another, and what that needs."""

    def __init__(self):
        self.said, self.given_up, self.retired, self.went_on, self.room = Said(), [], 0, [], True
        self.loop = StageLoop()
        self.loop.now = 100.0
        self.processes = Registry(self.loop)
        self.singletons = SimpleNamespace(spawner="spawner", launch_spawner=self.launch, give_up=self.given_up.extend)
        self.spawning = SimpleNamespace(go_on=lambda: self.went_on.append(self.singletons.spawner))
        self.core = SimpleNamespace(retire_all=self.retire)
        self.processes.comes("spawner", "init")

    def launch(self):
        if not self.room:
            raise BlockingIOError(11, "no room")
        return self.processes.comes(f"spawner~{len(self.processes) + 1}", "init").name

    def retire(self):
        self.retired += 1
        return []


@pytest.fixture
def kernel():
    return Kernel()


@pytest.fixture
def succession(kernel):
    made = Succession(kernel.loop, kernel.processes, kernel.core, kernel.said, kernel.said, kernel.singletons, kernel.spawning, list)
    kernel.processes.on_exit = [made.on_exit]
    return made


def displaced(kernel, succession, name="spawner"):
    succession.displaced(kernel.processes[name], m.Displaced(b"/home/\xffa"), [])


def test_it_takes_over_when_it_serves(kernel, succession):
    displaced(kernel, succession)
    assert (kernel.singletons.spawner, succession.name) == ("spawner", "spawner~2")
    displaced(kernel, succession)  # another child has found the same
    assert len(kernel.processes) == 2
    kernel.processes["spawner~2"].on_hello()
    assert (kernel.singletons.spawner, succession.name, kernel.retired) == ("spawner~2", "", 1)
    assert kernel.went_on == ["spawner~2"], "actors that waited for the old one are asked of the new one"
    old = kernel.processes["spawner"]
    assert (old.state, list(old.channel.said)) == ("draining", [m.Stop(LAST_CHILD_SECONDS)])
    assert kernel.processes["spawner~2"].on_hello is None
    kernel.loop.now += 60
    displaced(kernel, succession)
    assert len(kernel.processes) == 2, "the word of one that is not in force"
    assert kernel.said == [
        r"'/home/\\xffa' was replaced, or something was mounted over it or above it, since spawner began; spawner~2 takes over"]


def test_not_one_after_the_other(kernel, succession):
    displaced(kernel, succession)
    kernel.processes["spawner~2"].on_hello()
    kernel.loop.now += 4.9
    displaced(kernel, succession, "spawner~2")
    assert len(kernel.processes) == 2
    assert kernel.said[-1].endswith("another takes over soon")
    kernel.loop.now += 0.2
    displaced(kernel, succession, "spawner~2")
    assert succession.name == "spawner~3"


def test_not_more_than_a_few(kernel, succession):
    for name in ("spawner~2", "spawner~3", "spawner~4"):
        kernel.loop.now += 60
        displaced(kernel, succession, kernel.singletons.spawner)
        kernel.processes[name].on_hello()
    kernel.loop.now += 60
    displaced(kernel, succession, "spawner~4")
    assert len(kernel.processes) == 4
    assert kernel.said[-1].endswith("since spawner~4 began; 4 spawners still have sessions: reload to have another")


def test_one_that_fails_costs_nobody_anything(kernel, succession):
    kernel.room = False
    displaced(kernel, succession)
    assert kernel.said[-1].endswith("another spawner cannot be started: no room")
    kernel.room = True
    kernel.loop.now += 60
    displaced(kernel, succession)
    kernel.processes.gone(m.Exited("spawner~2", 7, 1 << 8))
    assert kernel.said[-1] == "spawner~2 ended before it served: exit 1"
    assert (kernel.singletons.spawner, kernel.processes["spawner"].state) == ("spawner", "serving")
    kernel.loop.now += 60
    displaced(kernel, succession)
    assert succession.name == "spawner~2"


def test_a_reload_meanwhile(kernel, succession):
    succession.give_way()
    displaced(kernel, succession)
    succession.give_way()
    assert (kernel.given_up, succession.name, kernel.processes["spawner~2"].on_hello) == (["spawner~2"], "", None)


def test_not_while_it_stops(kernel, succession):
    kernel.processes.phase = "stopping"
    displaced(kernel, succession)
    assert len(kernel.processes) == 1
