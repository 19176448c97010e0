"""The listener's connections: TLS, clients' octets and timers, around the sessions of session/session.py. They come in by acceptor.py.

What a session wants of the other actors it hands to the shell above it (main.py), by `_ask`, `client.channel` and `_account`.
"""

import contextlib
import socket
import ssl
from functools import partial

from popkernel.actors.listener.acceptor import Door
from popkernel.actors.listener.connection import Client
from popkernel.actors.listener.limits import TOO_MANY_HANDSHAKES
from popkernel.actors.listener.session.policy import Policy
from popkernel.actors.listener.session.session import Session
from popkernel.actors.listener.tls import Served, forget_errors
from popkernel.actors.listener.tls_watchdog import Watchdog
from popkernel.kernel.runtime.actor import Boot
from popkernel.kernel.runtime.channel import watch
from popkernel.kernel.runtime.loop import READ, WRITE
from popkernel.kernel.runtime.tap import note, piece
from popkernel.proto import messages as m

__all__ = ["Front"]

_REFUSING = 64  # connections at a time that are told why they are not served; more are closed without a word
_CHUNK = 8192  # octets read from a client at once: commands are short, and a buffer is made for each read
_GRACE = 5.0  # seconds a closing connection may stand still before it has taken its last answer
_SLICE = 65536  # octets given to OpenSSL at once: it tells how much a client took only when all of them are gone
_RECORD = 16384  # octets of a TLS record, RFC 8446 section 5.1
_CLOSED_WELL = ("quit", "quit before login")
_WANTS = (ssl.SSLWantReadError, ssl.SSLWantWriteError, BlockingIOError, InterruptedError)


class Front(Door):
    """The clients of one listener process."""

    def __init__(self, boot: Boot) -> None:
        super().__init__(boot)
        config = boot.config
        self.policy = Policy.of(config)
        served: Served = config.get("served") or self.read_keys()
        self.tls, self.warnings = served
        self.clients: dict[int, Client] = {}
        self.awaiting: dict[int, Client] = {}  # those whose login waits for its turn, for auth or for the kernel
        self.refusing = 0  # connections that are only told why they are not served
        self.serial = int(config.get("serial", 0))
        self.draining = False
        self.dog = Watchdog()
        self.threads = self.dog.start

    def connect(self) -> None:
        super().connect()
        for text in self.warnings:
            self.log(4, text)

    def sessions(self) -> int:
        """Connections, logged in or not."""
        return len(self.clients)

    # -- watched
    def _watch(self, message: m.Watch, fds: list[int]) -> None:
        super()._watch(message, fds)
        for client in self.clients.values():
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

    # -- what the shell above does
    def _log_in(self, client: Client, login: m.Login) -> None:
        """Have a login checked, in its turn."""
        raise NotImplementedError

    def _login_over(self, session: int) -> None:
        """A login has been answered, or nobody waits for its answer any more."""
        raise NotImplementedError

    def _unanswered(self, client: Client) -> None:
        """The client's time is over, and another actor still owed it something."""
        raise NotImplementedError

    def _account(self, ended: m.Ended, *, leased: bool) -> None:
        """A connection is over. `leased`: a maildrop is its, or was asked for."""
        raise NotImplementedError

    # -- clients come
    def _done_draining(self) -> None:
        if self.draining and not self.clients:
            self.end()

    def _admit(self, sock: socket.socket, host: str, port: int, *, tls: bool, refused: str) -> None:
        if refused and (self.refusing >= _REFUSING or not self.limits.room_to_shake()):
            sock.close()
            return
        self.serial += 1
        where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        client = Client(sock, Session(self.serial, self.policy, where, tls=tls), self.loop.now)
        self.clients[self.serial] = client
        if refused:
            self.refusing += 1
            client.session.refused(refused)
        else:
            client.host = host
            self.limits.waits(self.serial, host, self.loop.now)
        if watch.tap is not None:
            client.session.replies.shown = [bytes(part) for part in client.session.replies.out]
            note("Connected", self.serial, {"address": where, "tls": tls, "refused": refused}, way="in", peer="client")
        self._arm(client, _GRACE if refused else self.policy.login_seconds)
        if tls:
            self._start_tls(client)
        else:
            self._attend(client)
            self._progress(client)

    def _drop(self, session: int, why: str) -> None:
        self._lost(self.clients[session], why)

    def _attend(self, client: Client) -> None:
        client.events = READ
        self.loop.add(client.sock.fileno(), partial(self._ready, client))

    def _start_tls(self, client: Client) -> None:
        if client.events and client.sock.fileno() >= 0:
            self.loop.remove(client.sock.fileno())
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

    def _shake(self, client: Client) -> None:
        assert isinstance(client.sock, ssl.SSLSocket)
        if not client.shaking and not self._may_shake(client):
            return
        if self._handshake(client, client.sock):
            self._shaken(client, client.sock)

    def _handshake(self, client: Client, sock: ssl.SSLSocket) -> bool:
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

    def _may_shake(self, client: Client) -> bool:
        """A handshake counts from the client's first octet on: who says nothing keeps nobody from theirs."""
        if self._room_to_shake(client.session.id, client.host):
            client.shaking = True
        else:
            self._lost(client, TOO_MANY_HANDSHAKES)
        return client.shaking

    def _shaken(self, client: Client, sock: ssl.SSLSocket) -> None:
        """TLS is on."""
        client.handshake = client.shaking = False
        self.limits.shaken(client.session.id)
        if watch.tap is not None:
            note("Secured", client.session.id, {"version": sock.version() or ""}, way="in", peer="client")
        if client.session.authorization.starttls:
            client.session.secured()
        self._progress(client)

    # -- clients speak
    def _ready(self, client: Client, events: int) -> None:
        if client.handshake:
            self._shake(client)
            return
        if client.eof and events & ~(READ | WRITE):  # an end of both directions, told again and again until it is heard
            self._lost(client, "connection lost")
            return
        if events & WRITE:
            self._progress(client)
            if client.session.id not in self.clients:
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

    def _read(self, client: Client) -> None:
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
            self._progress(client)
            return
        client.octets_in += len(data)
        session = client.session
        if session.state == "transaction":
            client.deadline = self.loop.now + self.policy.idle_seconds
        session.received(data)
        if watch.tap is not None:
            note("Typed", session.id, {"lines": session.take_typed()}, way="in", peer="client")
        self._progress(client)
        if client.sock.fileno() >= 0 and isinstance(client.sock, ssl.SSLSocket) and client.sock.pending():
            self.loop.soon(lambda: self._read_more(client))

    def _read_more(self, client: Client) -> None:
        if client.sock.fileno() >= 0 and not client.handshake and client.events & READ:
            self._read(client)

    def _progress(self, client: Client) -> None:
        """After anything that moved a session: ask, answer, close, as it now wants."""
        session = client.session
        authorization, replies = session.authorization, session.replies
        while True:
            if authorization.login is not None and session.id not in self.awaiting:
                self._log_in(client, authorization.login)
            if client.channel is not None:
                requests = session.transaction.take_requests()
                if requests:
                    client.asked_at = client.asked_at or self.loop.now
                    client.channel.send_all(requests)
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
                self._over(client, replies.why or "connection lost")
                return
            if client.eof and not session.busy:
                self._lost(client, "connection lost")
                return
        elif replies.closing and not client.ending:
            client.ending = True
            self._arm(client, self._grace(client))
        self._flow(client)

    def _flow(self, client: Client) -> None:
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
            self.loop.soon(lambda: self._read_more(client))

    def _events(self, client: Client, events: int) -> None:
        if events != client.events and client.sock.fileno() >= 0:
            client.events = events
            self.loop.change(client.sock.fileno(), events)

    def _write(self, client: Client) -> bool:
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
                client.deadline = self.loop.now + self._grace(client)
            elif client.session.entered:  # before that the time to log in runs, whatever is said
                client.deadline = self.loop.now + self.policy.idle_seconds
        client.out = [data[sent:]] if sent < len(data) else []
        if watch.tap is not None and client.unsent != len(data) - sent:
            note("Unsent", client.session.id, {"octets": len(data) - sent})
        client.unsent = len(data) - sent
        return True

    def _grace(self, client: Client) -> float:
        """Seconds without progress after which the last answers are given up: a slow client's mail may stand before them."""
        return self.policy.idle_seconds if client.session.replies.why == "quit" else _GRACE

    # -- clients go
    def _arm(self, client: Client, seconds: float) -> None:
        client.deadline = self.loop.now + seconds
        if client.timer is not None:
            client.timer.cancel()
        client.timer = self.loop.later(seconds, lambda: self._late(client), client.session.id)

    def _late(self, client: Client) -> None:
        left = client.deadline - self.loop.now
        if left > 0.05:
            client.timer = self.loop.later(left, lambda: self._late(client), client.session.id)
            return
        listing = client.channel is not None and not client.session.entered
        if client.asked_at or listing:
            self._unanswered(client)
        client.session.timed_out()
        self._over(client, client.session.replies.why)

    def _forget(self, client: Client) -> None:
        """Take it out of all counts."""
        limits, session = self.limits, client.session.id
        if client.host:
            limits.gone(client.host)
        else:
            self.refusing -= 1
        limits.entered(session)
        limits.shaken(session)
        self._login_over(session)

    def _lost(self, client: Client, why: str) -> None:
        """The end of a connection that nothing said before has led to, so a replay has to be told."""
        if watch.tap is not None and client.session.id in self.clients:
            note("Gone", client.session.id, {"why": why}, way="in", peer="client")
        self._over(client, why)

    def _over(self, client: Client, why: str) -> None:
        """The end of a connection, in any state. What the maildir actor then sees is the end of its channel."""
        session = client.session
        if self.clients.pop(session.id, None) is None:
            return
        leased = session.entered or client.channel is not None or session.id in self.awaiting
        self.awaiting.pop(session.id, None)
        self._forget(client)
        if client.timer is not None:
            client.timer.cancel()
        if client.channel is not None:
            client.channel.close()
            client.channel = None
        if client.sock.fileno() >= 0:
            self.loop.remove(client.sock.fileno())
        if isinstance(client.sock, ssl.SSLSocket) and not client.handshake and not client.out and session.replies.why in _CLOSED_WELL:
            with contextlib.suppress(OSError, ValueError):  # who does not listen any more need not know
                client.sock.unwrap()  # close_notify: the client knows that nothing was cut off
        forget_errors()
        client.cork(on=False)  # before it is closed: where something of the client's is unread, close(2) throws away what has not left
        client.sock.close()
        self._account(client.ended(why, self.loop.now), leased=leased)
        self._done_draining()
