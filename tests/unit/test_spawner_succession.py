"""Another spawner in the place of one: when one is started, and when not."""

from types import SimpleNamespace

import pytest
from popkernel.kernel.supervisor.spawner_succession import LAST_CHILD_SECONDS, Heir
from popkernel.proto import messages as m


class Kernel:
    """As much of the supervisor as an heir sees."""

    def __init__(self):
        self.said, self.given_up, self.retired = [], [], 0
        self.state = "running"
        self.loop = SimpleNamespace(now=100.0)
        self.processes = {}
        self.room = True
        self.went_on = []
        self.spawning = SimpleNamespace(go_on=lambda: self.went_on.append(self.singletons.spawner))
        self.singletons = SimpleNamespace(spawner="spawner", launch_spawner=self.launch, give_up=self.given_up.extend)
        self.core = SimpleNamespace(retire_all=self.retire)
        self.do = list
        self.log_line = lambda level, text: self.said.append(text)
        self.actor_line = lambda name, level, text, by: self.said.append(text)
        self.add("spawner")

    def add(self, name):
        sent = []
        self.processes[name] = SimpleNamespace(
            name=name, kind="spawner", state="serving", on_hello=None, sent=sent, channel=SimpleNamespace(send=sent.append))
        return self.processes[name]

    def launch(self):
        if not self.room:
            raise BlockingIOError(11, "no room")
        return self.add(f"spawner~{len(self.processes) + 1}").name

    def retire(self):
        self.retired += 1
        return []


@pytest.fixture
def kernel():
    return Kernel()


@pytest.fixture
def heir(kernel):
    return Heir(kernel)


def displaced(kernel, heir, name="spawner"):
    heir.displaced(kernel.processes[name], m.Displaced(b"/home/\xffa"), [])


def test_it_takes_over_when_it_serves(kernel, heir):
    displaced(kernel, heir)
    assert (kernel.singletons.spawner, heir.name) == ("spawner", "spawner~2")
    displaced(kernel, heir)  # another child has found the same
    assert len(kernel.processes) == 2
    kernel.processes["spawner~2"].on_hello()
    assert (kernel.singletons.spawner, heir.name, kernel.retired) == ("spawner~2", "", 1)
    assert kernel.went_on == ["spawner~2"], "actors that waited for the old one are asked of the new one"
    old = kernel.processes["spawner"]
    assert (old.state, old.sent) == ("draining", [m.Stop(LAST_CHILD_SECONDS)])
    assert kernel.processes["spawner~2"].on_hello is None
    kernel.loop.now += 60
    displaced(kernel, heir)
    assert len(kernel.processes) == 2, "the word of one that is not in force"
    assert kernel.said == [
        r"'/home/\\xffa' was replaced, or something was mounted over it or above it, since spawner began; spawner~2 takes over"]


def test_not_one_after_the_other(kernel, heir):
    displaced(kernel, heir)
    kernel.processes["spawner~2"].on_hello()
    kernel.loop.now += 4.9
    displaced(kernel, heir, "spawner~2")
    assert len(kernel.processes) == 2
    assert kernel.said[-1].endswith("another takes over soon")
    kernel.loop.now += 0.2
    displaced(kernel, heir, "spawner~2")
    assert heir.name == "spawner~3"


def test_not_more_than_a_few(kernel, heir):
    for name in ("spawner~2", "spawner~3", "spawner~4"):
        kernel.loop.now += 60
        displaced(kernel, heir, kernel.singletons.spawner)
        kernel.processes[name].on_hello()
    kernel.loop.now += 60
    displaced(kernel, heir, "spawner~4")
    assert len(kernel.processes) == 4
    assert kernel.said[-1].endswith("since spawner~4 began; 4 spawners still have sessions: reload to have another")


def test_one_that_fails_costs_nobody_anything(kernel, heir):
    kernel.room = False
    displaced(kernel, heir)
    assert kernel.said[-1].endswith("another spawner cannot be started: no room")
    kernel.room = True
    kernel.loop.now += 60
    displaced(kernel, heir)
    heir.failed("spawner~2 ended before it served")
    del kernel.processes["spawner~2"]
    assert (kernel.singletons.spawner, kernel.processes["spawner"].state) == ("spawner", "serving")
    kernel.loop.now += 60
    displaced(kernel, heir)
    assert heir.name == "spawner~2"


def test_a_reload_meanwhile(kernel, heir):
    heir.give_way()
    displaced(kernel, heir)
    heir.give_way()
    assert (kernel.given_up, heir.name, kernel.processes["spawner~2"].on_hello) == (["spawner~2"], "", None)


def test_not_while_it_stops(kernel, heir):
    kernel.state = "stopping"
    displaced(kernel, heir)
    assert len(kernel.processes) == 1
