"""Be a listener for one connection (isolation = "connection"): made by the gate before the fork, and brought to life in each child.

It is put together of the same parts as main.py's listener, but for the acceptor. It holds one client's socket and its own channels; the
bounds on clients are the gate's, which has also given up root and set the limits that are inherited here.
"""

import socket
import time
from typing import Any, NoReturn

from popkernel.actors.listener.main import PARTS, Parts, Server
from popkernel.actors.listener.tls import Served
from popkernel.kernel.runtime.actor import Boot
from popkernel.kernel.runtime.channel import adopt, counts
from popkernel.kernel.runtime.process_title import set_title
from popkernel.proto.trace.session_names import listener_name

__all__ = ["SingleListener", "configuration"]

_THE_GATES = (  # bounds that hold over many clients
    "max_sessions", "max_sessions_address", "max_handshakes", "max_logins", "max_logins_user", "connects_per_minute",
)


def configuration(config: dict[str, Any], served: Served) -> dict[str, Any]:
    """Make a child's configuration of the gate's; `served` are the keys as they are in memory."""
    return {**config, **dict.fromkeys(_THE_GATES, 0), "tls_fds": [], "plain_fds": [], "served": served._replace(warnings=[])}


class SingleListener(Server):
    """Serves one client, then ends."""

    def __init__(self, boot: Boot, parts: Parts = PARTS) -> None:
        super().__init__(boot, parts, many=False)  # poll(2): an epoll descriptor would be the same one in all children
        self.connections.tls = boot.config["served"].context
        self.left = 0.0  # seconds that its client has to log in

    def serve(
        self, session: int, channel: int, sock: socket.socket, address: tuple[str, int], *, tls: bool, refused: str, left: float,
    ) -> NoReturn:
        """In the child: lock in, take what the kernel has sent ahead, serve the client. `left`: seconds it has to log in."""
        self.boot.name, self.boot.channel = listener_name(session), adopt(channel)
        self.connections.serial = session - 1
        self.loop.now = time.monotonic()
        counts.messages_in = counts.messages_out = 0
        self.left = left
        set_title(self.boot.name)
        self.lock()
        self.connect()
        if self.kernel is not None:
            self.kernel.read()  # Watch comes before the client, so that a trace has all of its session
        if not self.connections.draining:
            self.admission.limits.come(address[0], self.loop.now)
            self.connections.admit(sock, *address, tls, refused)
            self.no_other()
            self.connections.drain()
        self.run()

    def no_other(self) -> None:
        """Its one client is there, and has what the gate left of the time to log in."""
        self.connections.draining = True
        for client in self.connections.by_session.values():
            client.deadline = min(client.deadline, self.loop.now + self.left)
            self.connections.arm(client, client.deadline - self.loop.now)

    def drop_ids(self, nofile: int | None = None) -> None:
        """Nothing is left to drop: the gate has done it."""
        del nofile
        self.boot.config["die_with_parent"]()

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "alone": True, "left": self.left}
