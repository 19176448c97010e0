"""Run a listener: accept clients, serve them, and exchange messages for them with the other actors.

It knows its TLS keys and all that its clients type. While it serves, it can open no file, and it can only ask
auth about a password. After a login it gets one channel, which is one session of one user.
"""

import socket
from typing import Any, NoReturn

from popkernel.actors.listener.acceptor import Acceptor, read_keys
from popkernel.actors.listener.admission import MOST_WAITING, WAITS, Admission, WaitingRoom
from popkernel.actors.listener.connection import Connection
from popkernel.actors.listener.connections import Connections
from popkernel.actors.listener.peers import Peers
from popkernel.actors.listener.tls import Served
from popkernel.kernel.runtime.actor import Actor, Boot
from popkernel.kernel.runtime.channel import Channel, Message
from popkernel.kernel.runtime.memory import keep_memory
from popkernel.kernel.runtime.scheduling import favour, processors
from popkernel.proto import messages as m

__all__ = ["PARTS", "Listener", "Parts", "Server"]

Parts = tuple[type[Admission], type[Connections], type[Peers]]
PARTS: Parts = (Admission, Connections, Peers)  # a replay puts its own classes here


class Server(Actor):
    """Serve clients, however they arrive: own their connections and the channels those need."""

    def __init__(self, boot: Boot, parts: Parts, *, many: bool) -> None:
        super().__init__(boot, many=many)
        admission, connections, peers = parts
        self.admission = admission(self, self._drop)
        self.connections = connections(self, self.admission)
        self.peers = self.connections.backend = peers(self, self.admission, self.connections, always=many)
        self.handlers |= {
            m.PeerChannel: self._peer,
            m.SessionAdmitted: self.peers.opened,
            m.SessionRefused: self.peers.refused,
            m.SessionKick: self._kick,
            m.ServiceDrain: self._service_drain,
            m.ListenerDrain: self._drain,
        }

    def _drop(self, session: int, why: str) -> None:
        self.connections.drop(session, why)

    def sessions(self) -> int:
        """Return the number of connections, logged in or not."""
        return len(self.connections.by_session)

    def _report(self, message: m.CountersRequest, fds: list[int]) -> None:
        self.admission.tell()
        super()._report(message, fds)

    # -- watched
    def session_of(self, channel: Channel, message: Message) -> int:
        """Return the session of a channel to a maildir actor."""
        tag = channel.tag
        return tag.session.id if type(tag) is Connection else super().session_of(channel, message)

    def settings(self) -> dict[str, Any]:
        return self.peers.settings()

    def _watch(self, message: m.TraceStart, fds: list[int]) -> None:
        super()._watch(message, fds)
        self.connections.watched()

    # -- from the kernel
    def _peer(self, message: m.PeerChannel, fds: list[int]) -> None:
        self.peers.take_auth(message, fds)

    def lost(self, message: Message) -> None:
        super().lost(message)
        self.peers.lost(message)

    def _drain(self, message: m.ListenerDrain, fds: list[int]) -> None:
        del message, fds
        self.connections.drain()

    def _kick(self, message: m.SessionKick, fds: list[int]) -> None:
        del fds
        self.connections.kick(message.session)

    def _service_drain(self, message: m.ServiceDrain, fds: list[int]) -> None:
        del fds
        self.admission.drain(on=message.on)

    def stop(self, seconds: int) -> None:
        """Accept no more clients, and give those connected `seconds` to receive a last answer."""
        self.connections.stop()
        self.loop.later(max(0.1, seconds - 1), self.end)
        self.connections.drain()

    def end(self) -> None:
        """Send the last reports, then end."""
        self.peers.reports.send()
        super().end()


class Listener(Server):
    """Accept clients until the kernel ends it."""

    def __init__(self, boot: Boot, parts: Parts = PARTS) -> None:
        super().__init__(boot, parts, many=True)
        self.acceptor = Acceptor(self, self.admission, self._admit)
        self.waiting_room = WaitingRoom(self, self.admission, self.connections.admit)
        served: Served = boot.config.get("served") or read_keys(self)
        self.connections.tls, self.warnings = served

    def begin(self) -> NoReturn:
        """Lock the sandbox, greet the kernel, serve."""
        self.acceptor.take_sockets()
        keep_memory(16 << 20)
        # a flood of clients must leave a processor to the other actors
        if self.boot.config["listeners"] < processors():
            favour(self.boot.config["listener_nice"])
        self.lock(nofile=2 * self.admission.most + 64 + MOST_WAITING, threads=self.connections.watchdog.start)
        self.connect("certificate.doubt", self.warnings)
        self.peers.watch_answers()
        # a session takes two descriptors: the client's socket and a channel
        self.admission.fit(self.nofile, (self.nofile - 64) // 2)
        self.waiting_room.most = min(MOST_WAITING, self.nofile - 64 - 2 * self.admission.most)
        self.run()

    def _admit(self, sock: socket.socket, host: str, port: int, tls: bool, refused: str) -> None:
        if refused == WAITS:
            self.waiting_room.wait(sock, host, port, tls)
        else:
            self.connections.admit(sock, host, port, tls, refused)

    def _peer(self, message: m.PeerChannel, fds: list[int]) -> None:
        if self.peers.auth is None:
            self.acceptor.begin()
        super()._peer(message, fds)

    def _drain(self, message: m.ListenerDrain, fds: list[int]) -> None:
        self.connections.draining = True
        self.acceptor.close()
        self.waiting_room.close()
        super()._drain(message, fds)

    def stop(self, seconds: int) -> None:
        self.acceptor.close()
        self.waiting_room.close()
        super().stop(seconds)


def main(boot: Boot) -> None:
    """Run as a listener."""
    Listener(boot).begin()
