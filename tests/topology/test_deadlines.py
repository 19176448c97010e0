"""Every question of the table has a deadline that somebody keeps, and a test that holds it. A new message is put in one of these tables."""

import os
import re

import pytest
from popkernel.proto.topology import EDGES

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
REPORT = ("kernel/supervisor/hung_actors.py", "tests/unit/test_hung_actors.py::test_silent")
LISTENER = ("actors/listener/peers.py", "tests/unit/test_listener_asks.py::test_a_maildir_actor_that_never_answers")
MDA = ("actors/mda/routing.py", "tests/e2e/delivery/test_hung_actors.py::test_a_maildir_actor_that_hangs")
INIT = ("kernel/runtime/deadlines.py", "tests/e2e/reload/test_configured_files.py::test_a_kernel_that_hangs_is_ended_by_init")
KILLED = ("kernel/supervisor/liveness.py", "tests/unit/test_liveness.py::test_one_that_does_not_end")

# Each question: the file that keeps its deadline, and a test that fails where that is not done.
KEPT = {
    ("kernel", "init", "Execute"): ("kernel/supervisor/singletons.py", "tests/e2e/supervision/test_stopped_processes.py::test_init"),
    ("kernel", "init", "Kill"): KILLED,
    ("kernel", "init", "Signal"): ("kernel/supervisor/reload.py", "tests/e2e/supervision/test_stopped_processes.py::test_init"),
    ("kernel", "init", "Report"): ("kernel/supervisor/liveness.py", "tests/e2e/supervision/test_stopped_processes.py::test_init"),
    ("init", "kernel", "Reread"): INIT,
    ("init", "kernel", "Signal"): INIT,
    ("kernel", "spawner", "Spawn"): ("kernel/supervisor/liveness.py", "tests/unit/test_liveness.py::test_one_that_never_says_hello"),
    ("kernel", "spawner", "Kill"): KILLED,
    ("kernel", "spawner", "Report"): REPORT,
    ("kernel", "auth", "Report"): REPORT,
    ("kernel", "listener", "Report"): REPORT,
    ("kernel", "gate", "Report"): REPORT,
    ("kernel", "gate", "Kill"): KILLED,
    ("kernel", "mda", "Report"): REPORT,
    ("kernel", "maildir.{user}", "Report"): REPORT,
    ("kernel", "maildir.{user}", "Open"): ("actors/listener/peers.py", "tests/e2e/supervision/test_stopped_processes.py::test_a_warm_maildir_actor"),
    ("kernel", "maildir.{user}", "Retire"): ("kernel/supervisor/liveness.py", "tests/unit/test_liveness.py::test_one_that_does_not_retire"),
    ("listener", "auth", "Login"): ("actors/listener/peers.py", "tests/e2e/supervision/test_stopped_processes.py::test_a_singleton"),
    ("listener", "kernel", "Awaiting"): ("actors/listener/peers.py", "tests/unit/test_listener_asks.py::test_a_kernel_that_never_answers"),
    **{("listener", "maildir.{user}", asked): LISTENER for asked in ("Retrieve", "Top", "List", "Uidl", "Delete", "Reset", "Quit")},
    ("mda", "kernel", "Recipient"): ("actors/mda/main.py", "tests/e2e/delivery/test_hung_actors.py::test_a_kernel_that_does_not_answer_about_a_recipient"),
    **{("mda", "maildir.{user}", asked): MDA for asked in ("Post", "Content", "Commit")},
}

# What is said and asks for nothing; why nobody waits for what follows from it.
TOLD = {
    "Hello": "a word", "Failed": "a last word", "Broke": "a last word", "Refused": "a word", "Log": "a word", "Counters": "an answer",
    "Deaf": "a word", "Displaced": "a word", "Started": "an answer", "Unstarted": "an answer", "Unread": "an answer", "Syslog": "an answer", "Exited": "an answer, or news", "Running": "news", "Ending": "a last word", "Peer": "hands over", "Watch": "hands over",
    "Unwatch": "a word", "Tapped": "a word", "Opened": "an answer", "Turned": "an answer", "Denied": "an answer", "Granted": "an answer",
    "Ended": "news", "LoginFailed": "news", "Late": "a word", "Seat": "hands over: its client may never come", "Entered": "news",
    "Wake": "hands over: the client's command lies in the channel, and its listener waits for the answer", "Receive": "hands over, as Wake",
    "Drain": "its sessions may last; the pulse sees whether it lives", "Stop": "its end, for which shutdown.py and liveness.py wait",
    "Closed": "news", "Parked": "hands over", "Moved": "hands over", "Busy": "an answer", "Leaving": "its end, for which liveness.py waits: ENDS", "Credit": "a word", "Abort": "a word",
    "Ready": "an answer", "Unready": "an answer", "Mail": "an answer", "Missing": "an answer", "Sizes": "an answer", "Ids": "an answer",
    "Deleted": "an answer", "Totals": "an answer", "Bye": "an answer", "Maildrop": "an answer", "NoMaildrop": "an answer", "Anew": "news",
    "Deliver": "begins what Commit asks for", "Accepted": "an answer", "Rejected": "an answer",
}

# What asks for nothing and is followed by something that others wait for: who sees to it, and a test.
ENDS = {
    ("maildir.{user}", "kernel", "Leaving"): ("kernel/supervisor/liveness.py", "tests/unit/test_liveness.py::test_one_that_goes_and_stays_is_ended_though_it_lives"),
    ("kernel", "maildir.{user}", "Retire"): ("kernel/supervisor/liveness.py", "tests/unit/test_liveness.py::test_one_that_goes_and_stays_is_ended_though_it_lives"),
}

QUESTIONS = [(e.source, e.target, asked) for e in EDGES for asked in e.answers]


@pytest.mark.parametrize("question", QUESTIONS, ids=" ".join)
def test_a_question_has_a_deadline_that_is_kept(question):
    edge = next(e for e in EDGES if (e.source, e.target) == question[:2])
    assert edge.deadline > 0
    _held(*KEPT[question])


@pytest.mark.parametrize("said", ENDS, ids=" ".join)
def test_an_end_that_others_wait_for_has_a_deadline_that_is_kept(said):
    source, target, name = said
    assert any(name in {message.__name__ for message in e.messages} for e in EDGES if (e.source, e.target) == (source, target))
    _held(*ENDS[said])


def _held(keeper, test):
    assert os.path.isfile(f"{ROOT}/{keeper}")
    path, _, name = test.partition("::")
    with open(f"{ROOT}/{path}") as file:
        assert re.search(rf"^(    )?def {name}\(", file.read(), re.M), test


def test_no_keeper_without_a_question():
    assert not KEPT.keys() - set(QUESTIONS)


@pytest.mark.parametrize("edge", EDGES, ids=lambda e: f"{e.source}>{e.target}")
def test_what_is_no_question_is_known_to_be_none(edge):
    names = {message.__name__ for message in edge.messages}
    others = names - edge.answers.keys()
    assert not others - TOLD.keys(), "a new message: name its answer in the table, or say here why nobody waits"
