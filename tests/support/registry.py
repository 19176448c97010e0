"""A registry of processes whose channels only note what is said on them."""

from collections import deque

from popkernel.kernel.processes import Process, Processes
from popkernel.kernel.runtime.channel import pair
from popkernel.proto import messages as m


class Line:
    """A channel to an actor that takes what it is told in order."""

    def __init__(self):
        self.said, self.gone = deque(), False

    def send(self, message, fds=()):
        self.said.append(message)

    def read(self):
        pass

    def close(self):
        self.gone = True


class Registry(Processes):
    """`killed`: names of those that were to be ended; `ended`: names and ends of those that have; `its`: actors' ends of channels."""

    def __init__(self, loop):
        super().__init__(loop)
        self.phase, self.init, self.killed, self.ended, self.its = "running", Line(), [], [], []
        self.on_kill = lambda process: self.killed.append(process.name)
        self.on_exit = [lambda process, end: self.ended.append((process.name, end))]

    def enrol(self, name, parent):
        mine, its = pair()
        mine.close()
        self.its.append(its)
        return self.comes(name, parent, hello=False), its

    def comes(self, name, parent="spawner", hello=True):
        process = Process(name, Line(), parent)
        if hello:
            process.hello, process.pid, process.state = m.Hello(7, "", ""), 7, "serving"
        self.add(process)
        return process


class Said(list):
    """In the place of both logs: what was said, without whose share it was."""

    def __call__(self, *words):
        self.append(next(word for word in words[1:] if type(word) is str))

    end = __call__
