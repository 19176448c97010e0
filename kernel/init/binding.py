"""Bind a listening port, for init and `check`, and describe why it can't be bound."""

import errno
import os
import socket
import struct
from typing import TYPE_CHECKING

from popkernel.kernel.runtime.exit_codes import EXITS, WANT
from popkernel.proto.files.tables import Finding

if TYPE_CHECKING:
    from popkernel.kernel.config.addresses import Address

__all__ = ["BindError", "bind"]

_FAULTS = {
    errno.EADDRINUSE: (
        "unavailable",
        "the port is taken by another program",
        "end it (`ss -ltnp` shows it), or choose another port",
    ),
    errno.EACCES: ("noperm", "ports below 1024 are root's", "start as root, or choose a port from 1024 on"),
    errno.EADDRNOTAVAIL: (
        "unavailable",
        "this machine has no such address",
        "give one of its own, or 0.0.0.0 or [::] for all",
    ),
    errno.EAFNOSUPPORT: ("unavailable", "this system has no IPv6", "leave the address out"),
}

# A struct timeval of one microsecond. O_NONBLOCK is shared by all processes that accept on a socket, and any
# of them may clear it. Then an accept(2) without a client waits this long, and not for ever.
_MICROSECOND = struct.pack("ll", 0, 1)


class BindError(Exception):
    """The port can't be bound.

    `finding` names the key that gives the address; `code` is one of sysexits(3); `taken`: another program has
    the port.
    """

    def __init__(self, key: str, address: "Address", error: OSError) -> None:
        name, what, mend = _FAULTS.get(
            error.errno or 0, ("unavailable", str(error.strerror or error), "choose another address")
        )
        if error.errno == errno.EACCES and os.geteuid() == 0:
            what, mend = (
                "root lacks CAP_NET_BIND_SERVICE for a port below 1024",
                "give it, or choose a port from 1024 on",
            )
        if isinstance(error, socket.gaierror) or error.errno in (errno.ENODEV, errno.ENXIO):
            what, mend = "this machine has no such interface", "name one that `ip link` shows"
        if error.errno in WANT:
            name, what, mend = (
                "tempfail",
                str(error.strerror),
                "see what the system is short of, and try again",
            )
        if error.errno == errno.EADDRNOTAVAIL and key == "lmtp_listen":
            mend = "give 127.0.0.1 or [::1]"
        self.finding = Finding(key, 0, f"{address}: {what}", mend)
        self.code = EXITS[name].code
        self.taken = error.errno == errno.EADDRINUSE
        super().__init__(str(self.finding))


def bind(key: str, address: "Address") -> socket.socket:
    """Return a TCP socket bound to `address`, which `key` of the configuration names.

    Raises:
        BindError: it can't be bound.
    """
    try:
        # Not socket.bind()'s own lookup of the host: that loses the zone of a link-local address.
        found = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST
        )
        sock = socket.socket(address.family, socket.SOCK_STREAM)
    except OSError as error:
        raise BindError(key, address, error) from None
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _MICROSECOND)
        if address.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(found[0][4])
    except OSError as error:
        sock.close()
        raise BindError(key, address, error) from None
    return sock
