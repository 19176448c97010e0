"""Check that every request of the table has a deadline, a keeper and a test.

A new message needs a row in one of these tables.
"""

import os
import re

import pytest
from popkernel.proto.topology import EDGES

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
REPORT = ("kernel/supervisor/hung_actors.py", "tests/unit/test_hung_actors.py::test_silent")
LISTENER = (
    "actors/listener/peers.py",
    "tests/unit/test_listener_asks.py::test_a_maildir_actor_that_never_answers",
)
MDA = ("actors/mda/routing.py", "tests/e2e/delivery/test_hung_actors.py::test_a_maildir_actor_that_hangs")
INIT = (
    "kernel/runtime/deadlines.py",
    "tests/e2e/reload/test_configured_files.py::test_a_kernel_that_hangs_is_ended_by_init",
)
KILLED = ("kernel/supervisor/liveness.py", "tests/unit/test_liveness.py::test_a_process_that_does_not_end")

# Each request: the file that keeps its deadline, and a test that fails without it.
KEPT = {
    ("kernel", "init", "SingletonStart"): (
        "kernel/supervisor/singletons.py",
        "tests/e2e/supervision/test_stopped_processes.py::test_init",
    ),
    ("kernel", "init", "ProcessKill"): KILLED,
    ("kernel", "init", "ReloadRequest"): (
        "kernel/supervisor/reload.py",
        "tests/e2e/supervision/test_stopped_processes.py::test_init",
    ),
    ("kernel", "init", "SyslogRequest"): (  # sent again after two seconds
        "kernel/runtime/system_log.py",
        "tests/e2e/operator/test_syslog.py::test_lines_have_syslog_s_form_and_go_to_the_present_receiver",
    ),
    ("kernel", "init", "CountersRequest"): (
        "kernel/supervisor/liveness.py",
        "tests/e2e/supervision/test_stopped_processes.py::test_init",
    ),
    ("init", "kernel", "ReloadInputs"): INIT,
    ("init", "kernel", "KernelCheck"): INIT,
    ("kernel", "spawner", "ActorSpawn"): (
        "kernel/supervisor/liveness.py",
        "tests/unit/test_liveness.py::test_an_actor_without_a_hello",
    ),
    ("kernel", "spawner", "ProcessKill"): KILLED,
    ("kernel", "spawner", "CountersRequest"): REPORT,
    ("kernel", "auth", "CountersRequest"): REPORT,
    ("kernel", "auth", "PredecessorChannel"): (
        "kernel/supervisor/reload.py",
        "tests/e2e/reload/test_hand_over.py::test_a_new_auth_that_does_not_answer",
    ),
    ("kernel", "listener", "CountersRequest"): REPORT,
    ("kernel", "gate", "CountersRequest"): REPORT,
    ("kernel", "gate", "ProcessKill"): KILLED,
    ("kernel", "auth", "AccountLookup"): (
        "kernel/operator/commands.py",
        "tests/unit/test_operator_commands.py::test_an_auth_that_does_not_answer",
    ),
    ("kernel", "mda", "CountersRequest"): REPORT,
    ("kernel", "maildir.{user}", "CountersRequest"): REPORT,
    ("kernel", "maildir.{user}", "SessionOpen"): (
        "actors/listener/peers.py",
        "tests/e2e/supervision/test_stopped_processes.py::test_a_warm_maildir_actor",
    ),
    ("kernel", "maildir.{user}", "ActorRetire"): (
        "kernel/supervisor/liveness.py",
        "tests/unit/test_liveness.py::test_an_actor_that_does_not_retire",
    ),
    ("listener", "auth", "LoginRequest"): (
        "actors/listener/peers.py",
        "tests/e2e/supervision/test_stopped_processes.py::test_a_singleton",
    ),
    ("listener", "kernel", "LoginStarted"): (
        "actors/listener/peers.py",
        "tests/unit/test_listener_asks.py::test_a_kernel_that_never_answers",
    ),
    **{
        ("listener", "maildir.{user}", asked): LISTENER
        for asked in ("Retrieve", "Top", "List", "Uidl", "Delete", "Reset", "Quit")
    },
    ("mda", "kernel", "RecipientLookup"): (
        "actors/mda/main.py",
        "tests/e2e/delivery/test_hung_actors.py::test_a_kernel_that_does_not_answer_about_a_recipient",
    ),
    **{
        ("mda", "maildir.{user}", asked): MDA
        for asked in ("DeliveryWhole", "DeliveryContent", "DeliveryCommit")
    },
}

# Messages that request nothing, and why nobody waits for their effect.
NO_REQUESTS = {
    "Hello": "a report",
    "ActorFailed": "a last report",
    "PromiseBroken": "a last report",
    "PeerRefused": "a report",
    "LogEvent": "a report",
    "Counters": "an answer",
    "ListenSocketShut": "a report",
    "ImageTried": "a report",
    "RootDisplaced": "a report",
    "RootsMissing": "a report",
    "ProcessStarted": "an answer",
    "ProcessUnstarted": "an answer",
    "ReloadInputsFailed": "an answer",
    "SyslogChannel": "an answer",
    "ProcessExited": "an answer, or an event",
    "ServiceRunning": "an event",
    "ServiceEnding": "a last report",
    "ServiceStop": "requests an end, whose deadline kernel/init/main.py keeps",
    "KernelLives": "an answer",
    "ReloadDone": "an answer",
    "MailboxFault": "an event",
    "MailboxesChecked": "an event",
    "PeerChannel": "hand-over",
    "SuccessorChannel": "hand-over, for whose end hand_over.py waits in the successor",
    "LoginMemoryBegin": "a part of the hand-over",
    "KnownAccounts": "a part of the hand-over",
    "VerifiedPasswords": "a part of the hand-over",
    "FailedPasswords": "a part of the hand-over",
    "LoginPenalties": "a part of the hand-over",
    "LoginMemoryEnd": "the end of the hand-over",
    "LoginMemoryTaken": "an answer",
    "TraceStart": "hand-over",
    "TraceStop": "an order",
    "TraceFrame": "a frame",
    "SessionAdmitted": "an answer",
    "SessionRefused": "an answer",
    "SessionKick": "an order, whose deadline kernel/operator/commands.py keeps",
    "ServiceDrain": "an order",
    "AccountState": "an answer",
    "LoginRefused": "an answer",
    "LoginGranted": "an answer",
    "LoginDenied": "an event",
    "LoginWithdrawn": "an event; LoginRequest's own answer may still come",
    "LoginLoad": "a report",
    "PlacesRefused": "a report",
    "ClientHungUp": "an event",
    "ConnectionEnded": "an event",
    "LoginFailed": "an event",
    "PeerTimeout": "a report",
    "GateSeat": "hand-over: its client may never come",
    "GateSeatLogin": "an event",
    "GateSeatTaken": "an event",
    "GateSeatLoggedIn": "an event",
    "SessionWake": "hand-over: the client's command is in the channel, and its listener waits for the answer",
    "DeliveryChannel": "hand-over, as SessionWake",
    "ListenerDrain": "its sessions may last; liveness.py checks whether it lives",
    "ActorStop": "requests an end, for which shutdown.py and liveness.py wait",
    "SessionClosed": "an event",
    "SessionParked": "hand-over",
    "SessionMoved": "hand-over",
    "RetireRefused": "an answer",
    "ActorLeaving": "announces an end, for which liveness.py waits: ENDS",
    "FlowCredit": "credit",
    "DeliveryAbort": "an order",
    "MaildropReady": "an answer",
    "MaildropUnready": "an answer",
    "MailContent": "an answer",
    "MessageMissing": "an answer",
    "MessageSizes": "an answer",
    "MessageUidls": "an answer",
    "MessagesMarked": "an answer",
    "MaildropTotals": "an answer",
    "QuitDone": "an answer",
    "RecipientFound": "an answer",
    "RecipientUnknown": "an answer",
    "RecipientsChanged": "an event",
    "DeliveryBegin": "begins what DeliveryCommit completes",
    "DeliveryAccepted": "an answer",
    "DeliveryRejected": "an answer",
}

# Messages that request nothing but whose effect others wait for: the keeper of its deadline, and a test.
ENDS = {
    ("maildir.{user}", "kernel", "ActorLeaving"): (
        "kernel/supervisor/liveness.py",
        "tests/unit/test_liveness.py::test_a_leaving_actor_that_stays_is_ended",
    ),
    ("kernel", "maildir.{user}", "ActorRetire"): (
        "kernel/supervisor/liveness.py",
        "tests/unit/test_liveness.py::test_a_leaving_actor_that_stays_is_ended",
    ),
}

REQUESTS = [(e.source, e.target, asked) for e in EDGES for asked in e.answers]


@pytest.mark.parametrize("question", REQUESTS, ids=" ".join)
def test_a_request_has_a_kept_deadline(question):
    edge = next(e for e in EDGES if (e.source, e.target) == question[:2])
    assert edge.deadline > 0
    _held(*KEPT[question])


@pytest.mark.parametrize("said", ENDS, ids=" ".join)
def test_an_awaited_effect_has_a_kept_deadline(said):
    source, target, name = said
    assert any(
        name in {message.__name__ for message in e.messages}
        for e in EDGES
        if (e.source, e.target) == (source, target)
    )
    _held(*ENDS[said])


def _held(keeper, test):
    assert os.path.isfile(f"{ROOT}/{keeper}")
    path, _, name = test.partition("::")
    with open(f"{ROOT}/{path}") as file:
        assert re.search(rf"^(    )?def {name}\(", file.read(), re.M), test


def test_no_keeper_without_a_request():
    assert not KEPT.keys() - set(REQUESTS)


@pytest.mark.parametrize("edge", EDGES, ids=lambda e: f"{e.source}>{e.target}")
def test_every_other_message_is_listed_as_no_request(edge):
    names = {message.__name__ for message in edge.messages}
    others = names - edge.answers.keys()
    assert not others - NO_REQUESTS.keys(), (
        "a new message: name its answer in the table, or list it here with the reason"
    )
