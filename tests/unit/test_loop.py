"""The event loop: readiness, timers, order, removal in the middle of a turn."""

import errno
import os
import time

import pytest
from popkernel.kernel.runtime.loop import READ, WRITE, Loop


@pytest.fixture(params=[False, True], ids=["poll", "epoll"])
def loop(request):
    made = Loop(many=request.param)
    yield made
    if hasattr(made._poller, "close"):
        made._poller.close()


@pytest.fixture
def pipes():
    made = []

    def pipe():
        made.extend(ends := os.pipe())
        return ends

    yield pipe
    for fd in made:
        os.close(fd)


def test_called_while_ready(loop, pipes):
    reading, writing = pipes()
    said = []
    loop.add(reading, lambda events: said.append((events & READ, os.read(reading, 1))))
    os.write(writing, b"ab")
    loop.turn()
    loop.turn()
    assert said == [(READ, b"a"), (READ, b"b")]


def test_timers_that_were_cancelled_are_forgotten_and_no_others(loop):
    said = []
    kept = [loop.later(0.0, lambda n=n: said.append(n)) for n in range(3)]
    for _ in range(20_000):
        loop.later(600.0, lambda: said.append("never")).cancel()
    assert len(loop._timers) <= 1100
    alive = [loop.later(600.0, lambda: None) for _ in range(3000)]
    assert len(loop._timers) >= 3003
    for timer in alive:
        timer.cancel()
    loop.later(0.0, loop.stop)
    loop.run()
    assert said == [0, 1, 2] and all(timer.call is None or timer in kept for timer in alive + kept)


def test_change_and_remove(loop, pipes):
    reading, writing = pipes()
    said = []
    loop.add(writing, lambda events: (said.append(events), loop.stop()), WRITE)
    loop.run()
    assert said == [WRITE]
    loop.change(writing, READ)
    loop.later(0.01, loop.stop)
    loop.run()
    assert said == [WRITE]
    loop.remove(writing)
    loop.remove(writing)  # twice is once


def test_one_callback_removes_another_that_is_ready_too(loop, pipes):
    said = []
    ends = [pipes() for _ in range(2)]

    def ready(mine, other):
        said.append(mine)
        loop.remove(other)

    for place, (reading, writing) in enumerate(ends):
        other = ends[1 - place][0]
        loop.add(reading, lambda events, mine=reading, other=other: ready(mine, other))
        os.write(writing, b"x")
    loop.turn()
    assert len(said) == 1


def test_timers_in_order_and_cancelled_ones_never(loop):
    said = []
    loop.later(0.02, lambda: (said.append("last"), loop.stop()))
    loop.later(0.0, lambda: said.append("first"))
    loop.later(0.0, lambda: said.append("second"))
    loop.later(0.01, lambda: said.append("never")).cancel()
    loop.run()
    assert said == ["first", "second", "last"]


def test_soon_before_the_loop_waits_and_what_it_adds_too(loop):
    said = []
    loop.soon(lambda: (said.append(1), loop.soon(lambda: (said.append(2), loop.stop()))))
    loop.run()
    assert said == [1, 2]


def test_a_timer_may_set_another_and_time_goes_on(loop):
    times = []

    def again():
        times.append(loop.now)
        loop.later(0.005, again) if len(times) < 3 else loop.stop()

    loop.later(0.0, again)
    loop.run()
    assert times == sorted(times)
    assert times[2] - times[0] >= 0.009


def test_the_end_of_a_pipe_is_told(loop):
    reading, writing = os.pipe()
    said = []
    loop.add(reading, lambda events: (said.append(events), loop.stop()))
    os.close(writing)
    loop.run()
    assert said[0] & ~WRITE
    loop.remove(reading)
    os.close(reading)


@pytest.mark.parametrize("many", [False, True])
def test_an_event_of_a_closed_descriptor_is_not_another_s_of_its_number(many):
    """A parked session was taken for ended: what had been polled of its number was of a channel closed in that very turn."""
    loop, heard = Loop(many=many), []
    pipes = [os.pipe(), os.pipe()]
    fresh = os.pipe()

    def hear(number):
        def call(_events):
            heard.append(number)
            other = pipes[1 - number][0]
            loop.remove(other)
            os.dup2(fresh[0], other)  # closed, and there is another one of its number
            loop.add(other, lambda _: heard.append("fresh"))

        return call

    for number, (read, write) in enumerate(pipes):
        loop.add(read, hear(number))
        os.write(write, b"x")
    loop.turn()
    assert len(heard) == 1
    os.write(fresh[1], b"y")
    loop.remove(pipes[heard[0]][0])
    loop.turn()
    assert heard[1:] == ["fresh"]
    for fd in {fd for pair in (*pipes, fresh) for fd in pair}:
        os.close(fd)


class Full:
    """An epoll that has room for nobody, epoll_ctl(2)."""

    def __init__(self, error):
        self.error = error

    def register(self, fd, events):
        raise OSError(self.error, os.strerror(self.error))

    def modify(self, fd, events):
        raise FileNotFoundError

    def unregister(self, fd):
        raise FileNotFoundError

    def poll(self, timeout):
        time.sleep(min(timeout or 0, 0.2))
        return []


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.ENOMEM])
def test_what_epoll_has_no_room_for_is_looked_at_now_and_then(pipes, error):
    loop = Loop(many=True)
    loop._poller.close()
    loop._poller = Full(error)
    loop.later(20.0, lambda: pytest.fail("never called"))
    reading, writing = pipes()
    said = []
    loop.add(reading, lambda events: said.append((events & READ, os.read(reading, 1))))
    os.write(writing, b"ab")
    while len(said) < 2:
        loop.turn()
    assert said == [(READ, b"a"), (READ, b"b")]
    loop.add(writing, lambda events: said.append(events))
    loop.change(writing, WRITE)
    while len(said) < 3:
        loop.turn()
    assert said[2] == WRITE
    loop.remove(writing)
    loop.remove(reading)
    os.write(writing, b"c")
    for _ in range(3):
        loop.turn()
    assert len(said) == 3


@pytest.mark.parametrize("many", [False, True])
def test_no_memory_to_wait_with_is_waited_for(many):
    loop, said = Loop(many=many), []
    poll, loop._poller = loop._poller, Full(errno.ENOMEM)
    loop._poller.poll = lambda timeout: (_ for _ in ()).throw(OSError(errno.ENOMEM, "no memory"))
    loop.later(0.0, lambda: said.append("timer"))
    loop.turn()
    loop._poller = poll
    assert said == ["timer"]
