"""What a client is told, in the order of its commands. Sans I/O.

`_owed` holds what the client waits for: a reply that is ready, or the maildir actor's answer that is still to come; what is ready
waits behind what is not. The ground floor of a session: transaction.py and session.py stand on it.
"""

from collections import deque
from typing import Any

from popkernel.actors.listener.session.policy import Policy
from popkernel.proto.pop3.commands import err

__all__ = ["Replies"]

_READY = frozenset(("text", "stat", "close"))  # what is owed and waits for nothing but its turn


class Replies:
    """The answers to one client, and the end of the connection, which has its place among them."""

    __slots__ = (
        "_errors", "_owed", "_policy", "_run", "closing", "messages", "octets", "out", "out_octets", "shown", "state", "tell", "why",
    )

    def __init__(self, policy: Policy) -> None:
        self.state = "authorization"  # authorization, sasl, login, transaction, update, over
        self.out: list[bytes | memoryview] = []
        self.out_octets = 0  # made and not yet taken by the client; the shell says what it still holds after each write
        self.tell: list[tuple[Any, ...]] = []  # for the maildir actor
        self.closing = False  # close when `out` is gone
        self.why = ""
        self.messages = self.octets = 0  # undeleted ones
        self._policy = policy
        self._owed: deque[tuple[Any, ...]] = deque()
        self._run: list[int] | None = None  # see transaction.py
        self._errors = 0
        self.shown: list[bytes | tuple[bytes]] | None = None  # while it is watched: what is said, mail content apart in a tuple

    def take_out(self) -> list[bytes | memoryview]:
        """What is to go to the client now."""
        out, self.out = self.out, []
        return out

    def take_shown(self) -> list[bytes | tuple[bytes]]:
        """What was said since the last time, for a watcher."""
        shown, self.shown = self.shown or [], []
        return shown

    def _say(self, data: bytes, before: int = 0, octets: int = 0) -> None:
        """To the client, in its turn. `octets` of it, behind the first `before`, are mail."""
        if self._owed:
            self._end_deletes()
            self._owed.append(("text", data, before, octets))
        else:
            self._put(data, before, octets)

    def _put(self, data: bytes, before: int = 0, octets: int = 0) -> None:
        self.out.append(data)
        self.out_octets += len(data)
        if self.shown is not None:
            pieces: list[bytes | tuple[bytes]] = (
                [data[:before], (data[before : before + octets],), data[before + octets :]] if octets else [data]
            )
            self.shown += [piece for piece in pieces if piece]

    def _end_deletes(self) -> None:
        """A run of DELEs is answered in one go, so nothing else may be owed between them."""
        if self._run is not None and self._run[0]:
            self._end_run()

    def _end_run(self) -> None:
        """Ask for what was gathered; transaction.py knows how."""
        raise NotImplementedError

    def _settle(self) -> None:
        """Say what has become ready at the head of what is owed."""
        owed = self._owed
        while owed and (kind := owed[0][0]) in _READY:
            if kind == "text":
                self._put(*owed[0][1:])
            elif kind == "stat":
                self._put(b"+OK %d %d\r\n" % (self.messages, self.octets))
            else:
                self.closing = True
            owed.popleft()

    def _bad(self, text: str, code: str = "") -> None:
        self._errors += 1
        self._end_run()
        self._say(err(text, code))
        if self._errors > self._policy.most_errors:
            self._say(err("too many errors"))
            self._close("too many errors")

    def _close(self, why: str) -> None:
        """Close once everything owed is out."""
        self.why = self.why or why
        self.state = "over"
        if self._owed:
            self._owed.append(("close",))
        else:
            self.closing = True

    def _end_with(self, text: bytes, why: str) -> None:
        """Close now, whatever is owed; into an answer that is half out no word is put, for the client would take it for mail."""
        begun = any(len(owed) == 3 for owed in self._owed)
        self._owed.clear()
        if text and not begun:
            self._put(text)
        self.state = "over"
        self.closing = True
        self.why = self.why or why
