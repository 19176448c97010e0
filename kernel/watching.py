"""Watching the files that a reload reads (`--watch`): one that changes is put in force at once. Init's.

It looks once a second, by stat(2): inotify and kqueue would be two ways to write, would miss what a network file system does, and
an editor that renames a file over the old one changes the directory, not the file. A look at eight files costs some 30 microseconds.
"""

import os
from collections.abc import Callable, Sequence

from popkernel.kernel.loop import Loop, Timer

__all__ = ["Watching"]

_SECONDS = 1.0
_State = tuple[int, int, int, int, int] | None


class Watching:
    """Calls `changed` once the files are others than those that were taken, and have stayed the same for a look.

    What was refused is not offered again until it changes: `changed` is called once for each state of the files.
    """

    def __init__(self, loop: Loop, files: Callable[[], Sequence[str]], changed: Callable[[], None]) -> None:
        """`files`: those that count, by the configuration in force; empty names are passed over."""
        self._loop = loop
        self._files = files
        self._changed = changed
        self._taken: dict[str, _State] = {}  # also of files that a configuration named which was not put in force
        self._last: dict[str, _State] = {}
        self._timer: Timer | None = None
        self.taken()

    def taken(self) -> None:
        """The files are about to be read as they are now. To be called before they are, so that no change falls between."""
        self._last = self._look()
        self._taken |= self._last

    def set(self, *, on: bool) -> None:
        """Begin, or leave it."""
        if on and self._timer is None:
            self._timer = self._loop.later(_SECONDS, self._turn)
        elif not on and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _turn(self) -> None:
        self._timer = self._loop.later(_SECONDS, self._turn)
        now = self._look()
        steady, self._last = now == self._last, now  # half-written ones grow from look to look
        if steady and any(state != self._taken.setdefault(path, state) for path, state in now.items()):
            self.taken()
            self._changed()

    def _look(self) -> dict[str, _State]:
        return {path: _state(path) for path in self._files() if path}


def _state(path: str) -> _State:
    """What changes with a file's content, or when another takes its place; None where there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
