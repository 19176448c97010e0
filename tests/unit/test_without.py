"""What the kernel does with a message that it has no memory for: that costs its session, and nobody else anything."""

from types import SimpleNamespace

import pytest
from popkernel.kernel.processes import Process
from popkernel.kernel.supervisor.execution import Effects
from popkernel.kernel.supervisor.main import Supervisor
from popkernel.proto import messages as m


class Kernel(Supervisor):
    """As much of it as takes a message."""

    def __init__(self):
        self.loop, self.said, self.killed, self.log = SimpleNamespace(now=0.0), [], [], []
        self.actor_line = lambda *words: self.log.append(words[2])
        self.do_without = Effects(self).without
        self.processes = {}
        for name, parent in (("auth", "init"), ("listener.0", "init"), ("mda", "init"), ("maildir.alice", "spawner"), ("maildir.bob", "spawner")):
            self.processes[name] = Process(name, SimpleNamespace(tag=None, peer=name), parent)

    def send(self, to, message, fds=()):
        self.said.append((to, message))

    def kill(self, process):
        self.killed.append(process.name)

    def take(self, name, message, error):
        def fails(process, message, fds):
            raise error

        self.on_kernel_message = {type(message): fails}
        self.processes[name].channel.tag = self.processes[name]
        self._on_actor(self.processes[name].channel, message, [])


@pytest.mark.parametrize("error", [MemoryError(), OSError(12, "Cannot allocate memory")])
def test_a_message_that_there_is_no_room_for(error):
    """It ended the kernel."""
    kernel = Kernel()
    kernel.take("auth", m.Granted("listener.0", 7, "alice"), error)
    assert [(to, type(x), x.session, x.code) for to, x in kernel.said] == [("listener.0", m.Turned, 7, "SYS/TEMP")]
    assert kernel.killed == ["maildir.alice"], "what of her session was begun is over with her actor"
    kernel.take("mda", m.Recipient(3, "bob", 0, look=False, lost=False), error)
    assert (kernel.said[1][0], kernel.said[1][1].status) == ("mda", "4.3.2") and kernel.killed == ["maildir.alice"]
    kernel.take("maildir.bob", m.Closed(1, 0, 0), error)
    assert kernel.killed == ["maildir.alice", "maildir.bob"]
    kernel.take("listener.0", m.Awaiting(8), error)
    assert kernel.killed == ["maildir.alice", "maildir.bob"] and len(kernel.log) == 4
    assert all("memory" in line for line in kernel.log)
