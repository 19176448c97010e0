"""Read the PROXY header from a connection, and no octet after it: that may be a TLS handshake.

An incomplete header is read from the socket as it comes, so that a level-triggered loop does not spin. Octets
are peeked at first (MSG_PEEK); then only those of the header are read.
"""

import socket

from popkernel.proto.pop3.proxy_header import MOST, Header, ProxyError, parse

__all__ = ["Proxied"]


class Proxied:
    """Read the header of one connection. Call `ready` whenever its socket can be read."""

    __slots__ = ("_before", "_sock")

    def __init__(self, sock: socket.socket) -> None:
        """`sock`: connected, non-blocking, not yet TLS."""
        self._sock = sock
        self._before = b""

    def ready(self) -> Header | None:
        """Read what has come. Returns the header, or None if it is incomplete.

        Raises:
            ProxyError: it is no header, or the connection ended in it.
            OSError: the connection is lost.
        """
        try:
            seen = self._sock.recv(MOST - len(self._before), socket.MSG_PEEK)
        except (BlockingIOError, InterruptedError):
            return None
        if not seen:
            raise ProxyError("the connection ended in the header")
        header = parse(self._before + seen)
        taken = self._sock.recv(header.octets - len(self._before) if header else len(seen))
        self._before += taken
        return header
