"""sd_notify(3): tell the service manager, where there is one."""

import contextlib
import os
import socket

__all__ = ["notify"]


def notify(text: str) -> None:
    """Say it, or not: nobody waits for a service manager that does not read, and there may be none."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path:
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
        sock.connect("\0" + path[1:] if path[0] == "@" else path)
        sock.sendall(text.encode())
