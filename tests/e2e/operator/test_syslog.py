"""Test the log to syslog: the kernel makes no socket, and the receiver may be replaced or not read."""

import itertools
import os
import poplib
import re
import socket
import sys

import pytest

from tests.support.faults.other_syslog import COMMAND
from tests.support.service import Service
from tests.support.waiting import wait_for

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="a system call of its own elsewhere")
_numbers = itertools.count()


def taker(path):
    """Listen as a syslog receiver, without waiting."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sock.bind(path)
    os.chmod(path, 0o666)
    sock.setblocking(False)
    return sock


def taken(sock):
    lines = []
    while True:
        try:
            lines.append(sock.recv(65536).decode())
        except BlockingIOError:
            return lines


def service(path):
    command = [*COMMAND, path]
    return Service(
        command=command,
        arguments=["--log", "syslog"],
        verbose=0,
        users=("alice",),
        mail=(b"a: b\n\nc\n",),
        lmtp=False,
    )


def failed_login(server):
    client = server.pop3(login=False)
    client.user("alice")
    with pytest.raises(poplib.error_proto):
        client.pass_(f"wrong {next(_numbers)}")  # a repeated password would count as the same failure
    client.close()


def test_lines_have_syslog_s_form_and_go_to_the_present_receiver(tmp_path):
    """The kernel may not use socket and connect: init connects anew for it."""
    path = str(tmp_path / "log")
    with taker(path) as first, service(path) as server:
        (line,) = wait_for(lambda: taken(first))
        assert re.fullmatch(r"<21>[A-Z][a-z]{2} [ 0-9]\d \d\d:\d\d:\d\d popkernel\[\d+\]: ready: .*", line)
        first.close()
        os.unlink(path)
        failed_login(server)  # lost: there is no receiver
        with taker(path) as second:
            lines = []

            def tried():
                failed_login(server)
                lines.extend(taken(second))
                return [line for line in lines if "login failed" in line]

            wait_for(tried, seconds=20)
            assert re.search(r"warning|: \d+ lines of the log were lost: nobody read them$", lines[0])


def test_a_receiver_that_does_not_read_blocks_nobody(tmp_path):
    """A write to a full datagram socket (net.unix.max_dgram_qlen) must not block mail."""
    path = str(tmp_path / "log")
    with taker(path) as log, service(path) as server:
        wait_for(lambda: taken(log))
        with open("/proc/sys/net/unix/max_dgram_qlen") as file:
            many = min(int(file.read()), 600) + 20
        for _ in range(many):
            failed_login(server)
        client = server.pop3("alice")
        assert client.stat()[0] == 1
        client.quit()
        lines = taken(log)  # the end of alice's session may be logged meanwhile
        assert len(lines) >= 10
        failed_login(server)

        def told():
            lines.extend(taken(log))
            return [line for line in lines if "lines of the log were lost" in line]

        wait_for(told)
