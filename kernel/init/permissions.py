"""Check permissions of files that decide about users and logins: for `check`, a start and a reload."""

import os
import shlex
import stat
from collections.abc import Iterable, Iterator

__all__ = ["problems", "warnings"]


def problems(path: str) -> Iterator[tuple[str, str, str]]:
    """Yield (path, what, mend) for each way in which users other than root and the caller can change a file.

    Checks the file and the directories above it, both of the path as given and with links resolved. A
    directory with the sticky bit (/tmp) counts as safe. Write permission for a group is a problem, except for
    root's group. Yields nothing for a file that can't be seen.
    """
    real = os.path.realpath(path)
    yield from _file(real)
    for directory in dict.fromkeys((*_above(os.path.abspath(path)), *_above(real))):
        try:
            mode = os.stat(directory).st_mode
        except OSError:
            continue
        if mode & 0o002 and not mode & stat.S_ISVTX:
            what = (
                f"mode {stat.S_IMODE(mode):04o} lets everybody put other files in the place of those that "
                "popkernel goes by"
            )
            yield directory, what, f"chmod o-w {shlex.quote(directory)}"


def _file(path: str) -> Iterator[tuple[str, str, str]]:
    try:
        found = os.stat(path)
    except OSError:  # reported where the file is read
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
    """Yield a line for each problem of these files; empty paths are ignored."""
    found = dict.fromkeys(problem for path in paths if path for problem in problems(path))
    for path, what, mend in found:
        yield f"{path}: {what}; {mend}"
