"""Keep the replies to one client in the order of its commands. Sans I/O.

A reply waits in `pending` while one before it still needs an answer of the maildir actor. The end of the
connection has its place in the same queue.
"""

from collections import deque
from collections.abc import Callable

from popkernel.actors.listener.session.actions import Say
from popkernel.proto.pop3.commands import err

__all__ = ["Awaited", "Replies"]


class Awaited:
    """A command that waits for the maildir actor's answer."""

    __slots__ = ("begun", "kind", "number")

    def __init__(self, kind: str, number: int = 0) -> None:
        self.kind = kind  # retr, top, one or all (LIST, UIDL), dele, rset, quit
        self.number = number
        self.begun = False  # its first octets are sent


class _Text:
    """A complete reply. `octets` of it, after the first `before`, are mail."""

    __slots__ = ("before", "data", "octets")

    def __init__(self, data: bytes, before: int, octets: int) -> None:
        self.data = data
        self.before = before
        self.octets = octets


class Replies:
    """The replies to one client."""

    __slots__ = ("closing", "errors", "most_errors", "out", "out_octets", "over", "pending", "shown", "why")

    def __init__(self, most_errors: int) -> None:
        """`most_errors`: bad commands after which the connection is closed."""
        self.out = Say()
        # octets the client has not taken yet; the shell updates it after each write
        self.out_octets = 0
        # a function: see say_computed; None: see close
        self.pending: deque[Awaited | _Text | Callable[[], bytes] | None] = deque()
        self.errors = 0
        self.most_errors = most_errors
        self.over = False  # no more commands are processed
        self.closing = False  # close when `out` is gone
        self.why = ""  # why it ends, for the log
        # while it is traced: what is sent, each piece of mail in a tuple
        self.shown: list[bytes | tuple[bytes]] | None = None

    # -- in their turn
    def say(self, data: bytes, before: int = 0, octets: int = 0) -> None:
        """Send a reply in its turn. `octets` of it, after the first `before`, are mail."""
        if self.pending:
            self.pending.append(_Text(data, before, octets))
        elif self.shown is None:  # as `put`, inlined: nearly all replies come here
            self.out.append(data)
            self.out_octets += len(data)
        else:
            self.put(data, before, octets)

    def say_computed(self, render: Callable[[], bytes]) -> None:
        """Send what `render` returns when its turn comes."""
        if self.pending:
            self.pending.append(render)
        else:
            self.put(render())

    def bad(self, text: str, code: str = "") -> None:
        """Refuse a command. Too many refusals end the connection."""
        self.errors += 1
        self.say(err(text, code))
        if self.errors > self.most_errors:
            self.say(err("too many errors"))
            self.close("too many errors")

    def close(self, why: str) -> None:
        """Close once all pending replies are sent."""
        self.why = self.why or why
        self.over = True
        if self.pending:
            self.pending.append(None)
        else:
            self.closing = True

    # -- the answer at the head of the queue
    def expect(self, *kinds: str) -> Awaited:
        """Return the command that is to be answered next. ValueError if it is none of `kinds`."""
        first = self.pending[0] if self.pending else None
        if type(first) is not Awaited or first.kind not in kinds:
            raise ValueError("an answer without a request")
        return first

    def settle(self) -> None:
        """Send what has become ready at the head of the queue."""
        pending = self.pending
        while pending:
            first = pending[0]
            if isinstance(first, Awaited):
                return
            pending.popleft()
            if first is None:
                self.closing = True
            elif isinstance(first, _Text):
                self.put(first.data, first.before, first.octets)
            else:
                self.put(first())

    # -- at once
    def put(self, data: bytes, before: int = 0, octets: int = 0) -> None:
        """Send octets now, as `say` does in their turn."""
        self.out.append(data)
        self.out_octets += len(data)
        if self.shown is not None:
            pieces: list[bytes | tuple[bytes]] = (
                [data[:before], (data[before : before + octets],), data[before + octets :]]
                if octets
                else [data]
            )
            self.shown += [piece for piece in pieces if piece]

    def put_mail(self, head: bytes, data: memoryview) -> None:
        """Send a whole message now. The shell joins the pieces, so that they are copied once."""
        if self.shown is None:
            self.out += (head, data, b".\r\n")
            self.out_octets += len(head) + len(data) + 3
        else:
            self.put(b"".join((head, data, b".\r\n")), len(head), len(data))

    def put_part(self, view: memoryview) -> None:
        """Send a part of a large message now: mostly a frame's whole data, which need not be copied."""
        if self.shown is None:
            self.out.append(view)
            self.out_octets += len(view)
        else:
            self.put(bytes(view), 0, len(view))

    def end_with(self, text: bytes, why: str) -> None:
        """Close now, whatever is pending.

        No text follows an incomplete answer: the client would take it for mail.
        """
        begun = any(type(reply) is Awaited and reply.begun for reply in self.pending)
        self.pending.clear()
        if text and not begun:
            self.put(text)
        self.over = True
        self.closing = True
        self.why = self.why or why
