"""What actors may add to the log: so many lines each in a while, so that none of them can fill a disk or bury what others say."""

from popkernel.kernel.log import WARNING, Log
from popkernel.kernel.loop import Loop

__all__ = ["MOST", "WINDOW", "ActorLines"]

MOST = 500  # lines of one actor in a window
WINDOW = 10.0  # seconds


class ActorLines:
    """Counted by name: who ends and is started anew has no more than before."""

    def __init__(self, log: Log, loop: Loop) -> None:
        self._log = log
        self._loop = loop
        self._said: dict[str, int] = {}

    def __call__(self, name: str, level: int, text: str, words_of: str = "") -> None:
        """A line of an actor's, or one it caused in the words of another; the window's end tells how many were too many."""
        if level > self._log.most:
            return
        said = self._said.get(name, 0)
        self._said[name] = said + 1
        if not said:
            self._loop.later(WINDOW, lambda: self._over(name))
        if said < MOST:
            self._log(level, text, words_of or name)

    def _over(self, name: str) -> None:
        dropped = self._said.pop(name) - MOST
        if dropped > 0:
            self._log(WARNING, f"{dropped} lines of {name} dropped: more than {MOST} in {WINDOW:.0f} seconds")
