"""A listener for one connection (isolation = "connection"): made by the gate before the fork, and brought to life in each child.

It is the ordinary listener, but for how it begins and ends. It holds one client's socket and its own channels; the bounds on clients are
the gate's, which has also given up root and set the limits that are inherited here.
"""

import socket
import time
from typing import Any, NoReturn

from popkernel.actors.listener.connection import Client
from popkernel.actors.listener.main import Listener
from popkernel.actors.listener.tls import Served
from popkernel.kernel.runtime.actor import Boot
from popkernel.kernel.runtime.channel import adopt, counts
from popkernel.kernel.runtime.loop import Loop
from popkernel.kernel.runtime.process_title import set_title
from popkernel.proto.trace.session_names import listener_name

__all__ = ["Lone", "told"]

_THE_GATES = (  # bounds that hold over many clients
    "max_sessions", "max_sessions_address", "max_handshakes", "max_logins", "max_logins_user", "connects_per_minute",
)


def told(config: dict[str, Any], served: Served) -> dict[str, Any]:
    """What of a gate's configuration a child goes by, with the keys as they are in memory."""
    return {
        **config, **dict.fromkeys(_THE_GATES, 0), "block_list": "", "proxy_networks": (), "tls_fds": [], "plain_fds": [],
        "served": served._replace(warnings=[]),
    }


class Lone(Listener):
    """Serves one client, then ends."""

    def __init__(self, boot: Boot) -> None:
        super().__init__(boot)
        self.loop = Loop()  # poll(2): an epoll descriptor would be the same one in all children
        self._looking = False
        self.left = 0.0  # seconds that its client has to log in

    def serve(
        self, session: int, channel: int, sock: socket.socket, address: tuple[str, int], *, tls: bool, refused: str, left: float,
    ) -> NoReturn:
        """In the child: lock in, take what the kernel has sent ahead, serve the client. `left`: seconds it has to log in."""
        self.boot.name, self.boot.channel = listener_name(session), adopt(channel)
        self.serial = session - 1
        self.loop.now = time.monotonic()
        counts.messages_in = counts.messages_out = 0
        self.left = left
        set_title(self.boot.name)
        self.lock()
        self.connect()
        if self.kernel is not None:
            self.kernel.read()  # Watch comes before the client, so that a trace has all of its session
        if not self.draining:
            self.limits.come(address[0], self.loop.now)
            self._admit(sock, *address, tls=tls, refused=refused)
            self.no_other()
            self._done_draining()
        self.run()

    def no_other(self) -> None:
        """Its one client is there, and has what the gate left of the time to log in."""
        self.draining = True
        for client in self.clients.values():
            client.deadline = min(client.deadline, self.loop.now + self.left)
            self._arm(client, client.deadline - self.loop.now)

    def drop_ids(self, nofile: int | None = None) -> None:
        """Nothing is left to drop: the gate has done it."""
        del nofile
        self.boot.config["die_with_parent"]()

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "alone": True, "left": self.left}

    # -- answers that do not come: looked after only while one is owed, for there may be ten thousand of these processes
    def _progress(self, client: Client) -> None:
        super()._progress(client)
        if client.asked_at and not self._looking:
            self._looking = True
            super()._watch_answers()

    def _watch_answers(self) -> None:
        self._looking = any(client.asked_at for client in self.clients.values())
        if self._looking:
            super()._watch_answers()
