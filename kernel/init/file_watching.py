"""Watch the files that a reload reads (`--watch`), in a process of its own, and have init reload them.

Polls once a second by stat(2): inotify and kqueue would be two implementations, do not see changes by other
hosts on a network file system, and report a file that is renamed over another for the directory only. Polling
eight files takes some 30 microseconds. The process of its own is for files on a disk that hangs.
"""

import os
from collections.abc import Callable, Mapping, Sequence

from popkernel.kernel.runtime.child_process import end, fork_and_tell, told
from popkernel.kernel.runtime.loop import Loop, Timer

__all__ = ["FileWatch", "State", "Watcher", "states"]

_SECONDS = 1.0
_RETRY = 10.0  # seconds until a process that could not be forked, or ended, is forked again
State = tuple[int, int, int, int, int] | None
"""Of a file: device, inode, octets, times of modification and of change (ns); None if it can't be seen."""


class FileWatch:
    """Run a process that watches files.

    `changed` is called as by Watcher, but only once after each `set`.
    """

    def __init__(self, loop: Loop, changed: Callable[[], None]) -> None:
        self._loop = loop
        self._changed = changed
        # also of files that a refused configuration named
        self._taken: dict[str, State] = {}
        self._pipe = -1
        self._retry: Timer | None = None
        self.pid = 0

    def mark_read(self, seen: Mapping[str, State]) -> None:
        """Note the files' states just before they were read, whether or not they were put in force."""
        self._taken |= seen

    def set(self, files: Sequence[str]) -> None:
        """Watch these files from now on; none: stop watching.

        If the system has no room for a process, this is tried again later.
        """
        self.end()
        if not files:
            return
        try:
            self.pid, self._pipe = fork_and_tell(lambda pipe: _watch(pipe, files, self._taken))
        except OSError:
            self._retry = self._loop.later(_RETRY, lambda: self.set(files))
            return
        self._loop.add(self._pipe, lambda _: self._ready(files))

    def _ready(self, files: Sequence[str]) -> None:
        data = told(self._pipe)
        if data is None:
            return
        self.end()
        if data:
            self._changed()
        else:  # the process was killed, for example by the system for want of memory
            self._retry = self._loop.later(_RETRY, lambda: self.set(files))

    def reaped(self, pid: int) -> None:
        """Forget the process of that number: it has ended."""
        if pid == self.pid:
            self.pid = 0

    def end(self) -> None:
        """Stop watching, without waiting for the process."""
        if self._retry is not None:
            self._retry.cancel()
        if self._pipe >= 0:
            self._loop.remove(self._pipe)
            os.close(self._pipe)
            self._pipe = -1
        if self.pid:
            end(self.pid)
            self.pid = 0


def _watch(pipe: int, files: Sequence[str], taken: Mapping[str, State]) -> None:
    loop = Loop()
    watching = Watcher(loop, lambda: files, lambda: _tell(pipe, loop), taken)
    watching.set(on=True)
    loop.run()


def _tell(pipe: int, loop: Loop) -> None:
    os.write(pipe, b"!")
    loop.stop()


class Watcher:
    """Call `changed` when the files differ from those that were read, and two polls in a row agree.

    `changed` is called once for each state of the files: a refused file is not offered again until it
    changes.
    """

    def __init__(
        self,
        loop: Loop,
        files: Callable[[], Sequence[str]],
        changed: Callable[[], None],
        taken: Mapping[str, State] | None = None,
    ) -> None:
        """Prepare to watch; `set` begins it.

        Args:
            loop: of this process.
            files: returns the paths to watch; empty ones are ignored.
            changed: called as above.
            taken: the states that were read; None: the files' present states.
        """
        self._loop = loop
        self._files = files
        self._changed = changed
        # also of files that a refused configuration named
        self._taken: dict[str, State] = {}
        self._last: dict[str, State] = {}
        self._timer: Timer | None = None
        if taken is None:
            self.mark_read()
        else:
            self._taken |= taken

    def mark_read(self) -> None:
        """Note the files' present states as read. Called before they are read, to miss no change."""
        self._last = self._states()
        self._taken |= self._last

    def set(self, *, on: bool) -> None:
        """Begin or stop watching."""
        if on and self._timer is None:
            self._timer = self._loop.later(_SECONDS, self._turn)
        elif not on and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _turn(self) -> None:
        self._timer = self._loop.later(_SECONDS, self._turn)
        now = self._states()
        steady, self._last = now == self._last, now  # a file that is being written changes between two polls
        if steady and any(state != self._taken.setdefault(path, state) for path, state in now.items()):
            self.mark_read()
            self._changed()

    def _states(self) -> dict[str, State]:
        return states(self._files())


def states(files: Sequence[str]) -> dict[str, State]:
    """Return the files' present states by path; empty paths are ignored."""
    return {path: _state(path) for path in files if path}


def _state(path: str) -> State:
    """Return what changes when a file is written or replaced."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
