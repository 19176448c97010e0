"""Actors' lines in the log: each its share, by name, and the rest counted."""

from popkernel.kernel.actorlines import MOST, WINDOW, ActorLines


class Log(list):
    most = 5

    def __call__(self, level, text, actor="kernel"):
        self.append(text)
        assert actor in ("auth", "listener.0", "kernel")


class Loop:
    def __init__(self):
        self.timers = []

    def later(self, seconds, call):
        assert seconds == WINDOW
        self.timers.append(call)


def test_a_flood_is_cut_and_counted_once_and_a_new_window_is_whole():
    log, loop = Log(), Loop()
    said = ActorLines(log, loop)
    for number in range(MOST + 7):
        said("auth", 4, f"line {number}")
    said("listener.0", 4, "heard")
    assert log == [*(f"line {n}" for n in range(MOST)), "heard"]
    del log[:]
    for timer in loop.timers:
        timer()
    assert log == [f"7 lines of auth dropped: more than {MOST} in 10 seconds"]
    said("auth", 4, "again")
    assert log[1:] == ["again"]
    assert len(loop.timers) == 3


def test_what_is_not_logged_is_not_counted():
    log, loop = Log(), Loop()
    said = ActorLines(log, loop)
    for _ in range(MOST * 2):
        said("auth", 7, "detail")
    said("auth", 4, "heard")
    assert log == ["heard"]
