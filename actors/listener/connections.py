"""Serve clients' connections: TLS, octets and timers, around the sessions of session/session.py.

What a session wants of the other actors goes through `Backend`.
"""

import contextlib
import socket
import ssl
from functools import partial
from typing import Protocol

from popkernel.actors.listener.admission import Admission
from popkernel.actors.listener.connection import Connection
from popkernel.actors.listener.limits import TOO_MANY_HANDSHAKES
from popkernel.actors.listener.session.policy import Policy
from popkernel.actors.listener.session.session import Session
from popkernel.actors.listener.tls import forget_errors
from popkernel.actors.listener.tls_watchdog import Watchdog
from popkernel.kernel.runtime.actor import Actor
from popkernel.kernel.runtime.channel import watch
from popkernel.kernel.runtime.loop import READ, WRITE
from popkernel.kernel.runtime.tap import note, piece
from popkernel.proto import messages as m

__all__ = ["Backend", "Connections"]

_REFUSING = 64  # connections at a time that are told why they are not served; more are closed without a word
_CHUNK = 8192  # octets read from a client at once: commands are short, and a buffer is made for each read
_GRACE = 5.0  # seconds a closing connection may stand still before it has taken its last answer
_SLICE = 65536  # octets given to OpenSSL at once: it tells how much a client took only when all of them are gone
_RECORD = 16384  # octets of a TLS record, RFC 8446 section 5.1
_CLOSED_WELL = ("quit", "quit before login")
_WANTS = (ssl.SSLWantReadError, ssl.SSLWantWriteError, BlockingIOError, InterruptedError)


class Backend(Protocol):
    """What connections need of auth, the kernel and the maildir actors."""

    watching: bool
    """Answers that do not come are looked after."""

    def watch_answers(self) -> None:
        """Begin to."""

    def log_in(self, client: Connection, login: m.Login) -> None:
        """Have a login checked in its turn, unless it is under way."""

    def withdraw(self, session: int) -> bool:
        """Forget a session's login, for its client has gone; whether it waited for the answer."""

    def complain(self, client: Connection) -> None:
        """The client's time is over, and another actor still owed it something."""

    def report(self, ended: m.Ended, *, leased: bool) -> None:
        """A connection is over. `leased`: it has, or is about to have, a maildrop."""


class Connections:
    """The clients of one process, by session. Its owner puts in `backend` and `tls`."""

    __slots__ = ("_actor", "_admission", "backend", "by_session", "dog", "draining", "policy", "refusing", "serial", "tls")

    backend: Backend
    tls: ssl.SSLContext

    def __init__(self, actor: Actor, admission: Admission) -> None:
        self._actor = actor
        self._admission = admission
        self.policy = Policy.of(actor.boot.config)
        self.by_session: dict[int, Connection] = {}
        self.refusing = 0  # connections that are only told why they are not served
        self.serial = int(actor.boot.config.get("serial", 0))
        self.draining = False  # no more are to come: the actor ends with the last one
        self.dog = Watchdog()

    # -- watched
    def watched(self) -> None:
        """Somebody watches: keep what is said from now on."""
        for client in self.by_session.values():
            client.session.replies.shown = []

    def _show(self, session: Session) -> None:
        """What a client is told, for who watches; nobody does any more where there is no tap."""
        if watch.tap is None:
            session.replies.shown, session.typed = None, []
            return
        said = session.replies.take_shown()
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
        """No more will come: end the actor with the last one."""
        self.draining = True
        if not self.by_session:
            self._actor.end()

    def stop(self) -> None:
        """Tell them all that the service ends."""
        self.draining = True
        for client in list(self.by_session.values()):
            client.session.stopping()
            self.progress(client)

    def admit(self, sock: socket.socket, host: str, port: int, tls: bool, refused: str) -> None:
        """Serve a client; one that is `refused` is told so, and no more."""
        if refused and (self.refusing >= _REFUSING or not self._admission.limits.room_to_shake()):
            sock.close()
            return
        self.serial += 1
        where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        client = Connection(sock, self._begin(where, tls=tls), self._actor.loop.now)
        self.by_session[self.serial] = client
        if refused:
            self.refusing += 1
            client.session.refused(refused)
        else:
            client.host = host
            self._admission.limits.waits(self.serial, host, self._actor.loop.now)
        if watch.tap is not None:
            client.session.replies.shown = [bytes(part) for part in client.session.replies.out]
            note("Connected", self.serial, {"address": where, "tls": tls, "refused": refused}, way="in", peer="client")
        self.arm(client, _GRACE if refused else self.policy.login_seconds)
        if tls:
            self._start_tls(client)
        else:
            self._attend(client)
            self.progress(client)

    def _begin(self, address: str, *, tls: bool) -> Session:
        return Session(self.serial, self.policy, address, tls=tls)

    def drop(self, session: int, why: str) -> None:
        """End a connection that has to make room."""
        self._lost(self.by_session[session], why)

    def _attend(self, client: Connection) -> None:
        client.events = READ
        self._actor.loop.add(client.sock.fileno(), partial(self.ready, client))

    def _start_tls(self, client: Connection) -> None:
        if client.events and client.sock.fileno() >= 0:
            self._actor.loop.remove(client.sock.fileno())
        try:
            # An end of TCP alone is no end of TLS (RFC 8446 section 6.1): nothing could be answered behind it.
            client.sock = self.tls.wrap_socket(
                client.sock, server_side=True, do_handshake_on_connect=False, suppress_ragged_eofs=False,
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
            self.shaken(client, client.sock)

    def _handshake(self, client: Connection, sock: ssl.SSLSocket) -> bool:
        """Go on with it; whether it is done."""
        self.dog.call = (sock,)
        try:
            sock.do_handshake()
        except ssl.SSLWantReadError:
            self._events(client, READ)
        except ssl.SSLWantWriteError:
            self._events(client, READ | WRITE)
        except (ssl.SSLError, OSError, ValueError) as error:
            self._lost(client, f"TLS: {getattr(error, 'reason', None) or 'connection lost'}".replace("_", " ").lower())
        else:
            return True
        finally:
            self.dog.call = None
        return False

    def _may_shake(self, client: Connection) -> bool:
        """A handshake counts from the client's first octet on: who says nothing keeps nobody from theirs."""
        if self._admission.shake(client.session.id, client.host):
            client.shaking = True
        else:
            self._lost(client, TOO_MANY_HANDSHAKES)
        return client.shaking

    def shaken(self, client: Connection, sock: ssl.SSLSocket) -> None:
        """TLS is on."""
        client.handshake = client.shaking = False
        self._admission.limits.shaken(client.session.id)
        if watch.tap is not None:
            note("Secured", client.session.id, {"version": sock.version() or ""}, way="in", peer="client")
        if client.session.authorization.starttls:
            client.session.secured()
        self.progress(client)

    # -- clients speak
    def ready(self, client: Connection, events: int) -> None:
        """Act on what the loop says of a client's socket."""
        if client.handshake:
            self._shake(client)
            return
        if client.eof and events & ~(READ | WRITE):  # an end of both directions, told again and again until it is heard
            self._lost(client, "connection lost")
            return
        if events & WRITE:
            self.progress(client)
            if client.session.id not in self.by_session:
                return
        if events & ~WRITE:
            self._read(client)

    def _receive(self, sock: socket.socket) -> bytes:
        if not isinstance(sock, ssl.SSLSocket):
            return sock.recv(_CHUNK)
        self.dog.call = (sock,)
        try:
            return sock.recv(_CHUNK)
        finally:
            self.dog.call = None

    def _read(self, client: Connection) -> None:
        try:
            data = self._receive(client.sock)
        except ssl.SSLWantWriteError:  # TLS itself has something to say that the client does not take (a key update): wait for that alone
            self._events(client, WRITE)
            return
        except _WANTS:
            return
        except (OSError, ValueError):
            self._lost(client, "connection lost")
            return
        if not data:
            client.eof = True
            self.progress(client)
            return
        client.octets_in += len(data)
        session = client.session
        if session.state == "transaction":
            client.deadline = self._actor.loop.now + self.policy.idle_seconds
        session.received(data)
        if watch.tap is not None:
            note("Typed", session.id, {"lines": session.take_typed()}, way="in", peer="client")
        self.progress(client)
        if client.sock.fileno() >= 0 and isinstance(client.sock, ssl.SSLSocket) and client.sock.pending():
            self._actor.loop.soon(lambda: self._read_more(client))

    def _read_more(self, client: Connection) -> None:
        if client.sock.fileno() >= 0 and not client.handshake and client.events & READ:
            self._read(client)

    def progress(self, client: Connection) -> None:
        """After anything that moved a session: ask, answer, close, as it now wants."""
        session = client.session
        authorization, replies = session.authorization, session.replies
        while True:
            if authorization.login is not None:
                self.backend.log_in(client, authorization.login)
            if client.channel is not None:
                requests = session.transaction.take_requests()
                if requests:
                    client.asked_at = client.asked_at or self._actor.loop.now
                    client.channel.send_all(requests)
                    if not self.backend.watching:
                        self.backend.watch_answers()
            if replies.out:
                client.out += replies.take_out()
                if replies.shown is not None:
                    self._show(session)
            if client.out and not self._write(client):
                return
            replies.out_octets = client.unsent
            if not session.go_on():
                break
        if not client.out:
            if authorization.starttls and not client.handshake:
                self._start_tls(client)
                return
            if replies.closing:
                self.over(client, replies.why or "connection lost")
                return
            if client.eof and not session.busy:
                self._lost(client, "connection lost")
                return
        elif replies.closing and not client.ending:
            client.ending = True
            self.arm(client, self._grace(client))
        self._flow(client)

    def _flow(self, client: Connection) -> None:
        """Give credit to the maildir actor, and read from the client or leave it be."""
        session = client.session
        if client.channel is not None:
            credit = session.transaction.credit(client.unsent)
            if credit:
                client.channel.send(m.Credit(credit))
        reading = not session.backlog and not session.replies.closing and not client.eof
        self._events(client, (READ if reading else 0) | (WRITE if client.out else 0))
        if not reading and client.sock.fileno() >= 0:
            client.waits = True
        elif client.waits:
            client.waits = False
            self._actor.loop.soon(lambda: self._read_more(client))

    def _events(self, client: Connection, events: int) -> None:
        if events != client.events and client.sock.fileno() >= 0:
            client.events = events
            self._actor.loop.change(client.sock.fileno(), events)

    def _write(self, client: Connection) -> bool:
        """Send what the client takes; False where that was its end."""
        out = client.out
        data = out[0] if len(out) == 1 else b"".join(out)
        view = memoryview(data)
        sent = 0
        piece = _SLICE if isinstance(client.sock, ssl.SSLSocket) else len(data)
        last = client.session.replies.closing  # close_notify and the end of TCP come right behind
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
            client.session.octets_sent += sent
            if last:
                client.deadline = self._actor.loop.now + self._grace(client)
            elif client.session.entered:  # before that the time to log in runs, whatever is said
                client.deadline = self._actor.loop.now + self.policy.idle_seconds
        client.out = [data[sent:]] if sent < len(data) else []
        if watch.tap is not None and client.unsent != len(data) - sent:
            note("Unsent", client.session.id, {"octets": len(data) - sent})
        client.unsent = len(data) - sent
        return True

    def _grace(self, client: Connection) -> float:
        """Seconds without progress after which the last answers are given up: a slow client's mail may stand before them."""
        return self.policy.idle_seconds if client.session.replies.why == "quit" else _GRACE

    # -- clients go
    def arm(self, client: Connection, seconds: float) -> None:
        """Give a client so long."""
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
        client.session.timed_out()
        self.over(client, client.session.replies.why)

    def _forget(self, client: Connection) -> None:
        """Take it out of all counts."""
        limits, session = self._admission.limits, client.session.id
        if client.host:
            limits.gone(client.host)
        else:
            self.refusing -= 1
        limits.entered(session)
        limits.shaken(session)

    def _lost(self, client: Connection, why: str) -> None:
        """The end of a connection that nothing said before has led to, so a replay has to be told."""
        if watch.tap is not None and client.session.id in self.by_session:
            note("Gone", client.session.id, {"why": why}, way="in", peer="client")
        self.over(client, why)

    def over(self, client: Connection, why: str) -> None:
        """The end of a connection, in any state. What the maildir actor then sees is the end of its channel."""
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
        if isinstance(client.sock, ssl.SSLSocket) and not client.handshake and not client.out and session.replies.why in _CLOSED_WELL:
            with contextlib.suppress(OSError, ValueError):  # who does not listen any more need not know
                client.sock.unwrap()  # close_notify: the client knows that nothing was cut off
        forget_errors()
        client.cork(on=False)  # before it is closed: where something of the client's is unread, close(2) throws away what has not left
        client.sock.close()
        self.backend.report(client.ended(why, self._actor.loop.now), leased=leased)
        if self.draining and not self.by_session:
            self._actor.end()
