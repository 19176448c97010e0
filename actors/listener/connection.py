"""Hold what there is of one client's connection, for connections.py to serve."""

import contextlib
import socket

from popkernel.actors.listener.session.session import Session
from popkernel.kernel.runtime.channel import Channel
from popkernel.kernel.runtime.loop import READ, Timer
from popkernel.proto import messages as m

__all__ = ["Connection"]

_CORK: int = getattr(socket, "TCP_CORK", 0)  # Linux
_TCP = int(socket.IPPROTO_TCP)


class Connection:
    """Its socket, its session, its channel to the maildir actor, and what waits to be sent."""

    __slots__ = (
        "asked",
        "asked_at",
        "channel",
        "corked",
        "deadline",
        "ending",
        "eof",
        "events",
        "handshake",
        "host",
        "octets_in",
        "out",
        "session",
        "shaking",
        "sock",
        "started",
        "timer",
        "unsent",
        "waits",
    )

    def __init__(self, sock: socket.socket, session: Session, now: float) -> None:
        self.sock = sock
        self.session = session
        self.host = ""  # the client's address; empty where it was refused
        self.asked = 0  # auths that were asked about the login under way
        self.asked_at = 0.0  # when what another actor has not yet answered was asked, or when it last went on answering; 0: nothing is
        self.eof = False  # the client says no more, and may still listen: shutdown(2), `nc -N`
        self.handshake = False
        self.shaking = False  # the client has begun with it
        self.corked = False
        self.channel: Channel | None = None
        self.out: list[bytes | memoryview] = []
        self.unsent = 0
        self.octets_in = 0
        self.started = now
        self.deadline = now
        self.timer: Timer | None = None
        self.events = READ
        self.waits = False  # for the client to take what was sent
        self.ending = False  # all is said; what waits to be sent is the last

    def cork(self, *, on: bool) -> None:
        """What is written until it is off leaves together, tcp(7): a packet less is a wake-up of the client less."""
        if on is not self.corked and _CORK:
            self.corked = on
            with contextlib.suppress(OSError):
                self.sock.setsockopt(_TCP, _CORK, on)

    def ended(self, why: str, now: float) -> m.Ended:
        """What the log is told of it; `why` where the session knows of nothing better."""
        session, transaction = self.session, self.session.transaction
        if session.state == "update":  # nobody has told whether it removed anything
            why = f"{why}, QUIT unanswered"
        return m.Ended(
            session.id,
            session.authorization.user if session.entered else "",
            session.authorization.address,
            (session.replies.why or why)[:200],
            session.commands,
            self.octets_in,
            session.octets_sent,
            transaction.retrieved,
            transaction.marked,
            transaction.removed,
            int((now - self.started) * 1000),
        )
