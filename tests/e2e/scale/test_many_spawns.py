"""Spawn a day's worth of maildir actors from one spawner, which must not grow.

The spawner is a real one: rehearsed, in its sandbox, with immortal objects where Python has them. Each actor
answers a session and is then stopped.
"""

import os
import subprocess
import sys
import time

import pytest
from popkernel.cli.status import memory
from popkernel.kernel.runtime.channel import Channel, pair
from popkernel.kernel.runtime.loop import Loop
from popkernel.proto import messages as m

from tests.support.service import ROOT

_AT_ONCE = 20
_UID, _GID = (64123, 64123) if ROOT else (os.getuid(), os.getgid())  # an unused one
_SPAWNER = """
import os, sys
from popkernel.kernel.config.keys import Config, actor_settings
from popkernel.kernel.runtime.actor import Boot
from popkernel.kernel.spawner.main import Spawner
directory, end = sys.argv[1], int(sys.argv[2])
mail = actor_settings(Config(hostname="localhost"), "maildir")
config = {"quotas": {}, "roots": [os.fsencode(directory)], "run_dir": directory, "mail": mail}
Spawner(Boot("spawner", end, os.getuid(), os.getgid(), config)).begin()
"""


class Kernel:
    """Hold the other end of a spawner's channel, and of the sessions of its actors."""

    def __init__(self, directory):
        self.directory = os.fsencode(directory)
        self.maildirs = {f"maildir.user{number}": self.make_maildir(number) for number in range(_AT_ONCE)}
        self.loop = Loop()
        near, far = pair()
        # a new program: a fork of this process would share its memory, and copy more and more of it
        self.spawner = subprocess.Popen(
            [sys.executable, "-c", _SPAWNER, directory, str(far.fileno())], pass_fds=[far.fileno()]
        )
        far.close()
        self.channel = Channel(self.loop, near, "kernel", "spawner", self.take, self.drop)
        self.open = {}
        self.answers = 0
        self.statuses = []
        self.serves = False

    def make_maildir(self, number):
        path = b"%b/user%d" % (self.directory, number)
        for part in (b"", b"/cur", b"/new", b"/tmp"):
            os.mkdir(path + part, 0o700)
            os.chown(path + part, _UID, -1)
        with open(path + b"/cur/1.a.localhost:2,", "wb") as file:
            file.write(b"Subject: a\n\nb\n")
        return path

    def take(self, channel, message, fds):
        """Receive from spawner and actors: open a session in an actor that says hello."""
        match message:
            case m.Hello() if channel.peer == "spawner":
                self.serves = True
            case m.Hello():
                ours, its = pair()
                self.open[channel.peer].append(
                    Channel(self.loop, ours, "listener", channel.peer, self.take_answer, self.drop)
                )
                channel.send(m.SessionOpen(1, 0), [its.fileno()])
                its.close()
            case m.ProcessExited(name, _, status):
                self.statuses.append(status)
                for one in self.open.pop(name):
                    one.close()

    def take_answer(self, channel, message, fds):
        assert message == m.MaildropReady(1, 17)
        self.answers += 1
        channel.close()
        self.open[channel.peer][0].send(m.ActorStop(1))

    def drop(self, channel, why):
        channel.close()

    def spawn_all(self):
        """Spawn an actor for each maildir, all at once, and wait for their ends."""
        for name, maildir in self.maildirs.items():
            ours, its = pair()
            self.open[name] = [Channel(self.loop, ours, "kernel", name, self.take, self.drop)]
            self.channel.send(m.ActorSpawn(name, _UID, _GID, maildir), [its.fileno()])
            its.close()
        self.wait_for(lambda: not self.open)

    def wait_for(self, condition):
        timer = self.loop.later(60, lambda: pytest.fail(f"waited in vain: {self.open} {self.statuses[-3:]}"))
        while not condition():
            self.loop.turn()
        timer.cancel()

    def end(self):
        self.channel.send(m.ActorStop(1))
        assert self.spawner.wait(20) == 0
        self.channel.close()


@pytest.mark.parametrize(
    ("before", "spawns"),
    [(200, 1_000), pytest.param(10_000, 100_000, marks=pytest.mark.soak)],
)
def test_a_spawner_does_not_grow(open_path, before, spawns):
    kernel = Kernel(str(open_path))
    kernel.wait_for(lambda: kernel.serves)
    began = time.monotonic()
    for _ in range(before // _AT_ONCE):
        kernel.spawn_all()
    first = memory(kernel.spawner.pid)["private_kib"]
    for _ in range((spawns - before) // _AT_ONCE):
        kernel.spawn_all()
    last = memory(kernel.spawner.pid)["private_kib"]
    seconds = time.monotonic() - began
    kernel.end()
    print(f"\n{spawns:,} spawns in {seconds:.0f} s: {first:,} KiB after {before:,}, {last:,} at the end")
    assert kernel.answers == len(kernel.statuses) == spawns
    assert set(kernel.statuses) == {0}
    assert last - first <= 300
