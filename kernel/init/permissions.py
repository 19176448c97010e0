"""Who else could change a file that decides whom root forks as, or who may log in: for `check`, and for init at a start and a reload."""

import os
import shlex
import stat
from collections.abc import Iterable, Iterator

__all__ = ["doubts", "warnings"]


def doubts(path: str) -> Iterator[tuple[str, str, str]]:
    """Path, what, mend, for each way by which others than root and the caller could change this file; nothing where it is not to be seen.

    Looked at are the file and the directories above it, as it is named and as its links lead. A directory with the sticky bit
    is taken for safe (/tmp), a group that may write for others unless it is root's.
    """
    real = os.path.realpath(path)
    yield from _file(real)
    for directory in dict.fromkeys((*_above(os.path.abspath(path)), *_above(real))):
        try:
            mode = os.stat(directory).st_mode
        except OSError:
            continue
        if mode & 0o002 and not mode & stat.S_ISVTX:
            what = f"mode {stat.S_IMODE(mode):04o} lets everybody put other files in the place of those that popkernel goes by"
            yield directory, what, f"chmod o-w {shlex.quote(directory)}"


def _file(path: str) -> Iterator[tuple[str, str, str]]:
    try:
        found = os.stat(path)
    except OSError:  # who has to read it says so
        return
    if found.st_uid not in (0, os.geteuid()):
        mend = f"chown {os.geteuid()} {shlex.quote(path)}"
        yield path, f"belongs to uid {found.st_uid}, who can change whom popkernel serves, and as whom", mend
    others = 0o002 if found.st_gid == 0 else 0o022
    if found.st_mode & others:
        what = f"mode {stat.S_IMODE(found.st_mode):04o} lets others change whom popkernel serves, and as whom"
        yield path, what, f"chmod go-w {shlex.quote(path)}"


def _above(path: str) -> Iterator[str]:
    while path != os.path.dirname(path):
        path = os.path.dirname(path)
        yield path


def warnings(paths: Iterable[str]) -> Iterator[str]:
    """A line for each doubt about these files; empty paths are left out."""
    said = dict.fromkeys(doubt for path in paths if path for doubt in doubts(path))
    for path, what, mend in said:
        yield f"{path}: {what}; {mend}"
