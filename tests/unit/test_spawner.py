"""The spawner as a process of its own: what it does where the system has no room for a child, and what its children hold."""

import os
import resource
import signal
import sys
from importlib import import_module

import pytest
from popkernel.kernel.config.keys import Config, told
from popkernel.kernel.runtime.actor import Boot
from popkernel.kernel.runtime.channel import Channel, pair
from popkernel.kernel.runtime.child_process import do_and_leave
from popkernel.kernel.runtime.loop import Loop
from popkernel.kernel.spawner.main import Spawner
from popkernel.proto import messages as m
from popkernel.proto.topology import actor as row_of

import_module(row_of("maildir").module)  # now: the uid below need not be able to reach it
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

_UID = 64123  # nobody's: the limit of processes does not bind root
_CONFIG = {"quotas": {}, "mail": told(Config(hostname="localhost"), "maildir")}
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
    """The other end of a spawner's channel."""

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
        """All in one go, with further words right behind; what the system knows their channels by."""
        inodes = []
        os.kill(self.pid, signal.SIGSTOP)
        for name in names:
            ours, its = pair()
            self.actors[name] = Channel(self.loop, ours, "kernel", name, self.take, self.take_end)
            self.channel.send(m.Spawn(name, self.uid, self.gid, b"/nonexistent/maildir"), [its.fileno()])
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
    """What a process has open, by inode."""
    try:
        return {os.stat(f"/proc/{pid}/fd/{fd}").st_ino for fd in os.listdir(f"/proc/{pid}/fd")}
    except PermissionError:
        pytest.skip("changed its uid, and is nobody's to look into: needs CAP_SYS_PTRACE")


@pytest.fixture
def kernel(request):
    kernel = Kernel(getattr(request, "param", None))
    yield kernel
    kernel.end()


@pytest.mark.parametrize("kernel", [0], indirect=True)
def test_no_room_for_a_process(kernel):
    """Who asked hears of it, the log does once, and the spawner goes on."""
    kernel.wait_for(m.Hello)
    kernel.spawn("maildir.a", "maildir.b")
    assert [x for _, x in kernel.wait_for(m.Exited, 2)] == [m.Exited(f"maildir.{x}", kernel.pid, 75 << 8) for x in "ab"]
    logged = [x.text for _, x in kernel.wait_for(m.Log)]
    assert logged == ["no more maildir actors can be forked: Resource temporarily unavailable"]
    os.kill(kernel.pid, signal.SIGUSR1)
    kernel.said.clear()
    kernel.spawn("maildir.c")
    assert kernel.wait_for(m.Hello)[0][0] == "maildir.c"
    kernel.channel.send(m.Kill("maildir.c"))
    assert kernel.wait_for(m.Exited)[0][1].status == signal.SIGKILL


@pytest.mark.parametrize("kernel", [0], indirect=True)
def test_stopped_with_none_forked(kernel):
    """No child's end will come to remind it: it goes at once."""
    kernel.wait_for(m.Hello)
    kernel.spawn("maildir.a", then=[m.Stop(86400)])
    kernel.wait_for(m.Exited)
    ended = set()
    while "spawner" not in ended:  # the actor's channel ends in any case
        ended = {who for who, _ in kernel.wait_for(str, len(ended) + 1)}


def test_asked_for_at_once(kernel):
    """Each child has its own channel, and none of those that were asked for with it; one that is to be killed at once is."""
    kernel.wait_for(m.Hello)
    names = [f"maildir.user{number}" for number in range(5)]
    inodes = kernel.spawn(*names, then=[m.Kill(names[2])])
    exited = kernel.wait_for(m.Exited)[0][1]
    assert (exited.name, exited.status) == (names[2], signal.SIGKILL)
    pids = {}
    while not {"spawner", *names} - {names[2]} <= pids.keys():
        pids = {who: x.pid for who, x in kernel.wait_for(m.Hello, len(pids) + 1)}
    for name, inode in zip(names, inodes, strict=True):
        if name != names[2]:
            assert held(pids[name]) & {*inodes, kernel.inode} == {inode}
