"""Test the event loop: readiness, timers, order, removal within a turn."""

import errno
import os
import select
import selectors
import socket
import time

import pytest
from popkernel.kernel.runtime import loop as loop_module
from popkernel.kernel.runtime.loop import READ, WRITE, Loop, SelectorPoller

KINDS = ("poll", "epoll", "selectors")  # a selector stands for kqueue(2), which Linux has not


@pytest.fixture(params=KINDS)
def kind(request, monkeypatch):
    """Return `many` for a loop of that kind."""
    if request.param == "selectors":
        monkeypatch.setattr(loop_module, "_poller_of_many", lambda: SelectorPoller(selectors.PollSelector()))
    return request.param != "poll"


@pytest.fixture
def loop(kind):
    made = Loop(many=kind)
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
    loop.remove(writing)  # a second removal changes nothing


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


def test_soon_runs_before_the_loop_waits(loop):
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


def test_an_event_of_a_closed_descriptor_is_not_another_s_of_its_number(kind):
    """An event polled for a closed descriptor must not reach a new one of the same number."""
    loop, heard = Loop(many=kind), []
    pipes = [os.pipe(), os.pipe()]
    fresh = os.pipe()

    def hear(number):
        def call(_events):
            heard.append(number)
            other = pipes[1 - number][0]
            loop.remove(other)
            os.dup2(fresh[0], other)  # closed; the number now belongs to another descriptor
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
    """Refuse every descriptor, as epoll_ctl(2) may."""

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


class FullSelector(selectors.PollSelector):
    """A selector that has room for nobody."""

    def __init__(self, error):
        super().__init__()
        self.error = error

    def register(self, fileobj, events, data=None):
        raise OSError(self.error, os.strerror(self.error))

    def select(self, timeout=None):
        time.sleep(min(timeout or 0, 0.2))
        return []


@pytest.mark.parametrize("full", [Full, lambda error: SelectorPoller(FullSelector(error))])
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.ENOMEM])
def test_descriptors_that_the_system_refuses_are_polled(pipes, error, full):
    loop = Loop(many=True)
    loop._poller.close()
    loop._poller = full(error)
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


def test_without_memory_the_loop_waits(kind):
    loop, said = Loop(many=kind), []
    poll, loop._poller = loop._poller, Full(errno.ENOMEM)
    loop._poller.poll = lambda timeout: (_ for _ in ()).throw(OSError(errno.ENOMEM, "no memory"))
    loop.later(0.0, lambda: said.append("timer"))
    loop.turn()
    loop._poller = poll
    assert said == ["timer"]


def test_a_descriptor_with_no_events_is_quiet_until_it_has_some(loop, pipes):
    reading, writing = pipes()
    said = []
    loop.add(reading, lambda events: (said.append(events), loop.stop()))
    os.write(writing, b"x")
    loop.change(reading, 0)
    loop.later(0.01, loop.stop)
    loop.run()
    assert said == []
    loop.change(reading, 0)
    loop.change(reading, READ)
    loop.run()
    assert said == [READ]
    loop.change(reading, 0)
    loop.remove(reading)
    loop.add(reading, said.append, 0)
    loop.remove(reading)
    assert said == [READ]


def test_both_events_are_told_at_once(loop):
    one, other = socket.socketpair()
    said = []
    loop.add(one.fileno(), said.append, READ | WRITE)
    other.send(b"x")
    loop.turn()
    assert said == [READ | WRITE]
    loop.remove(one.fileno())
    one.close()
    other.close()


def test_a_descriptor_closed_before_it_was_removed_is_a_new_one_when_it_comes_again(loop, pipes):
    reading, writing = os.pipe()
    fresh, write = pipes()
    said = []
    loop.add(reading, said.append)
    os.close(writing)
    os.close(reading)
    os.dup2(fresh, reading)
    loop.add(reading, lambda events: said.append((events, os.read(reading, 1))))
    os.write(write, b"y")
    loop.turn()
    assert said == [(READ, b"y")]
    loop.remove(reading)
    os.close(reading)


class Twice(selectors.PollSelector):
    """Reports each event by itself, as kqueue(2) does."""

    def select(self, timeout=None):
        return [
            (key, one)
            for key, events in super().select(timeout)
            for one in (selectors.EVENT_READ, selectors.EVENT_WRITE)
            if events & one
        ]


def test_events_that_a_selector_reports_one_by_one_are_told_at_once():
    one, other = socket.socketpair()
    poller = SelectorPoller(Twice())
    poller.register(one.fileno(), READ | WRITE)
    other.send(b"x")
    assert poller.poll(0.0) == [(one.fileno(), READ | WRITE)]
    one.close()
    other.close()


def test_what_a_selector_does_not_watch_is_not_found():
    """As epoll(7) says it: by that the loop knows whom the system had no room to watch."""
    poller = SelectorPoller(selectors.PollSelector())
    for unknown in (
        lambda: poller.modify(0, READ),
        lambda: poller.modify(0, 0),
        lambda: poller.unregister(0),
    ):
        with pytest.raises(FileNotFoundError):
            unknown()


def test_a_selector_is_taken_where_there_is_no_epoll(monkeypatch):
    monkeypatch.delattr(select, "epoll")
    loop = Loop(many=True)
    assert type(loop._poller) is SelectorPoller
    loop.later(0.0, loop.stop)
    loop.run()
    loop._poller.close()
