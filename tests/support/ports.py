"""Choose loopback ports for servers under test.

They lie below ip_local_port_range: else a client of another test might have the port before its server binds
it. Each worker of pytest-xdist has its own range, so that two servers never choose the same port.
"""

import os
import socket

_FIRST, _STRETCH = 10_000, 2_500
# 8: without workers
_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw8").removeprefix("gw")) % 9
_tried = os.getpid() * 37  # two runs start at different ports


def _free(port):
    with socket.socket() as sock:
        try:
            sock.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def free_ports(many=2):
    """Return `many` free ports, none of which is given out again soon."""
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
