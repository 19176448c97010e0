"""malloc(3), told what we know: buffers of bulk frames come and go, and to give their memory back each time costs page faults."""

import sys

from popkernel.kernel.sandbox.libc import library

__all__ = ["give_back", "keep_memory"]

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3  # mallopt(3)
_LARGEST = 2 << 20  # octets; what is larger than any frame still comes from mmap(2) and goes back at once


def keep_memory(octets: int) -> None:
    """Keep up to that many free octets at the heap's top instead of returning them. glibc only; elsewhere malloc decides."""
    if sys.platform == "linux" and hasattr(library(), "mallopt"):
        library().mallopt(_M_MMAP_THRESHOLD, _LARGEST)
        library().mallopt(_M_TRIM_THRESHOLD, octets)


def give_back() -> None:
    """Return what is free: for an actor that has become idle."""
    if sys.platform == "linux" and hasattr(library(), "malloc_trim"):
        library().malloc_trim(0)
