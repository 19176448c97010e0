"""What leases.py and deliveries.py have the shell do; kernel/supervisor/execution.py does it."""

from typing import Any, NamedTuple

from popkernel.proto import messages as m
from popkernel.proto.files.tables import MailUser

__all__ = ["Effect", "Forget", "Full", "Join", "Kill", "Line", "Restart", "Rouse", "Send", "Spawn", "Suspect"]


class Send(NamedTuple):
    """Tell an actor something."""

    to: str
    message: tuple[Any, ...]
    passes: int = 0  # 1: pass on the descriptor that came with the event


class Join(NamedTuple):
    """Make a channel; one end to each, each with its message."""

    one: str
    to_one: tuple[Any, ...]
    other: str
    to_other: tuple[Any, ...]


class Spawn(NamedTuple):
    """Have a maildir actor forked."""

    name: str
    row: MailUser


class Rouse(NamedTuple):
    """Give a parked session's channel, with the message, to that user's maildir actor."""

    user: str
    name: str
    message: m.Wake


class Forget(NamedTuple):
    """Close a parked session's channel: its session is over."""

    user: str


class Kill(NamedTuple):
    """End an actor at once."""

    name: str


class Suspect(NamedTuple):
    """Somebody waits for that actor in vain, or has: end it should it not be alive (kernel/supervisor/hung_actors.py).

    It has so many seconds to say so; 0: as many as its edge gives it.
    """

    name: str
    seconds: int = 0


class Full(NamedTuple):
    """There is no room for an actor of that user: whoever looks after the service is to know."""

    user: str


class Line(NamedTuple):
    """A line for the log; level as in syslog(3)."""

    level: int
    text: str


class Restart(NamedTuple):
    """Start a singleton again, so many seconds from now; never again where that is negative: the service ends."""

    name: str
    seconds: float


Effect = Send | Join | Spawn | Rouse | Forget | Full | Kill | Suspect | Line | Restart
