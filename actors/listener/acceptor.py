"""Accept connections: listening sockets, PROXY headers, the block list.

A callback gets each connection, with the client's own address. For a connection from a configured proxy that
is the address in its PROXY header. Limits, bans and the log use it.
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
from popkernel.proto.access.networks import MAX_NETWORKS, Networks, parse_network, parse_networks, unmapped
from popkernel.proto.log_levels import DEBUG, ERROR, WARNING
from popkernel.proto.pop3.proxy_header import ProxyError

__all__ = ["Acceptor", "read_keys"]

# connections taken from one listening socket a turn, so that connected clients get their turn too
_ACCEPTS = 64
# octets the system may hold unsent for one client: a larger amount would look like a silent client
_UNSENT = 131072
_HEADER_SECONDS = 5.0  # a proxy sends its header with the connection
_PAUSE = 0.1  # seconds without accepting, if there is no room for a connection


class Acceptor:
    """Accept from the listening sockets of one process."""

    __slots__ = (
        "_actor",
        "_admission",
        "_admit",
        "_blocked",
        "_complained",
        "_listening",
        "_paused",
        "_proxies",
        "_unknown",
    )

    def __init__(
        self, actor: Actor, admission: Admission, admit: Callable[[socket.socket, str, int, bool, str], None]
    ) -> None:
        """`admit` gets each connection.

        Its arguments are the socket, the client's own address and port, whether it begins with TLS, and why
        it is refused ("": it is not).
        """
        config = actor.boot.config
        self._actor = actor
        self._admission = admission
        self._admit = admit
        self._proxies = Networks(parse_network(text) for text in config["proxy_networks"])
        self._blocked = _read_blocked(actor, config["block_list"])
        # connections of proxies whose header has not come yet
        self._unknown: dict[socket.socket, Timer] = {}
        self._listening: list[tuple[socket.socket, bool]] = []
        self._paused: set[socket.socket] = set()  # listening sockets not accepted from now
        self._complained = -COMPLAINTS

    # -- listening sockets
    def take_sockets(self) -> None:
        """Take over the sockets that the process was started with."""
        config = self._actor.boot.config
        self._listening = [(socket.socket(fileno=fd), True) for fd in config["tls_fds"]]
        self._listening += [(socket.socket(fileno=fd), False) for fd in config["plain_fds"]]
        for sock, _ in self._listening:
            sock.setblocking(False)
            if hasattr(socket, "TCP_NOTSENT_LOWAT"):  # accepted sockets inherit it
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT)

    def begin(self) -> None:
        """Accept connections from now on."""
        for sock, tls in self._listening:
            self._listen(sock, tls)

    def _listen(self, sock: socket.socket, tls: bool) -> None:
        def ready(events: int) -> None:
            del events
            self._accept(sock, tls)

        self._paused.discard(sock)
        self._actor.loop.add(sock.fileno(), ready)

    def _pause(self, sock: socket.socket, tls: bool) -> None:
        """Stop accepting for a moment: connections wait in the system's queue, and the loop does not spin."""

        def resume() -> None:
            if sock in self._paused and (sock, tls) in self._listening:
                self._listen(sock, tls)

        self._actor.loop.remove(sock.fileno())
        self._paused.add(sock)
        self._actor.loop.later(_PAUSE, resume)

    def close(self) -> None:
        """Accept no more connections."""
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
                    self.complain("listener.accept_failed", os.strerror(error.errno))
                    self._pause(listening, tls)
                elif error.errno == errno.EINVAL:
                    # all processes that share the socket get this error, again and again
                    self.close()
                    self._actor.send(m.ListenSocketShut())
                return
            sock.setblocking(False)
            with contextlib.suppress(OSError):  # the client is gone: the first read finds that
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._proxies.contains(address[0]):
                self._await_header(sock, address, tls)
            else:
                self._enter(sock, address[0], address[1], tls)

    def complain(self, event: str, why: str) -> None:
        """Log that connections can't be accepted: one line a minute."""
        now = self._actor.loop.now
        if now - self._complained >= COMPLAINTS:
            self._complained = now
            self._actor.log(ERROR, event, error=why)

    def _enter(self, sock: socket.socket, host: str, port: int, tls: bool) -> None:
        """Admit a connection by the client's own address, unless it is blocked."""
        host = unmapped(host)
        if self._blocked.contains(host):
            self._actor.log(DEBUG, "client.blocked", address=host)
            sock.close()
            return
        self._admit(sock, host, port, tls, self._admission.closed or self._admission.come(host))

    # -- PROXY
    def _await_header(self, sock: socket.socket, peer: Any, tls: bool) -> None:
        admission = self._admission
        if (
            len(self._unknown) + admission.limits.sessions >= admission.most
            and not admission.make_room(TOO_MANY, peer[0])
            and not (len(self._unknown) < _ACCEPTS and admission.may_wait(peer[0]))
        ):
            sock.close()
            admission.report(TOO_MANY, peer[0])
            return
        proxied = Proxied(sock)

        def ready(events: int) -> None:
            del events
            try:
                header = proxied.ready()
            except (ProxyError, OSError) as error:
                why = str(error) if isinstance(error, ProxyError) else error.strerror or ""
                self._actor.log(WARNING, "client.bad_proxy_header", address=peer[0], why=why)
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
    """Read certificates and keys. End the actor if one can't be used."""
    config = actor.boot.config
    try:
        return serve(config["pairs"], config["tls_min"], config["phrase"])
    except TlsError as error:
        actor.fail(78, str(error))
