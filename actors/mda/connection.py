"""An LMTP connection, and what is asked of the kernel for it, as main.py serves them."""

import socket
from typing import NamedTuple

from popkernel.actors.mda.transaction import Transaction
from popkernel.kernel.runtime.loop import READ
from popkernel.proto.lmtp.session import Lmtp

__all__ = ["Ask", "Client"]


class Ask(NamedTuple):
    """Who wants to know something of the kernel: a client about its recipient, or a user's copies. Until when."""

    asker: "Client | str"
    due: float


class Client:
    """An LMTP connection."""

    __slots__ = ("asking", "counted", "deadline", "events", "half", "id", "lmtp", "out", "sock", "transaction", "uid")

    def __init__(self, sock: socket.socket, uid: int, lmtp: Lmtp, number: int) -> None:
        self.sock = sock
        self.id = number  # for who watches
        self.counted = False
        self.half = False  # what came last did not end with a line
        self.uid = uid
        self.lmtp = lmtp
        self.transaction: Transaction | None = None
        self.asking = 0  # the request about a recipient that the kernel has not answered
        self.deadline = 0.0
        self.events = READ
        self.out = b""
