"""Help the tests of limits: a small service, its greeting, and how clients disconnect."""

import socket
import struct

from tests.support import awkward
from tests.support.pop3 import RawPop3
from tests.support.service import Service

MAIL = [awkward.head("one") + b"body\n"]
USERS = ("alice", "bob", "carol", "dave", "erin", "frank")
TOO_MANY = b"-ERR [SYS/TEMP] too many connections, try again later\r\n"
TOO_MANY_ADDRESS = b"-ERR [SYS/TEMP] too many connections from your address\r\n"
TOO_FAST = b"-ERR [SYS/TEMP] too many connections a minute from your address, try again later\r\n"


def serve(**settings):
    return Service(
        **{
            "users": USERS,
            "mail": MAIL,
            "lmtp": False,
            "allow_plaintext": True,
            "most_errors": 10000,
            **settings,
        }
    )


def greeting(service, tls="tls", **options):
    """Return what a new connection receives first; b"" if nothing.

    The connection is closed at once.
    """
    try:
        with RawPop3(service, tls, **options) as client:
            first = client.greeting
            if first.startswith(b"-ERR"):
                assert client.end() == b""
            return first
    except (EOFError, OSError):
        return b""


def refused_and_served(service, served, text, **options):
    """Check that both ports give the reason, sessions go on, and refused clients are not counted."""
    for _ in range(3):
        for tls in ("tls", ""):
            assert greeting(service, tls, **options) == text
    for client in served:
        assert client.many(b"RETR 1") == awkward.on_the_wire(MAIL[0])


def hangs_up(service, client):
    client.close()


def resets(service, client):
    client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
