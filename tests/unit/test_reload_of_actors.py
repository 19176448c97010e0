"""Test kernel/supervisor/reload.py: a new actor that ends is one failure, whatever is read of it last.

Init may report the end of a process before its last messages are read.
"""

from types import SimpleNamespace

import pytest
from popkernel.kernel.replay.loop import ReplayLoop
from popkernel.kernel.supervisor.reload import Reload
from popkernel.proto import messages as m

from tests.support.registry import Registry

NEW = ["auth~2", "listener.0~2"]
CHANGED = m.ReloadInputs("", False, False, [], True, True, [], [])
TAKEN = m.LoginMemoryTaken(True, 0, 0, 0, 0, 0)
NO_FILE = ("cert: No such file or directory", 78)


class Begun:
    """Hold a reload whose new actors have been started. `said`: what it says to the caller and does."""

    def __init__(self):
        self.processes, self.said = Registry(ReplayLoop()), []
        self.processes.comes("auth", "init")
        singletons = SimpleNamespace(
            auth="auth", listeners=["listener.0"], launch=self.launch, give_up=lambda names: None
        )
        self.reload = Reload(
            ReplayLoop(),
            self.processes,
            singletons,
            {},
            CHANGED,
            None,
            lambda reload: self.said.append("swapped"),
            lambda why, code: self.said.append((why, code)),
            lambda name, why: self.said.append(f"{name} took nothing over"),
        )
        # as kernel/supervisor/singletons.py does
        self.processes.on_exit = [lambda process, end: self.failed(process, *end.unstarted(process.name))]
        self.reload.begin()

    def launch(self, roots, *, auth, listeners):
        for name in NEW:
            self.processes.comes(name, "init", hello=False)
        return NEW

    def failed(self, process, why, code):
        if process.on_failed is not None:
            process.on_failed(why, code)

    def ends(self, name, last=lambda process: None):
        """Report an actor's end; `last` stands for the message that is read then."""
        process = self.processes[name]
        process.channel.receive = lambda: last(process)
        self.processes.exited(m.ProcessExited(name, 7, 78 << 8))


@pytest.fixture
def begun():
    return Begun()


def test_all_serve(begun):
    for name in NEW:
        begun.processes[name].on_hello()
    begun.reload.memory_taken("auth~2", TAKEN)
    assert begun.said == ["swapped"]


@pytest.mark.parametrize("name", NEW)
def test_an_end_whose_reason_is_read_last(begun, name):
    begun.ends(name, lambda process: begun.failed(process, *NO_FILE))
    assert begun.said == [NO_FILE]


@pytest.mark.parametrize(("first", "last"), [NEW, NEW[::-1]])
def test_an_end_whose_hello_is_read_last(begun, first, last):
    begun.processes[first].on_hello()
    begun.ends(last, lambda process: process.on_hello())
    assert begun.said == [(f"{last} ended before it served: exit 78", 70)]


def test_an_end_of_an_auth_that_has_taken_over(begun):
    for name in NEW:
        begun.processes[name].on_hello()
    begun.ends("auth~2", lambda process: begun.reload.memory_taken(process.name, TAKEN))
    assert begun.said == [("auth~2 ended before it served: exit 78", 70)]
