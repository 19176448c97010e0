"""Watching the files that a reload reads (`--watch`): one that changes is put in force at once. Init's.

It looks once a second, by stat(2): inotify and kqueue would be two ways to write, would miss what a network file system does, and
an editor that renames a file over the old one changes the directory, not the file. A look at eight files costs some 30 microseconds.
It does so in a process of its own, for a file may lie on a disk that hangs.
"""

import os
from collections.abc import Callable, Mapping, Sequence

from popkernel.kernel.runtime.child_process import end, fork_and_tell, told
from popkernel.kernel.runtime.loop import Loop, Timer

__all__ = ["State", "WatchedBeside", "Watching", "states"]

_SECONDS = 1.0
_AGAIN = 10.0  # seconds until a process that could not be had is tried for again
State = tuple[int, int, int, int, int] | None


class WatchedBeside:
    """A process that watches, on and off. `changed` is called as Watching's is; until `set` is called again it is called no more."""

    def __init__(self, loop: Loop, changed: Callable[[], None]) -> None:
        self._loop = loop
        self._changed = changed
        self._taken: dict[str, State] = {}  # also of files that a configuration named which was not put in force
        self._pipe = -1
        self._again: Timer | None = None
        self.pid = 0

    def taken(self, seen: Mapping[str, State]) -> None:
        """The files were these just before they were read, whether or not they were put in force."""
        self._taken |= seen

    def set(self, files: Sequence[str]) -> None:
        """Watch these from now on; none: watch nothing. Where there is no room for a process, they are watched once there is."""
        self.end()
        if not files:
            return
        try:
            self.pid, self._pipe = fork_and_tell(lambda pipe: _watch(pipe, files, self._taken))
        except OSError:
            self._again = self._loop.later(_AGAIN, lambda: self.set(files))
            return
        self._loop.add(self._pipe, lambda _: self._told(files))

    def _told(self, files: Sequence[str]) -> None:
        said = told(self._pipe)
        if said is None:
            return
        self.end()
        if said:
            self._changed()
        else:  # it was ended by another (the system, for want of memory)
            self._again = self._loop.later(_AGAIN, lambda: self.set(files))

    def reaped(self, pid: int) -> None:
        """That process has ended, its number is nobody's any more."""
        if pid == self.pid:
            self.pid = 0

    def end(self) -> None:
        """Watch no longer; nobody is waited for."""
        if self._again is not None:
            self._again.cancel()
        if self._pipe >= 0:
            self._loop.remove(self._pipe)
            os.close(self._pipe)
            self._pipe = -1
        if self.pid:
            end(self.pid)
            self.pid = 0


def _watch(pipe: int, files: Sequence[str], taken: Mapping[str, State]) -> None:
    loop = Loop()
    watching = Watching(loop, lambda: files, lambda: _tell(pipe, loop), taken)
    watching.set(on=True)
    loop.run()


def _tell(pipe: int, loop: Loop) -> None:
    os.write(pipe, b"!")
    loop.stop()


class Watching:
    """Calls `changed` once the files are others than those that were taken, and have stayed the same for a look.

    What was refused is not offered again until it changes: `changed` is called once for each state of the files.
    """

    def __init__(
        self, loop: Loop, files: Callable[[], Sequence[str]], changed: Callable[[], None], taken: Mapping[str, State] | None = None,
    ) -> None:
        """`files`: those that count, by the configuration in force; empty names are passed over. `taken`: as they are by default."""
        self._loop = loop
        self._files = files
        self._changed = changed
        self._taken: dict[str, State] = {}  # also of files that a configuration named which was not put in force
        self._last: dict[str, State] = {}
        self._timer: Timer | None = None
        if taken is None:
            self.taken()
        else:
            self._taken |= taken

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

    def _look(self) -> dict[str, State]:
        return states(self._files())


def states(files: Sequence[str]) -> dict[str, State]:
    """How each is now; empty names are passed over."""
    return {path: _state(path) for path in files if path}


def _state(path: str) -> State:
    """What changes with a file's content, or when another takes its place; None where there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
