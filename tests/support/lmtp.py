"""Provide LMTP clients: one that sends raw octets, and one based on smtplib."""

import smtplib
import socket
import subprocess
import sys

MAIL = b"Subject: x\r\n\r\nbody\r\n"


class Lmtp(smtplib.LMTP):
    """Send with smtplib, and keep each recipient's own reply.

    smtplib's sendmail takes the first recipient's reply for all.
    """

    def sendmail(self, sender, recipients, mail):
        """Return the refused recipients with their replies; SMTPRecipientsRefused if all are refused."""
        self.ehlo_or_helo_if_needed()
        code, text = self.mail(sender)
        if code != 250:
            self.rset()
            raise smtplib.SMTPSenderRefused(code, text, sender)
        refused, taken = {}, []
        for recipient in recipients:
            code, text = self.rcpt(recipient)
            if code == 250:
                taken.append(recipient)
            else:
                refused[recipient] = code, text
        if taken:
            self.docmd("DATA")
            self.send(
                (b"\r\n" + mail).replace(b"\r\n.", b"\r\n..")[2:]
                + (b"" if mail.endswith(b"\r\n") else b"\r\n")
                + b".\r\n"
            )
            for recipient in taken:
                code, text = self.getreply()
                if code != 250:
                    refused[recipient] = code, text
        else:
            self.rset()
        if len(refused) == len(recipients):
            raise smtplib.SMTPRecipientsRefused(refused)
        return refused


def lmtp(service):
    """Connect over the service's unix socket."""
    client = service.keep(Lmtp(socket_path(service)))
    client.sock.settimeout(60)
    return client


def socket_path(service):
    return f"{service.config.run_dir}/lmtp.sock"


class RawLmtp:
    """Hold a connection on which the test sends every octet.

    As root, `uid` may be another user's.
    """

    def __init__(self, service, uid=None, path=None):
        self.sock = (
            connected_as(path or socket_path(service), uid)
            if uid is not None
            else socket.socket(socket.AF_UNIX)
        )
        self.file = self.sock.makefile("rb")
        try:
            if uid is None:
                self.sock.connect(path or socket_path(service))
            self.sock.settimeout(60)
            self.expect(b"220")
        except BaseException:
            self.close()
            raise

    def answer(self):
        """Return one whole reply."""
        lines = b""
        while True:
            line = self.file.readline()
            lines += line
            if line[3:4] != b"-" or not line.endswith(b"\n"):
                return lines

    def expect(self, *codes):
        got = [self.answer() for _ in codes]
        assert [g[:3] for g in got] == list(codes), got
        return got

    def send(self, data):
        self.sock.sendall(data)

    def say(self, data, *codes):
        self.send(data)
        return self.expect(*codes)

    def envelope(self, *recipients, sender=b"s@example.org"):
        self.say(b"LHLO t\r\nMAIL FROM:<%s>\r\n" % sender, b"250", b"250")
        for recipient in recipients:
            self.say(b"RCPT TO:<%s>\r\n" % recipient.encode(), b"250")

    def deliver(self, body, *recipients):
        """Send a message in wire form, given without its end; return the last replies."""
        self.envelope(*recipients)
        self.say(b"DATA\r\n", b"354")
        self.send(body + b"\r\n.\r\n")
        return [self.answer() for _ in recipients]

    def close(self):
        self.file.close()
        self.sock.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def deliver(service, user="alice", mail=MAIL):
    """Deliver a message in wire form and return the reply."""
    with RawLmtp(service) as raw:
        return raw.deliver(mail[:-2], user)[0]


_CONNECT = """
import array, os, socket, sys
os.setgroups([]); os.setgid(int(sys.argv[2])); os.setuid(int(sys.argv[2]))
s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])
out = socket.socket(fileno=int(sys.argv[3]))
out.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [s.fileno()]))])
"""


def connected_as(path, uid):
    """Return a connected socket with another user's peer credentials.

    A process with that uid connects it and passes it here.
    """
    mine, its = socket.socketpair()
    with mine, its:
        subprocess.run(
            [sys.executable, "-I", "-c", _CONNECT, path, str(uid), str(its.fileno())],
            pass_fds=[its.fileno()],
            check=True,
            cwd="/",
        )
        _, fds, _, _ = socket.recv_fds(mine, 1, 1)
    return socket.socket(fileno=fds[0])
