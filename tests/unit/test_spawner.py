"""Run the spawner as a process: no room for a child, and which descriptors its children hold."""

import os
import resource
import signal
import sys
from importlib import import_module

import pytest
from popkernel.kernel.config.keys import Config, actor_settings
from popkernel.kernel.runtime.actor import Boot
from popkernel.kernel.runtime.channel import Channel, pair
from popkernel.kernel.runtime.child_process import do_and_leave
from popkernel.kernel.runtime.loop import Loop
from popkernel.kernel.spawner.main import Spawner
from popkernel.proto import messages as m
from popkernel.proto.log_levels import ERROR
from popkernel.proto.topology import actor as row_of

import_module(row_of("maildir").module)  # imported now: the uid below may be unable to read it
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

_UID = 64123  # an unused uid: the limit of processes does not bind root
_CONFIG = {"quotas": {}, "mail": actor_settings(Config(hostname="localhost"), "maildir")}
_HARD = resource.getrlimit(resource.RLIMIT_NPROC)[1]


def serve(end, most):
    if os.getuid() == 0:
        os.setresgid(_UID, _UID, _UID)
        os.setresuid(_UID, _UID, _UID)
    if most is not None:
        resource.setrlimit(resource.RLIMIT_NPROC, (most, _HARD))
        signal.signal(signal.SIGUSR1, lambda *_: resource.setrlimit(resource.RLIMIT_NPROC, (_HARD, _HARD)))
    spawner = Spawner(Boot("spawner", end, os.getuid(), os.getgid(), _CONFIG, sandboxed=False))
    spawner.children.begin()
    spawner.connect()
    spawner.run()


class Kernel:
    """Hold the other end of a spawner's channel."""

    def __init__(self, most=None):
        self.loop = Loop()
        near, far = pair()
        self.pid = os.fork()
        if self.pid == 0:
            near.close()
            do_and_leave(lambda: serve(far, most), 70)
        self.inode = os.fstat(far.fileno()).st_ino
        far.close()
        self.uid, self.gid = (_UID, _UID) if os.getuid() == 0 else (os.getuid(), os.getgid())
        self.said = []
        self.actors = {}
        self.channel = Channel(self.loop, near, "kernel", "spawner", self.take, self.take_end)

    def take(self, channel, message, fds):
        self.said.append((channel.peer, message))

    def take_end(self, channel, why):
        self.said.append((channel.peer, why))

    def spawn(self, *names, then=()):
        """Request actors all at once, followed by further messages; return their channels' inodes."""
        inodes = []
        os.kill(self.pid, signal.SIGSTOP)
        for name in names:
            ours, its = pair()
            self.actors[name] = Channel(self.loop, ours, "kernel", name, self.take, self.take_end)
            self.channel.send(m.ActorSpawn(name, self.uid, self.gid, b"/nonexistent/maildir"), [its.fileno()])
            inodes.append(os.fstat(its.fileno()).st_ino)
            its.close()
        for word in then:
            self.channel.send(word)
        os.kill(self.pid, signal.SIGCONT)
        return inodes

    def wait_for(self, kind, many=1):
        timer = self.loop.later(20, lambda: pytest.fail(f"no {kind.__name__}: {self.said}"))
        while len(found := [x for x in self.said if type(x[1]) is kind]) < many:
            self.loop.turn()
        timer.cancel()
        return found

    def end(self):
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        for channel in (self.channel, *self.actors.values()):
            channel.close()


def held(pid):
    """Return what a process has open, by inode."""
    try:
        return {os.stat(f"/proc/{pid}/fd/{fd}").st_ino for fd in os.listdir(f"/proc/{pid}/fd")}
    except PermissionError:
        pytest.skip("needs CAP_SYS_PTRACE to inspect a process that changed its uid")


@pytest.fixture
def kernel(request):
    kernel = Kernel(getattr(request, "param", None))
    yield kernel
    kernel.end()


@pytest.mark.parametrize("kernel", [0], indirect=True)
def test_no_room_for_a_process(kernel):
    """The requester gets an error, the log one line, and the spawner goes on."""
    kernel.wait_for(m.Hello)
    kernel.spawn("maildir.a", "maildir.b")
    assert [x for _, x in kernel.wait_for(m.ProcessExited, 2)] == [
        m.ProcessExited(f"maildir.{x}", kernel.pid, 75 << 8) for x in "ab"
    ]
    logged = [x for _, x in kernel.wait_for(m.LogEvent)]
    assert logged == [m.LogEvent(ERROR, "spawner.fork_failed", {"error": "Resource temporarily unavailable"})]
    os.kill(kernel.pid, signal.SIGUSR1)
    kernel.said.clear()
    kernel.spawn("maildir.c")
    assert kernel.wait_for(m.Hello)[0][0] == "maildir.c"
    kernel.channel.send(m.ProcessKill("maildir.c"))
    assert kernel.wait_for(m.ProcessExited)[0][1].status == signal.SIGKILL


@pytest.mark.parametrize("kernel", [0], indirect=True)
def test_a_stop_before_the_first_fork(kernel):
    """No child's end will wake it: it must exit at once."""
    kernel.wait_for(m.Hello)
    kernel.spawn("maildir.a", then=[m.ActorStop(86400)])
    kernel.wait_for(m.ProcessExited)
    ended = set()
    while "spawner" not in ended:  # the actor's channel ends in any case
        ended = {who for who, _ in kernel.wait_for(str, len(ended) + 1)}


def test_actors_requested_at_once(kernel):
    """Each child holds its own channel and no other's; one that is to be killed at once is killed."""
    kernel.wait_for(m.Hello)
    names = [f"maildir.user{number}" for number in range(5)]
    inodes = kernel.spawn(*names, then=[m.ProcessKill(names[2])])
    exited = kernel.wait_for(m.ProcessExited)[0][1]
    assert (exited.name, exited.status) == (names[2], signal.SIGKILL)
    pids = {}
    while not {"spawner", *names} - {names[2]} <= pids.keys():
        pids = {who: x.pid for who, x in kernel.wait_for(m.Hello, len(pids) + 1)}
    for name, inode in zip(names, inodes, strict=True):
        if name != names[2]:
            assert held(pids[name]) & {*inodes, kernel.inode} == {inode}
