"""Make system calls in other processes, thread by thread, as if their own code had made them.

Uses ptrace(2) on x86_64. Where a filter would end the process, its SIGSYS is intercepted and only reported.
"""

import contextlib
import ctypes
import errno
import os
import platform
import signal
import struct

from tests.support.waiting import wait_for

_SEIZE, _INTERRUPT, _STEP, _DETACH, _GETREGS, _SETREGS, _GET_FILTER = 0x4206, 0x4207, 9, 17, 12, 13, 0x420C
_WALL = 0x40000000
_NAMES = (
    "r15 r14 r13 r12 rbp rbx r11 r10 r9 r8 rax rcx rdx rsi rdi orig_rax rip cs eflags rsp ss fs_base "
    "gs_base ds es fs gs"
).split()
_REGISTERS = struct.Struct("=27Q")
_ARGUMENTS = ("rdi", "rsi", "rdx", "r10", "r8", "r9")
_SYSCALL = b"\x0f\x05"
_BELOW = 8192  # octets below the stack pointer, clear of what the thread keeps there
_libc = ctypes.CDLL(None, use_errno=True)


def _ptrace(request, tid, address=0, data=0):
    answer = _libc.ptrace(
        ctypes.c_long(request), ctypes.c_long(tid), ctypes.c_void_p(address), ctypes.c_void_p(data)
    )
    if answer < 0:
        raise OSError(ctypes.get_errno(), f"ptrace({request:#x}): {os.strerror(ctypes.get_errno())}")


def cannot():
    """Say why calls cannot be injected here; "" if they can."""
    if platform.machine() != "x86_64":
        return "registers of another processor"
    child = os.fork()
    if child == 0:
        signal.pause()
        os._exit(0)
    try:
        _ptrace(_SEIZE, child)
    except OSError as error:
        return str(error)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return ""


def threads(pid):
    return sorted(map(int, os.listdir(f"/proc/{pid}/task")))


class Thread:
    """Keep one thread stopped while this context is active."""

    def __init__(self, tid):
        self.tid = tid
        self.memory = -1
        self.pending = 0  # a signal meant for the thread, delivered afterwards

    def __enter__(self):
        self.memory = os.open(f"/proc/{self.tid}/mem", os.O_RDWR)
        wait_for(self._stopped_in_a_call)
        return self

    def _stopped_in_a_call(self):
        """Wait until the thread blocks in a call, as each of these threads does sooner or later."""
        _ptrace(_SEIZE, self.tid)
        _ptrace(_INTERRUPT, self.tid)
        self._wait()
        self.before = self._registers()
        self.code = self.before["rip"] - 2
        if os.pread(self.memory, 2, self.code) == _SYSCALL:
            return True
        _ptrace(_DETACH, self.tid)
        return False

    def __exit__(self, *_):
        os.close(self.memory)
        with contextlib.suppress(OSError):  # the thread has ended
            self._set(self.before)
            _ptrace(_DETACH, self.tid, 0, self.pending)

    def call(self, number, arguments):
        """Return the result, minus errno, or "killed" where a filter would have ended the process."""
        place = (self.before["rsp"] - _BELOW) & ~0xFFF
        values = []
        for argument in arguments:
            if isinstance(argument, bytes):
                os.pwrite(self.memory, argument + b"\0", place)
                values.append(place)
                place += 512
            else:
                values.append(argument & 0xFFFFFFFFFFFFFFFF)
        there = dict(zip(_ARGUMENTS, values, strict=False))
        minus = 0xFFFFFFFFFFFFFFFF
        self._set(self.before | there | {"rip": self.code, "rax": number, "orig_rax": minus})
        while True:
            _ptrace(_STEP, self.tid)
            stopped = self._wait()
            if stopped == signal.SIGTRAP:
                now = self._registers()
                if now["rip"] == self.code:
                    continue  # the trap of an earlier step, interrupted by SIGSYS
                return now["rax"] - 2**64 if now["rax"] >= 2**63 else now["rax"]
            if stopped == signal.SIGSYS:
                return "killed"
            self.pending = stopped

    def filters(self):
        """Return the thread's seccomp programs, outermost first; OSError if the system does not show them."""
        found = []
        while True:
            room = ctypes.create_string_buffer(8 * 4096)
            many = _libc.ptrace(
                ctypes.c_long(_GET_FILTER),
                ctypes.c_long(self.tid),
                ctypes.c_void_p(len(found)),
                ctypes.addressof(room),
            )
            if many < 0:
                if ctypes.get_errno() == errno.ENOENT:
                    return found
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
            found.append(room.raw[: 8 * many])

    def _wait(self):
        _, status = os.waitpid(self.tid, _WALL)
        if not os.WIFSTOPPED(status):
            raise AssertionError(f"ended: {status:#x}")
        return os.WSTOPSIG(status)

    def _registers(self):
        room = ctypes.create_string_buffer(_REGISTERS.size)
        _ptrace(_GETREGS, self.tid, 0, ctypes.addressof(room))
        return dict(zip(_NAMES, _REGISTERS.unpack(room.raw), strict=True))

    def _set(self, registers):
        room = ctypes.create_string_buffer(
            _REGISTERS.pack(*(registers[name] for name in _NAMES)), _REGISTERS.size
        )
        _ptrace(_SETREGS, self.tid, 0, ctypes.addressof(room))


def answer_in_words(answer):
    """Name a result: `killed`, an errno, or `let through`."""
    if isinstance(answer, str):
        return answer
    return errno.errorcode.get(-answer, str(answer)) if -4096 < answer < 0 else "let through"
