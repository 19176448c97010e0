"""kernel/processes.py: who is told to end a process, and what follows from an end, for whom."""

import signal

import pytest
from popkernel.kernel.processes import Exit
from popkernel.kernel.replay.harness import StageLoop
from popkernel.proto import messages as m

from tests.support.registry import Registry


@pytest.fixture
def processes():
    made = Registry(StageLoop())
    made.comes("spawner", "init")
    made.comes("maildir.alice")
    return made


def test_looked_up_by_name_kind_and_parent(processes):
    alice = processes["maildir.alice"]
    assert processes.get("maildir.bob") is None and "maildir.bob" not in processes and len(processes) == 2
    assert processes.of_kind("maildir.{user}", "auth") == processes.children("spawner") == [alice]
    other = processes.comes("maildir.alice")
    assert processes.has(other) and not processes.has(alice)


def test_its_parent_ends_it(processes):
    for process in processes:
        processes.kill(process)
    assert list(processes["spawner"].channel.said) == [m.Kill("maildir.alice")] and list(processes.init.said) == [m.Kill("spawner")]
    assert processes.killed == ["spawner", "maildir.alice"]


def test_one_that_waits_for_its_fork_is_called_off(processes):
    called = []
    processes["maildir.alice"].call_off = lambda: called.append("off")
    processes.kill(processes["maildir.alice"])
    assert called == ["off"] and not processes.killed and not processes["spawner"].channel.said


def test_one_that_goes_by_itself_is_ended_where_it_stays_and_no_other_of_its_name(processes):
    processes.kill_if_it_stays(processes["spawner"])
    processes.kill_if_it_stays(processes["maildir.alice"])
    processes.comes("maildir.alice")
    processes._loop.advance(2.0)
    assert processes.killed == ["spawner"]


def test_what_follows_from_an_end(processes):
    """Its last words come before; each is told once, of one that is there no more."""
    alice, seen = processes["maildir.alice"], []
    alice.channel.read = lambda: seen.append("last words")
    processes.on_exit = [
        lambda process, end: seen.append((process, end, process.name in processes)),
        lambda process, end: processes.gone(m.Exited(process.name, 8, 0)),
    ]
    processes.gone(m.Exited("maildir.alice", 7, int(signal.SIGKILL)))
    assert seen == ["last words", (alice, Exit(int(signal.SIGKILL)), False)] and alice.channel.gone


@pytest.mark.parametrize(("state", "phase", "expected"), [
    ("serving", "running", False), ("starting", "running", False), ("draining", "running", True), ("stopping", "running", True), ("serving", "stopping", True),
])
def test_whether_it_was_to_go(processes, state, phase, expected):
    processes["spawner"].state, processes.phase = state, phase
    processes.gone(m.Exited("spawner", 7, 0))
    assert [end.expected for _, end in processes.ended] == [expected]


def test_orphans_end_as_the_system_ends_them(processes):
    """But those that nobody has forked yet end well."""
    processes.comes("maildir.bob", hello=False).state = "ahead"
    processes.comes("auth", "init")
    processes.orphaned("spawner")
    assert [(name, end.status) for name, end in processes.ended] == [("maildir.alice", signal.SIGKILL), ("maildir.bob", 0)]


def test_a_message_that_is_not_true_ends_its_sender(processes):
    ended = []
    processes.on_gone = lambda channel, why: ended.append((channel, why))
    channel = processes["spawner"].channel
    processes.violates(processes["spawner"], "a lie")
    assert channel.gone and ended == [(channel, "a lie")]


@pytest.mark.parametrize(("end", "said", "code"), [
    (Exit(1 << 8), "auth ended before it served: exit 1", 70), (Exit(9), "auth ended before it served: signal SIGKILL", 70),
    (Exit(int(signal.SIGSYS)), "auth ended before it served: signal SIGSYS (a broken promise)", 70),
    (Exit((128 + 31) << 8), "auth ended before it served: exit 159 (a broken promise)", 70),
    (Exit(75 << 8), "auth could not be started: no room for its memory, descriptors or threads", 75),
    (Exit(75 << 8, "no room for a process"), "auth could not be started: no room for a process", 75),
])
def test_one_that_ended_before_it_served(end, said, code):
    assert end.unstarted("auth") == (said, code)
    assert end.silent == (end.status == signal.SIGSYS)
