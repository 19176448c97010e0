"""Test every actor's sandbox, from the system's view and from inside the real actors after their hello."""

import os

import pytest
from popkernel.kernel.sandbox import capabilities, lock, names
from popkernel.proto.topology import ACTORS, kind_of

from tests.support.saboteur.attempts import DEADLY, SAME_ON_LINUX, SOFT, promise_reported_for, refused_to
from tests.support.saboteur.service import PROMISES, Sabotaged, needs_sandbox
from tests.support.service import ROOT, Service
from tests.support.waiting import wait_for

pytestmark = needs_sandbox
# tested in test_connection_isolation_cage.py, in a service that has gates
ROWS = [row.name for row in ACTORS if row.name != "gate"]


def expected_soft(row):
    """Return the attempts that must be refused softly.

    They lack a promise, or Landlock refuses them whatever the promises.
    """
    refused = refused_to(SOFT, PROMISES[row])
    if row != "init":  # it starts the others, and so unveils nothing
        refused += [name for name, attempt in SOFT.items() if attempt.landlock and name not in refused]
    own = {
        # the test's user table is beside the mail
        "kernel": {"signal the kernel", "other maildir", "other mail", "out by dots"},
        "spawner": {"other maildir", "other mail", "into other maildir"},  # refused to its children
    }
    return [name for name in refused if name not in own.get(row, ())]


@pytest.fixture(scope="module")
def inside():
    """Run a service in which every actor makes every survivable attempt, and two sessions are served."""
    plan = {
        "soft": {row: expected_soft(row) for row in ROWS},
        "twins": {row: refused_to(DEADLY, PROMISES[row]) for row in ("init", "spawner")},
        "threads": refused_to(SOFT, PROMISES["auth"]) + ["signal the kernel", "signal the parent"],
        "modules": True,
    }
    with Sabotaged(plan, mail=(b"a: b\n\nfirst\n", b"a: b\n\n.second\n"), lmtp=True) as service:
        yield service


@pytest.fixture(scope="module")
def session(inside):
    """Run sessions of alice and of carol over STLS, and a failing login; then collect all reports."""
    client = inside.pop3("alice")
    for number in range(1, len(client.list()[1]) + 1):
        client.retr(number)
        client.top(number, 1)
    client.uidl()
    client.dele(1)
    client.rset()
    client.dele(2)
    assert "wrong name" in inside.login_error("bob", "no")
    inside.status()
    client.quit()
    inside.pop3("alice").quit()  # its actor stays warm for the tests below
    return inside.status()


@pytest.mark.parametrize("row", ROWS)
def test_soft_attempts_from_inside(inside, session, row):
    found = {attempt: verdict for actor, attempt, verdict in inside.reports("soft") if kind_of(actor) == row}
    assert set(found) == set(expected_soft(row))
    let = {attempt: verdict for attempt, verdict in found.items() if not verdict.startswith("refused")}
    assert not let
    with open(inside.file) as file:
        assert file.read() == "text"
    assert sorted(os.listdir(os.path.dirname(inside.file))) == ["empty", "file"]


@pytest.mark.parametrize("row", ROWS)
def test_every_promise_that_is_lacking_has_an_attempt(row):
    lacks = set(names.PROMISES) - set(PROMISES[row].split()) - SAME_ON_LINUX
    tried = {
        promise
        for table in (SOFT, DEADLY)
        for name in refused_to(table, PROMISES[row])
        for promise in table[name].needs.split()
    }
    if "rpath" in PROMISES[row].split():
        # the system's files: rpath permits reading them, Landlock refuses ("passwd", "processes")
        lacks -= {"getpw", "ps"}
    assert lacks <= tried


@pytest.mark.parametrize("row", ["init", "spawner"])
def test_deadly_attempts_in_children_with_the_same_cage(inside, row):
    found = {
        attempt: (status, said) for actor, attempt, status, said in inside.reports("twin") if actor == row
    }
    for attempt in refused_to(DEADLY, PROMISES[row]):
        status, said = found[attempt]
        assert status == "159", (attempt, status, said)
        assert said.split()[1] == promise_reported_for(DEADLY[attempt])


def test_a_fork_of_auth_is_refused_softly(inside):
    assert inside.reports("fork") == [["auth", "Operation not permitted"]]


def test_threads_that_hash_are_caged(inside, session):
    found = inside.reports("thread")
    assert len(found) > 20
    assert not [words for words in found if not words[2].startswith("refused")]


def test_nothing_is_imported_or_opened_once_the_ids_are_dropped(inside, session):
    found = inside.reports("modules")
    assert {"kernel", "spawner", "auth", "listener.0", "mda", "maildir.alice"} <= {
        actor for actor, *_ in found
    }
    assert not [words for words in found if words[1] != "-"]
    # the other actors see files
    assert not [
        words
        for words in found
        if words[2] != "-" and kind_of(words[0]) in ("auth", "listener", "gate", "mda")
    ]


def test_seccomp_state_of_every_thread_of_every_process(inside, session):
    actors = {a["name"]: a["pid"] for a in inside.status()["actors"]} | {"init": inside.process.pid}
    assert set(actors.values()) == set(inside.pids())
    for name, pid in actors.items():
        states = lock.thread_states(pid)
        for state in states.values():
            assert (state["Seccomp"], state["NoNewPrivs"]) == (2, 1), name
        # init's filter also binds the actors it starts, the spawner's its children
        filters = {"init": 1, "kernel": 1, "maildir.{user}": 3}.get(kind_of(name), 2)
        assert {state["Seccomp_filters"] for state in states.values()} == {filters}, name
    assert len(lock.thread_states(actors["auth"])) == 1 + len(os.sched_getaffinity(0))
    # A listener has its watchdog as a second thread.
    expected = {"listener": 2}
    assert all(
        len(lock.thread_states(pid)) == expected.get(kind_of(name), 1)
        for name, pid in actors.items()
        if name != "auth"
    )


def ids(pid):
    with open(f"/proc/{pid}/status") as file:
        rows = dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)
    return rows


def test_ids_and_groups_of_every_process(inside, session):
    users = inside.site.mail_users
    own = (os.getuid(), os.getgid())
    for actor in inside.status()["actors"]:
        row = kind_of(actor["name"])
        if row == "maildir.{user}":
            uid, gid = users[actor["name"].partition(".")[2]][:2]
        elif ROOT and row in ("listener", "auth", "mda"):
            uid, gid = {"listener": (64001, 64001), "auth": (64002, 64002), "mda": (64003, 64003)}[row]
        else:
            uid, gid = own
        found = ids(actor["pid"])
        assert found["Uid"].split() == [str(uid)] * 4, actor
        assert found["Gid"].split() == [str(gid)] * 4, actor
        assert (actor["uid"], actor["gid"]) == (uid, gid), actor
        if ROOT and row not in ("kernel",):
            assert found["Groups"].split() == [str(gid)], actor
        if ROOT and uid:
            assert (found["CapEff"], found["CapPrm"]) == ("0" * 16, "0" * 16), actor


@pytest.mark.root("an ordinary user has no capabilities to drop")
def test_capabilities_of_every_process_are_those_of_its_row(inside, session):
    """Compares the permitted, effective and bounding sets; the inheritable set is empty."""
    mine = capabilities.mask(init := next(row.capabilities for row in ACTORS if row.name == "init")) & int(
        ids("self")["CapPrm"], 16
    )
    assert "sys_admin" not in init
    assert "dac_override" not in next(row.capabilities for row in ACTORS if row.name == "spawner")
    for name, pid in {
        **{a["name"]: a["pid"] for a in inside.status()["actors"]},
        "init": inside.process.pid,
    }.items():
        row, found = next(r for r in ACTORS if r.name == kind_of(name)), ids(pid)
        assert {int(found[field], 16) for field in ("CapPrm", "CapEff")} == {
            capabilities.mask(row.capabilities) & mine
        }, name
        assert {int(found[field], 16) for field in ("CapInh", "CapAmb")} == {0}, name
        bound = "kill setgid setuid" if row.name == "maildir.{user}" else row.capabilities
        assert int(found["CapBnd"], 16) & ~capabilities.mask(bound) == 0, name


def test_status_tells_the_promises_and_paths_of_the_table(inside, session):
    for actor in inside.status()["actors"]:
        row = next(r for r in ACTORS if r.name == kind_of(actor["name"]))
        assert actor["promises"] == row.promises, actor["name"]
        assert len(actor["unveiled"]) == len(row.unveiled), actor["name"]
        assert [p.rpartition(":")[2] for p in actor["unveiled"]] == [u.permissions for u in row.unveiled], (
            actor["name"]
        )


# -- attempts that end an actor
def broken_lines(log, actor):
    return [
        line.partition("popkernel: error: ")[2]
        for line in log.splitlines()
        if f"error: {actor} broke its promises: " in line
    ]


def check_deaths(log, actor, attempts):
    lines = broken_lines(log, actor)
    assert len(lines) == len(attempts), (actor, lines, attempts)
    for attempt, line in zip(attempts, lines, strict=True):
        assert line.removesuffix("; ended").endswith(
            f" would need {promise_reported_for(DEADLY[attempt])!r}"
        ), (
            attempt,
            line,
        )


def one_a_promise(promises):
    """Return one attempt for each missing promise, and one that no promise permits: each costs a start."""
    attempts = refused_to(DEADLY, promises)
    return [
        next(a for a in attempts if DEADLY[a].needs == needs)
        for needs in dict.fromkeys(DEADLY[a].needs for a in attempts)
    ]


def user_of(attempt):
    return "u-" + attempt.replace(" ", "-")


def test_deadly_attempts_of_maildir_actors_and_the_next_session_is_well():
    attempts = refused_to(DEADLY, PROMISES["maildir.{user}"])
    users = {user_of(attempt): "secret" for attempt in attempts}
    plan = {"deadly": {f"maildir.{user_of(attempt)}": [attempt] for attempt in attempts}}
    with Sabotaged(plan, users={**users, "bob": "secret"}, mail=(b"a: b\n\nc\n",)) as service:
        bystander = service.pop3("bob")
        for user in users:
            assert "SYS/TEMP" in service.login_error(user)
        for attempt in attempts:
            service.wait_log(f"maildir.{user_of(attempt)} ended")
            check_deaths(service.read_log(), f"maildir.{user_of(attempt)}", [attempt])
        assert bystander.stat()[0] == 1
        for user in users:
            client = service.pop3(user)
            assert client.stat()[0] == 1
            client.quit()
        assert service.status()["broken_promises"] == len(attempts)
        assert not service.reports("survived")
        bystander.quit()


def test_deadly_attempts_of_singletons_and_the_service_is_well():
    attempts = {name: one_a_promise(PROMISES[kind_of(name)]) for name in ("auth", "listener.0", "mda")}
    for name in ("auth", "listener.0"):
        # refused softly in a process with threads, so that the report works: see promises.py
        attempts[name].remove("fork")
    # the others are made in its children, above
    attempts["spawner"] = refused_to(DEADLY, PROMISES["spawner"])[:2]
    with Sabotaged(
        {"deadly": attempts}, restart_intensity=1000, restart_seconds=1, mail=(), lmtp=True
    ) as service:
        service.status()
        for actor, which in attempts.items():
            service.wait_log(f"error: {actor} broke its promises", count=len(which), seconds=30)
            check_deaths(service.read_log(), actor, which)
        assert not service.reports("survived")
        wait_for(service.serves)
        assert service.status()["broken_promises"] == sum(map(len, attempts.values()))


def test_deadly_attempts_of_the_kernel_end_the_service_and_leave_nothing():
    chosen = one_a_promise(PROMISES["kernel"])
    services = [
        Sabotaged({"deadly": {"kernel": [attempt]}}, expect_ready=False, users=("bob",), mail=())
        for attempt in chosen
    ]
    try:
        for attempt, service in zip(chosen, services, strict=True):
            assert service.process.wait(20) == 70
            check_deaths(service.read_log(), "kernel", [attempt])
            assert not service.reports("survived")
            assert not os.path.exists(service.config.run_dir)
    finally:
        for service in services:
            service.close()


def test_without_a_sandbox_nothing_is_claimed():
    with Service(arguments=["--insecure-no-sandbox"], users=("bob",), mail=()) as service:
        assert all("NONE" in a["promises"] or not a["promises"] for a in service.status()["actors"])
        service.pop3("bob").quit()
