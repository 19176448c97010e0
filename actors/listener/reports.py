"""Report ended connections to the kernel, for the log, several at a time."""

from popkernel.kernel.runtime.actor import Actor
from popkernel.proto import messages as m

__all__ = ["Reports"]

_SECONDS = 0.1  # longest delay of a report, in seconds
_MOST = 64


class Reports:
    """Collect the reports not sent yet.

    Several are sent together, so that the kernel wakes once: only the log waits.
    """

    __slots__ = ("_actor", "_waiting")

    def __init__(self, actor: Actor) -> None:
        self._actor = actor
        self._waiting: list[m.ConnectionEnded] = []

    def add(self, ended: m.ConnectionEnded, *, leased: bool) -> None:
        """Report a connection that ended.

        At once if a session ended without QUIT and has, or is about to get, a maildrop (`leased`): its user's
        next login may come before the maildir actor has seen the end.
        """
        self._waiting.append(ended)
        if leased and ended.why != "quit":
            self.send()
        elif len(self._waiting) == 1:
            self._actor.loop.later(_SECONDS, self.send)
        elif len(self._waiting) >= _MOST:
            self.send()

    def send(self) -> None:
        """Send the reports to the kernel now."""
        if self._waiting and self._actor.kernel is not None:
            reports, self._waiting = self._waiting, []
            self._actor.kernel.send_all(reports)
