"""Test the benchmarks' load client against a server that asks it for a certificate, as GNU Mailutils does."""

import contextlib
import socket
import ssl
import threading

import pytest
from popkernel.cli.common.sample_site import HOST, make_certificate

from benchmarks import client
from tests.support.ports import free_ports


@pytest.mark.parametrize("asks", [ssl.CERT_NONE, ssl.CERT_OPTIONAL])
def test_a_server_may_ask_the_load_client_for_a_certificate(tmp_path, asks):
    try:
        client.build()
    except client.LoadError as error:
        pytest.skip(str(error).partition("\n")[0])
    for name, data in zip(("cert", "key"), make_certificate(), strict=True):
        (tmp_path / name).write_bytes(data)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert", tmp_path / "key")
    context.load_verify_locations(tmp_path / "cert")
    context.verify_mode = asks
    port, heard = free_ports(1)[0], []

    def serve(listening):
        with (
            contextlib.suppress(OSError),  # the client closes TCP without an end of TLS
            listening,
            context.wrap_socket(listening.accept()[0], server_side=True) as sock,
            sock.makefile("rb") as lines,
        ):
            sock.sendall(b"+OK\r\n")
            for line in lines:
                heard.append(line)
                sock.sendall(b"+OK\r\n")

    listening = socket.create_server((HOST, port))
    listening.settimeout(20)
    thread = threading.Thread(target=serve, args=(listening,))
    thread.start()
    try:
        figures = client.run(port, "NOOP", "QUIT", sessions=1, conns=1, users=1, bound=20)
    finally:
        thread.join(30)
    assert figures["ok"] == 1
    assert heard == [b"USER user0000\r\n", b"PASS secret\r\n", b"NOOP\r\n", b"QUIT\r\n"]
