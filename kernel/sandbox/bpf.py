"""An assembler for classic BPF as seccomp(2) takes it: decisions in, struct sock_filter octets out. Pure.

A program is built from its end backwards: an instruction is made after everything it may jump to, so each jump goes
forward, as BPF demands, and its distance is known when it is written. A jump reaches 255 instructions; what is farther
gets a copy of the RET, or a JA on the way.
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
_REACH = 250  # 255, less room for the two instructions that a jump may have to put before itself
_WORD = 0xFFFFFFFF


def errno(number: int) -> int:
    """The filter's answer that lets the call fail with `number`."""
    return _ERRNO | number


def trap(data: int) -> int:
    """The filter's answer that raises SIGSYS with `data` (16 bits) in si_errno."""
    return _TRAP | data


class Check:
    """Whether argument `arg` (0 to 5), masked, is one of `values`; `negate` turns it round.

    Only the low 32 bits are looked at, as the kernel does for an int; `wide` takes all 64, for pointers.
    """

    __slots__ = ("arg", "mask", "negate", "values", "wide")

    def __init__(self, arg: int, values: tuple[int, ...], *, mask: int = _WORD, negate: bool = False, wide: bool = False) -> None:
        self.arg, self.values, self.mask, self.negate, self.wide = arg, values, mask, negate, wide


class Assembler:
    """Collects instructions, last one first. A label is a place counted from the end."""

    __slots__ = ("_code", "_made")

    def __init__(self) -> None:
        self._code: list[tuple[int, int, int, int]] = []
        self._made: dict[tuple[int, int, int, int], int] = {}

    def ret(self, answer: int) -> int:
        """Ends the program with `answer`."""
        return self._once(RETURN, answer, -1, -1)

    def load(self, offset: int, then: int) -> int:
        """Takes the 32 bits at `offset` of seccomp_data, and goes on at `then`."""
        return self._straight(LOAD, offset, then)

    def jump(self, operation: int, value: int, yes: int, no: int) -> int:
        """Compares the accumulator with `value` (EQUAL or AT_LEAST)."""
        if yes == no:
            return yes
        return self._once(operation, value, yes, no)

    def test(self, test: Check, yes: int, no: int) -> int:
        """Loads and looks at an argument; the number of the call is forgotten then."""
        if test.negate:
            yes, no = no, yes
        label = no
        for value in reversed(test.values):
            label = self.jump(EQUAL, value & test.mask, yes, label)
        if test.mask != _WORD:
            label = self._straight(AND, test.mask, label)
        label = self.load(ARGUMENTS + 8 * test.arg, label)
        if test.wide:
            label = self.load(ARGUMENTS + 8 * test.arg + 4, self.jump(EQUAL, 0, label, no))
        return label

    def search(self, segments: Sequence[tuple[int, Leaf]], leaf: Callable[[Leaf], int]) -> int:
        """A binary search of the accumulator: (first number, what holds from there on), rising, the first from 0.

        `leaf` makes the code for one of them; it is asked late, so that the code lies near the jump to it.
        """
        if len(segments) == 1:
            return leaf(segments[0][1])
        middle = len(segments) // 2
        right = self.search(segments[middle:], leaf)
        left = self.search(segments[:middle], leaf)
        return self.jump(AT_LEAST, segments[middle][0], right, left)

    def program(self, start: int) -> bytes:
        """The octets of struct sock_filter[], beginning at `start`."""
        self._follow(start)
        return b"".join(struct.pack("=HBBI", *instruction) for instruction in reversed(self._code))

    def _straight(self, code: int, k: int, then: int) -> int:
        key = (code, k, then, -1)
        label = self._made.get(key)
        if label is None or self._far(label):
            self._follow(then)
            label = self._made[key] = self._put(code, 0, 0, k)
        return label

    def _once(self, code: int, k: int, yes: int, no: int) -> int:
        key = (code, k, yes, no)
        label = self._made.get(key)
        if label is None or self._far(label):
            if code == RETURN:
                label = self._put(code, 0, 0, k)
            else:
                yes, no = self._near(yes), self._near(no)
                here = len(self._code) - 1
                label = self._put(code, here - yes, here - no, k)
            self._made[key] = label
        return label

    def _put(self, code: int, yes: int, no: int, k: int) -> int:
        self._code.append((code, yes, no, k))
        return len(self._code) - 1

    def _far(self, label: int) -> bool:
        return len(self._code) - label > _REACH

    def _follow(self, label: int) -> None:
        """Makes `label` the next thing executed after what is put now."""
        if label != len(self._code) - 1:
            self._put(ALWAYS, 0, 0, len(self._code) - 1 - label)

    def _near(self, label: int) -> int:
        if not self._far(label):
            return label
        code, _, _, k = self._code[label]
        if code == RETURN:
            return self.ret(k)
        return self._put(ALWAYS, 0, 0, len(self._code) - 1 - label)
