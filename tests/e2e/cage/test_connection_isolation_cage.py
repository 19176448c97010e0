"""Test the sandbox of gates and their listeners, from inside and outside, and listeners that lie."""

import pytest
from popkernel.kernel.sandbox import lock, names
from popkernel.proto.topology import kind_of

from tests.e2e.cage.test_cage import check_deaths, expected_soft, ids, one_a_promise
from tests.support.saboteur.attempts import DEADLY, SAME_ON_LINUX, SOFT, promise_reported_for, refused_to
from tests.support.saboteur.service import PROMISES, Sabotaged, needs_sandbox
from tests.support.service import ROOT
from tests.support.waiting import wait_for

pytestmark = needs_sandbox
MAIL = (b"a: b\n\nc\n",)
ROWS = ("gate", "listener")


@pytest.fixture(scope="module")
def inside():
    """Let gate and listeners make every survivable attempt; two sessions are served, a third stays."""
    plan = {
        "soft": {row: expected_soft(row) for row in ROWS},
        "twins": {"gate.0": [name for name in refused_to(DEADLY, PROMISES["gate"]) if "kill" not in name]},
        "modules": True,
    }
    with Sabotaged(plan, mail=MAIL, isolation="connection") as service:
        service.pop3("alice").quit()
        assert "wrong name" in service.login_error("bob", "no")
        service.held = service.pop3("bob")
        service.status()
        yield service
        service.held.quit()


@pytest.mark.parametrize("row", ROWS)
def test_soft_attempts_from_inside(inside, row):
    found = {attempt: verdict for actor, attempt, verdict in inside.reports("soft") if kind_of(actor) == row}
    assert set(found) == set(expected_soft(row))
    assert not {attempt: verdict for attempt, verdict in found.items() if not verdict.startswith("refused")}


def test_every_promise_that_the_gate_lacks_has_an_attempt():
    lacks = set(names.PROMISES) - set(PROMISES["gate"].split()) - SAME_ON_LINUX
    assert lacks <= {
        promise
        for table in (SOFT, DEADLY)
        for name in refused_to(table, PROMISES["gate"])
        for promise in table[name].needs.split()
    }


def test_deadly_attempts_in_children_with_the_gates_cage(inside):
    found = {
        attempt: (status, said)
        for actor, attempt, status, said in inside.reports("twin")
        if actor == "gate.0"
    }
    assert len(found) > 15
    for attempt, (status, said) in found.items():
        assert status == "159", (attempt, status, said)
        assert said.split()[1] == promise_reported_for(DEADLY[attempt])


def test_nothing_is_imported_or_opened_once_the_ids_are_dropped(inside):
    found = inside.reports("modules")
    assert {"gate", "listener"} <= {kind_of(actor) for actor, *_ in found}
    assert not [words for words in found if words[1] != "-"]
    # the others see files
    assert not [
        words
        for words in found
        if words[2] != "-" and kind_of(words[0]) in ("auth", "listener", "gate", "mda")
    ]


def test_filters_ids_and_promises(inside):
    rows = {row: next(a for a in inside.status()["actors"] if kind_of(a["name"]) == row) for row in ROWS}
    for row, filters in (("gate", 2), ("listener", 3)):  # init's, the gate's, the listener's own
        actor = rows[row]
        assert actor["promises"] == PROMISES[row]
        assert actor["unveiled"] == []
        states = lock.thread_states(actor["pid"])
        assert len(states) == 1
        for state in states.values():
            assert (state["Seccomp"], state["NoNewPrivs"], state["Seccomp_filters"]) == (2, 1, filters)
        if ROOT:
            found = ids(actor["pid"])
            assert found["Uid"].split() == found["Gid"].split() == ["64001"] * 4
            assert found["Groups"].split() == ["64001"]
            assert (found["CapEff"], found["CapPrm"]) == ("0" * 16, "0" * 16)
            assert (actor["uid"], actor["gid"]) == (64001, 64001)


def test_deadly_attempts_of_listeners_cost_one_client_each():
    attempts = one_a_promise(PROMISES["listener"])
    users = [f"user{n}" for n in range(len(attempts))]
    # 1.1 is the bystander's session
    plan = {"deadly": {f"listener.1.{n + 2}": [attempt] for n, attempt in enumerate(attempts)}}
    with Sabotaged(plan, users=[*users, "bob"], mail=MAIL, isolation="connection") as service:
        bystander = service.pop3("bob")
        clients = [service.pop3(user) for user in users]
        gate = service.actor("gate.0")["pid"]
        for number, attempt in enumerate(attempts):
            service.wait_log(f"listener.1.{number + 2} ended", seconds=30)
            check_deaths(service.read_log(), f"listener.1.{number + 2}", [attempt])
        assert not service.reports("survived")
        for client in clients:
            with pytest.raises(Exception, match="EOF|reset|Broken pipe"):
                client.stat()
            client.close()
        assert bystander.stat()[0] == 1
        bystander.quit()
        assert service.status()["broken_promises"] == len(attempts)
        assert service.actor("gate.0")["pid"] == gate
        wait_for(lambda: service.serves("user0"))


@pytest.fixture(scope="module")
def hostile():
    """Run listeners that misbehave at a login of "evil-..."; bob's session must go on."""
    with Sabotaged({"garbage": {"listener": "armed"}}, mail=MAIL, isolation="connection") as service:
        yield service


@pytest.mark.parametrize(
    "what",
    [
        "kernel-octets",
        "kernel-unknown-code",
        "kernel-multipart",
        "other-wrong-type",
        "other-giant",
        "say-another-session",
        "say-hello-twice",
        "say-own-flood",
    ],
)
def test_garbage_from_a_listener_ends_it_alone(hostile, what):
    bob = hostile.pop3("bob")
    before = {a["name"]: a["pid"] for a in hostile.status()["actors"]}
    count = hostile.status()["refused_messages"]
    assert "EOF" in hostile.login_error(f"evil-{what}")
    wait_for(lambda: hostile.status()["refused_messages"] == count + 1)
    assert bob.stat()[0] == 1
    after = wait_for(
        lambda: {a["name"]: a["pid"] for a in hostile.status()["actors"]},
        until=lambda now: set(now) == set(before),
    )
    assert after == before
    bob.quit()


def test_one_users_actor_is_believed_of_the_listener_of_its_own_session():
    """That listener serves this user alone."""
    with Sabotaged(
        {"garbage": {"maildir.alice": "say accuse listener"}}, mail=MAIL, isolation="connection"
    ) as service:
        bob, alice = service.pop3("bob"), service.pop3("alice")
        service.wait_log("maildir.alice refused a message on x: a lie")
        service.wait_log("listener.1.2 ended: signal SIGKILL")
        with pytest.raises(Exception, match="EOF|reset|Broken pipe"):
            alice.stat()
        alice.close()
        assert bob.stat()[0] == 1
        bob.quit()
        wait_for(lambda: service.serves("alice"))
