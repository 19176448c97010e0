"""Read the UIDLs that Dovecot or Courier stored in a maildir, for `popkernel import-uidl`."""

from __future__ import annotations

import os
from stat import S_ISREG
from typing import TYPE_CHECKING

from popkernel.actors.maildir.store import files
from popkernel.actors.maildir.store.errors import show
from popkernel.proto.files import uid_lists

if TYPE_CHECKING:
    from collections.abc import Sequence

FILES = {"dovecot": b"dovecot-uidlist", "courier": b"courierpop3dsizelist"}
_LARGEST = 64 << 20  # octets


def uidls(root: int, source: str, names: Sequence[bytes]) -> tuple[dict[bytes, bytes], list[str]]:
    """Return the UIDLs that `source` (of `uid_lists.SOURCES`) has for these names, and faults of its file.

    `root`: descriptor of the maildir. `names`: canonical names. The UIDLs are not checked yet. A missing file
    gives none and is no fault. Never fails.
    """
    if source == "filename":
        return {name: name for name in names}, []
    if not names:
        return {}, []
    label = FILES[source].decode("ascii")
    try:
        data = _read(root, FILES[source])
        if data is None:
            return {}, [
                f"{label}: no regular file, or more than {_LARGEST >> 20} MiB: no UIDL is taken from it"
            ]
        found, refused = uid_lists.read(source, data)
    except FileNotFoundError:
        return {}, []
    except OSError as error:
        return {}, [f"{label}: {os.strerror(error.errno or 0)}: no UIDL is taken from it"]
    except MemoryError:
        return {}, [f"{label}: more than there is memory for: no UIDL is taken from it"]
    return found, [f"{label}: {refused} malformed lines"] if refused else []


def _read(root: int, name: bytes) -> bytes | None:
    fd = os.open(name, files.READ, dir_fd=root)
    try:
        status = os.fstat(fd)
        if not S_ISREG(status.st_mode) or status.st_size > _LARGEST:
            return None
        data = os.read(fd, status.st_size + 1)
        while more := os.read(fd, 1 << 20):
            if len(data) > _LARGEST:
                return None
            data += more
        return data
    finally:
        os.close(fd)


def notes(said: list[tuple[bytes, str]]) -> list[str]:
    """Return log lines for messages that get a new UIDL."""
    return [f"{show(name)}: {why}: it gets a new one" for name, why in said]
