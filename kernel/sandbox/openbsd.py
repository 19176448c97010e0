"""Call pledge(2) and unveil(2) through ctypes. OpenBSD only.

Tested against a small library with these two calls, never on OpenBSD itself.
"""

from __future__ import annotations

import os

from popkernel.kernel.sandbox import libc
from popkernel.kernel.sandbox.libc import SandboxError, checked

TYPE_CHECKING = False  # importing typing would cost each actor more than all of this package
if TYPE_CHECKING:
    import ctypes
    from collections.abc import Sequence


def missing(library: ctypes.CDLL | None = None) -> list[str]:
    """Return which of pledge(2) and unveil(2) the C library lacks, each text with its mend."""
    library = library or libc.library()
    return [
        f"{name}(2) is not in the C library: OpenBSD 6.4 or newer is needed, or --insecure-no-sandbox"
        for name in ("pledge", "unveil")
        if not hasattr(library, name)
    ]


def unveil(paths: Sequence[tuple[str | bytes, str]], library: ctypes.CDLL | None = None) -> None:
    """Show `paths` and nothing else, and forbid further unveiling.

    OpenBSD follows a symbolic link when the path is used.

    Raises:
        SandboxError: a path does not exist, or the system refuses.
    """
    library = library or libc.library()
    # Without a single path there would be no restriction at all: unveil the root with no permission.
    nothing: Sequence[tuple[str | bytes, str]] = [("/", "")]
    for path, permissions in paths or nothing:
        if not os.path.exists(path):
            raise SandboxError(f"cannot unveil {os.fsdecode(path)}: it is not there")
        answer = library.unveil(os.fsencode(path), permissions.encode())
        checked(answer, f"cannot unveil {os.fsdecode(path)}")
    checked(library.unveil(None, None), "unveil(NULL, NULL)")


def pledge(promises: bytes, library: ctypes.CDLL | None = None) -> None:
    """Restrict this process to `promises`. A program that it executes has no promise but to exit.

    Raises:
        SandboxError: the system refuses.
    """
    checked((library or libc.library()).pledge(promises, b""), f"pledge({promises.decode()!r})")
