"""LMTP clients: one every octet of which is the test's, and one that is smtplib's."""

import smtplib
import socket
import subprocess
import sys

MAIL = b"Subject: x\r\n\r\nbody\r\n"


class Lmtp(smtplib.LMTP):
    """smtplib's, whose own sendmail takes the first recipient's answer for everybody's."""

    def sendmail(self, sender, recipients, mail):
        """Refused recipients and why; SMTPRecipientsRefused where it is all of them."""
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
            self.send((b"\r\n" + mail).replace(b"\r\n.", b"\r\n..")[2:] + (b"" if mail.endswith(b"\r\n") else b"\r\n") + b".\r\n")
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
    """Over the service's unix socket."""
    client = service.keep(Lmtp(socket_path(service)))
    client.sock.settimeout(60)
    return client


def socket_path(service):
    return f"{service.config.run_dir}/lmtp.sock"


class RawLmtp:
    """A connection on which every octet is the test's. As root, `uid` may be another's."""

    def __init__(self, service, uid=None, path=None):
        self.sock = connected_as(path or socket_path(service), uid) if uid is not None else socket.socket(socket.AF_UNIX)
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
        """One whole answer."""
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
        """A message in wire form without its end; the last answers."""
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
    """The answer to a message in wire form."""
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
    """A connected socket whose peer credentials are another's: made by a process that has them, and passed here."""
    mine, its = socket.socketpair()
    with mine, its:
        subprocess.run([sys.executable, "-I", "-c", _CONNECT, path, str(uid), str(its.fileno())], pass_fds=[its.fileno()], check=True, cwd="/")
        _, fds, _, _ = socket.recv_fds(mine, 1, 1)
    return socket.socket(fileno=fds[0])


