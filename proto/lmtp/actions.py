"""Define the actions that an LMTP session (session.py) returns to its owner."""

from typing import NamedTuple

__all__ = ["Action", "Cancel", "Close", "FindRecipient", "Finish", "PassOn", "Refused", "Reply"]


class Reply(NamedTuple):
    """Send this to the client."""

    octets: bytes


class FindRecipient(NamedTuple):
    """Find out whether this recipient exists; then call `recipient`."""

    address: str


class PassOn(NamedTuple):
    """Pass on the next octets of the message; call `go_on` once there is room for more."""

    data: bytes


class Finish(NamedTuple):
    """The message is whole: store it, and call `answer` for each recipient."""


class Cancel(NamedTuple):
    """Discard the message: the rest of it will not come, and it needs no answer."""


class Refused(NamedTuple):
    """A message was refused, all of it or for a recipient: log it, with the reply that the client gets."""

    sender: str
    recipient: str  # empty if none was named yet
    reply: str


class Close(NamedTuple):
    """Close the connection as soon as all replies are sent."""


Action = Reply | FindRecipient | PassOn | Finish | Cancel | Refused | Close
