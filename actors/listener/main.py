"""Be a listener: accept clients, serve them, and speak for them with auth, the kernel and the maildir actors.

It knows its TLS keys and what its clients type, sees no file once it serves, and can only ask auth about a password; what it then gets
is one channel, which is one session of one user.
"""

from typing import Any, NoReturn

from popkernel.actors.listener.acceptor import Acceptor, read_keys
from popkernel.actors.listener.admission import Admission
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
PARTS: Parts = (Admission, Connections, Peers)  # a replay has some of its own


class Server(Actor):
    """An actor that serves clients, however they come: it owns their connections and the channels that those need."""

    def __init__(self, boot: Boot, parts: Parts, *, many: bool) -> None:
        super().__init__(boot, many=many)
        admission, connections, peers = parts
        self.admission = admission(self, self._drop)
        self.connections = connections(self, self.admission)
        self.peers = self.connections.backend = peers(self, self.admission, self.connections, always=many)
        self.handlers |= {m.Peer: self._peer, m.Opened: self.peers.opened, m.Turned: self.peers.turned, m.Drain: self._drain}

    def _drop(self, session: int, why: str) -> None:
        self.connections.drop(session, why)

    def sessions(self) -> int:
        """Connections, logged in or not."""
        return len(self.connections.by_session)

    # -- watched
    def session_of(self, channel: Channel, message: Message) -> int:
        """The channel to a maildir actor is a session."""
        tag = channel.tag
        return tag.session.id if type(tag) is Connection else super().session_of(channel, message)

    def settings(self) -> dict[str, Any]:
        return self.peers.settings()

    def _watch(self, message: m.Watch, fds: list[int]) -> None:
        super()._watch(message, fds)
        self.connections.watched()

    # -- from the kernel
    def _peer(self, message: m.Peer, fds: list[int]) -> None:
        self.peers.take_auth(message, fds)

    def lost(self, message: Message) -> None:
        super().lost(message)
        self.peers.lost(message)

    def _drain(self, message: m.Drain, fds: list[int]) -> None:
        del message, fds
        self.connections.drain()

    def stop(self, seconds: int) -> None:
        """No more clients; those there are are told, and have that long to take it."""
        self.connections.stop()
        self.loop.later(max(0.1, seconds - 1), self.end)
        self.connections.drain()

    def end(self) -> None:
        """Leave, with nothing untold."""
        self.peers.reports.send()
        super().end()


class Listener(Server):
    """Accepts clients until it is told to end."""

    def __init__(self, boot: Boot, parts: Parts = PARTS) -> None:
        super().__init__(boot, parts, many=True)
        self.acceptor = Acceptor(self, self.admission, self.connections.admit)
        served: Served = boot.config.get("served") or read_keys(self)
        self.connections.tls, self.warnings = served

    def begin(self) -> NoReturn:
        """Lock in, say hello, serve."""
        self.acceptor.take_sockets()
        keep_memory(16 << 20)
        if self.boot.config["listeners"] < processors():  # a flood of clients must leave one to the others
            favour(self.boot.config["listener_nice"])
        self.lock(nofile=2 * self.admission.most + 64, threads=self.connections.dog.start)
        self.connect()
        self.admission.fit(self.nofile, (self.nofile - 64) // 2)  # a session is a client's socket and a channel
        self.run()

    def connect(self) -> None:
        super().connect()
        for text in self.warnings:
            self.log(4, text)
        self.peers.watch_answers()

    def _peer(self, message: m.Peer, fds: list[int]) -> None:
        if self.peers.auth is None:
            self.acceptor.begin()
        super()._peer(message, fds)

    def _drain(self, message: m.Drain, fds: list[int]) -> None:
        self.connections.draining = True
        self.acceptor.close()
        super()._drain(message, fds)

    def stop(self, seconds: int) -> None:
        self.acceptor.close()
        super().stop(seconds)


def main(boot: Boot) -> None:
    """Become a listener."""
    Listener(boot).begin()
