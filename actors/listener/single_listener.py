"""Run a listener for one connection (isolation = "connection").

The gate makes the object before the fork, and each child runs it. It consists of the same parts as the
listener of main.py, without the acceptor. It holds one client's socket and its own channels. The gate applies
the limits on clients. It has also given up root and set the resource limits, which are inherited.
"""

import socket
import time
from typing import Any, NoReturn

from popkernel.actors.listener.main import PARTS, Parts, Server
from popkernel.actors.listener.tls import Served
from popkernel.kernel.runtime.actor import Boot
from popkernel.kernel.runtime.channel import counts
from popkernel.kernel.runtime.process_title import set_title
from popkernel.proto.trace.session_names import listener_name

__all__ = ["SingleListener", "configuration"]

_THE_GATES = (  # limits over many clients, which the gate applies
    "max_sessions",
    "max_sessions_address",
    "max_handshakes",
    "max_logins",
    "max_logins_user",
    "connects_per_minute",
)


def configuration(config: dict[str, Any], served: Served) -> dict[str, Any]:
    """Make a child's configuration from the gate's; `served`: the keys as loaded."""
    return {
        **config,
        **dict.fromkeys(_THE_GATES, 0),
        "tls_fds": [],
        "plain_fds": [],
        "served": served._replace(warnings=[]),
    }


class SingleListener(Server):
    """Serve one client, then end."""

    def __init__(self, boot: Boot, parts: Parts = PARTS) -> None:
        # poll(2): an epoll descriptor would be shared by all children
        super().__init__(boot, parts, many=False)
        self.connections.tls = boot.config["served"].context
        self.left = 0.0  # seconds its client has to log in

    def serve(
        self,
        session: int,
        channel: int,
        sock: socket.socket,
        address: tuple[str, int],
        *,
        tls: bool,
        refused: str,
        left: float,
    ) -> NoReturn:
        """Run in the child: lock the sandbox, read what the kernel sent ahead, serve the client.

        `left`: seconds the client has to log in.
        """
        self.boot.name, self.boot.channel = listener_name(session), channel
        self.connections.serial = session - 1
        self.loop.now = time.monotonic()
        counts.messages_in = counts.messages_out = 0
        self.left = left
        set_title(self.boot.name)
        self.lock()
        self.connect()
        if self.kernel is not None:
            # TraceStart is read before the client is served, so that a trace has the whole session
            self.kernel.receive()
        if not self.connections.draining:
            self.admission.limits.come(address[0], self.loop.now)
            self.connections.admit(sock, *address, tls, refused)
            self.no_other()
            self.connections.drain()
        self.run()

    def no_other(self) -> None:
        """Accept no other client, and give this one the rest of its time to log in."""
        self.connections.draining = True
        for client in self.connections.by_session.values():
            client.deadline = min(client.deadline, self.loop.now + self.left)
            self.connections.arm(client, client.deadline - self.loop.now)

    def drop_ids(self, nofile: int | None = None) -> None:
        """Drop nothing: the gate has dropped root."""
        del nofile
        self.boot.config["die_with_parent"]()

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "alone": True, "left": self.left}
