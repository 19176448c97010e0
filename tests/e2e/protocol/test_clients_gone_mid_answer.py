"""Disconnect clients in the middle of a reply; other sessions go on."""

import socket

from tests.support.service import Service

# more than the system buffers for a client that does not read
MAIL = (b"Subject: large\n\n" + (b"x" * 70 + b"\n") * 300_000,)


def test_a_client_lost_mid_answer_cuts_no_other_off():
    """A reset gives a broken pipe, which CPython 3.13 may report for the next TLS connection instead."""
    with Service(users=("alice", "bob"), mail=MAIL) as service:
        alice, bob = service.pop3("alice"), service.pop3("bob")
        for client in (alice, bob):
            client._putcmd("RETR 1")
            assert client._getresp().startswith(b"+OK")
        socket.socket.shutdown(alice.sock, socket.SHUT_WR)
        alice.close()
        service.wait_log('why="connection lost" user=alice')
        lines = 0
        while bob._getline()[0] != b".":
            lines += 1
        assert lines == 300_002
        assert bob.stat()[0] == 1
        bob.quit()
