"""Test when a new spawner is started to replace one."""

from types import SimpleNamespace

import pytest
from popkernel.kernel.replay.loop import ReplayLoop
from popkernel.kernel.supervisor.spawner_succession import LAST_CHILD_SECONDS, WARM_SECONDS, Succession
from popkernel.proto import messages as m

from tests.support.registry import LogRecorder, Registry


class Kernel:
    """Hold what replaces a spawner, and what that needs."""

    def __init__(self):
        self.said, self.given_up, self.retired, self.went_on, self.room = LogRecorder(), [], 0, [], True
        self.loop = ReplayLoop()
        self.loop.now = 100.0
        self.processes = Registry(self.loop)
        self.singletons = SimpleNamespace(
            spawner="spawner", launch_spawner=self.launch, give_up=self.given_up.extend
        )
        self.spawning = SimpleNamespace(go_on=lambda: self.went_on.append(self.singletons.spawner))
        self.core = SimpleNamespace(retire_all=self.retire, retire_changed=lambda users: [])
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
    made = Succession(
        kernel.loop,
        kernel.processes,
        kernel.core,
        kernel.said,
        kernel.said,
        kernel.singletons,
        kernel.spawning,
        list,
    )
    kernel.processes.on_exit = [made.on_exit]
    return made


def displaced(kernel, succession, name="spawner"):
    succession.root_displaced(kernel.processes[name], m.RootDisplaced(b"/home/\xffa"), [])


def test_a_new_spawner_takes_over_when_it_serves(kernel, succession):
    displaced(kernel, succession)
    assert (kernel.singletons.spawner, succession.name) == ("spawner", "spawner~2")
    displaced(kernel, succession)  # another child has found the same
    assert len(kernel.processes) == 2
    kernel.processes["spawner~2"].on_hello()
    assert (kernel.singletons.spawner, succession.name, kernel.retired) == ("spawner~2", "", 1)
    assert kernel.went_on == ["spawner~2"], "waiting actors are requested from the new spawner"
    old = kernel.processes["spawner"]
    assert (old.state, list(old.channel.said)) == ("draining", [m.ActorStop(LAST_CHILD_SECONDS)])
    assert kernel.processes["spawner~2"].on_hello is None
    kernel.loop.now += 60
    displaced(kernel, succession)
    assert len(kernel.processes) == 2, "the report of a spawner not in force"
    assert kernel.said == [
        (
            r"'/home/\\xffa' was replaced, or something was mounted over it or above it, "
            r"since spawner began; spawner~2 takes over"
        )
    ]


def test_a_successor_whose_hello_is_read_after_its_end(kernel, succession):
    """Init may report the end of a process before its last messages are read."""
    displaced(kernel, succession)
    successor = kernel.processes["spawner~2"]
    successor.channel.receive = lambda: successor.on_hello()
    kernel.processes.exited(m.ProcessExited("spawner~2", 7, 9))
    assert (kernel.singletons.spawner, succession.name, kernel.retired) == ("spawner", "", 0)
    assert "spawner~2 ended before it served: signal SIGKILL" in kernel.said[-1]


def test_replacements_are_spaced(kernel, succession):
    displaced(kernel, succession)
    kernel.processes["spawner~2"].on_hello()
    kernel.loop.now += 4.9
    displaced(kernel, succession, "spawner~2")
    assert len(kernel.processes) == 2
    assert kernel.said[-1].endswith("another takes over soon")
    kernel.loop.now += 0.2
    displaced(kernel, succession, "spawner~2")
    assert succession.name == "spawner~3"


def test_replacements_are_bounded(kernel, succession):
    for name in ("spawner~2", "spawner~3", "spawner~4"):
        kernel.loop.now += 60
        displaced(kernel, succession, kernel.singletons.spawner)
        kernel.processes[name].on_hello()
    kernel.loop.now += 60
    displaced(kernel, succession, "spawner~4")
    assert len(kernel.processes) == 4
    assert kernel.said[-1].endswith(
        "since spawner~4 began; 4 spawners still have sessions: reload to have another"
    )


def test_idle_actors_of_replaced_spawners_give_room_for_a_replacement(kernel, succession):
    """Three reloads within an hour leave three spawners that only have warm actors."""
    gone = []
    kernel.core.retire_changed = lambda users: gone.append(sorted(users)) or []
    for number in (2, 3, 4):
        old = kernel.singletons.spawner
        kernel.processes.comes(f"maildir.u{number}", old)
        kernel.processes.comes(f"spawner~{number}", "init")
        kernel.singletons.spawner = f"spawner~{number}"
        succession.leaves(kernel.processes[old])
    kernel.processes.comes("maildir.new", "spawner~4")
    displaced(kernel, succession, "spawner~4")
    assert gone == [["u2"], ["u3"], ["u4"]]
    kernel.processes.exited(m.ProcessExited("spawner", 7, 0))
    displaced(kernel, succession, "spawner~4")
    assert succession.name


def test_a_failed_replacement_changes_nothing(kernel, succession):
    kernel.room = False
    displaced(kernel, succession)
    assert kernel.said[-1].endswith("another spawner cannot be started: no room")
    kernel.room = True
    kernel.loop.now += 60
    displaced(kernel, succession)
    kernel.processes.exited(m.ProcessExited("spawner~2", 7, 1 << 8))
    assert kernel.said[-1] == "spawner~2 ended before it served: exit 1"
    assert (kernel.singletons.spawner, kernel.processes["spawner"].state) == ("spawner", "serving")
    kernel.loop.now += 60
    displaced(kernel, succession)
    assert succession.name == "spawner~2"


def test_a_reload_meanwhile(kernel, succession):
    succession.give_way()
    displaced(kernel, succession)
    succession.give_way()
    assert (kernel.given_up, succession.name, kernel.processes["spawner~2"].on_hello) == (
        ["spawner~2"],
        "",
        None,
    )


def test_no_replacement_during_a_stop(kernel, succession):
    kernel.processes.phase = "stopping"
    displaced(kernel, succession)
    assert len(kernel.processes) == 1


def test_a_reload_is_to_replace_a_spawner_that_lacks_a_directory(kernel, succession):
    assert not succession.due
    succession.roots_missing(kernel.processes["spawner"], m.RootsMissing(1), [])
    assert succession.due
    kernel.processes.comes("spawner~2", "init")
    kernel.singletons.spawner = "spawner~2"
    assert not succession.due


def test_a_reload_is_to_replace_a_spawner_that_could_not_be_replaced(kernel, succession):
    kernel.room = False
    displaced(kernel, succession)
    assert succession.due
    succession.give_way()
    assert not succession.due


def test_a_replaced_spawner_s_actors_go_after_an_hour_or_when_spawners_are_many(kernel, succession):
    gone = []
    kernel.core.retire_changed = lambda users: gone.append(sorted(users)) or []
    for number in range(1, 6):
        name = "spawner" if number == 1 else f"spawner~{number}"
        if number > 1:
            kernel.processes.comes(name, "init")
        kernel.processes.comes(f"maildir.u{number}", name)
    succession.leaves(kernel.processes["spawner"])
    assert gone == [["u1"]], "the oldest of five"
    kernel.processes.exited(m.ProcessExited("spawner~5", 7, 0))
    succession.leaves(kernel.processes["spawner~2"])
    assert len(gone) == 1
    kernel.loop.advance(kernel.loop.now + WARM_SECONDS + 1, late=True)
    assert gone[1:] == [["u1"], ["u2"]]
