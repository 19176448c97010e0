"""Test actors' log quotas: a share for each name, and a count of the rest."""

from popkernel.kernel.operator.log_quota import (
    FAULT_SECONDS,
    MOST,
    MOST_ALONE,
    MOST_EVENTS,
    WINDOW,
    ActorLines,
)
from popkernel.kernel.replay.loop import ReplayLoop
from popkernel.proto.log_events import text_of
from popkernel.proto.log_levels import DEBUG, NOTICE, WARNING


class Log(list):
    most = NOTICE

    def __call__(self, level, event, **fields):
        self.event(level, event, fields)

    def event(self, level, event, fields, actor="kernel"):
        self.append(fields.get("why") or fields.get("reason") or text_of(event, fields))
        assert actor in ("auth", "listener.0", "kernel")


class Loop:
    def __init__(self):
        self.timers = []

    def later(self, seconds, call):
        assert seconds == WINDOW
        self.timers.append(call)


def test_a_flood_is_cut_and_counted_and_the_next_window_is_full():
    log, loop = Log(), Loop()
    said = ActorLines(log, loop, lambda name: name)
    for number in range(MOST + 7):
        said.said("auth", WARNING, "maildir.note", {"note": f"line {number}"})
    said.said("listener.0", WARNING, "maildir.note", {"note": "heard"})
    assert log == [*(f"line {n}" for n in range(MOST)), "heard"]
    del log[:]
    for timer in loop.timers:
        timer()
    assert log == [f"7 lines of auth dropped: more than {MOST} in 10 seconds"]
    said("auth", WARNING, "maildir.note", note="again")
    assert log[1:] == ["again"]
    assert len(loop.timers) == 3


def test_lines_below_the_level_are_not_counted():
    log, loop = Log(), Loop()
    said = ActorLines(log, loop, lambda name: name)
    for _ in range(MOST * 2):
        said("auth", DEBUG, "maildir.note", note="detail")
    said("auth", WARNING, "maildir.note", note="heard")
    assert log == ["heard"]


def test_events_have_a_share_of_their_own_and_a_listener_of_one_connection_a_small_one():
    log, loop = Log(), Loop()
    said = ActorLines(log, loop, lambda name: name)
    most = MOST_EVENTS["login.failed"]
    for _ in range(most + 3):
        said.event("listener.0", NOTICE, "login.failed", {"reason": "temp"})
    assert list(log) == ["temp"] * MOST_EVENTS["login.refused"]
    del log[:]
    for _ in range(most + 3):
        said.event("listener.0", NOTICE, "login.failed", {"reason": "password"})  # none of them is dropped
        said.event("listener.1.17", NOTICE, "login.failed", {"reason": "password"}, alone=True)
    said.event("listener.0", NOTICE, "session.over", {"why": "another"})
    said("listener.0", WARNING, "maildir.note", note="a line")
    assert [text for text in log if text != "password"] == ["another", "a line"]
    assert log.count("password") == most + MOST_ALONE
    del log[:]
    for timer in loop.timers:
        timer()
    assert log == [
        (
            f'{most + 3 - MOST_EVENTS["login.refused"]} lines "login refused" of listener.0 dropped: more '
            f"than {MOST_EVENTS['login.refused']} in 10 seconds"
        ),
        f'3 lines "login failed" of listener.0 dropped: more than {most} in 10 seconds',
        (
            f'{most + 3 - MOST_ALONE} lines "login failed" of listener.1.17 dropped: more than '
            f"{MOST_ALONE} in 10 seconds"
        ),
    ]


def test_listeners_of_one_connection_have_their_gates_share_together():
    """Their names are never used twice: by name alone, each of a hostile client's connections had a share."""
    log, loop = Log(), Loop()
    said = ActorLines(log, loop, lambda name: "listener.0" if name.startswith("listener.0.") else name)
    connections = range(MOST_EVENTS["session.over"] // MOST_ALONE + 50)
    for number in connections:
        for _ in range(MOST_ALONE + 1):
            said.event(f"listener.0.{number}", NOTICE, "session.over", {"why": "over"}, alone=True)
        for _ in range(MOST):
            said(f"listener.0.{number}", WARNING, "maildir.note", note="noted")
    assert log.count("over") == MOST_EVENTS["session.over"]
    assert log.count("noted") == MOST
    del log[:]
    for timer in loop.timers[:]:
        timer()
    assert len(log) <= MOST + 2
    # one of them is the line about what listener.0.0 dropped
    rest = len(connections) * MOST - MOST + 1
    assert f"{rest} lines of listener.0 dropped: more than {MOST} in 10 seconds" in log


def test_a_client_s_fault_has_one_line_a_minute_and_a_count():
    log, timers = Log(), []
    loop = Loop()
    loop.later = lambda seconds, call: timers.append((seconds, call))
    said = ActorLines(log, loop, lambda name: name)
    told = [said.fault("listener.0", "tls.failed", f"192.0.2.7:{port}", "old") for port in range(1, 6)]
    told += [
        said.fault("listener.0", "tls.failed", "192.0.2.7:9", "other"),
        said.fault("l", "tls.failed", "[::1]:1", "old"),
    ]
    assert told == [True, *[False] * 4, True, True] and list(log) == ["old", "other", "old"]
    for seconds, call in timers:
        if seconds == FAULT_SECONDS:
            call()
    assert list(log) == ["old", "other", "old", "old"]  # the first, with the number of the others
    assert said.fault("listener.0", "tls.failed", "192.0.2.7:7", "old")


def test_faults_of_many_clients_are_bounded():
    log, loop = Log(), ReplayLoop()
    said = ActorLines(log, loop, lambda name: name)
    for n in range(5000):
        said.fault("listener.0", "tls.failed", f"192.0.2.{n}:1", "old")
    assert len(said._faults) <= 2000 and len(log) == MOST_EVENTS["tls.failed"]
    # a listener that lies would fill the memory with those of a minute
    timers = [timer for _, _, timer in loop._timers if timer.call is not None]
    assert len(timers) <= 2001
    del log[:]
    loop.advance(FAULT_SECONDS + 1)
    assert not said._faults


def test_an_actor_is_told_apart_whose_events_are_dropped():
    """The history keeps no more of an actor than its share, of what is below the log's level too.

    With -q an actor filled it as fast as it could send.
    """
    said = ActorLines(Log(), Loop(), lambda name: name)
    most = MOST_EVENTS["delivery.refused"]
    told = [said.said("auth", NOTICE, "delivery.refused", {"reply": "550"}) for _ in range(most + 5)]
    assert told == [True] * most + [False] * 5
    log = Log()
    said = ActorLines(log, Loop(), lambda name: name)
    told = [said.said("auth", DEBUG, "delivery.refused", {"reply": "550"}) for _ in range(most + 5)]
    assert told == [True] * most + [False] * 5 and log == []
