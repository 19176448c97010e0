"""Loopback ports for servers under test.

Below those that the system gives to clients (ip_local_port_range), or a client of another test may have one by the time its server
binds it; and for each worker of pytest-xdist a stretch of its own, that two servers never choose the same.
"""

import os
import socket

_FIRST, _STRETCH = 10_000, 2_500
_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw8").removeprefix("gw")) % 9  # 8: where there are no workers
_tried = os.getpid() * 37  # so that two runs begin apart


def _free(port):
    with socket.socket() as sock:
        try:
            sock.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def free_ports(many=2):
    """So many, each given once in many."""
    global _tried
    found = []
    for _ in range(_STRETCH):
        _tried += 1
        port = _FIRST + _WORKER * _STRETCH + _tried % _STRETCH
        if _free(port):
            found.append(port)
        if len(found) == many:
            return tuple(found)
    raise OSError("no port is free")
