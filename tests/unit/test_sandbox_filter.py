"""Run the filter in a BPF interpreter over every call, and compare it with promises.py."""

import errno
import itertools
import random
import struct
import time

import pytest
from popkernel.kernel.sandbox import bpf, compiler, names, promises, syscalls
from popkernel.kernel.sandbox.bpf import ALLOW, KILL_PROCESS, Assembler, Check
from popkernel.proto.topology import ACTORS

MACHINES = tuple(syscalls.ARCHITECTURES)
MAILDIR = "stdio rpath wpath cpath fattr flock unix"
SETS = [
    ("", {}),
    ("stdio", {}),
    ("stdio inet unix", {}),
    ("stdio", {"threads": True}),
    (MAILDIR, {}),
    (MAILDIR + " proc id", {"nested": True}),
    ("stdio sendfd recvfd exec prot_exec settime chown getpw ps", {}),
    ("stdio error", {}),
    ("flock wpath", {}),
    ("stdio inet unix", {"sockets": True}),
    ("stdio inet", {}),
    ("stdio unix chown", {}),
    (" ".join(names.PROMISES), {"nested": True, "threads": True, "sockets": True}),
]


def run(program, number, architecture, arguments=()):
    """Run a classic BPF program over struct seccomp_data; return (answer, steps)."""
    data = struct.pack(
        "=iIQ6Q",
        number if number < 2**31 else number - 2**32,
        architecture,
        0,
        *arguments,
        *(0,) * (6 - len(arguments)),
    )
    code = list(struct.iter_unpack("=HBBI", program))
    place = accumulator = steps = 0
    while True:
        operation, yes, no, k = code[place]
        place += 1
        steps += 1
        if operation == 0x20:
            assert k % 4 == 0 and k < 64
            (accumulator,) = struct.unpack_from("=I", data, k)
        elif operation == 0x54:
            accumulator &= k
        elif operation == 0x06:
            return k, steps
        elif operation == 0x05:
            place += k
        elif operation == 0x15:
            place += yes if accumulator == k else no
        elif operation == 0x35:
            place += yes if accumulator >= k else no
        else:
            raise AssertionError(f"operation {operation:#x}")


def holds(test, arguments):
    value = arguments[test.arg] if test.wide else arguments[test.arg] & 0xFFFFFFFF & test.mask
    return (
        value in [wanted & test.mask if not test.wide else wanted for wanted in test.values]
    ) != test.negate


def every(test):
    """Return the tests of a clause."""
    return () if test is None else (test,) if isinstance(test, Check) else test


def expected(name, held, arguments):
    """Return what the tables say, computed in another way than compiler.py does."""
    soft = {call: number for number, calls in promises.SOFT for call in calls.split()}

    def refused(needs, otherwise=None):
        if otherwise == KILL_PROCESS:
            return KILL_PROCESS
        if otherwise is not None or name in soft:
            return bpf.errno(otherwise if otherwise is not None else soft[name])
        if "error" in held:
            return bpf.errno(errno.ENOSYS)
        first = (needs.split() or [""])[0]
        return bpf.trap(names.PROMISES.index(first) + 1 if first in names.PROMISES else 0)

    if name in promises.RULES:
        for test, needs, otherwise in promises.RULES[name]:
            if all(holds(one, arguments) for one in every(test)) and not held & set(needs.split()):
                return refused(needs, otherwise)
        return ALLOW
    groups = [needs for needs, _, calls in promises.GROUPS if name in calls.split()]
    if any(held & set(needs.split()) for needs in groups):
        return ALLOW
    return refused(groups[0] if groups else "")


def samples(name):
    """Return arguments at and around every value that a rule tests, with and without the upper half."""
    values = [{0} for _ in range(6)]
    for clause, _, _ in promises.RULES.get(name, ()):
        for test in every(clause):
            bits = [1 << bit for bit in range(32) if test.mask != 0xFFFFFFFF and test.mask >> bit & 1]
            near = {abs(value + step) for value in test.values for step in (-1, 0, 1)}
            values[test.arg] |= (
                near | set(bits) | {test.mask, ~test.mask & 0xFFFFFFFF, 1 << 32, 1 << 63, 2**64 - 1}
            )
            values[test.arg] |= {value | 1 << 40 for value in test.values}
    return itertools.product(*values)


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize(("held", "marks"), SETS)
def test_the_filter_equals_the_table_for_every_call(machine, held, marks):
    program = compiler.compile_program(names.split(held), machine, **marks)
    having = {
        *held.split(),
        promises.ALWAYS,
        *(promises.THREADS for _ in marks if marks.get("threads")),
        *(promises.NESTED for _ in marks if marks.get("nested")),
        *(promises.SOCKETS for _ in marks if marks.get("sockets")),
    }
    numbers = syscalls.numbers(machine)
    longest = 0
    for name, number in numbers.items():
        for arguments in samples(name):
            answer, steps = run(program, number, syscalls.ARCHITECTURES[machine], arguments)
            assert answer == expected(name, having, arguments), (name, arguments)
            longest = max(longest, steps)
    for number in set(range(600)) - set(numbers.values()):
        assert run(program, number, syscalls.ARCHITECTURES[machine])[0] == bpf.errno(errno.ENOSYS)
    assert longest < 60
    assert len(program) // 8 < 600


def strictest(*answers):
    """Combine the answers of several filters as seccomp(2) does: the highest precedence, then the latest."""
    order = [KILL_PROCESS, 0x00030000, 0x00050000, ALLOW]
    return min(answers, key=lambda answer: order.index(answer if answer in order else answer & 0xFFFF0000))


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("row", [row.name for row in ACTORS if row.name != "init"])
def test_an_actor_s_own_filter_has_all_its_promises(machine, row):
    """Without the filters of init, the spawner or the gate, no further call would be let through."""
    rows = {row.name: row for row in ACTORS}
    own = compiler.compile_program(
        names.split(rows[row].promises),
        machine,
        threads=rows[row].threads,
        nested=rows[row].nested,
        sockets=rows[row].sockets,
    )
    outer = [rows["init"], *([rows["spawner"]] if row == "maildir.{user}" else [])]
    programs = [
        compiler.compile_program(
            names.split(o.promises), machine, threads=o is outer[0], nested=True, sockets=o.sockets
        )
        for o in outer
    ]
    architecture = syscalls.ARCHITECTURES[machine]
    for name, number in syscalls.numbers(machine).items():
        for arguments in samples(name):
            mine = run(own, number, architecture, arguments)[0]
            both = strictest(
                mine, *(run(program, number, architecture, arguments)[0] for program in programs)
            )
            assert (mine == ALLOW) == (both == ALLOW), (name, arguments)


@pytest.mark.parametrize("machine", MACHINES)
def test_other_architectures_end_the_process(machine):
    program = compiler.compile_program(("stdio",), machine)
    others = [
        0x40000003,
        0x40000028,
        0,
        *(code for name, code in syscalls.ARCHITECTURES.items() if name != machine),
    ]
    for architecture, number in itertools.product(others, (0, 1, 39, 60, 93, 231)):
        assert run(program, number, architecture)[0] == KILL_PROCESS


def test_x32_calls_end_the_process():
    program = compiler.compile_program(("stdio",), "x86_64")
    for number in (0x40000000, 0x40000027, 0x400000E7, 0x7FFFFFFF, 0xFFFFFFFF):
        assert run(program, number, 0xC000003E)[0] == KILL_PROCESS


def test_every_name_in_the_tables_is_a_call_and_stands_in_one_group():
    known = set(syscalls.numbers("x86_64")) | set(syscalls.numbers("aarch64"))
    grouped = [name for _, _, calls in promises.GROUPS for name in calls.split()]
    softened = [name for _, calls in promises.SOFT for name in calls.split()]
    assert sorted(grouped) == sorted(set(grouped))
    assert sorted(softened) == sorted(set(softened))
    assert set(grouped) | set(softened) | set(promises.RULES) <= known
    assert not set(grouped) & set(promises.RULES)
    needs = {need for names_, _, _ in promises.GROUPS for need in names_.split()}
    needs |= {need for rule in promises.RULES.values() for _, names_, _ in rule for need in names_.split()}
    assert needs <= {*names.PROMISES, promises.ALWAYS, promises.THREADS, promises.NESTED, promises.SOCKETS}


def test_no_rule_lets_a_call_through_without_any_promise():
    for name in promises.RULES:
        for arguments in samples(name):
            assert expected(name, {promises.ALWAYS}, arguments) != ALLOW, (name, arguments)


def test_calls_that_no_promise_permits():
    answers = compiler.decisions(names.PROMISES, threads=True, nested=True, sockets=True)
    known = set(syscalls.numbers("x86_64"))
    never = set(
        "ptrace process_vm_readv process_vm_writev bpf mount umount2 move_mount fsopen open_tree pivot_root "
        "chroot setns unshare keyctl add_key request_key kexec_load kexec_file_load init_module finit_module "
        "delete_module perf_event_open userfaultfd pidfd_getfd open_by_handle_at mknod mknodat personality "
        "modify_ldt iopl ioperm io_uring_setup io_uring_enter openat2 clone3 reboot swapon sethostname "
        "quotactl acct syslog process_madvise kcmp chmod fchmodat fchmodat2 lchown utime utimes futimesat "
        "truncate creat setxattr lsetxattr fsetxattr removexattr "
        "chdir fchdir sendmmsg pidfd_send_signal rt_sigqueueinfo rt_tgsigqueueinfo".split()
    )
    assert never <= known
    for name in never & set(answers):
        assert [answer for _, answer in answers[name] if answer == ALLOW] == []


def test_unknown_promises_and_machines_are_named():
    with pytest.raises(ValueError, match="unknown promise 'tape'"):
        names.split("stdio tape")
    with pytest.raises(ValueError, match="riscv64"):
        compiler.compile_program(("stdio",), "riscv64")


def test_names_and_numbers_of_calls():
    assert syscalls.numbers("x86_64")["execve"] == 59
    assert syscalls.numbers("aarch64")["execve"] == 221
    assert "open" not in syscalls.numbers("aarch64")
    assert syscalls.name_of(59, 0xC000003E) == "execve"
    assert syscalls.name_of(9999, 0xC000003E) == "syscall 9999 of architecture 0xc000003e"
    assert [names.at(place) for place in (0, 1, 13, 99)] == ["none", "stdio", "exec", "none"]
    for machine in MACHINES:
        numbers = syscalls.numbers(machine)
        assert len(set(numbers.values())) == len(numbers)


def test_jumps_farther_than_an_octet_arrive():
    """Compares random trees of tests, too wide for one jump, with plain Python."""
    chance = random.Random(1939)
    for _ in range(20):
        assembler = Assembler()
        rules = [
            [
                (
                    Check(
                        chance.randrange(6),
                        (chance.randrange(99), chance.randrange(99)),
                        negate=chance.random() < 0.3,
                        wide=chance.random() < 0.3,
                    ),
                    chance.randrange(5),
                )
                for _ in range(chance.randrange(4))
            ]
            for _ in range(400)
        ]

        def leaf(rule):
            label = assembler.ret(ALLOW)
            for test, answer in reversed(rule):
                label = assembler.test(test, assembler.ret(answer), label)
            return label

        program = assembler.program(
            assembler.load(bpf.NUMBER, assembler.search(list(enumerate(rules)), leaf))
        )
        for number, rule in enumerate(rules):
            arguments = [
                chance.choice([*(test.values[0] for test, _ in rule), 0, 5, 1 << 32]) for _ in range(6)
            ]
            wanted = next((answer for test, answer in rule if holds(test, arguments)), ALLOW)
            assert run(program, number, 0, arguments)[0] == wanted
        assert len(program) // 8 > 600


def test_compiling_is_quick(capsys):
    times = []
    for _ in range(7):
        begun = time.perf_counter()
        program = compiler.compile_program(names.split(MAILDIR), "x86_64")
        times.append(time.perf_counter() - begun)
    with capsys.disabled():
        print(f"\n[sandbox] compile: {min(times) * 1e3:.2f} ms, {len(program) // 8} instructions")
    assert min(times) < 0.02
