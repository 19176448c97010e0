"""Restrict this thread, and those it starts later, to unveiled paths: a Landlock domain. Linux only.

The domain refuses everything that this kernel's Landlock can refuse, and allows the unveiled paths again; see
landlock(7). Landlock never refuses stat, chdir, chmod, chown and utime, nor UDP before ABI 10, nor, before
ABI 9, connecting to a unix socket in the file system. Directory modes, ownership and the promises bound
these.
"""

from __future__ import annotations

import functools
import os
import stat
import struct

from popkernel.kernel.sandbox.libc import SandboxError, checked, syscall

TYPE_CHECKING = False  # importing typing would cost each actor more than all of this package
if TYPE_CHECKING:
    from collections.abc import Iterable

# The same numbers on every processor.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION, _PATH_BENEATH = 1, 1

# linux/landlock.h, LANDLOCK_ACCESS_FS_*, in the order of their bits. _SINCE: the ABI that added the later
# ones.
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR, _REMOVE_DIR, _REMOVE_FILE = (1 << bit for bit in range(6))
_MAKE_DIR, _MAKE_REG, _MAKE_SOCK = 1 << 7, 1 << 8, 1 << 9
_REFER, _TRUNCATE, _IOCTL_DEV, _RESOLVE_UNIX = 1 << 13, 1 << 14, 1 << 15, 1 << 16
_SINCE = ((2, _REFER), (3, _TRUNCATE), (5, _IOCTL_DEV), (9, _RESOLVE_UNIX))
_FIRST = _REFER - 1  # all rights of ABI 1
_TCP = 0b11  # bind and connect: ABI 4
_SCOPES = 0b11  # abstract unix sockets and signals: ABI 6

# No letter allows making device nodes, FIFOs and symbolic links, or ioctl on devices.
_RIGHTS = {
    "r": _READ_FILE | _READ_DIR,
    "w": _WRITE_FILE | _TRUNCATE | _RESOLVE_UNIX,
    "x": _EXECUTE,
    "c": _MAKE_REG | _MAKE_DIR | _MAKE_SOCK | _REMOVE_FILE | _REMOVE_DIR | _REFER,
}
# Landlock refuses rights about directories for a path that is none.
_ON_A_FILE = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _RESOLVE_UNIX


_abi: int | None = None  # asked for once: children that are forked later inherit it


def abi() -> int:
    """Return the version of Landlock's ABI in this kernel; 0 if Landlock is off or missing."""
    global _abi
    if _abi is None:
        _abi = max(0, syscall(_CREATE_RULESET, None, 0, _VERSION)[0])
    return _abi


@functools.cache
def handled(version: int) -> int:
    """Return the access rights to files of ABI `version`, as far as this module knows them (ABI 9)."""
    return _FIRST | sum(right for since, right in _SINCE if version >= since)


def missing() -> list[str]:
    """Return what this system lacks to enforce unveil(), each text with its mend."""
    if abi():
        return []
    _, code = syscall(_CREATE_RULESET, None, 0, _VERSION)
    return [
        (
            f"Landlock is not enabled in this kernel ({os.strerror(code)}): boot Linux 5.13 or newer with "
            "lsm=landlock,... on its command line; in a container allow the landlock_* calls; or use "
            "--insecure-no-sandbox"
        )
    ]


def weaknesses() -> list[str]:
    """Return what this kernel's Landlock leaves open that a newer one refuses.

    Empty with ABI 6 or newer, and without Landlock.
    """
    version = abi()
    lacks = (
        (2, "renaming from one directory to another is always refused: maildir delivery needs Linux 5.19"),
        (3, "files that may not be written can be cut off by their owner: Linux 6.2 refuses it"),
        (4, "TCP is refused by promises and not by Landlock as well: Linux 6.7 does both"),
        (6, "signals and abstract sockets reach processes of the same user: Linux 6.12 refuses them"),
    )
    return [text for since, text in lacks if 0 < version < since]


def unveil(paths: Iterable[tuple[str | bytes, str]], *, network: bool) -> None:
    """Restrict this thread to `paths`; no_new_privs must be set.

    Raises:
        SandboxError: Landlock is off, a path does not exist, or the system refuses.
    """
    ruleset = _ruleset(paths, network=network)
    try:
        answer, code = syscall(_RESTRICT_SELF, ruleset, 0)
        checked(answer, "landlock_restrict_self", code)
    finally:
        os.close(ruleset)


def rehearse(paths: Iterable[tuple[str | bytes, str]]) -> None:
    """Do all that unveil() does, but do not restrict; see lock.rehearse()."""
    os.close(_ruleset(paths, network=False))


def _ruleset(paths: Iterable[tuple[str | bytes, str]], *, network: bool) -> int:
    """Return a descriptor of the rules for unveil(). Raises what unveil() raises."""
    version = abi()
    if not version:
        raise SandboxError(missing()[0])
    files = handled(version)
    tcp = 0 if network or version < 4 else _TCP
    scopes = _SCOPES if version >= 6 else 0
    ruleset, code = syscall(_CREATE_RULESET, struct.pack("=QQQ", files, tcp, scopes), 24, 0)
    checked(ruleset, "landlock_create_ruleset", code)
    try:
        for path, permissions in paths:
            _allow(ruleset, path, permissions, files)
    except BaseException:
        os.close(ruleset)
        raise
    return ruleset


def _allow(ruleset: int, path: str | bytes, permissions: str, files: int) -> None:
    rights = 0
    for letter in permissions:
        rights |= _RIGHTS[letter]
    try:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError as error:
        raise SandboxError(f"cannot unveil {os.fsdecode(path)}: {error.strerror}") from None
    try:
        rights &= files
        if not stat.S_ISDIR(os.fstat(place).st_mode):
            rights &= _ON_A_FILE
        if rights:
            answer, code = syscall(_ADD_RULE, ruleset, _PATH_BENEATH, struct.pack("=Qi", rights, place), 0)
            checked(answer, f"cannot unveil {os.fsdecode(path)}", code)
    finally:
        os.close(place)
