"""Test a message that the kernel has no memory for: its session ends, and nothing else."""

from types import SimpleNamespace

import pytest
from popkernel.kernel.replay.loop import ReplayLoop
from popkernel.kernel.supervisor.execution import Execution
from popkernel.kernel.supervisor.main import Supervisor
from popkernel.proto import messages as m

from tests.support.messages import login_started
from tests.support.registry import LogRecorder, Registry


class Kernel(Supervisor):
    """Hold the part of the kernel that takes messages."""

    def __init__(self):
        self.loop, self.actor_log = ReplayLoop(), LogRecorder()
        self.processes = Registry(self.loop)
        self.execution = Execution(self.loop, self.processes, *[None] * 3, self.actor_log, *[None] * 6)
        self.killed = self.processes.killed
        for name, parent in (
            ("auth", "init"),
            ("listener.0", "init"),
            ("mda", "init"),
            ("maildir.alice", "spawner"),
            ("maildir.bob", "spawner"),
        ):
            self.processes.comes(name, parent)

    def said_to(self, name):
        return self.processes[name].channel.said

    def take(self, name, message, error):
        def fails(process, message, fds):
            raise error

        self.on_kernel_message = {type(message): fails}
        self._on_actor(SimpleNamespace(tag=self.processes[name], peer=name), message, [])


@pytest.mark.parametrize("error", [MemoryError(), OSError(12, "Cannot allocate memory")])
def test_a_message_without_memory(error):
    kernel = Kernel()
    kernel.take("auth", m.LoginGranted("listener.0", 7, "alice"), error)
    assert [(type(x), x.session, x.code) for x in kernel.said_to("listener.0")] == [
        (m.SessionRefused, 7, "SYS/TEMP")
    ]
    assert kernel.killed == ["maildir.alice"], "the session begun for her ends with her actor"
    kernel.take("mda", m.RecipientLookup(3, "bob", 0, look=False, lost=False), error)
    assert kernel.said_to("mda")[0].status == "4.3.2" and kernel.killed == ["maildir.alice"]
    kernel.take("maildir.bob", m.SessionClosed(1, 0, 0, 0, []), error)
    assert kernel.killed == ["maildir.alice", "maildir.bob"]
    kernel.take("listener.0", login_started(8), error)
    assert kernel.killed == ["maildir.alice", "maildir.bob"] and len(kernel.actor_log) == 4
    assert all("memory" in line for line in kernel.actor_log)
