"""Accept connections: listening sockets, PROXY headers, the block list. What becomes of a connection is its owner's.

An address is the client's own from here on: of a connection from a proxy that the configuration names it is the one in its PROXY header,
and limits, bans and the log go by it.
"""

import contextlib
import errno
import os
import socket
from collections.abc import Callable
from typing import Any

from popkernel.actors.listener.admission import COMPLAINTS, Admission
from popkernel.actors.listener.limits import TOO_MANY
from popkernel.actors.listener.proxy_header_reader import Proxied
from popkernel.actors.listener.tls import Served, TlsError, serve
from popkernel.kernel.config.regular_files import UnreadableError, read_named
from popkernel.kernel.runtime.actor import Actor
from popkernel.kernel.runtime.loop import Timer
from popkernel.proto import messages as m
from popkernel.proto.access.networks import MAX_NETWORKS, Networks, parse_network, parse_networks, plain
from popkernel.proto.pop3.proxy_header import ProxyError

__all__ = ["Acceptor", "read_keys"]

_ACCEPTS = 64  # connections taken from one listening socket a turn, so that those who are in get their turn too
_UNSENT = 131072  # octets the system may hold of one client before it lets them go: what more it held would look like silence
_HEADER_SECONDS = 5.0  # a proxy has its header ready: it comes with the connection, or something is wrong
_PAUSE = 0.1  # seconds without connections where there is no room for one


class Acceptor:
    """The listening sockets of one process."""

    __slots__ = ("_actor", "_admission", "_admit", "_blocked", "_complained", "_listening", "_paused", "_proxies", "_unknown")

    def __init__(self, actor: Actor, admission: Admission, admit: Callable[[socket.socket, str, int, bool, str], None]) -> None:
        """`admit` gets each connection: its socket, the client's own address and port, whether it begins with TLS, why it is refused."""
        config = actor.boot.config
        self._actor = actor
        self._admission = admission
        self._admit = admit
        self._proxies = Networks(parse_network(text) for text in config["proxy_networks"])
        self._blocked = _read_blocked(actor, config["block_list"])
        self._unknown: dict[socket.socket, Timer] = {}  # connections of proxies, whose client is not known yet
        self._listening: list[tuple[socket.socket, bool]] = []
        self._paused: set[socket.socket] = set()  # of those
        self._complained = -COMPLAINTS

    # -- listening sockets
    def take_sockets(self) -> None:
        """Take over the sockets that the process was started with."""
        config = self._actor.boot.config
        self._listening = [(socket.socket(fileno=fd), True) for fd in config["tls_fds"]]
        self._listening += [(socket.socket(fileno=fd), False) for fd in config["plain_fds"]]
        for sock, _ in self._listening:
            sock.setblocking(False)
            if hasattr(socket, "TCP_NOTSENT_LOWAT"):  # those it accepts inherit it
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT)

    def begin(self) -> None:
        """Accept from now on."""
        for sock, tls in self._listening:
            self._listen(sock, tls)

    def _listen(self, sock: socket.socket, tls: bool) -> None:
        def ready(events: int) -> None:
            del events
            self._accept(sock, tls)

        self._paused.discard(sock)
        self._actor.loop.add(sock.fileno(), ready)

    def _pause(self, sock: socket.socket, tls: bool) -> None:
        """There is no room for connections: they wait in the system's queue, and this process does not turn in a circle."""

        def resume() -> None:
            if sock in self._paused and (sock, tls) in self._listening:
                self._listen(sock, tls)

        self._actor.loop.remove(sock.fileno())
        self._paused.add(sock)
        self._actor.loop.later(_PAUSE, resume)

    def close(self) -> None:
        """Accept no more."""
        for sock, _ in self._listening:
            self._actor.loop.remove(sock.fileno())
            sock.close()
        self._listening.clear()
        for sock in list(self._unknown):
            self._turn_away(sock)

    # -- connections
    def _accept(self, listening: socket.socket, tls: bool) -> None:
        for _ in range(_ACCEPTS):
            try:
                sock, address = listening.accept()
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    self.complain(f"no more connections can be taken: {os.strerror(error.errno)}")
                    self._pause(listening, tls)
                elif error.errno == errno.EINVAL:  # all who share the socket see it, and would be told so without end
                    self.close()
                    self._actor.tell(m.Deaf())
                return
            sock.setblocking(False)
            with contextlib.suppress(OSError):  # the client has gone already: the first read tells
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._proxies.contains(address[0]):
                self._await_header(sock, address, tls)
            else:
                self._enter(sock, address[0], address[1], tls)

    def complain(self, text: str) -> None:
        """Log that connections can't be taken: one line a minute."""
        now = self._actor.loop.now
        if now - self._complained >= COMPLAINTS:
            self._complained = now
            self._actor.log(3, text)

    def _enter(self, sock: socket.socket, host: str, port: int, tls: bool) -> None:
        """By the client's own address: whether it is served."""
        host = plain(host)
        if self._blocked.contains(host):
            self._actor.log(6, f"{host}: connection closed: it is in the block list")
            sock.close()
            return
        self._admit(sock, host, port, tls, self._admission.come(host))

    # -- PROXY
    def _await_header(self, sock: socket.socket, peer: Any, tls: bool) -> None:
        admission = self._admission
        if len(self._unknown) + admission.limits.sessions >= admission.most and not admission.make_room(TOO_MANY, peer[0]):
            sock.close()
            admission.report(TOO_MANY, peer[0])
            return
        proxied = Proxied(sock)

        def ready(events: int) -> None:
            del events
            try:
                header = proxied.ready()
            except (ProxyError, OSError) as error:
                self._actor.log(4, f"{peer[0]}: connection closed: {error if isinstance(error, ProxyError) else error.strerror}")
                self._turn_away(sock)
                return
            if header is not None:
                self._known(sock)
                self._enter(sock, header.address or peer[0], header.port if header.address else peer[1], tls)

        self._unknown[sock] = self._actor.loop.later(_HEADER_SECONDS, lambda: self._turn_away(sock))
        self._actor.loop.add(sock.fileno(), ready)

    def _known(self, sock: socket.socket) -> None:
        self._unknown.pop(sock).cancel()
        self._actor.loop.remove(sock.fileno())

    def _turn_away(self, sock: socket.socket) -> None:
        self._known(sock)
        sock.close()


def _read_blocked(actor: Actor, path: str) -> Networks:
    if not path:
        return Networks(())
    try:
        networks, findings = parse_networks(read_named("block_list", path, MAX_NETWORKS), path)
    except UnreadableError as error:
        actor.fail(error.code, str(error))
    if findings:
        actor.fail(65, "\n".join(map(str, findings[:20])))
    return networks


def read_keys(actor: Actor) -> Served:
    """Read certificates and keys. If one can't be used, the actor ends."""
    config = actor.boot.config
    try:
        return serve(config["pairs"], config["tls_min"], config["phrase"])
    except TlsError as error:
        actor.fail(78, str(error))
