"""Make every call of tests/support/refused_calls.py from inside every thread of every serving actor.

Each must be refused as its row says.
"""

import contextlib
import os
import tempfile

import pytest
from popkernel.kernel.sandbox import landlock, syscalls
from popkernel.proto.topology import ACTORS, kind_of

from tests.support.faults.injected_calls import Thread, answer_in_words, cannot, threads
from tests.support.refused_calls import ANY, FILE, FOLDER, INSIDE, KERNEL, PARENT, REFUSED, SOCK
from tests.support.saboteur.service import needs_sandbox
from tests.support.service import Service
from tests.unit.test_refused_calls import program

pytestmark = [
    needs_sandbox,
    pytest.mark.skipif(bool(cannot()), reason=f"no system calls by ptrace(2) here: {cannot()}"),
]
NUMBERS = syscalls.numbers(os.uname().machine)


@pytest.fixture(scope="module")
def place():
    """Provide a directory and a file in it, both writable by everyone."""
    with tempfile.TemporaryDirectory(prefix="pkcalls") as folder:
        os.chmod(folder, 0o777)
        os.mkdir(f"{folder}/empty")
        with open(f"{folder}/file", "w") as file:
            file.write("text")
        for name in ("empty", "file"):
            os.chmod(f"{folder}/{name}", 0o777)
        yield folder
        assert sorted(os.listdir(folder)) == ["empty", "file"]
        assert os.stat(f"{folder}/file").st_size == 4


def descriptors(pid):
    found = {}
    for fd in map(int, os.listdir(f"/proc/{pid}/fd")):
        with contextlib.suppress(FileNotFoundError):  # another thread has closed it meanwhile
            found[fd] = os.readlink(f"/proc/{pid}/fd/{fd}")
    return {fd: link for fd, link in found.items() if fd > 2}


def arguments(row, pid, place, kernel):
    """Return the row's arguments with the placeholders filled in for that process."""
    fds = descriptors(pid)
    there = {
        SOCK: next((fd for fd, link in fds.items() if link.startswith("socket:")), 0),
        ANY: min(fds, default=0),
        KERNEL: kernel,
        PARENT: parent(pid),
    }
    paths = {FILE: f"{place}/file".encode(), FOLDER: place.encode()}
    return [
        value.replace(FILE, paths[FILE]).replace(FOLDER, paths[FOLDER])
        if isinstance(value, bytes)
        else there.get(value, value)
        for value in row.arguments
    ]


def parent(pid):
    with open(f"/proc/{pid}/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("PPid:"))


def expected(row, actor):
    """Return the expected result; None for calls that are let through and have tests of their own."""
    if row.how == "ended" or row.call in ("uprobe", "uretprobe"):
        # uprobe and uretprobe bypass the filter; a call that ends the process shows no signal here (see
        # test_sandbox_violations.py)
        return None
    if actor not in row.who:
        return row.others.get(actor, row.how)
    if not row.landlock or actor == "init":  # init unveils nothing, for it starts the others
        return None
    if row.landlock == "EPERM" and (landlock.abi() < 6 or actor == "kernel" or row.what == "all"):
        # Signals: older kernels lack the scope, and the kernel may signal itself. A signal to all succeeds if
        # any process may be signalled.
        return None
    return row.landlock


def let_through(pid, actor, place, kernel):
    """Return what is not refused as it should be: (thread, call, what, answer, expected)."""
    wrong = []
    for tid in threads(pid):
        with Thread(tid) as thread:
            for row in REFUSED:
                wanted = expected(row, actor)
                if wanted is not None and row.call in NUMBERS:
                    heard = answer_in_words(
                        thread.call(NUMBERS[row.call], arguments(row, pid, place, kernel))
                    )
                    if heard != wanted:
                        wrong.append((tid - pid, row.call, row.what, heard, wanted))
    return wrong


@pytest.fixture(scope="module")
def service():
    with Service(users=("alice", "bob"), mail=(b"a: b\n\nc\n",), lmtp=True) as one:
        one.pop3("alice").quit()  # its actor stays warm
        yield one
        client = one.pop3("bob")  # after all attempts the service works
        assert client.stat()[0] == 1
        client.quit()
        assert all(actor["restarts"] == 0 for actor in one.status()["actors"])


@pytest.fixture(scope="module")
def by_connection():
    with Service(users=("alice",), mail=(b"a: b\n\nc\n",), isolation="connection") as one:
        one.held = one.pop3("alice")
        yield one
        assert one.held.stat()[0] == 1
        one.held.quit()


@pytest.mark.parametrize("row", [row.name for row in ACTORS if row.name != "gate"])
def test_refused_calls_from_every_thread_of_an_actor(service, place, row):
    pids = {actor["name"]: actor["pid"] for actor in service.status()["actors"]} | {
        "init": service.process.pid
    }
    mine = {name: pid for name, pid in pids.items() if kind_of(name) == row}
    assert mine
    for name, pid in mine.items():
        wrong = let_through(pid, row, place, pids["kernel"])
        assert not wrong, name


@pytest.mark.parametrize("row", ["gate", "listener of a gate"])
def test_refused_calls_from_every_thread_of_gates_and_listeners(by_connection, place, row):
    pids = {actor["name"]: actor["pid"] for actor in by_connection.status()["actors"]}
    name = next(name for name in pids if kind_of(name) == row.partition(" ")[0])
    wrong = let_through(pids[name], row, place, pids["kernel"])
    assert not wrong


def whole(filter_, instructions):
    """Return whether a filter is the one compiled from the promises of a row."""
    return program(filter_, os.uname().machine) == instructions


@pytest.mark.parametrize("row", [row.name for row in ACTORS if row.name != "gate"])
def test_the_filters_in_force_have_all_promises_of_the_table(service, row):
    """A filter must not say only what the parent's does not."""
    pids = {actor["name"]: actor["pid"] for actor in service.status()["actors"]} | {
        "init": service.process.pid
    }
    for tid in threads(next(pid for name, pid in pids.items() if kind_of(name) == row)):
        with Thread(tid) as thread:
            try:
                found = thread.filters()
            except OSError as error:
                pytest.skip(f"filters in force are not shown here: {error.strerror}")
        outside = len(found) - len(INSIDE[row])  # filters of the test run itself
        assert [whole(*pair) for pair in zip(INSIDE[row], found[outside:], strict=True)] == [True] * len(
            INSIDE[row]
        )


def test_the_injector_makes_calls_and_sees_deadly_ones(service):
    """Otherwise the tests above could pass without any call."""
    pid = service.actor("listener.0")["pid"]
    with Thread(pid) as thread:
        assert thread.call(NUMBERS["getpid"], ()) == pid
        assert answer_in_words(thread.call(NUMBERS["close"], (9999,))) == "EBADF"
        assert thread.call(NUMBERS["ptrace"], (0, 0, 0, 0)) == "killed"
        assert answer_in_words(thread.call(NUMBERS["read"], (0, b"x", 0))) == "let through"
    assert service.actor("listener.0")["pid"] == pid


def test_a_listener_that_makes_shared_sockets_block_stops_no_other():
    """Every actor may call fcntl(F_SETFL) on a shared socket, whose flags are common to all."""
    with Service(users=("alice",), mail=(b"a: b\n\nc\n",), listeners=2) as service:
        pid, other = (service.actor(f"listener.{n}")["pid"] for n in (0, 1))
        shared = {link for link in descriptors(pid).values() if link.startswith("socket:")} & set(
            descriptors(other).values()
        )
        assert shared
        with Thread(pid) as thread:
            for fd, link in descriptors(pid).items():
                if link in shared:
                    assert thread.call(NUMBERS["fcntl"], (fd, 4, 0)) == 0  # F_SETFL, without O_NONBLOCK
        for _ in range(20):
            # both listeners are woken, and one finds no connection
            one, other = service.pop3(login=False), service.pop3(login=False)
            for client in (one, other):
                client.sock.settimeout(5)
                assert client.capa()
                client.close()
