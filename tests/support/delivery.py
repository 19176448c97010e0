"""For the delivery tests: LMTP clients, and what lies in a maildir."""

import contextlib
import os
import poplib
import re
import smtplib
import socket
import subprocess
import sys

import pytest

from tests.support.service import wait_for

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


class Raw:
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
    with Raw(service) as raw:
        return raw.deliver(mail[:-2], user)[0]


def own(service, user, path):
    """Give a directory, and all in it, to that user."""
    row = service.site.mail_users[user]
    for at, folders, files in os.walk(path):
        for name in ["", *folders, *files]:
            os.chown(os.path.join(at, name), row.uid, row.gid)


def stat(service, user):
    """How many messages a session has."""
    client = service.pop3(user)
    try:
        return client.stat()[0]
    finally:
        client.quit()


@contextlib.contextmanager
def on_file_system(service, user, size):
    """The user's maildir on a small file system of its own."""
    row = service.site.mail_users[user]
    result = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size},uid={row.uid},gid={row.gid},mode=0700", "none", row.maildir], capture_output=True, check=False,
    )
    if result.returncode:
        pytest.skip("file systems can't be mounted here")
    try:
        yield row.maildir
    finally:
        subprocess.run(["umount", "-l", row.maildir], check=True)


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


def messages(service, user):
    """Octets of every message in new/ and cur/, by file name, in the order of their names."""
    while True:
        with contextlib.suppress(FileNotFoundError):  # flags are changed after QUIT has been answered
            return _messages(service.site.mail_users[user].maildir)


def _messages(maildir):
    found = {}
    for part in ("new", "cur"):
        for name in os.listdir(f"{maildir}/{part}"):
            with open(f"{maildir}/{part}/{name}", "rb") as file:
                found[name] = file.read()
    return dict(sorted(found.items()))


def bodies(service, user):
    """The messages without the two fields that the server put on."""
    return [without_trace(m) for m in messages(service, user).values()]


def without_trace(message):
    return re.sub(rb"\AReturn-Path: <[^\n]*>\nDelivered-To: [^\n]*\n", b"", message)


def left_in_tmp(service, user):
    return os.listdir(f"{service.site.mail_users[user].maildir}/tmp")


def login_or_none(service, user):
    """A session, None where the mailbox is not available now."""
    try:
        return service.pop3(user)
    except poplib.error_proto as error:
        assert b"SYS/TEMP" in error.args[0]
        return None


def pop_all(service, user):
    """Every message over POP3S, line ends as CR LF. Tried again, as a client would, where the actor dies of its last fault just then."""
    client = wait_for(lambda: login_or_none(service, user))
    got = [b"".join(line + b"\r\n" for line in client.retr(n + 1)[1]) for n in range(client.stat()[0])]
    client.quit()
    return got


def rss(pid):
    """Resident memory, octets."""
    with open(f"/proc/{pid}/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmRSS:"))


def peak(pid):
    """The most it ever was, octets."""
    with open(f"/proc/{pid}/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM:"))
