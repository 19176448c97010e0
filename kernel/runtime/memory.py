"""Tune malloc(3), and say how much memory this process had.

The memory of bulk frames' buffers is kept, since returning it each time costs page faults.
"""

import resource
import sys

from popkernel.kernel.sandbox.libc import library

__all__ = ["give_back", "keep_memory", "note_inherited", "peak"]

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3  # mallopt(3)
_LARGEST = 2 << 20  # octets; larger than any frame. Beyond it mmap(2) serves, and memory returns at once

_inherited = 0  # KiB


def keep_memory(octets: int) -> None:
    """Keep up to that many free octets at the heap's top instead of returning them; glibc only."""
    if sys.platform == "linux" and hasattr(library(), "mallopt"):
        library().mallopt(_M_MMAP_THRESHOLD, _LARGEST)
        library().mallopt(_M_TRIM_THRESHOLD, octets)


def give_back() -> None:
    """Return free memory to the system, for an actor that has become idle; glibc only."""
    if sys.platform == "linux" and hasattr(library(), "malloc_trim"):
        library().malloc_trim(0)


def note_inherited() -> None:
    """Call this in a child right after the fork, for peak()."""
    global _inherited
    _inherited = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def peak() -> int:
    """Return the most memory that this process ever had, own or shared, in KiB (getrusage(2)).

    Without what it had after the fork: that is its parent's, which grows with the number of its children.
    """
    return max(0, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - _inherited)
