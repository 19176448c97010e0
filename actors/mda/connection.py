"""Hold the state of an LMTP connection, and of a lookup, for main.py."""

import socket
from typing import NamedTuple

from popkernel.actors.mda.transaction import Transaction
from popkernel.kernel.runtime.loop import READ
from popkernel.proto.lmtp.session import Lmtp

__all__ = ["Ask", "Client"]


class Ask(NamedTuple):
    """A lookup under way, and its deadline (loop's clock).

    `asker`: a client, for its recipient, or a user, for copies that wait for a channel.
    """

    asker: "Client | str"
    due: float


class Client:
    """An LMTP connection."""

    __slots__ = (
        "asking",
        "closing",
        "counted",
        "deadline",
        "events",
        "half",
        "id",
        "lmtp",
        "out",
        "replies",
        "sock",
        "transaction",
        "uid",
    )

    def __init__(self, sock: socket.socket, uid: int, lmtp: Lmtp, number: int) -> None:
        self.sock = sock
        self.id = number  # for traces
        self.counted = False
        self.half = False  # the octets received last did not end with a line end
        self.uid = uid
        self.lmtp = lmtp
        self.transaction: Transaction | None = None
        self.asking = 0  # the open RecipientLookup, 0 if none
        self.deadline = 0.0
        self.events = READ
        self.closing = False  # close once all is sent
        self.replies: list[bytes] = []  # replies since the last write
        self.out = b""  # octets the client has not taken yet
