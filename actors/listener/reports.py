"""Report ended connections to the kernel, for the log: several at a time."""

from popkernel.kernel.runtime.actor import Actor
from popkernel.proto import messages as m

__all__ = ["Reports"]

_SECONDS = 0.1  # how long the log may wait for the line of a session
_MOST = 64


class Reports:
    """What the kernel has not been told yet. Several travel together, for it is woken once for them: only the log waits."""

    __slots__ = ("_actor", "_waiting")

    def __init__(self, actor: Actor) -> None:
        self._actor = actor
        self._waiting: list[m.Ended] = []

    def add(self, ended: m.Ended, *, leased: bool) -> None:
        """Report a connection that is over.

        At once where a session ended without QUIT and has, or is about to have, a maildrop (`leased`): its user's next login may be here
        before the maildir actor has seen the end.
        """
        self._waiting.append(ended)
        if leased and ended.why != "quit":
            self.send()
        elif len(self._waiting) == 1:
            self._actor.loop.later(_SECONDS, self.send)
        elif len(self._waiting) >= _MOST:
            self.send()

    def send(self) -> None:
        """Tell the kernel now."""
        if self._waiting and self._actor.kernel is not None:
            reports, self._waiting = self._waiting, []
            self._actor.kernel.send_all(reports)
