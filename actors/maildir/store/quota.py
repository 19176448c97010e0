"""Keep a mailbox's quota: Maildir++'s `maildirsize`, shared with other programs.

Its first line is the quota, `1073741824S,5000C` (octets, messages; either may be missing). Each other line is
`OCTETS MESSAGES`, added for a delivery, negative for a removal; their sums are the usage. Octets are those of
the files. The mailbox is counted again if the file is missing, torn, longer than 5,120 octets, or shows a
full mailbox and is older than fifteen minutes (Maildir++, section "Maildir++ quota"). A configured quota
comes before the one in the file; without either nothing is counted. Folders (`.NAME/`) count too.
"""

from __future__ import annotations

import os
from stat import S_ISREG
from typing import TYPE_CHECKING

from popkernel.actors.maildir.store import files
from popkernel.actors.maildir.store.errors import StoreError, from_os

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["FULL", "Quota"]

FULL = "FULL"  # code of the StoreError for a full mailbox
NAME = b"maildirsize"
_LONGEST = 5120  # octets of the file
_DIGITS = 18
_OLD = 900.0  # seconds
_APPEND = os.O_WRONLY | os.O_NONBLOCK | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC


class Quota:
    """The quota of one mailbox.

    `root`: descriptor of the maildir. `configured`: the quota of the configuration, "" for none.
    """

    __slots__ = ("_clock", "_configured", "_root")

    def __init__(self, root: int, configured: str, clock: Callable[[], float]) -> None:
        self._root = root
        self._configured = configured.encode("ascii")
        self._clock = clock

    def room(self, octets: int) -> int:
        """Return the octets still free, -1 for no bound. OSErrors become StoreErrors.

        StoreError `FULL` if a message of `octets` has no room.
        """
        try:
            definition, lines, age = self._read()
            if not definition:
                return -1
            most_octets, most_messages = limits(definition)
            used = usage(lines)
            if used is None or _over(used, octets, most_octets, most_messages):
                if used is not None and age < _OLD and len(lines) <= 1:
                    raise _full(most_octets, most_messages)
                used = self._count(definition)
        except OSError as error:
            raise from_os(error, "maildirsize") from None
        if _over(used, octets, most_octets, most_messages):
            raise _full(most_octets, most_messages)
        return most_octets - used[0] if most_octets else -1

    def add(self, octets: int, messages: int) -> None:
        """Note a delivery, or with negative numbers a removal, if there is a file.

        Never fails: the mailbox is counted again eventually.
        """
        try:
            fd = os.open(NAME, _APPEND, dir_fd=self._root)
        except OSError:
            return
        try:
            os.write(fd, b"%d %d\n" % (octets, messages))
        except OSError:
            return
        finally:
            os.close(fd)

    @property
    def kept(self) -> bool:
        """Return whether there is a maildirsize to keep up to date."""
        try:
            os.stat(NAME, dir_fd=self._root, follow_symlinks=False)
        except OSError:
            return False
        return True

    def _read(self) -> tuple[bytes, list[bytes], float]:
        """Return the quota in force ("" for none), the counting lines, and the file's age in seconds.

        There are no lines if the file can't be used.
        """
        try:
            fd = os.open(NAME, files.READ, dir_fd=self._root)
        except FileNotFoundError:
            return self._configured, [], 0.0
        try:
            status = os.fstat(fd)
            data = os.read(fd, _LONGEST + 1) if S_ISREG(status.st_mode) else b""
        finally:
            os.close(fd)
        first, _, rest = data.partition(b"\n")
        definition = self._configured or first
        if first != definition or len(data) > _LONGEST or not data.endswith(b"\n"):
            return definition, [], 0.0
        return definition, rest.splitlines(), self._clock() - status.st_mtime

    def _count(self, definition: bytes) -> tuple[int, int]:
        """Count every message and rewrite the file: first in tmp/, then renamed, as Maildir++ requires."""
        octets = messages = 0
        folders = [b"", *(name + b"/" for name in files.list_names(self._root) if name[:1] == b".")]
        for folder in folders:
            for part in (b"cur", b"new"):
                more = _measure(self._root, folder + part)
                octets, messages = octets + more[0], messages + more[1]
        text = b"%s\n%d %d\n" % (definition, octets, messages)
        temporary = b"tmp/maildirsize.%d" % os.getpid()
        flags = os.O_WRONLY | os.O_NONBLOCK | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            fd = os.open(temporary, flags, 0o600, dir_fd=self._root)
            try:
                os.write(fd, text)
            finally:
                os.close(fd)
            os.rename(temporary, NAME, src_dir_fd=self._root, dst_dir_fd=self._root)
        except OSError:
            return octets, messages  # counted again next time
        return octets, messages


def _measure(root: int, part: bytes) -> tuple[int, int]:
    try:
        fd = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=root)
    except OSError:
        return 0, 0
    octets = messages = 0
    try:
        for name in files.list_names(fd):
            try:
                status = os.stat(name, dir_fd=fd, follow_symlinks=False)
            except FileNotFoundError:
                continue
            if S_ISREG(status.st_mode):
                octets += status.st_size
                messages += 1
    finally:
        os.close(fd)
    return octets, messages


def limits(definition: bytes) -> tuple[int, int]:
    """Return the octets and messages that a quota allows; 0 for no bound, also for parts not understood."""
    octets = messages = 0
    for part in definition.split(b","):
        number, kind = part[:-1], part[-1:]
        if len(number) > _DIGITS:
            continue  # no quota has so many digits, and int() refuses very long ones
        if number.isdigit() and kind == b"S":
            octets = int(number)
        elif number.isdigit() and kind == b"C":
            messages = int(number)
    return octets, messages


def usage(lines: list[bytes]) -> tuple[int, int] | None:
    """Return the sums of the counting lines; None if there are none or one is malformed."""
    octets = messages = 0
    try:
        for line in lines:
            one, two = line.split()
            octets += int(one)
            messages += int(two)
    except ValueError:
        return None
    return (octets, messages) if lines and octets >= 0 and messages >= 0 else None


def _over(used: tuple[int, int], octets: int, most_octets: int, most_messages: int) -> bool:
    return bool(
        (most_octets and used[0] + octets > most_octets) or (most_messages and used[1] + 1 > most_messages)
    )


def _full(octets: int, messages: int) -> StoreError:
    bounds = [f"{octets} octets"] * bool(octets) + [f"{messages} messages"] * bool(messages)
    return StoreError(FULL, f"mailbox full: it may hold {' and '.join(bounds)}")
