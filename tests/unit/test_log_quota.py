"""Actors' lines in the log: each its share, by name, and the rest counted."""

from popkernel.kernel.decisions.log_quota import MOST, MOST_ALONE, MOST_EVENTS, WINDOW, ActorLines


class Log(list):
    most = 5

    def __call__(self, level, text, actor="kernel"):
        self.append(text)
        assert actor in ("auth", "listener.0", "kernel")

    def event(self, level, event, fields):
        self.append(fields["why"])


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


def test_events_have_a_share_of_their_own_and_a_listener_of_one_connection_a_small_one():
    log, loop = Log(), Loop()
    said = ActorLines(log, loop)
    most = MOST_EVENTS["login failed"]
    for _ in range(most + 3):
        said.event("listener.0", 5, "login failed", {"why": "SYS/TEMP"})
    assert list(log) == ["SYS/TEMP"] * MOST_EVENTS["login refused"]
    del log[:]
    for _ in range(most + 3):
        said.event("listener.0", 5, "login failed", {"why": "AUTH"})  # none of them is crowded out
        said.event("listener.1.17", 5, "login failed", {"why": "AUTH"}, alone=True)
    said.event("listener.0", 5, "session over", {"why": "another"})
    said("listener.0", 4, "a line")
    assert [text for text in log if text != "AUTH"] == ["another", "a line"]
    assert log.count("AUTH") == most + MOST_ALONE
    del log[:]
    for timer in loop.timers:
        timer()
    assert log == [
        f'{most + 3 - MOST_EVENTS["login refused"]} lines "login refused" of listener.0 dropped: more than {MOST_EVENTS["login refused"]} in 10 seconds',
        f'3 lines "login failed" of listener.0 dropped: more than {most} in 10 seconds',
        f'{most + 3 - MOST_ALONE} lines "login failed" of listener.1.17 dropped: more than {MOST_ALONE} in 10 seconds',
    ]
