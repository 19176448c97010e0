"""Hold the state of one client's connection, for connections.py."""

import contextlib
import socket

from popkernel.actors.listener.session.client_faults import silent_fault
from popkernel.actors.listener.session.session import Session
from popkernel.kernel.runtime.channel import Channel
from popkernel.kernel.runtime.loop import READ, Timer
from popkernel.proto import messages as m

__all__ = ["Connection"]

_CORK: int = getattr(socket, "TCP_CORK", 0)  # Linux
_TCP = int(socket.IPPROTO_TCP)


class Connection:
    """One client: its socket, session, channel to the maildir actor, and unsent octets."""

    __slots__ = (
        "admitted_at",
        "asked",
        "asked_at",
        "channel",
        "corked",
        "deadline",
        "ending",
        "eof",
        "events",
        "fault",
        "handshake",
        "head",
        "host",
        "login",
        "login_asked_at",
        "login_at",
        "octets_in",
        "octets_sent",
        "opened_at",
        "out",
        "session",
        "shaking",
        "shown",
        "sock",
        "started",
        "timer",
        "tls",
        "tls_began",
        "tls_ms",
        "unsent",
        "waits",
    )

    def __init__(self, sock: socket.socket, session: Session, now: float) -> None:
        self.sock = sock
        self.session = session
        self.host = ""  # the client's address; empty if it was refused
        self.login: m.LoginRequest | None = None  # the login under way
        self.asked = 0  # number of auth processes this login was sent to
        # When the oldest unanswered request was sent, refreshed by partial answers; 0 if none is pending.
        self.asked_at = 0.0
        self.eof = False  # the client closed its sending side, and may still receive: shutdown(2), `nc -N`
        self.handshake = False
        self.tls = 0  # the version's number (proto/tls_versions.py)
        self.shaking = False  # the client has begun the handshake
        self.corked = False
        self.channel: Channel | None = None
        self.out: list[bytes | memoryview] = []
        self.shown: list[bytes | tuple[bytes]] = []  # octets of `out` not yet traced
        self.unsent = 0
        self.octets_in = self.octets_sent = 0
        self.started = now
        self.deadline = now
        self.timer: Timer | None = None
        self.events = READ
        self.waits = False  # reading is paused until the client takes what was sent
        self.ending = False  # the last answer is in `out`
        # For the log: times of the handshake and the last login, by the loop's clock: when it came, was sent
        # on, was admitted, and when its maildrop was listed; 0 if that has not been.
        self.head = b""  # the client's first octets of TLS, until the handshake is over
        self.fault = ("", "")  # what keeps the client from logging in: "tls" or "client", and why
        self.tls_began = 0.0
        self.tls_ms = 0
        self.login_at = self.login_asked_at = self.admitted_at = self.opened_at = 0.0

    def cork(self, *, on: bool) -> None:
        """Hold back written octets until it is off, tcp(7): fewer packets, fewer wake-ups of the client."""
        if on is not self.corked and _CORK:
            self.corked = on
            with contextlib.suppress(OSError):
                self.sock.setsockopt(_TCP, _CORK, on)

    def ended(self, why: str, now: float) -> m.ConnectionEnded:
        """Return the report for the log. `why` is used if the session gives no other reason."""
        session, transaction = self.session, self.session.transaction
        if session.state == "update":  # whether mail was removed is not known
            why = f"{why}, QUIT unanswered"
        return m.ConnectionEnded(
            session.id,
            session.authorization.user if session.entered else "",
            session.authorization.address,
            (session.replies.why or why)[:200],
            session.commands,
            self.octets_in,
            self.octets_sent,
            transaction.retrieved,
            transaction.marked,
            transaction.removed,
            int((now - self.started) * 1000),
            self.tls,
            session.authorization.mechanism,
            self.tls_ms,
            *self._phases(now),
            *(("", "") if session.entered else self._fault(now)),
        )

    def _fault(self, now: float) -> tuple[str, str]:
        """Return what kept a client from logging in, and why, for the log; empty if nothing is known."""
        fault = self.fault if self.fault[1] else self.session.authorization.fault
        if self.handshake and not fault[1] and not self.head and self.host:
            fault = "tls", silent_fault(now - self.started)
        return fault if fault[1] else ("", "")

    def _phases(self, now: float) -> tuple[int, int, int]:
        """Return queue_ms, login_ms and open_ms of ConnectionEnded."""
        if not self.login_at:
            return 0, 0, 0
        admitted = self.admitted_at or now
        opened = (self.opened_at or now) if self.admitted_at else 0.0
        return (
            int((self.login_asked_at - self.login_at) * 1000),
            int((admitted - self.login_asked_at) * 1000),
            int((opened - admitted) * 1000) if opened else 0,
        )
