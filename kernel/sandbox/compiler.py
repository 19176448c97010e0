"""Compile promises into a seccomp filter: decide each call's answer, and assemble the program. Pure."""

from __future__ import annotations

import errno as errors

from popkernel.kernel.sandbox import bpf, names, promises, syscalls
from popkernel.kernel.sandbox.bpf import ALLOW, KILL_PROCESS, Assembler, Check

# Set in the numbers of x32 calls, and in -1.
_X32 = 0x40000000
_UNKNOWN = bpf.errno(errors.ENOSYS)

# Pairs of tests and an answer. The first pair whose tests all hold decides. The last pair has no tests.
Decision = tuple[tuple[tuple[Check, ...], int], ...]


def decisions(
    held: tuple[str, ...], *, threads: bool = False, nested: bool = False, sockets: bool = False
) -> dict[str, Decision]:
    """Return the answers to each call that promises.py names, for a process that holds `held`."""
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
    """Return the answer to a call that needs one of `needs`, where none of them is held.

    With the promise "error" the call fails, as on OpenBSD; else SIGSYS reports a broken promise.
    """
    if "error" in having:
        return bpf.errno(errors.ENOSYS)
    first = needs.split(maxsplit=1)[0] if needs else ""
    return bpf.trap(names.PROMISES.index(first) + 1 if first in names.PROMISES else 0)


def _rule(
    clauses: tuple[promises.Clause, ...], having: set[str], soft: int | None
) -> list[tuple[tuple[Check, ...], int]]:
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
    held: tuple[str, ...],
    machine: str,
    *,
    threads: bool = False,
    nested: bool = False,
    sockets: bool = False,
) -> bytes:
    """Return a struct sock_filter[] for a process that holds `held`.

    Calls newer than the table get ENOSYS, as from a kernel without them. Calls of the table that no group and
    no rule names break a promise. Other architectures and x32 calls end the process. Of several filters the
    strictest answer counts (seccomp(2)); so each filter stands for all of the process's promises.

    Raises:
        ValueError: a machine without a table.
    """
    known = decisions(held, threads=threads, nested=nested, sockets=sockets)
    unnamed: Decision = (((), _refusal("", set(held))),)
    unknown: Decision = (((), _UNKNOWN),)
    table = sorted((number, known.get(name, unnamed)) for name, number in syscalls.numbers(machine).items())
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
    """Join neighbouring numbers with the same decision. Numbers that the table lacks are `unknown`."""
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
