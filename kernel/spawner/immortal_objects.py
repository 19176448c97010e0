"""Make the objects of a warm image immortal, so that its children do not write reference counts to its pages.

CPython 3.12 and later do not count the references of an object whose count has a certain value (PEP 683).
Value and place are no interface of CPython: they are looked up by version, and tried in a child at each
start. Objects made later are mortal as usual.
"""

import ctypes
import gc
import io
import os
import select
import socket
import sys
from types import AsyncGeneratorType, CodeType, CoroutineType, FrameType, GeneratorType, TracebackType
from typing import NamedTuple

from popkernel.kernel.runtime.child_process import end, fork_and_tell

__all__ = ["FIRST", "Python", "Trial", "make_immortal", "missing", "running"]

_COUNTS = {(3, 12): 0xFFFFFFFF, (3, 13): 0xFFFFFFFF, (3, 14): (3 << 30) + (1 << 16)}
"""The count of an immortal object, by version.

It is the low half of the first field of an object, in builds of 64 bits: ob_refcnt in Include/object.h, from
3.14 on in Include/refcount.h. 3.12 and 3.13 stop counting up at exactly this value. 3.14 does at 3 << 30 and
above; there a running frame takes off the references that it had before, without a look at the count, so
there is some room below. The high half is empty in 3.12 and 3.13, and has flags in 3.14.
"""
_IMMORTAL = 1 << 31  # from here on no version counts down

_SECONDS = 5.0  # for the trial, which takes some hundredths of one

FIRST = min(_COUNTS)
"""The first version that has immortal objects."""

# Their end has an effect: a frame drops its variables, a generator leaves its blocks, a file is closed.
_LEFT_OUT = (
    FrameType,
    GeneratorType,
    CoroutineType,
    AsyncGeneratorType,
    TracebackType,
    io.IOBase.__mro__[1],  # of all files, and unlike io.IOBase no abstract class, whose tests are slow
    socket.socket,
)


class Python(NamedTuple):
    """What decides about the layout of objects. `debug`: counts all references, as debug builds do."""

    implementation: str
    version: tuple[int, int]
    bits: int
    byteorder: str
    free_threaded: bool
    debug: bool


def running() -> Python:
    """Return what this Python is."""
    return Python(
        sys.implementation.name,
        (sys.version_info.major, sys.version_info.minor),
        64 if sys.maxsize > 1 << 32 else 32,
        sys.byteorder,
        "t" in getattr(sys, "abiflags", ""),
        hasattr(sys, "gettotalrefcount"),
    )


def missing(python: Python) -> str:
    """Return why the objects of that Python cannot be made immortal, "" if they can."""
    name = f"Python {python.version[0]}.{python.version[1]}"
    if python.implementation != "cpython":
        return f"the layout of {python.implementation}'s objects is not known here"
    if python.version < FIRST:
        return f"{name} has none, 3.12 and later have"
    if python.version not in _COUNTS:
        return f"the layout of {name}'s objects is not known here"
    if python.bits != 64 or python.byteorder != "little":
        return f"{name} has {python.bits} bits, {python.byteorder}-endian: known are 64, little-endian"
    if python.free_threaded or python.debug:
        return f"{name} is a {'free-threaded' if python.free_threaded else 'debug'} build"
    return ""


def make_immortal() -> int:
    """Make all objects immortal that the collector knows, and all that they refer to. Return their number."""
    memory, count = _memory(), _COUNTS[running().version]
    made = 0
    found = gc.get_objects()
    followed: list[object] = []  # the referents of these are still to be looked at
    while True:
        for one in found:
            if sys.getrefcount(one) < _IMMORTAL and not issubclass(type(one), _LEFT_OUT):
                memory[id(one) // 4] = count
                made += 1
                followed.append(one)
        if not followed:
            return made
        one = followed.pop()
        found = gc.get_referents(one)
        if type(one) is CodeType:  # the collector does not know to what it refers
            found += (
                one.co_consts,
                one.co_names,
                one.co_name,
                one.co_qualname,
                one.co_filename,
                one.co_linetable,
                one.co_exceptiontable,
            )


def _memory() -> "memoryview[int]":
    """Return this process's memory from address 0 on, in numbers of four octets.

    A third of the time that ctypes.memmove takes for one count at a time.
    """
    return memoryview((ctypes.c_uint32 * (sys.maxsize // 4)).from_address(0)).cast("B").cast("I")


class Trial:
    """Make all objects of a forked child immortal, while this process goes on with something else."""

    def __init__(self) -> None:
        self._pid, self._pipe, self._fault = 0, -1, ""
        try:
            self._pid, self._pipe = fork_and_tell(lambda _: os._exit(_try()))
        except OSError as error:
            self._fault = error.strerror or str(error)

    def end(self) -> str:
        """Wait for the end, and kill a child that hangs. Return what went wrong there, "" if nothing did.

        To be called once, before this process changes its user or enters a sandbox: then it could not kill.
        """
        if not self._pid:
            return self._fault
        try:
            ended = select.poll()
            ended.register(self._pipe, 0)  # the child has the other end as long as it runs
            if not ended.poll(_SECONDS * 1000):
                end(self._pid)
                return f"no end within {_SECONDS:.0f} s"  # not waited for: it may hang in the system
            status = os.waitpid(self._pid, 0)[1]
        except OSError as error:
            return error.strerror or str(error)
        finally:
            os.close(self._pipe)
        if os.WIFSIGNALED(status):
            return f"signal {os.WTERMSIG(status)}"
        code = os.waitstatus_to_exitcode(status)
        return _FAULTS.get(code, f"exit {code}")


def _try() -> int:
    """Return the number of the fault, or _GOOD."""
    one = object()
    _memory()[id(one) // 4] = _COUNTS[running().version]
    if _counts([None, one]):  # before all others: make_immortal ends only if counts stay
        return _COUNTED
    others = ["text" * 20, b"octets" * 20, 1 << 40, 0.1, [], {}, _try, _try.__code__, Python]
    make_immortal()
    if _counts(others):
        return _COUNTED
    ended: list[bool] = []

    class New:
        def __del__(self) -> None:
            ended.append(True)

    new = New()
    count = sys.getrefcount(new)
    more = [new] * 10
    if sys.getrefcount(new) != count + 10:
        return _UNCOUNTED
    del more, new
    return _GOOD if ended else _UNCOUNTED


def _counts(objects: list[object]) -> bool:
    """Return whether one of the objects is mortal, or counts further references or their end."""
    for one in objects:
        count = sys.getrefcount(one)
        more = [one] * 10
        counted = sys.getrefcount(one)
        del more
        if count < _IMMORTAL or counted != count or sys.getrefcount(one) != count:
            return True
    return False


# 0 and 1: as fork_and_tell has them, 0 after an OSError too
_RAISED, _COUNTED, _UNCOUNTED, _GOOD = 1, 2, 3, 4
_FAULTS = {
    _GOOD: "",
    _RAISED: "an exception",
    _COUNTED: "the references of an immortal object were counted",
    _UNCOUNTED: "the references of a later object were not counted",
}
