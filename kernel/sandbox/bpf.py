"""Assemble classic BPF programs for seccomp(2), as octets of struct sock_filter[]. Pure.

A program is built backwards, from its end. Each instruction is made after everything that it may jump to: so
every jump goes forward, as BPF demands, and its distance is known when it is written. A jump reaches 255
instructions. For a target farther away, the RET is copied or a JA is put on the way.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Leaf = TypeVar("Leaf")

# linux/bpf_common.h, spelled out: class | mode | source.
LOAD, AND, RETURN, ALWAYS = 0x20, 0x54, 0x06, 0x05
EQUAL, AT_LEAST = 0x15, 0x35

# Offsets in struct seccomp_data (linux/seccomp.h); both processors are little-endian.
NUMBER, ARCHITECTURE, ARGUMENTS = 0, 4, 16

ALLOW, KILL_PROCESS = 0x7FFF0000, 0x80000000
_ERRNO, _TRAP = 0x00050000, 0x00030000
_REACH = 250  # 255, less room for the two instructions that a jump may have to insert before itself
_WORD = 0xFFFFFFFF


def errno(number: int) -> int:
    """Return the filter's answer that lets the call fail with errno `number`."""
    return _ERRNO | number


def trap(data: int) -> int:
    """Return the filter's answer that raises SIGSYS with `data` (16 bits) in si_errno."""
    return _TRAP | data


class Check:
    """Test whether argument `arg` (0 to 5) of a call, masked, is one of `values`; `negate`: is none of them.

    Compares the low 32 bits only, as the kernel does for an int. `wide` compares all 64, for pointers.
    """

    __slots__ = ("arg", "mask", "negate", "values", "wide")

    def __init__(
        self,
        arg: int,
        values: tuple[int, ...],
        *,
        mask: int = _WORD,
        negate: bool = False,
        wide: bool = False,
    ) -> None:
        self.arg, self.values, self.mask, self.negate, self.wide = arg, values, mask, negate, wide


class Assembler:
    """Collect instructions, last one first.

    Each method that makes an instruction returns its label: its place, counted from the end of the program.
    """

    __slots__ = ("_code", "_labels")

    def __init__(self) -> None:
        self._code: list[tuple[int, int, int, int]] = []  # code, jt, jf and k of struct sock_filter
        self._labels: dict[tuple[int, int, int, int], int] = {}  # of instructions that can be used again

    def ret(self, answer: int) -> int:
        """End the program with `answer`."""
        return self._shared(RETURN, answer, -1, -1)

    def load(self, offset: int, then: int) -> int:
        """Load the 32 bits at `offset` of seccomp_data into the accumulator, and go on at `then`."""
        return self._before(LOAD, offset, then)

    def jump(self, operation: int, value: int, yes: int, no: int) -> int:
        """Compare the accumulator with `value` (EQUAL or AT_LEAST), and go on at `yes` or `no`."""
        if yes == no:
            return yes
        return self._shared(operation, value, yes, no)

    def test(self, test: Check, yes: int, no: int) -> int:
        """Test an argument, and go on at `yes` or `no`. It replaces the call's number in the accumulator."""
        if test.negate:
            yes, no = no, yes
        label = no
        for value in reversed(test.values):
            label = self.jump(EQUAL, value & test.mask, yes, label)
        if test.mask != _WORD:
            label = self._before(AND, test.mask, label)
        label = self.load(ARGUMENTS + 8 * test.arg, label)
        if test.wide:
            label = self.load(ARGUMENTS + 8 * test.arg + 4, self.jump(EQUAL, 0, label, no))
        return label

    def search(self, segments: Sequence[tuple[int, Leaf]], leaf: Callable[[Leaf], int]) -> int:
        """Find the segment that the accumulator's number falls into, by binary search.

        Args:
            segments: (first number, what holds from it on), rising, the first from 0.
            leaf: makes the code for one segment. It is called late, so that the code lies near the jump to
                it.
        """
        if len(segments) == 1:
            return leaf(segments[0][1])
        middle = len(segments) // 2
        right = self.search(segments[middle:], leaf)
        left = self.search(segments[:middle], leaf)
        return self.jump(AT_LEAST, segments[middle][0], right, left)

    def program(self, start: int) -> bytes:
        """Return the octets of struct sock_filter[], for a program that begins at `start`."""
        self._follow(start)
        return b"".join(struct.pack("=HBBI", *instruction) for instruction in reversed(self._code))

    def _before(self, code: int, k: int, then: int) -> int:
        """Put an instruction before `then`, or use an equal one within reach."""
        key = (code, k, then, -1)
        label = self._labels.get(key)
        if label is None or self._far(label):
            self._follow(then)
            label = self._labels[key] = self._put(code, 0, 0, k)
        return label

    def _shared(self, code: int, k: int, yes: int, no: int) -> int:
        """Put a jump or a return, or use an equal one within reach."""
        key = (code, k, yes, no)
        label = self._labels.get(key)
        if label is None or self._far(label):
            if code == RETURN:
                label = self._put(code, 0, 0, k)
            else:
                yes, no = self._near(yes), self._near(no)
                here = len(self._code) - 1
                label = self._put(code, here - yes, here - no, k)
            self._labels[key] = label
        return label

    def _put(self, code: int, yes: int, no: int, k: int) -> int:
        self._code.append((code, yes, no, k))
        return len(self._code) - 1

    def _far(self, label: int) -> bool:
        return len(self._code) - label > _REACH

    def _follow(self, label: int) -> None:
        """Let `label` be executed next after the instruction that is put now."""
        if label != len(self._code) - 1:
            self._put(ALWAYS, 0, 0, len(self._code) - 1 - label)

    def _near(self, label: int) -> int:
        """Return `label`, or a nearer instruction that leads to it."""
        if not self._far(label):
            return label
        code, _, _, k = self._code[label]
        if code == RETURN:
            return self.ret(k)
        return self._put(ALWAYS, 0, 0, len(self._code) - 1 - label)
