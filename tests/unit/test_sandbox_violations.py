"""Test broken promises: the process ends, the violation is reported, and the process cannot prevent it."""

import ctypes
import errno
import mmap
import os
import signal
import sys

import pytest
from popkernel.kernel.sandbox import lock

from tests.unit.sandbox_child import BROKEN, MACHINE, SIGSYS, broken, call, forked, refused, sandboxed

pytestmark = pytest.mark.skipif(
    bool(sys.platform != "linux" or lock.missing()), reason=f"no sandbox here: {lock.missing()}"
)

X86 = pytest.mark.skipif(MACHINE != "x86_64", reason="x86_64 only")
PAGE = mmap.PAGESIZE


def test_error_promise_makes_everything_soft():
    assert sandboxed(lambda: call("ptrace", 0, 0, 0, 0), "stdio error") == refused(errno.ENOSYS)


def test_no_promise_permits_only_exit():
    assert sandboxed(lambda: os._exit(3), "", reports=False) == (3, [])
    assert sandboxed(lambda: os.getpid(), "", reports=False) == (-SIGSYS, [])
    # the report cannot be written either; the process ends all the same
    assert sandboxed(lambda: os.getpid(), "").status in (BROKEN, -SIGSYS)


def test_without_a_handler_the_signal_kills():
    assert sandboxed(lambda: call("ptrace", 0, 0, 0, 0), reports=False) == (-SIGSYS, [])


def test_an_exception_in_the_report_still_ends_the_process():
    program = lock.compile_promises("stdio")

    def body(say):
        def report(name, promise):
            say(name)
            raise RuntimeError

        lock.report_broken(report)
        lock.pledge(program)
        call("ptrace", 0, 0, 0, 0)

    assert forked(body) == (BROKEN, ["ptrace"])


def test_a_violation_inside_the_report_kills():
    program = lock.compile_promises("stdio")

    def body(say):
        lock.report_broken(lambda name, promise: call("ptrace", 0, 0, 0, 0))
        lock.pledge(program)
        call("bpf", 0, 0, 0)

    assert forked(body) == (-SIGSYS, [])


def test_a_process_that_turned_off_its_own_end_dies_at_the_second_try():
    from popkernel.kernel.sandbox import seccomp

    def body():
        seccomp.os._exit, end = lambda status: None, os._exit
        try:
            call("ptrace", 0, 0, 0, 0)
        except OSError:
            pass
        call("ptrace", 0, 0, 0, 0)
        end(0)

    assert sandboxed(body) == (-SIGSYS, ["broken: ptrace needs none"])


def test_sigsys_cannot_be_handled_by_others():
    for handler in (signal.SIG_IGN, signal.SIG_DFL, lambda *_: None):
        assert sandboxed(lambda: signal.signal(SIGSYS, handler)) == (-SIGSYS, [])
    assert sandboxed(lambda: fine_signal(signal.SIGUSR1)) == (0, ["True"])


def fine_signal(number):
    got = []
    signal.signal(number, lambda *_: got.append(1))
    signal.raise_signal(number)
    return bool(got)


def test_blocking_sigsys_does_not_help():
    def body():
        signal.pthread_sigmask(signal.SIG_BLOCK, [SIGSYS])
        call("ptrace", 0, 0, 0, 0)

    assert sandboxed(body) == (-SIGSYS, [])


def test_a_handler_set_before_is_not_an_escape():
    """report_broken() replaces a Python handler that was set while that was allowed."""
    assert sandboxed(
        lambda _: call("ptrace", 0, 0, 0, 0), before=lambda: signal.signal(SIGSYS, signal.SIG_IGN)
    ) == broken("ptrace", "none")


def test_a_sigsys_from_kill_is_distinguished():
    assert sandboxed(lambda: signal.raise_signal(SIGSYS)) == (
        BROKEN,
        ["broken: SIGSYS sent by a process needs none"],
    )


@X86
def test_x32_calls_kill():
    assert sandboxed(lambda: call(0x40000000 | 39)) == (-SIGSYS, [])


@X86
def test_calls_of_32_bits_kill():
    """Calls getpid by int 0x80, in machine code mapped beforehand."""

    def before():
        memory = mmap.mmap(-1, PAGE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        memory.write(b"\xb8\x14\x00\x00\x00\xcd\x80\xc3")  # mov eax, 20; int 0x80; ret
        return memory, ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(memory)))

    def free(say):
        _memory, code = before()
        return code()

    if forked(free).status != 0:
        pytest.skip("this kernel has no 32-bit calls")
    assert sandboxed(lambda code: code[1](), before=before) == (-SIGSYS, [])


def test_abort_is_still_an_abort():
    assert sandboxed(os.abort) == (-signal.SIGABRT, [])


def test_a_traceback_can_be_printed():
    import traceback

    def body():
        try:
            raise ValueError("inside")
        except ValueError:
            return "inside" in traceback.format_exc()

    assert sandboxed(body) == (0, ["True"])
