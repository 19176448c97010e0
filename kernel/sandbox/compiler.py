"""From promises to a filter: which answer each system call gets, and the program that gives it. Pure."""

from __future__ import annotations

import errno as errors

from popkernel.kernel.sandbox import bpf, names, promises, syscalls
from popkernel.kernel.sandbox.bpf import ALLOW, KILL_PROCESS, Assembler, Check

# A call of the x32 kind has this bit in its number; so has -1.
_X32 = 0x40000000
_UNKNOWN = bpf.errno(errors.ENOSYS)

# What a call gets: if the tests all hold the answer beside them, else the next pair; the last has no test.
Decision = tuple[tuple[tuple[Check, ...], int], ...]


def decisions(held: tuple[str, ...], *, threads: bool = False, nested: bool = False, sockets: bool = False) -> dict[str, Decision]:
    """The answer to each call that promises.py names, for a process that holds `held`."""
    marks = ((promises.THREADS, threads), (promises.NESTED, nested), (promises.SOCKETS, sockets))
    having = {*held, promises.ALWAYS, *(mark for mark, given in marks if given)}
    soft = {name: bpf.errno(number) for number, calls in promises.SOFT for name in calls.split()}
    found: dict[str, Decision] = {name: (((), answer),) for name, answer in soft.items()}
    for needs, _, calls in promises.GROUPS:
        answer = ALLOW if having.intersection(needs.split()) else 0
        for name in calls.split():
            found[name] = (((), answer or soft.get(name) or _refusal(needs, having)),)
    for name, clauses in promises.RULES.items():
        found[name] = tuple(_rule(clauses, having, soft.get(name)))
    return found


def _refusal(needs: str, having: set[str]) -> int:
    """The answer to a call that needs one of `needs`. With "error" broken promises only fail, as on OpenBSD."""
    if "error" in having:
        return bpf.errno(errors.ENOSYS)
    first = needs.split(maxsplit=1)[0] if needs else ""
    return bpf.trap(names.PROMISES.index(first) + 1 if first in names.PROMISES else 0)


def _rule(clauses: tuple[promises.Clause, ...], having: set[str], soft: int | None) -> list[tuple[tuple[Check, ...], int]]:
    rule: list[tuple[tuple[Check, ...], int]] = []
    for test, needs, otherwise in clauses:
        if having.intersection(needs.split()):
            continue
        if otherwise is None:
            answer = soft or _refusal(needs, having)
        else:
            answer = otherwise if otherwise == KILL_PROCESS else bpf.errno(otherwise)
        tests = () if test is None else (test,) if isinstance(test, Check) else test
        rule.append((tests, answer))
        if not tests:
            return rule
    rule.append(((), ALLOW))
    return rule


def compile_program(
    held: tuple[str, ...], machine: str, *, threads: bool = False, nested: bool = False, sockets: bool = False,
) -> bytes:
    """A struct sock_filter[] for a process that holds `held`.

    Calls newer than the table get ENOSYS, as from a kernel that has not got them; known ones that nothing names break
    a promise. Other architectures and x32 end the process. All filters of a process are asked, and the strictest answer
    counts (seccomp(2)); each says all of its promises, whatever the others say.

    Raises:
        ValueError: a machine without table.
    """
    known = decisions(held, threads=threads, nested=nested, sockets=sockets)
    nothing: Decision = (((), _refusal("", set(held))),)
    unknown: Decision = (((), _UNKNOWN),)
    table = sorted((number, known.get(name, nothing)) for name, number in syscalls.numbers(machine).items())
    assembler = Assembler()

    def code(decision: Decision) -> int:
        label = assembler.ret(decision[-1][1])
        for tests, answer in reversed(decision[:-1]):
            yes, no = assembler.ret(answer), label
            for test in reversed(tests):
                yes = assembler.test(test, yes, no)
            label = yes
        return label

    tree = assembler.search(_segments(table, unknown), code)
    if machine == "x86_64":
        tree = assembler.jump(bpf.AT_LEAST, _X32, assembler.ret(KILL_PROCESS), tree)
    tree = assembler.load(bpf.NUMBER, tree)
    tree = assembler.jump(bpf.EQUAL, syscalls.ARCHITECTURES[machine], tree, assembler.ret(KILL_PROCESS))
    return assembler.program(assembler.load(bpf.ARCHITECTURE, tree))


def _segments(table: list[tuple[int, Decision]], unknown: Decision) -> list[tuple[int, Decision]]:
    """Runs of numbers with the same decision; numbers between and after the known ones are `unknown` calls."""
    segments: list[tuple[int, Decision]] = []

    def from_here(number: int, decision: Decision) -> None:
        if not segments or segments[-1][1] != decision:
            segments.append((number, decision))

    following = 0
    for number, decision in table:
        if number > following:
            from_here(following, unknown)
        from_here(number, decision)
        following = number + 1
    from_here(following, unknown)
    return segments
