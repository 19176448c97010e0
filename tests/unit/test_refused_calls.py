"""Check the actors' filters against tests/support/refused_calls.py.

Every call, actor and promise has a row, and every row is as it says.
"""

import errno

import pytest
from popkernel.kernel.sandbox import bpf, compiler, names, syscalls
from popkernel.proto.topology import ACTORS

from tests.support.refused_calls import FREE, INSIDE, REFUSED
from tests.support.saboteur.attempts import SAME_ON_LINUX
from tests.unit.test_sandbox_filter import run, strictest

ROWS = {row.name: row for row in ACTORS}
MACHINES = tuple(syscalls.ARCHITECTURES)
POINTER = 0x7F0000001000


def program(filter_, machine):
    """Build a filter as kernel/runtime/actor.py, kernel/init/main.py, the spawner and the gate do."""
    row = ROWS["listener" if filter_ == "lone" else filter_]
    threads = filter_ == "init" or (row.threads and filter_ != "lone")
    return compiler.compile_program(
        names.split(row.promises), machine, threads=threads, nested=row.nested, sockets=row.sockets
    )


PROGRAMS = {
    machine: {one: program(one, machine) for one in {o for stack in INSIDE.values() for o in stack}}
    for machine in MACHINES
}


def answer(actor, machine, number, arguments):
    """Return the result of a call under all filters of an actor."""
    code = syscalls.ARCHITECTURES[machine]
    values = [POINTER if isinstance(value, bytes) else value & 0xFFFFFFFFFFFFFFFF for value in arguments]
    found = strictest(*(run(PROGRAMS[machine][one], number, code, values)[0] for one in INSIDE[actor]))
    if found == bpf.KILL_PROCESS:
        return "ended"
    if found == bpf.ALLOW:
        return "let through"
    return errno.errorcode[found & 0xFFFF] if found >> 16 == 5 else "killed"


def test_every_call_has_a_row():
    known = {name for machine in MACHINES for name in syscalls.numbers(machine)}
    rows = {row.call for row in REFUSED}
    assert known - rows - FREE == set()
    assert (rows | FREE) - known == set()
    assert rows & FREE == set()


def test_every_actor_has_its_filters_in_the_table():
    wanted = set(ROWS) | {"listener of a gate"}
    assert set(INSIDE) == wanted
    assert {who for row in REFUSED for who in row.who} <= wanted


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("actor", INSIDE)
def test_every_row_is_what_the_filters_say(actor, machine):
    numbers, wrong = syscalls.numbers(machine), []
    for row in REFUSED:
        if row.call in numbers:
            expected = "let through" if actor in row.who else row.others.get(actor, row.how)
            found = answer(actor, machine, numbers[row.call], row.arguments)
            if found != expected:
                wrong.append((row.call, row.what, found, expected))
    assert not wrong


@pytest.mark.parametrize("actor", INSIDE)
def test_calls_of_every_actor_are_let_through(actor):
    for machine in MACHINES:
        for name in FREE & set(syscalls.numbers(machine)):
            assert answer(actor, machine, syscalls.numbers(machine)[name], ()) == "let through", name


@pytest.mark.parametrize("promise", sorted(set(names.PROMISES) - SAME_ON_LINUX))
def test_every_promise_has_a_row_that_is_refused_without_it(promise):
    numbers, code = syscalls.numbers("x86_64"), syscalls.ARCHITECTURES["x86_64"]
    marks = {"nested": True, "sockets": True}
    least = {
        "getpw": {"rpath", "getpw", "ps"},
        "ps": {"rpath", "getpw", "ps"},
        "rpath": {"rpath", "getpw", "ps"},
    }.get(promise, {promise})
    whole, less = (
        compiler.compile_program(
            tuple(name for name in names.PROMISES if name not in lacks), "x86_64", **marks
        )
        for lacks in ({"error"}, {"error"} | least)
    )
    forms = [(row.call, row.arguments) for row in REFUSED] + [(name, ()) for name in FREE]
    for call, arguments in forms:
        values = [POINTER if isinstance(value, bytes) else value & 0xFFFFFFFFFFFFFFFF for value in arguments]
        if (
            run(whole, numbers.get(call, 999), code, values)[0]
            == bpf.ALLOW
            != run(less, numbers.get(call, 999), code, values)[0]
        ):
            return
    raise AssertionError(f"no form of a call is let through by {promise} alone")


@pytest.mark.parametrize("actor", INSIDE)
def test_calls_of_other_kinds_end_every_actor(actor):
    """Calls of i386 and x32 have their own numbers."""
    for number, architecture in ((1, 0x40000003), (11, 0x40000003), (0x40000000 | 520, 0xC000003E)):
        assert bpf.KILL_PROCESS in {
            run(PROGRAMS["x86_64"][one], number, architecture)[0] for one in INSIDE[actor]
        }
