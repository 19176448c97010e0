"""Define the actions of leases.py and deliveries.py; kernel/supervisor/execution.py carries them out."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from popkernel.proto import messages as m
from popkernel.proto.files.tables import MailUser

__all__ = [
    "Action",
    "Forget",
    "Full",
    "Join",
    "Kill",
    "Restart",
    "Rouse",
    "Send",
    "Spawn",
    "Suspect",
    "WriteLog",
]


class Send(NamedTuple):
    """Send a message to an actor."""

    to: str
    message: tuple[Any, ...]
    passes: int = 0  # 1: pass on the descriptor that came with the event


class Join(NamedTuple):
    """Make a channel between two actors, and send each its end with its message."""

    one: str
    to_one: tuple[Any, ...]
    other: str
    to_other: tuple[Any, ...]


class Spawn(NamedTuple):
    """Have a maildir actor forked."""

    name: str
    row: MailUser


class Rouse(NamedTuple):
    """Hand a parked session's channel, with the message, to that user's maildir actor."""

    user: str
    name: str
    message: m.SessionWake


class Forget(NamedTuple):
    """Close a parked session's channel: its session is over."""

    user: str


class Kill(NamedTuple):
    """Kill an actor."""

    name: str


class Suspect(NamedTuple):
    """Check whether an actor that others wait for is alive, and kill it if not (supervisor/hung_actors.py).

    `seconds`: its time to answer; 0: the deadline of its edge.
    """

    name: str
    seconds: int = 0


class Full(NamedTuple):
    """Log that there is no room for an actor of that user."""

    user: str


class WriteLog(NamedTuple):
    """Write an event into the log (proto/log_events.py)."""

    level: int
    event: str
    fields: Mapping[str, str | int]


class Restart(NamedTuple):
    """Start a singleton again after so many seconds; negative: not again, the service stops."""

    name: str
    seconds: float


Action = Send | Join | Spawn | Rouse | Forget | Full | Kill | Suspect | WriteLog | Restart
