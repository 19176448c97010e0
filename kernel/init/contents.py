"""Digest the files that an actor reads at its start: a reload replaces only actors whose files changed.

Runs in the child that reads a reload's inputs. A file counts by its content, mode and owner, never by its
time stamp. Init compares the digests; no octet of the files leaves the child.
"""

import os
import time
from collections.abc import Callable, Sequence

from popkernel.kernel.config.keys import Config, keys
from popkernel.kernel.config.regular_files import read_regular
from popkernel.proto.files.certificates import Facts, facts

__all__ = ["ends", "files_of", "fingerprint"]

_MOST = 64 << 20  # octets, as of the largest table; a larger file counts as changed
_MOST_PEM = 1 << 20
# Days before its end from which on a certificate counts anew each day. It is more than the days before which
# a listener warns, in words that have the number of days left.
_DAYS = 30


def files_of(config: Config, actor: str) -> list[str]:
    """Return the files that an actor reads at its start, in the order of their keys."""
    found = []
    for key in keys():
        value = getattr(config, key.name)
        if any(row.actor == actor for row in key.metadata["actors"]):
            if key.metadata["kind"] == "file":
                found.append(value)
            elif key.metadata["kind"] == "certs":
                found += [path for pair in value for path in pair]
    return [path for path in found if path]


def fingerprint(config: Config, actor: str, reading: Callable[[str], None]) -> str:
    """Return a digest of an actor's files; "" if one cannot be read, which counts as a change.

    `reading` is called with each path before the file is read: a disk may hang.
    """
    from hashlib import sha256  # here, because init itself does not need libcrypto

    digest = sha256()
    certificates = {cert for cert, _ in _pairs(config)}
    try:
        for path in files_of(config, actor):
            reading(path)
            content, found = read_regular(path, _MOST), os.stat(path)
            about = f"{found.st_mode:o} {found.st_uid} {len(content)} {path}"
            if path in certificates:
                about += f" {_stage(_facts(content), time.time())}"
            digest.update(f"{about}\n".encode(errors="surrogateescape"))
            digest.update(content)
    except (OSError, MemoryError):
        return ""
    return digest.hexdigest()


def ends(config: Config) -> list[tuple[str, int]]:
    """Return the file of each certificate, and its end in seconds since the epoch. Unreadable ones lack."""
    found = []
    for path, _ in _pairs(config):
        try:
            known = _facts(read_regular(path, _MOST_PEM))
        except (OSError, MemoryError):
            continue
        if known is not None:
            found.append((path, max(0, _seconds(known.ends))))
    return found


def _pairs(config: Config) -> Sequence[tuple[str, str]]:
    return [(config.cert, config.key), *config.certs]


def _facts(pem: bytes) -> Facts | None:
    try:
        return facts(pem)
    except ValueError:
        return None


def _stage(known: Facts | None, now: float) -> str:
    """Return what a listener's warning about a certificate's time depends on."""
    if known is None:
        return ""
    left = (_seconds(known.ends) - now) // 86400
    return f"{min(left, _DAYS)} {_seconds(known.starts) > now}"


def _seconds(digits: str) -> int:
    """Convert a time of Facts to seconds since the epoch. A day that no calendar has is one nearby."""
    year, month, *rest = int(digits[:4]), *(int(digits[at : at + 2]) for at in range(4, 14, 2))
    from calendar import timegm  # here, because init itself does not need it

    return timegm((year, min(max(month, 1), 12), *rest))
