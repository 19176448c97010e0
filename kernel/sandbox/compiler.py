"""From promises to a filter: which answer each system call gets, and the program that gives it. Pure."""

from __future__ import annotations

import errno as errors

from popkernel.kernel.sandbox import bpf, names, promises, syscalls
from popkernel.kernel.sandbox.bpf import ALLOW, KILL_PROCESS, Assembler, Check

# A call of the x32 kind has this bit in its number; so has -1.
_X32 = 0x40000000
_UNKNOWN = bpf.errno(errors.ENOSYS)

# What a call gets: if the test holds the answer beside it, else the next pair; the last test is None.
Decision = tuple[tuple["Check | None", int], ...]
_SAID: Decision = ((None, ALLOW),)  # the filter that a process is under already says it


def decisions(held: tuple[str, ...], *, threads: bool = False, nested: bool = False) -> dict[str, Decision]:
    """The answer to each call that promises.py names, for a process that holds `held`."""
    having = {*held, promises.ALWAYS, *([promises.THREADS] if threads else []), *([promises.NESTED] if nested else [])}
    soft = {name: bpf.errno(number) for number, calls in promises.SOFT for name in calls.split()}
    found: dict[str, Decision] = {name: ((None, answer),) for name, answer in soft.items()}
    for needs, _, calls in promises.GROUPS:
        answer = ALLOW if having.intersection(needs.split()) else 0
        for name in calls.split():
            found[name] = ((None, answer or soft.get(name) or _refusal(needs, having)),)
    for name, clauses in promises.RULES.items():
        found[name] = tuple(_rule(clauses, having, soft.get(name)))
    return found


def _refusal(needs: str, having: set[str]) -> int:
    """The answer to a call that needs one of `needs`. With "error" broken promises only fail, as on OpenBSD."""
    if "error" in having:
        return bpf.errno(errors.ENOSYS)
    first = needs.split(maxsplit=1)[0] if needs else ""
    return bpf.trap(names.PROMISES.index(first) + 1 if first in names.PROMISES else 0)


def _rule(clauses: tuple[promises.Clause, ...], having: set[str], soft: int | None) -> list[tuple[Check | None, int]]:
    rule: list[tuple[Check | None, int]] = []
    for test, needs, otherwise in clauses:
        if having.intersection(needs.split()):
            continue
        if otherwise is None:
            answer = soft or _refusal(needs, having)
        else:
            answer = otherwise if otherwise == KILL_PROCESS else bpf.errno(otherwise)
        rule.append((test, answer))
        if test is None:
            return rule
    rule.append((None, ALLOW))
    return rule


def compile_program(
    held: tuple[str, ...], machine: str, *, threads: bool = False, nested: bool = False, within: tuple[str, ...] | None = None,
) -> bytes:
    """A struct sock_filter[] for a process that holds `held`.

    Calls newer than the table get ENOSYS, as from a kernel that has not got them; known ones that nothing names break
    a promise. Other architectures and x32 end the process. `within`: the promises of a nested filter that this process is
    under already. All filters of a process are asked, and the strictest answer counts (seccomp(2)): what that one says of a call
    in the same words is left to it, and the program is a third as long.

    Raises:
        ValueError: a machine without table.
    """
    known = decisions(held, threads=threads, nested=nested)
    nothing: Decision = ((None, _refusal("", set(held))),)
    unknown: Decision = ((None, _UNKNOWN),)
    if within is not None:
        outer = decisions(within, nested=True)
        known = {name: _SAID if outer[name] == decision else decision for name, decision in known.items()}
        unknown = _SAID
        if ("error" in within) == ("error" in held):
            nothing = _SAID
    table = sorted((number, known.get(name, nothing)) for name, number in syscalls.numbers(machine).items())
    assembler = Assembler()

    def code(decision: Decision) -> int:
        label = assembler.ret(decision[-1][1])
        for test, answer in reversed(decision[:-1]):
            if test is not None:
                label = assembler.test(test, assembler.ret(answer), label)
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
