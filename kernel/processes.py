"""What the kernel knows of an actor's process."""

import contextlib
import os
import signal
from collections.abc import Callable

from popkernel.kernel.runtime.channel import Channel
from popkernel.proto import messages as m
from popkernel.proto.topology import kind_of

__all__ = ["UNKNOWN_CALL", "Process", "broke_in_silence", "how_ended", "plain"]

_MOST_SAID = 2000  # messages
UNKNOWN_CALL = "call unknown: its signals were blocked"


class Process:
    """An actor that runs, or is about to."""

    __slots__ = (
        "accusations", "accusers", "answered", "asked", "channel", "condemned", "counters", "goes", "hello", "ids", "kind", "met", "name",
        "on_hello", "parent", "pid", "restarts", "said", "said_since", "session", "since", "state",
    )

    def __init__(self, name: str, channel: Channel, parent: str) -> None:
        self.name = name
        self.kind = kind_of(name)
        self.channel = channel
        self.parent = parent  # who forked it and reaps it; "" while it waits for its fork (kernel/supervisor/spawning.py)
        self.pid = 0
        self.ids: tuple[int, int] | None = None  # uid and gid of a maildir actor, as its row had them when it was forked
        self.session = 0  # of a listener that serves one connection alone: the only one it may speak of
        self.state = "starting"  # ahead (kernel/supervisor/gates.py), starting, serving, draining, stopping
        self.hello: m.Hello | None = None
        self.counters = m.Counters(0, 0, 0)
        self.asked = self.answered = 0  # for its counters, how often
        self.restarts = 0
        self.said, self.said_since = 0, 0.0  # messages, in a second that began then
        self.since = 0.0
        self.accusers: dict[str, float] = {}  # maildir actors that said it broke the rules, and when
        self.accusations: list[float] = []  # when it said that of a singleton
        self.condemned = False  # its end has been ordered on somebody's word
        self.goes = 0.0  # by when one that goes of its own will has to be gone, or to have no session; 0: it stays
        self.met = ""  # who was last given a channel to it
        self.on_hello: Callable[[], None] | None = None

    def ask(self) -> int:
        """Ask it for its counters, which come once it has done with all that it was told before; which question this is."""
        self.asked += 1
        self.channel.send(m.Report())
        return self.asked

    def floods(self, now: float) -> bool:
        """One more message has come; whether that is more than an honest maildir actor ever says in a second."""
        if now - self.said_since > 1.0:
            self.said, self.said_since = 0, now
        self.said += 1
        return self.said > _MOST_SAID


def broke_in_silence(status: int) -> bool:
    """Whether the system ended it for a call that it may not make, and its handler could not say which.

    The handler is not called where a library had blocked the signals of its thread, as glibc 2.41 does around clone.
    """
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGSYS


def how_ended(status: int) -> str:
    """wait(2)'s status in words."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        with contextlib.suppress(ValueError):
            return f"signal {signal.Signals(number).name}" + (" (a broken promise)" if broke_in_silence(status) else "")
        return f"signal {number}"
    code = os.waitstatus_to_exitcode(status)
    return f"exit {code}" + (" (a broken promise)" if code == 128 + 31 else "")


def plain(name: str) -> str:
    """An instance's name without the count of its replacements."""
    return name.partition("~")[0]
