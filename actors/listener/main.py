"""The listener's shell: sockets, TLS, timers and channels around the sessions of core.py.

It knows its TLS keys and what its clients type, sees no file once it serves, and can only ask auth about a password; what it then gets
is one channel, which is one session of one user.
"""

import contextlib
import errno
import os
import socket
import ssl
from typing import Any

from popkernel.actors.listener.core import Policy, Session
from popkernel.actors.listener.tls import TlsError, context
from popkernel.kernel.actor import Actor, Boot
from popkernel.kernel.channel import Channel, Message, adopt, watch
from popkernel.kernel.loop import READ, WRITE, Timer
from popkernel.kernel.memory import keep_memory
from popkernel.kernel.tap import note, piece
from popkernel.proto import messages as m

_ASKS = 2  # auths that are asked about one login, should the first end before it answers
_ACCEPTS = 64  # connections taken from one listening socket a turn, so that those who are in get their turn too
_CHUNK = 8192  # octets read from a client at once: commands are short, and a buffer is made for each read
_BACKLOG = 512  # lines of a client that may wait before no more are read from it
_GRACE = 5.0  # seconds a closing connection may stand still before it has taken its last answer
_SLICE = 65536  # octets given to OpenSSL at once: it tells how much a client took only when all of them are gone
_UNSENT = 131072  # octets the system may hold of one client before it lets them go: what more it held would look like silence
_CLOSED_WELL = ("quit", "quit before login")
_REPORT_SECONDS = 0.1  # how long the log may wait for the line of a session
_MOST_REPORTS = 64
_WANTS = (ssl.SSLWantReadError, ssl.SSLWantWriteError, BlockingIOError, InterruptedError)


class Client:
    """A connection: its socket, its session, and what waits to be sent."""

    __slots__ = (
        "asked",
        "channel",
        "deadline",
        "ending",
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


class Listener(Actor):
    """All connections of one listener process."""

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
        self.auth: Channel | None = None
        self.clients: dict[int, Client] = {}
        self.awaiting: dict[int, Client] = {}  # those whose login auth or the kernel still has to answer
        self.serial = int(config.get("serial", 0))
        self.draining = False
        self.reports: list[Message] = []
        self.listening: list[tuple[socket.socket, bool]] = []
        self.handlers |= {m.Peer: self._peer, m.Opened: self._opened, m.Turned: self._turned, m.Drain: self._drain}

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

    def session_of(self, channel: Channel, message: Message) -> int:
        """The channel to a maildir actor is a session."""
        tag = channel.tag
        return tag.session.id if type(tag) is Client else super().session_of(channel, message)

    def settings(self) -> dict[str, Any]:
        return {
            "policy": list(self.policy),
            "max_sessions": self.most,
            "serial": self.serial,
            "auth": self.auth.peer if self.auth is not None else "",
        }

    # -- from the kernel
    def _peer(self, message: m.Peer, fds: list[int]) -> None:
        """A channel to auth, the first or a new one's. Logins that the old one did not answer are asked again."""
        if self.auth is not None:
            self.auth.close()
        else:
            for sock, tls in self.listening:
                self._listen(sock, tls)
        self.auth = Channel(self.loop, adopt(fds[0]), self.boot.name, message.name, self._on_auth, self._on_auth_gone)
        for client in list(self.awaiting.values()):
            if client.asked >= _ASKS:  # it may be this very login that ends them
                self._no(client.session.id, "SYS/TEMP", "can't check passwords now, try again")
            elif client.session.login is not None:
                self._ask(client, client.session.login)

    def _listen(self, sock: socket.socket, tls: bool) -> None:
        def ready(events: int) -> None:
            del events
            self._accept(sock, tls)

        self.loop.add(sock.fileno(), ready)

    def _opened(self, message: m.Opened, fds: list[int]) -> None:
        client = self.awaiting.pop(message.session, None)
        if client is None:  # gone meanwhile: closing the channel ends the session at the other end
            os.close(fds[0])
            return
        client.session.login = None
        client.channel = Channel(
            self.loop, adopt(fds[0]), self.boot.name, f"maildir.{client.session.user}",
            self._on_maildir, self._on_maildir_gone,
        )
        client.channel.tag = client

    def _turned(self, message: m.Turned, fds: list[int]) -> None:
        del fds
        self._no(message.session, message.code, message.text)

    def _no(self, session: int, code: str, text: str) -> None:
        client = self.awaiting.pop(session, None)
        if client is not None:
            client.session.login = None
            self.tell(m.LoginFailed(client.session.id, client.session.user, client.session.address, code or "refused"))
            client.session.denied(code, text)
            self._progress(client)

    def _drain(self, message: m.Drain, fds: list[int]) -> None:
        del message, fds
        self.draining = True
        self._close_listening()
        self._done_draining()

    def _close_listening(self) -> None:
        for sock, _ in self.listening:
            self.loop.remove(sock.fileno())
            sock.close()
        self.listening.clear()

    def _done_draining(self) -> None:
        if self.draining and not self.clients:
            self.end()

    def stop(self, seconds: int) -> None:
        """No more clients; those there are are told, and have that long to take it."""
        self._close_listening()
        self.draining = True
        for client in list(self.clients.values()):
            client.session.stopping()
            self._progress(client)
        self.loop.later(max(0.1, seconds - 1), self.end)
        self._done_draining()

    # -- from auth
    def _on_auth(self, channel: Channel, message: Message, fds: list[int]) -> None:
        del channel, fds
        assert isinstance(message, m.Denied)
        self._no(message.session, message.code, message.text)

    def _on_auth_gone(self, channel: Channel, why: str) -> None:
        """Logins wait for the next auth, as long as their clients do."""
        if why:
            self.refuse(channel, why)

    def _ask(self, client: Client, login: m.Login) -> None:
        client.asked += 1
        self.tell(m.Awaiting(login.session))
        if self.auth is not None:
            self.auth.send(login)

    # -- from a maildir actor
    def _on_maildir(self, channel: Channel, message: Message, fds: list[int]) -> None:
        del fds
        client: Client = channel.tag
        session = client.session
        if type(message) is m.Ready:
            if session.state == "login":
                self._arm(client, self.policy.idle_seconds)
                session.ready(message)
            else:
                self._bad_maildir(client, "ready twice")
                return
        elif type(message) is m.Unready:
            self._unready(client, message)
            return
        else:
            try:
                session.answered(message)
            except ValueError as error:
                self._bad_maildir(client, str(error))
                return
        self._progress(client)

    def _unready(self, client: Client, message: m.Unready) -> None:
        assert client.channel is not None
        client.channel.close()
        client.channel = None
        if client.session.state == "login":
            self.tell(m.LoginFailed(client.session.id, client.session.user, client.session.address, message.code or "refused"))
            client.session.denied(message.code, message.text)
        else:
            client.session.maildir_gone()
        self._progress(client)

    def _bad_maildir(self, client: Client, why: str) -> None:
        if client.channel is not None:
            self.refuse(client.channel, why)
        self._maildir_over(client)

    def _on_maildir_gone(self, channel: Channel, why: str) -> None:
        if why:
            self.refuse(channel, why)
        self._maildir_over(channel.tag)

    def _maildir_over(self, client: Client) -> None:
        client.channel = None
        if client.session.state == "login":
            client.session.denied("SYS/TEMP", "the mailbox is not available now, try again")
        else:
            client.session.maildir_gone()
        self._progress(client)

    # -- clients come
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
            data = b""
        if not data:
            self._over(client, "connection lost")
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
            if session.closing:
                self._over(client, session.why)
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
        reading = session.backlog < _BACKLOG and not session.closing
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

    def _account(self, ended: m.Ended) -> None:
        """Several travel together, for the kernel is woken once for them: only the log waits.

        Not so where a session ended without QUIT: its user's next login may be here before the maildir actor has seen the end.
        """
        self.reports.append(ended)
        if ended.user and ended.why != "quit":
            self._send_reports()
        elif len(self.reports) == 1:
            self.loop.later(_REPORT_SECONDS, self._send_reports)
        elif len(self.reports) >= _MOST_REPORTS:
            self._send_reports()

    def _send_reports(self) -> None:
        if self.reports and self.kernel is not None:
            reports, self.reports = self.reports, []
            self.kernel.send_all(reports)

    def end(self) -> None:
        """Leave, with nothing untold."""
        self._send_reports()
        super().end()


def main(boot: Boot) -> None:
    """Become a listener."""
    Listener(boot).begin()
