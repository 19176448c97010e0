"""Clients that are gone in the middle of an answer, on whom nobody else's session depends."""

import socket

from tests.support.service import Service

MAIL = (b"Subject: large\n\n" + (b"x" * 70 + b"\n") * 300_000,)  # more than the system holds of a client who does not read


def test_who_is_gone_in_the_middle_of_an_answer_cuts_nobody_else_off():
    """Its TCP has ended, then resets: a broken pipe. CPython 3.13 took that of one TLS connection for that of the next it was asked about."""
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
