"""The listener's front: listening sockets, TLS, clients' octets and timers, around the sessions of core.py.

What a session wants of the other actors it hands to the shell above it (main.py), by `_ask`, `client.channel` and `_account`.
"""

import contextlib
import errno
import os
import socket
import ssl
from typing import Any

from popkernel.actors.listener.core import Session
from popkernel.actors.listener.policy import Policy
from popkernel.actors.listener.tls import TlsError, context
from popkernel.kernel.actor import Actor, Boot
from popkernel.kernel.channel import Channel, watch
from popkernel.kernel.loop import READ, WRITE, Timer
from popkernel.kernel.memory import keep_memory
from popkernel.kernel.tap import note, piece
from popkernel.proto import messages as m

__all__ = ["Client", "Front"]

_ACCEPTS = 64  # connections taken from one listening socket a turn, so that those who are in get their turn too
_CHUNK = 8192  # octets read from a client at once: commands are short, and a buffer is made for each read
_BACKLOG = 512  # lines of a client that may wait before no more are read from it
_GRACE = 5.0  # seconds a closing connection may stand still before it has taken its last answer
_SLICE = 65536  # octets given to OpenSSL at once: it tells how much a client took only when all of them are gone
_UNSENT = 131072  # octets the system may hold of one client before it lets them go: what more it held would look like silence
_CLOSED_WELL = ("quit", "quit before login")
_WANTS = (ssl.SSLWantReadError, ssl.SSLWantWriteError, BlockingIOError, InterruptedError)


class Client:
    """A connection: its socket, its session, and what waits to be sent."""

    __slots__ = (
        "asked",
        "asked_at",
        "channel",
        "deadline",
        "ending",
        "eof",
        "events",
        "handshake",
        "octets_in",
        "out",
        "session",
        "sock",
        "started",
        "timer",
        "unsent",
        "waits",
    )

    def __init__(self, sock: socket.socket, session: Session, now: float) -> None:
        self.sock = sock
        self.session = session
        self.asked = 0  # auths that were asked about the login under way
        self.asked_at = 0.0  # when what another actor has not yet answered was asked, or when it last went on answering; 0: nothing is
        self.eof = False  # the client says no more, and may still listen: shutdown(2), `nc -N`
        self.handshake = False
        self.channel: Channel | None = None
        self.out: list[bytes] = []
        self.unsent = 0
        self.octets_in = 0
        self.started = now
        self.deadline = now
        self.timer: Timer | None = None
        self.events = READ
        self.waits = False  # for the client to take what was sent
        self.ending = False  # all is said; what waits to be sent is the last


class Front(Actor):
    """The clients of one listener process."""

    def __init__(self, boot: Boot) -> None:
        super().__init__(boot, many=True)
        config = boot.config
        self.policy = Policy(
            version=config["version"], plaintext=config["allow_plaintext"], starttls=True,
            login_seconds=config["login_seconds"], idle_seconds=config["idle_seconds"],
        )
        try:
            self.tls = context(config["cert"], config["key"], config["tls_min"])
        except TlsError as error:
            self.fail(78, str(error))
        self.most = int(config["max_sessions"])
        self.clients: dict[int, Client] = {}
        self.awaiting: dict[int, Client] = {}  # those whose login auth or the kernel still has to answer
        self.serial = int(config.get("serial", 0))
        self.draining = False
        self.listening: list[tuple[socket.socket, bool]] = []

    def begin(self) -> None:
        """Lock in, say hello, serve."""
        tls_fds, plain_fds = self.boot.config["tls_fds"], self.boot.config["plain_fds"]
        self.listening = [(socket.socket(fileno=fd), True) for fd in tls_fds]
        self.listening += [(socket.socket(fileno=fd), False) for fd in plain_fds]
        for sock, _ in self.listening:
            sock.setblocking(False)
            if hasattr(socket, "TCP_NOTSENT_LOWAT"):  # those it accepts inherit it
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT)
        keep_memory(16 << 20)
        self.lock(nofile=2 * self.most + 64)
        room = (self.nofile - 64) // 2  # a session is a client's socket and a channel
        self.connect()
        if room < self.most:  # a few less than asked for are not worth a warning at every start
            text = f"{self.boot.name}: the hard limit of {self.nofile} descriptors leaves room for {room} sessions, not {self.most}"
            self.log(4 if room < self.most * 9 // 10 else 6, f"{text}; raise it, or start more listeners with --listeners")
            self.most = room
        self.run()

    def sessions(self) -> int:
        """Connections, logged in or not."""
        return len(self.clients)

    # -- watched
    def _watch(self, message: m.Watch, fds: list[int]) -> None:
        super()._watch(message, fds)
        for client in self.clients.values():
            client.session.shown = []

    def _show(self, session: Session) -> None:
        """What a client is told, for who watches; nobody does any more where there is no tap."""
        if watch.tap is None:
            session.shown, session.typed = None, []
            return
        said = session.take_shown()
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
    def _ask(self, client: Client, login: m.Login) -> None:
        """Have a login checked."""
        raise NotImplementedError

    def _unanswered(self, client: Client) -> None:
        """The client's time is over, and another actor still owed it something."""
        raise NotImplementedError

    def _account(self, ended: m.Ended) -> None:
        """A connection is over."""
        raise NotImplementedError

    # -- clients come
    def _listen(self, sock: socket.socket, tls: bool) -> None:
        def ready(events: int) -> None:
            del events
            self._accept(sock, tls)

        self.loop.add(sock.fileno(), ready)

    def _close_listening(self) -> None:
        for sock, _ in self.listening:
            self.loop.remove(sock.fileno())
            sock.close()
        self.listening.clear()

    def _done_draining(self) -> None:
        if self.draining and not self.clients:
            self.end()

    def _accept(self, listening: socket.socket, tls: bool) -> None:
        for _ in range(_ACCEPTS):
            try:
                sock, address = listening.accept()
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    self.log(3, f"no more connections can be taken: {os.strerror(error.errno)}")
                return
            self._begin(sock, address, tls)

    def _begin(self, sock: socket.socket, address: Any, tls: bool) -> None:
        sock.setblocking(False)
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if len(self.clients) >= self.most:
            if not tls:
                with contextlib.suppress(OSError):
                    sock.send(b"-ERR [SYS/TEMP] too many connections, try again later\r\n")
            sock.close()
            return
        self.serial += 1
        where = f"[{address[0]}]:{address[1]}" if ":" in address[0] else f"{address[0]}:{address[1]}"
        client = Client(sock, Session(self.serial, self.policy, where, tls=tls), self.loop.now)
        self.clients[self.serial] = client
        if watch.tap is not None:
            client.session.shown = [*client.session.out]
            note("Connected", self.serial, {"address": where, "tls": tls}, way="in", peer="client")
        self._arm(client, self.policy.login_seconds)
        if tls:
            self._start_tls(client)
        else:
            self._attend(client)
            self._progress(client)

    def _attend(self, client: Client) -> None:
        def ready(events: int) -> None:
            self._ready(client, events)

        client.events = READ
        self.loop.add(client.sock.fileno(), ready)

    def _start_tls(self, client: Client) -> None:
        if client.events and client.sock.fileno() >= 0:
            self.loop.remove(client.sock.fileno())
        try:
            client.sock = self.tls.wrap_socket(client.sock, server_side=True, do_handshake_on_connect=False)
        except OSError:
            self._over(client, "connection lost")
            return
        client.handshake = True
        self._attend(client)

    def _shake(self, client: Client) -> None:
        assert isinstance(client.sock, ssl.SSLSocket)
        try:
            client.sock.do_handshake()
        except ssl.SSLWantReadError:
            self._events(client, READ)
            return
        except ssl.SSLWantWriteError:
            self._events(client, READ | WRITE)
            return
        except (ssl.SSLError, OSError, ValueError) as error:
            self._over(client, f"TLS: {getattr(error, 'reason', None) or 'connection lost'}".replace("_", " ").lower())
            return
        self._shaken(client, client.sock.version() or "")

    def _shaken(self, client: Client, version: str) -> None:
        """TLS is on."""
        client.handshake = False
        if watch.tap is not None:
            note("Secured", client.session.id, {"version": version}, way="in", peer="client")
        if client.session.starttls:
            client.session.secured()
        self._progress(client)

    # -- clients speak
    def _ready(self, client: Client, events: int) -> None:
        if client.handshake:
            self._shake(client)
            return
        if events & WRITE:
            self._progress(client)
            if client.session.id not in self.clients:
                return
        if events & ~WRITE:
            self._read(client)

    def _read(self, client: Client) -> None:
        try:
            data = client.sock.recv(_CHUNK)
        except ssl.SSLWantWriteError:  # TLS itself has something to say that the client does not take (a key update): wait for that alone
            self._events(client, WRITE)
            return
        except _WANTS:
            return
        except (OSError, ValueError):
            self._over(client, "connection lost")
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
        while True:
            if session.login is not None and session.id not in self.awaiting:
                self.awaiting[session.id] = client
                self._ask(client, session.login)
            if client.channel is not None:
                tell = session.take_tell()
                if tell:
                    client.asked_at = client.asked_at or self.loop.now
                    client.channel.send_all(tell)
            if session.out:
                client.out += session.take_out()
                if session.shown is not None:
                    self._show(session)
            if client.out and not self._write(client):
                return
            session.out_octets = client.unsent
            if not session.go_on():
                break
        if not client.out:
            if session.starttls and not client.handshake:
                self._start_tls(client)
                return
            if session.closing or (client.eof and not session.busy):
                self._over(client, session.why or "connection lost")
                return
        elif session.closing and not client.ending:
            client.ending = True
            self._arm(client, self._grace(client))
        self._flow(client)

    def _flow(self, client: Client) -> None:
        """Give credit to the maildir actor, and read from the client or leave it be."""
        session = client.session
        if client.channel is not None:
            credit = session.credit(client.unsent)
            if credit:
                client.channel.send(m.Credit(credit))
        reading = session.backlog < _BACKLOG and not session.closing and not client.eof
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
        try:
            while sent < len(data):
                sent += client.sock.send(view[sent : sent + piece])
        except _WANTS:
            pass
        except (OSError, ValueError):
            self._over(client, "connection lost")
            return False
        if sent:
            client.session.octets_sent += sent
            if client.session.closing:
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
        return self.policy.idle_seconds if client.session.why == "quit" else _GRACE

    # -- clients go
    def _arm(self, client: Client, seconds: float) -> None:
        client.deadline = self.loop.now + seconds
        if client.timer is not None:
            client.timer.cancel()
        client.timer = self.loop.later(seconds, lambda: self._late(client))

    def _late(self, client: Client) -> None:
        left = client.deadline - self.loop.now
        if left > 0.05:
            client.timer = self.loop.later(left, lambda: self._late(client))
            return
        if client.asked_at:
            self._unanswered(client)
        client.session.timed_out()
        self._over(client, client.session.why)

    def _over(self, client: Client, why: str) -> None:
        """The end of a connection, in any state. What the maildir actor then sees is the end of its channel."""
        session = client.session
        if self.clients.pop(session.id, None) is None:
            return
        if watch.tap is not None and not session.why:
            note("Gone", session.id, {"why": why}, way="in", peer="client")
        self.awaiting.pop(session.id, None)
        if client.timer is not None:
            client.timer.cancel()
        if client.channel is not None:
            client.channel.close()
            client.channel = None
        if client.sock.fileno() >= 0:
            self.loop.remove(client.sock.fileno())
        if isinstance(client.sock, ssl.SSLSocket) and not client.handshake and not client.out and session.why in _CLOSED_WELL:
            with contextlib.suppress(OSError, ValueError):
                client.sock.unwrap()  # close_notify: the client knows that nothing was cut off
        client.sock.close()
        self._account(
            m.Ended(
                session.id,
                session.user if session.entered else "",
                session.address,
                (session.why or why)[:200],
                session.commands,
                client.octets_in,
                session.octets_sent,
                session.retrieved,
                session.deleted,
                int((self.loop.now - client.started) * 1000),
            ),
        )
        self._done_draining()
