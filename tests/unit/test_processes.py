"""Test kernel/processes.py: look-up, orders to end a process, and callbacks at an end."""

import signal

import pytest
from popkernel.kernel.processes import Exit
from popkernel.kernel.replay.loop import ReplayLoop
from popkernel.proto import messages as m

from tests.support.registry import Registry


@pytest.fixture
def processes():
    made = Registry(ReplayLoop())
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
    assert list(processes["spawner"].channel.said) == [m.ProcessKill("maildir.alice")] and list(
        processes.init.said
    ) == [m.ProcessKill("spawner")]
    assert processes.killed == ["spawner", "maildir.alice"]


def test_a_waiting_fork_is_cancelled(processes):
    called = []
    processes["maildir.alice"].cancel_fork = lambda: called.append("off")
    processes.kill(processes["maildir.alice"])
    assert called == ["off"] and not processes.killed and not processes["spawner"].channel.said


def test_a_leaving_process_that_stays_is_ended(processes):
    processes.kill_if_it_stays(processes["spawner"])
    processes.kill_if_it_stays(processes["maildir.alice"])
    processes.comes("maildir.alice")
    processes._loop.advance(2.0)
    assert processes.killed == ["spawner"]


def test_callbacks_at_an_end(processes):
    """The process's last messages come first.

    Every listener is called once, after the process was removed.
    """
    alice, seen = processes["maildir.alice"], []
    alice.channel.receive = lambda: seen.append("last words")
    processes.on_exit = [
        lambda process, end: seen.append((process, end, process.name in processes)),
        lambda process, end: processes.exited(m.ProcessExited(process.name, 8, 0)),
    ]
    processes.exited(m.ProcessExited("maildir.alice", 7, int(signal.SIGKILL)))
    assert seen == ["last words", (alice, Exit(int(signal.SIGKILL)), False)] and alice.channel.closed


@pytest.mark.parametrize(
    ("state", "phase", "expected"),
    [
        ("serving", "running", False),
        ("starting", "running", False),
        ("draining", "running", True),
        ("stopping", "running", True),
        ("serving", "stopping", True),
    ],
)
def test_expected_ends(processes, state, phase, expected):
    processes["spawner"].state, processes.phase = state, phase
    processes.exited(m.ProcessExited("spawner", 7, 0))
    assert [end.expected for _, end in processes.ended] == [expected]


def test_orphans_end_as_the_system_ends_them(processes):
    """A process that was never forked ends well."""
    processes.comes("maildir.bob", hello=False).state = "ahead"
    processes.comes("auth", "init")
    processes.orphaned("spawner")
    assert [(name, end.status) for name, end in processes.ended] == [
        ("maildir.alice", signal.SIGKILL),
        ("maildir.bob", 0),
    ]


def test_an_untrue_message_ends_its_sender(processes):
    ended = []
    processes.on_dropped = lambda channel, why: ended.append((channel, why))
    channel = processes["spawner"].channel
    processes.violates(processes["spawner"], "a lie")
    assert channel.closed and ended == [(channel, "a lie")]


@pytest.mark.parametrize(
    ("end", "said", "code"),
    [
        (Exit(1 << 8), "auth ended before it served: exit 1", 70),
        (Exit(9), "auth ended before it served: signal SIGKILL", 70),
        (Exit(int(signal.SIGSYS)), "auth ended before it served: signal SIGSYS (a broken promise)", 70),
        (Exit((128 + 31) << 8), "auth ended before it served: exit 159 (a broken promise)", 70),
        (Exit(75 << 8), "auth could not be started: no room for its memory, descriptors or threads", 75),
        (Exit(75 << 8, "no room for a process"), "auth could not be started: no room for a process", 75),
    ],
)
def test_an_end_before_service(end, said, code):
    assert end.unstarted("auth") == (said, code)
    assert end.unreported == (end.status == signal.SIGSYS)
