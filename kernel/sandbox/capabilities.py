"""Give up root's capabilities but a few, capabilities(7). Linux only.

It is no error to ask for one that the process never had (in a container, or by a unit's
CapabilityBoundingSet).
"""

from __future__ import annotations

import ctypes
import os
import struct

from popkernel.kernel.sandbox.libc import checked, library, syscall

_NUMBERS = {  # linux/capability.h
    "chown": 0,
    "dac_override": 1,
    "dac_read_search": 2,
    "kill": 5,
    "setgid": 6,
    "setuid": 7,
    "setpcap": 8,
    "net_bind_service": 10,
    "sys_nice": 23,
    "sys_resource": 24,
}
_CALLS = {"x86_64": (125, 126), "aarch64": (90, 91)}  # capget(2), capset(2)
_VERSION = 0x20080522  # _LINUX_CAPABILITY_VERSION_3
_HEADER = struct.Struct("=Ii")
_SETS = struct.Struct("=6I")  # effective, permitted, inheritable: the low 32 of each, then the high
_PR_CAPBSET_READ, _PR_CAPBSET_DROP, _PR_CAP_AMBIENT, _CLEAR_ALL = 23, 24, 47, 4


def mask(names: str) -> int:
    """Return the bits of capabilities, given by names in small letters separated by blanks.

    Raises:
        KeyError: a name that is not in this module's table.
    """
    bits = 0
    for name in names.split():
        bits |= 1 << _NUMBERS[name]
    return bits


def bound(names: str) -> None:
    """Take all capabilities but these from the bounding set: no program that is started later has them.

    Without CAP_SETPCAP the set stays as it is.
    """
    wanted, number = mask(names), 0
    while (held := library().prctl(_PR_CAPBSET_READ, number, 0, 0, 0)) >= 0:
        if held and not wanted >> number & 1:
            library().prctl(_PR_CAPBSET_DROP, number, 0, 0, 0)
        number += 1


def keep(names: str) -> None:
    """Give up every capability of this thread but these, for good. None stays inheritable or ambient.

    Raises:
        SandboxError: the system refuses.
    """
    get, put = _CALLS[os.uname().machine]
    header, sets = _HEADER.pack(_VERSION, 0), ctypes.create_string_buffer(_SETS.size)
    answer, code = syscall(get, header, ctypes.addressof(sets))
    checked(answer, "capget", code)
    _, low, _, _, high, _ = _SETS.unpack(sets.raw)
    kept = (low | high << 32) & mask(names)
    low, high = kept & 0xFFFFFFFF, kept >> 32
    library().prctl(_PR_CAP_AMBIENT, _CLEAR_ALL, 0, 0, 0)  # fails where the kernel has no ambient set
    answer, code = syscall(put, header, _SETS.pack(low, low, 0, high, high, 0))
    checked(answer, f"cannot give up all capabilities but {names or 'none'}", code)
