"""Takes the PROXY header off a connection, without one octet of what stands behind it: that may be a TLS handshake.

An incomplete header is taken out of the socket as it comes, so that a level-triggered loop does not spin; the complete one is looked at
first (MSG_PEEK) and then taken to its end and no further.
"""

import socket

from popkernel.proto.pop3.proxy_header import MOST, Header, ProxyError, parse

__all__ = ["Proxied"]


class Proxied:
    """A connection whose header has not come yet. Call `ready` whenever its socket can be read."""

    __slots__ = ("_before", "_sock")

    def __init__(self, sock: socket.socket) -> None:
        """`sock`: connected, without blocking, not yet TLS."""
        self._sock = sock
        self._before = b""

    def ready(self) -> Header | None:
        """Take what has come: the header, or None while more of it is to come.

        Raises:
            ProxyError: it is none, or the connection ended in it.
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
