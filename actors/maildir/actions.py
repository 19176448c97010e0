"""Define the actions that session.py and deliveries.py return to the maildir actor's shell.

A message (proto/messages.py) is an action too: send it as the answer.
"""

from typing import NamedTuple

from popkernel.kernel.runtime.channel import Channel
from popkernel.proto import messages as m

__all__ = ["Delivered", "DeliveryAction", "Leave", "Note", "Over", "Refuse", "SessionAction"]


class Note(NamedTuple):
    """Log this event, a warning (proto/log_events.py)."""

    event: str
    fields: dict[str, str | int]


class Over(NamedTuple):
    """Close the session's channel once all answers are sent."""


class Leave(NamedTuple):
    """Tell the kernel and every mda that this actor leaves, before anything else: the maildir was moved."""


class Delivered(NamedTuple):
    """Log a delivery with these fields: a message is safe on disk."""

    fields: dict[str, str | int]


class Refuse(NamedTuple):
    """Send a message on another channel than the one the present message came on."""

    channel: Channel
    message: m.DeliveryRejected


SessionAction = (
    m.MailContent
    | m.MessageMissing
    | m.MessageSizes
    | m.MessageUidls
    | m.MessagesMarked
    | m.MaildropTotals
    | m.QuitDone
    | Note
    | Over
)
DeliveryAction = m.DeliveryAccepted | m.DeliveryRejected | Delivered | Refuse | Leave | Note
