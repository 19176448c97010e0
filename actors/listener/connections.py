"""Serve clients' connections: TLS, octets and timers, around the sessions of session/session.py.

Requests of a session to other actors go through `Backend`.
"""

import contextlib
import select
import socket
import ssl
from collections.abc import Sequence
from functools import partial
from typing import Protocol

from popkernel.actors.listener.admission import Admission
from popkernel.actors.listener.connection import Connection
from popkernel.actors.listener.session.actions import (
    Action,
    Ask,
    Close,
    GiveCredit,
    HangUp,
    LogIn,
    Say,
    Shown,
    StartTls,
    Typed,
)
from popkernel.actors.listener.session.client_faults import TLS_ON_PLAIN, handshake_fault
from popkernel.actors.listener.session.policy import Policy
from popkernel.actors.listener.session.session import Session
from popkernel.actors.listener.tls import forget_errors
from popkernel.actors.listener.tls_watchdog import Watchdog
from popkernel.kernel.runtime.actor import Actor
from popkernel.kernel.runtime.channel import watch
from popkernel.kernel.runtime.loop import READ, WRITE
from popkernel.kernel.runtime.tap import note, piece
from popkernel.proto import messages as m
from popkernel.proto.access.networks import with_port
from popkernel.proto.tls_hello import HANDSHAKE
from popkernel.proto.tls_versions import tls_number

__all__ = ["Backend", "Connections"]

_REFUSING = 64  # connections at a time that get an error reply; more are closed without one
_HEAD = 2048  # octets of a ClientHello that are looked at if the handshake fails
_CHUNK = 8192  # octets read from a client at once: commands are short, and each read makes a buffer
_GRACE = 5.0  # seconds without progress that a closing connection may take for its last answer
# octets given to OpenSSL at once: it reports what the client took only when all are sent
_SLICE = 65536
_RECORD = 16384  # octets of a TLS record, RFC 8446 section 5.1
_CLOSED_WELL = ("quit", "quit before login")
_WANTS = (ssl.SSLWantReadError, ssl.SSLWantWriteError, BlockingIOError, InterruptedError)


class Backend(Protocol):
    """What connections need from auth, the kernel and the maildir actors."""

    watching: bool
    """Whether late answers are checked for."""

    def watch_answers(self) -> None:
        """Check for late answers from now on."""

    def log_in(self, client: Connection, login: m.LoginRequest) -> None:
        """Have a login checked in its turn, unless it is under way."""

    def kicked(self, client: Connection) -> None:
        """Have the log say why a client's login, if one is under way, fails now."""

    def withdraw(self, session: int) -> bool:
        """Forget a session's login, for its client is gone. Returns whether it waited for an answer."""

    def hung_up(self, client: Connection) -> None:
        """Report that a client shut its sending side while an answer to it is due."""

    def complain(self, client: Connection) -> None:
        """Report that another actor owes an answer to a client whose time is over."""

    def report(self, ended: m.ConnectionEnded, *, leased: bool) -> None:
        """Report the end of a connection. `leased`: it has, or is about to get, a maildrop."""


class Connections:
    """The connections of one process, by session. The owner sets `backend` and `tls`."""

    __slots__ = (
        "_actor",
        "_admission",
        "backend",
        "by_session",
        "draining",
        "policy",
        "refusing",
        "serial",
        "tls",
        "watchdog",
    )

    backend: Backend
    tls: ssl.SSLContext

    def __init__(self, actor: Actor, admission: Admission) -> None:
        self._actor = actor
        self._admission = admission
        self.policy = Policy.of(actor.boot.config)
        self.by_session: dict[int, Connection] = {}
        self.refusing = 0  # connections that only get an error reply
        self.serial = int(actor.boot.config.get("serial", 0))
        self.draining = False  # no more will come: the actor ends with the last one
        self.watchdog = Watchdog(self.by_session)
        admission.begin, admission.stalled = self._begin_handshake, self._stalled

    # -- watched
    def watched(self) -> None:
        """Trace all connections from now on."""
        for client in self.by_session.values():
            client.session.watch()

    def show(self, session: Session, said: Sequence[bytes | tuple[bytes]]) -> None:
        """Trace octets to a client. Without a tap, tracing has ended."""
        if watch.tap is None:
            session.unwatch()
            return
        octets = sum(len(part[0] if type(part) is tuple else part) for part in said)
        note(
            "Reply",
            session.id,
            {"said": [piece(part[0]) if type(part) is tuple else part for part in said]},
            way="out",
            peer="client",
            octets=octets,
        )

    # -- clients come
    def drain(self) -> None:
        """Accept no more: end the actor with the last connection."""
        self.draining = True
        if not self.by_session:
            self._actor.end()

    def stop(self) -> None:
        """Tell all clients that the service ends."""
        self.draining = True
        for client in list(self.by_session.values()):
            self.act(client, client.session.stopping())

    def kick(self, session: int) -> None:
        """End a session for the operator. Its lease is free at once, however slowly the client reads."""
        client = self.by_session.get(session)
        if client is None:
            return
        self.backend.kicked(client)
        self.backend.withdraw(session)
        if client.channel is not None:
            client.channel.close()
            client.channel = None
        client.asked_at = 0.0
        self.act(client, client.session.kicked())

    def admit(self, sock: socket.socket, host: str, port: int, tls: bool, refused: str) -> None:
        """Serve a client. If it is `refused`, only tell it so."""
        if refused and (self.refusing >= _REFUSING or not self._admission.limits.room_to_shake()):
            sock.close()
            return
        self.serial += 1
        where = with_port(host, port)
        session = self.new_session(where, tls=tls, refusal=refused)
        client = Connection(sock, session, self._actor.loop.now)
        self.by_session[self.serial] = client
        if self.watchdog.asleep:
            self.watchdog.wake()
        if refused:
            self.refusing += 1
        else:
            client.host = host
            self._admission.limits.waits(self.serial, host, self._actor.loop.now)
        if watch.tap is not None:
            session.watch()
            note(
                "Connected",
                self.serial,
                {"address": where, "tls": tls, "refused": refused},
                way="in",
                peer="client",
            )
        self.arm(client, _GRACE if refused else self.policy.login_seconds)
        if tls:
            self.start_tls(client)
        else:
            self._attend(client)
            self.act(client, session.begin())

    def new_session(self, address: str, *, tls: bool, refusal: str) -> Session:
        return Session(self.serial, self.policy, address, tls=tls, refusal=refusal)

    def drop(self, session: int, why: str) -> None:
        """End a connection to make room for another."""
        self._lost(self.by_session[session], why)

    def _attend(self, client: Connection) -> None:
        client.events = READ
        self._actor.loop.add(client.sock.fileno(), partial(self.ready, client))

    def start_tls(self, client: Connection) -> None:
        if client.events and client.sock.fileno() >= 0:
            self._actor.loop.remove(client.sock.fileno())
        try:
            # TCP's end alone does not end TLS (RFC 8446 section 6.1): no answer could follow it.
            client.sock = self.tls.wrap_socket(
                client.sock,
                server_side=True,
                do_handshake_on_connect=False,
                suppress_ragged_eofs=False,
            )
        except OSError:
            self._lost(client, "connection lost")
            return
        client.handshake = True
        self._attend(client)

    def _shake(self, client: Connection) -> None:
        assert isinstance(client.sock, ssl.SSLSocket)
        if not client.shaking and not self._may_shake(client):
            return
        if self._handshake(client, client.sock):
            self.shaken(client, client.sock.version() or "")

    def _handshake(self, client: Connection, sock: ssl.SSLSocket) -> bool:
        """Continue the handshake. Returns whether it is complete."""
        self.watchdog.call = (sock,)
        try:
            sock.do_handshake()
        except ssl.SSLWantReadError:
            self._events(client, READ)
        except ssl.SSLWantWriteError:
            self._events(client, READ | WRITE)
        except (ssl.SSLError, OSError, ValueError) as error:
            reason = (getattr(error, "reason", None) or "connection lost").replace("_", " ").lower()
            least = 9 + (self.tls.minimum_version & 0xFF)  # the wire's minor number of TLS 1.3 is 4
            client.fault = "tls", handshake_fault(reason, client.head, least)
            self._lost(client, f"TLS: {reason}")
        else:
            return True
        finally:
            self.watchdog.call = None
        return False

    def _may_shake(self, client: Connection) -> bool:
        """Count the handshake from the client's first octet: a silent client takes no place of others."""
        if not client.events:  # it waits for its turn, and the system reports that both directions ended
            self._lost(client, "connection lost")
            return False
        session = client.session.id
        if self._admission.shake(session, client.host):
            self._shaking(client)
        else:  # its octets wait in the system
            self._events(client, 0)
            self._admission.limits.serve(session)
        return client.shaking

    def _shaking(self, client: Connection) -> None:
        """Note that a handshake begins, and how, should it fail."""
        client.shaking = True
        client.tls_began = self._actor.loop.now
        with contextlib.suppress(OSError):
            client.head = socket.socket.recv(client.sock, _HEAD, socket.MSG_PEEK)

    def _begin_handshake(self, session: int) -> None:
        """Begin a handshake that waited for its turn."""
        client = self.by_session[session]
        self._shaking(client)
        self._admission.limits.waits(session, client.host, self._actor.loop.now)
        self._events(client, READ)

    def _stalled(self, session: int) -> bool:
        """Return whether a handshake waits for its client: nothing that it sent is unread."""
        client = self.by_session.get(session)
        if client is None or client.sock.fileno() < 0:
            return True
        poll = select.poll()
        poll.register(client.sock.fileno(), select.POLLIN)
        return not poll.poll(0)

    def shaken(self, client: Connection, version: str) -> None:
        """Continue the session: TLS is on, in that version."""
        client.handshake = client.shaking = False
        client.head = b""
        client.tls = tls_number(version)
        if client.tls_began:  # not in a replay
            client.tls_ms = int((self._actor.loop.now - client.tls_began) * 1000)
        self._admission.limits.shaken(client.session.id)
        if watch.tap is not None:
            note("Secured", client.session.id, {"version": version}, way="in", peer="client")
        self.act(client, client.session.secured())

    # -- clients speak
    def ready(self, client: Connection, events: int) -> None:
        """Handle events of a client's socket."""
        if client.handshake:
            self._shake(client)
            return
        # both directions ended; the loop reports it until the connection is closed
        if client.eof and events & ~(READ | WRITE):
            self._lost(client, "connection lost")
            return
        if events & WRITE:
            self.act(client, ())
            if client.session.id not in self.by_session:
                return
        if events & ~WRITE:
            self._read(client)

    def _receive(self, sock: socket.socket) -> bytes:
        if not isinstance(sock, ssl.SSLSocket):
            return sock.recv(_CHUNK)
        self.watchdog.call = (sock,)
        try:
            return sock.recv(_CHUNK)
        finally:
            self.watchdog.call = None

    def _read(self, client: Connection) -> None:
        try:
            data = self._receive(client.sock)
        except ssl.SSLWantWriteError:
            # TLS must send something itself (a key update), and the client does not take it: wait until it
            # does
            self._events(client, WRITE)
            return
        except _WANTS:
            return
        except (OSError, ValueError):
            self._lost(client, "connection lost")
            return
        if not data:
            client.eof = True
            self.act(client, client.session.hung_up())
            if client.session.id in self.by_session:
                note("HungUp", client.session.id, {}, way="in", peer="client")
                self.backend.hung_up(client)
            return
        if not client.octets_in and data[0] == HANDSHAKE and not client.tls:
            client.fault = "tls", TLS_ON_PLAIN
        client.octets_in += len(data)
        session = client.session
        if session.state == "transaction":
            client.deadline = self._actor.loop.now + self.policy.idle_seconds
        self.act(client, session.received(data))
        if client.sock.fileno() >= 0 and isinstance(client.sock, ssl.SSLSocket) and client.sock.pending():
            self._actor.loop.soon(lambda: self._read_more(client))

    def _read_more(self, client: Connection) -> None:
        if client.sock.fileno() >= 0 and not client.handshake and client.events & READ:
            self._read(client)

    def act(self, client: Connection, actions: Sequence[Action]) -> None:
        """Do a session's actions, then tell it how much the client took, until it returns no more."""
        session = client.session
        while True:
            for action in actions:
                # Not in the `match`: each command has one of these, and a pattern takes five times as long.
                if type(action) is Say:
                    client.out += action
                elif type(action) is Ask:
                    if client.channel is not None:
                        client.asked_at = client.asked_at or self._actor.loop.now
                        client.channel.send_all(action)
                        if not self.backend.watching:
                            self.backend.watch_answers()
                elif not self._do(client, action):
                    return
            if client.shown:
                said, client.shown = client.shown, []
                self.show(session, said)
            if client.out and not self._write(client):
                return
            actions = session.sent(client.unsent)
            if not actions:
                break
        if client.out and session.replies.closing and not client.ending:
            client.ending = True
            self.arm(client, self._grace(client))
        reading = session.wants and not client.eof
        self._events(client, (READ if reading else 0) | (WRITE if client.out else 0))
        if not reading and client.sock.fileno() >= 0:
            client.waits = True
        elif client.waits:
            client.waits = False
            self._actor.loop.soon(lambda: self._read_more(client))

    def _do(self, client: Connection, action: Action) -> bool:
        """Do another action; return False if the session can take no more events now."""
        match action:
            case GiveCredit(octets):
                if client.channel is not None:
                    client.channel.send(m.FlowCredit(octets))
            case LogIn(request):
                client.login = request
                self.backend.log_in(client, request)
            case Typed(lines):
                note("Typed", client.session.id, {"lines": lines}, way="in", peer="client")
            case Shown(said):
                client.shown += said
            case StartTls():
                if not client.handshake:
                    self.start_tls(client)
                return False
            case Close(why):
                self.over(client, why)
                return False
            case HangUp():
                self._lost(client, "connection lost")
                return False
        return True

    def _events(self, client: Connection, events: int) -> None:
        if events != client.events and client.sock.fileno() >= 0:
            client.events = events
            self._actor.loop.change(client.sock.fileno(), events)

    def _write(self, client: Connection) -> bool:
        """Send what the client takes. Returns False if the connection ended."""
        out = client.out
        data = out[0] if len(out) == 1 else b"".join(out)
        view = memoryview(data)
        sent = 0
        piece = _SLICE if isinstance(client.sock, ssl.SSLSocket) else len(data)
        last = client.session.replies.closing  # close_notify and TCP's end follow at once
        if last or len(data) > _RECORD:
            client.cork(on=True)
        try:
            while sent < len(data):
                sent += client.sock.send(view[sent : sent + piece])
        except _WANTS:
            pass
        except (OSError, ValueError):
            if watch.tap is not None:
                note("Unsent", client.session.id, {"octets": len(data)})
            self._lost(client, "connection lost")
            return False
        if not last or sent < len(data):
            client.cork(on=False)
        if sent:
            client.octets_sent += sent
            if last:
                client.deadline = self._actor.loop.now + self._grace(client)
            elif client.session.entered:  # before login, sending does not extend the time to log in
                client.deadline = self._actor.loop.now + self.policy.idle_seconds
        client.out = [data[sent:]] if sent < len(data) else []
        if watch.tap is not None and client.unsent != len(data) - sent:
            note("Unsent", client.session.id, {"octets": len(data) - sent})
        client.unsent = len(data) - sent
        return True

    def _grace(self, client: Connection) -> float:
        """Return the seconds without progress after which the last answers are given up.

        After QUIT a slow client's mail may come before them.
        """
        return self.policy.idle_seconds if client.session.replies.why == "quit" else _GRACE

    # -- clients go
    def arm(self, client: Connection, seconds: float) -> None:
        """End a client after that many seconds unless its deadline moves."""
        client.deadline = self._actor.loop.now + seconds
        if client.timer is not None:
            client.timer.cancel()
        client.timer = self._actor.loop.later(seconds, lambda: self._late(client), client.session.id)

    def _late(self, client: Connection) -> None:
        left = client.deadline - self._actor.loop.now
        if left > 0.05:
            client.timer = self._actor.loop.later(left, lambda: self._late(client), client.session.id)
            return
        listing = client.channel is not None and not client.session.entered
        if client.asked_at or listing:
            self.backend.complain(client)
        self.act(client, client.session.timed_out())

    def _forget(self, client: Connection) -> None:
        """Remove a connection from all counts."""
        limits, session = self._admission.limits, client.session.id
        limits.entered(session)
        self._admission.shaken(session)
        if client.host:
            self._admission.gone(client.host)
        else:
            self.refusing -= 1

    def _lost(self, client: Connection, why: str) -> None:
        """End a connection for a reason from outside the session, which a replay must be told."""
        if watch.tap is not None and client.session.id in self.by_session:
            note("Gone", client.session.id, {"why": why}, way="in", peer="client")
        self.over(client, why)

    def over(self, client: Connection, why: str) -> None:
        """End a connection, in any state.

        The maildir actor sees the end of its channel.
        """
        session = client.session
        if self.by_session.pop(session.id, None) is None:
            return
        self._forget(client)
        awaited = self.backend.withdraw(session.id)
        leased = session.entered or client.channel is not None or awaited
        if client.timer is not None:
            client.timer.cancel()
        if client.channel is not None:
            client.channel.close()
            client.channel = None
        if client.sock.fileno() >= 0:
            self._actor.loop.remove(client.sock.fileno())
        if (
            isinstance(client.sock, ssl.SSLSocket)
            and not client.handshake
            and not client.out
            and session.replies.why in _CLOSED_WELL
        ):
            with contextlib.suppress(OSError, ValueError):  # the client is gone
                client.sock.unwrap()  # close_notify: the client knows that nothing was cut off
        forget_errors()
        # before close(2): if octets of the client are unread, it discards what is not sent
        client.cork(on=False)
        client.sock.close()
        self.backend.report(client.ended(why, self._actor.loop.now), leased=leased)
        if self.draining and not self.by_session:
            self._actor.end()
