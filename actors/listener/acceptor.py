"""The listener's door: listening sockets, PROXY headers, and who is let in. What becomes of those is connections.py's.

An address is the client's own from here on: of a connection from a proxy that the configuration names it is the one in its PROXY header,
and limits, bans and the log go by it.
"""

import contextlib
import errno
import os
import socket
from collections.abc import Callable
from typing import Any, NoReturn

from popkernel.actors.listener.limits import KEYS, TOO_MANY, TOO_MANY_ADDRESS, Bounds, Limits
from popkernel.actors.listener.proxy_header_reader import Proxied
from popkernel.actors.listener.tls import Served, TlsError, serve
from popkernel.kernel.config.regular_files import UnreadableError, read_named
from popkernel.kernel.runtime.actor import MORE_DESCRIPTORS, Actor, Boot
from popkernel.kernel.runtime.loop import Timer
from popkernel.kernel.runtime.memory import keep_memory
from popkernel.kernel.runtime.scheduling import favour, processors
from popkernel.proto import messages as m
from popkernel.proto.access.networks import MAX_NETWORKS, Networks, parse_network, parse_networks, plain
from popkernel.proto.pop3.proxy_header import ProxyError

__all__ = ["Door"]

_ACCEPTS = 64  # connections taken from one listening socket a turn, so that those who are in get their turn too
_UNSENT = 131072  # octets the system may hold of one client before it lets them go: what more it held would look like silence
_HEADER_SECONDS = 5.0  # a proxy has its header ready: it comes with the connection, or something is wrong
_PAUSE = 0.1  # seconds without connections where there is no room for one
_COMPLAINTS = 60.0  # seconds between two lines of the log about connections that are not taken


class Door(Actor):
    """Takes connections for one listener process."""

    threads: Callable[[], None] | None = None  # starts what runs beside it

    def __init__(self, boot: Boot) -> None:
        super().__init__(boot, many=True)
        config = boot.config
        self.most = int(config["max_sessions"])
        self.limits = Limits(Bounds.of(config))
        self.proxies = Networks(parse_network(text) for text in config["proxy_networks"])
        self.blocked = self._read_blocked(config["block_list"])
        self.unknown: dict[socket.socket, Timer] = {}  # connections of proxies, whose client is not known yet
        self.listening: list[tuple[socket.socket, bool]] = []
        self.paused: set[socket.socket] = set()  # of those
        self._complained = -_COMPLAINTS
        self._short = 0  # the limit of descriptors, where it allows fewer sessions than max_sessions
        self._met: dict[str, tuple[float, int]] = {}  # bounds that were met: when the log had a line of it, how many times since

    def _read_blocked(self, path: str) -> Networks:
        if not path:
            return Networks(())
        try:
            networks, findings = parse_networks(read_named("block_list", path, MAX_NETWORKS), path)
        except UnreadableError as error:
            self.fail(error.code, str(error))
        if findings:
            self.fail(65, "\n".join(map(str, findings[:20])))
        return networks

    def read_keys(self) -> Served:
        """Certificates and keys: one that can't be used, and nothing is served."""
        config = self.boot.config
        try:
            return serve(config["pairs"], config["tls_min"], config["phrase"])
        except TlsError as error:
            self.fail(78, str(error))

    def begin(self) -> NoReturn:
        """Lock in, say hello, serve."""
        self._take_listening()
        keep_memory(16 << 20)
        if self.boot.config["listeners"] < processors():  # a flood of clients must leave one to the others
            favour(self.boot.config["listener_nice"])
        self.lock(nofile=2 * self.most + 64, threads=self.threads)
        self.connect()
        self._fit(self.nofile, (self.nofile - 64) // 2)  # a session is a client's socket and a channel
        self.run()

    def _take_listening(self) -> None:
        tls_fds, plain_fds = self.boot.config["tls_fds"], self.boot.config["plain_fds"]
        self.listening = [(socket.socket(fileno=fd), True) for fd in tls_fds]
        self.listening += [(socket.socket(fileno=fd), False) for fd in plain_fds]
        for sock, _ in self.listening:
            sock.setblocking(False)
            if hasattr(socket, "TCP_NOTSENT_LOWAT"):  # those it accepts inherit it
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT)

    def _fit(self, limit: int, room: int) -> None:
        """No more sessions than a limit of descriptors leaves room for, and at least one: 0 would be no bound."""
        room = max(1, room)
        if room < self.most:  # the kernel has warned where that is less than somebody asked for (kernel/supervisor/descriptor_room.py)
            self.log(7, f"{self.boot.name}: the hard limit of {limit} descriptors leaves room for {room} sessions, not {self.most}")
            self.most, self._short = room, limit
            self.limits.bounds = self.limits.bounds._replace(sessions=room)

    # -- what the floor above does
    def _admit(self, sock: socket.socket, host: str, port: int, *, tls: bool, refused: str) -> None:
        """Serve a client; one that is `refused` is told so, and no more."""
        raise NotImplementedError

    def _drop(self, session: int, why: str) -> None:
        """End a connection that has to make room."""
        raise NotImplementedError

    # -- connections
    def _listen(self, sock: socket.socket, tls: bool) -> None:
        def ready(events: int) -> None:
            del events
            self._accept(sock, tls)

        self.paused.discard(sock)
        self.loop.add(sock.fileno(), ready)

    def _pause(self, sock: socket.socket, tls: bool) -> None:
        """There is no room for connections: they wait in the system's queue, and this process does not turn in a circle."""

        def resume() -> None:
            if sock in self.paused and (sock, tls) in self.listening:
                self._listen(sock, tls)

        self.loop.remove(sock.fileno())
        self.paused.add(sock)
        self.loop.later(_PAUSE, resume)

    def _close_listening(self) -> None:
        for sock, _ in self.listening:
            self.loop.remove(sock.fileno())
            sock.close()
        self.listening.clear()
        for sock in list(self.unknown):
            self._turn_away(sock)

    def _accept(self, listening: socket.socket, tls: bool) -> None:
        for _ in range(_ACCEPTS):
            try:
                sock, address = listening.accept()
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    self._complain(f"no more connections can be taken: {os.strerror(error.errno)}")
                    self._pause(listening, tls)
                elif error.errno == errno.EINVAL:  # all who share the socket see it, and would be told so without end
                    self._close_listening()
                    self.tell(m.Deaf())
                return
            sock.setblocking(False)
            with contextlib.suppress(OSError):  # the client has gone already: the first read tells
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self.proxies.contains(address[0]):
                self._await_header(sock, address, tls)
            else:
                self._enter(sock, address[0], address[1], tls)

    def _complain(self, text: str) -> None:
        if self.loop.now - self._complained >= _COMPLAINTS:
            self._complained = self.loop.now
            self.log(3, text)

    def _bound(self, why: str, host: str, what: str = "refused") -> None:
        """Tell the operator which key it is that somebody meets: one line a minute of each."""
        key, now = KEYS[why], self.loop.now
        last, many = self._met.get(key, (now - _COMPLAINTS, 0))
        if now - last < _COMPLAINTS:
            self._met[key] = last, many + 1
            return
        self._met[key] = now, 0
        bound = getattr(self.limits.bounds, {"connects_per_minute": "per_minute"}.get(key, key.removeprefix("max_")))
        before = f"; {many} times more since the last such line" if many else ""
        if why == TOO_MANY and self._short:
            met = f"the limit of {self._short} descriptors (RLIMIT_NOFILE) is met ({bound} sessions in this process; {MORE_DESCRIPTORS})"
            self.log(4, f"{host}: {what}: {met}{before}")
            return
        self.log(4, f"{host}: {what}: {key} is met ({bound} in this process){before}")

    def _make_room(self, why: str, host: str) -> bool:
        """Drop one that has not logged in; whether there was one."""
        limits, now = self.limits, self.loop.now
        session = limits.spare(now) if why == TOO_MANY else limits.spare_of(host, now) if why == TOO_MANY_ADDRESS else None
        if session is None:
            return False
        self._bound(why, host, "another made room")
        self._drop(session, "made room for another")
        return True

    def _room_to_shake(self, session: int, host: str) -> bool:
        """Count a handshake; where there is no room, one of the address that has most of them makes some."""
        why = self.limits.shake(session, host)
        slow = self.limits.spare_handshake() if why else None
        if slow is not None:
            self._bound(why, host, "another made room")
            self._drop(slow, "made room for another handshake")
            why = self.limits.shake(session, host)
        return not why

    def _enter(self, sock: socket.socket, host: str, port: int, tls: bool) -> None:
        """By the client's own address: whether it is served."""
        host = plain(host)
        if self.blocked.contains(host):
            self.log(6, f"{host}: connection closed: it is in the block list")
            sock.close()
            return
        why = self.limits.come(host, self.loop.now)
        if why and self._make_room(why, host):
            why = self.limits.come(host, self.loop.now)
        if why:
            self._bound(why, host)
        self._admit(sock, host, port, tls=tls, refused=why)

    # -- PROXY
    def _await_header(self, sock: socket.socket, peer: Any, tls: bool) -> None:
        if len(self.unknown) + self.limits.sessions >= self.most and not self._make_room(TOO_MANY, peer[0]):
            sock.close()
            self._bound(TOO_MANY, peer[0])
            return
        proxied = Proxied(sock)

        def ready(events: int) -> None:
            del events
            try:
                header = proxied.ready()
            except (ProxyError, OSError) as error:
                self.log(4, f"{peer[0]}: connection closed: {error if isinstance(error, ProxyError) else error.strerror}")
                self._turn_away(sock)
                return
            if header is not None:
                self._known(sock)
                self._enter(sock, header.address or peer[0], header.port if header.address else peer[1], tls)

        self.unknown[sock] = self.loop.later(_HEADER_SECONDS, lambda: self._turn_away(sock))
        self.loop.add(sock.fileno(), ready)

    def _known(self, sock: socket.socket) -> None:
        self.unknown.pop(sock).cancel()
        self.loop.remove(sock.fileno())

    def _turn_away(self, sock: socket.socket) -> None:
        self._known(sock)
        sock.close()
