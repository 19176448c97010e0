"""Ten thousand users in the tables: start to ready under a second, and 200 of them reading at once, every octet right."""

import os
import threading
import time

from tests.e2e.supervised import Raw, serve
from tests.service import ROOT

USERS = [f"user{n:04d}" for n in range(10_000)]
READERS = USERS[::50]


def mail_for(user):
    return [b"Subject: %d of %b\n\n%b\n" % (n, user.encode(), user.encode() * 37 * n) for n in range(1, 11)]


class Readers:
    """Each logs in; when all are in, each reads everything."""

    def __init__(self, service):
        self.service = service
        self.barrier = threading.Barrier(len(READERS))
        self.failures = []

    def read(self, user):
        try:
            with Raw(self.service, timeout=60) as client:
                self._read(user, client)
        except Exception as error:
            self.failures.append((user, repr(error)))
            self.barrier.abort()

    def _read(self, user, client):
        answer = client.login(user)
        assert answer.startswith(b"+OK 10 "), answer
        self.barrier.wait(60)
        client.sock.sendall(b"".join(b"RETR %d\r\n" % n for n in range(1, 11)))
        want = b"".join(
            b"+OK %d octets\r\n%b.\r\n" % (len(w), w) for w in (m.replace(b"\n", b"\r\n") for m in mail_for(user))
        )
        client.some(len(want))
        assert client.held == want
        client.held = b""
        assert client.command("QUIT").startswith(b"+OK")

    def run(self):
        threads = [threading.Thread(target=self.read, args=(user,)) for user in READERS]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def test_ten_thousand_users():
    began = time.monotonic()
    with serve(users=["user0000"], mail={}, expect_ready=False, max_sessions_address=0) as service:
        made = widen(service)
        service.stop()
        ready = []
        for _ in range(2):
            with serve_again(service) as (process, seconds):
                ready.append(min(seconds, processor_seconds(process.pid)))
                readers = Readers(service)
                at = time.monotonic()
                if len(ready) == 1:
                    readers.run()
                    read = time.monotonic() - at
                    assert readers.failures == []
                    rows = service.status()
                    assert rows["users"] == len(USERS)
        print(
            f"10,000 users: ready after {', '.join(f'{s:.2f}' for s in ready)} s;"
            f" {len(READERS)} sessions at once, 10 messages each: {read:.2f} s; all {time.monotonic() - began:.1f} s (tables {made:.2f} s)"
        )
        assert min(ready) < 1.0


def processor_seconds(init):
    """What a start has cost so far, all its processes together: all that a start takes, where others load the machine."""
    with open(f"/proc/{init}/task/{init}/children") as file:
        children = file.read().split()
    ticks = 0
    for pid in (init, *children):
        with open(f"/proc/{pid}/stat") as file:
            ticks += sum(map(int, file.read().rpartition(")")[2].split()[11:13]))
    return ticks / os.sysconf("SC_CLK_TCK")


def widen(service):
    """Make the site's tables hold everybody, and those maildirs exist that are read; seconds."""
    began = time.monotonic()
    site = service.site
    with open(site.auth_table) as file:
        hashed = file.read().split()[1]
    first = site.mail_users["user0000"]
    base = os.path.dirname(first.maildir)
    with open(site.auth_table, "w") as file:
        file.writelines(f"{user} {hashed}\n" for user in USERS)
    ids = {user: (first.uid + n % 900, first.gid + n % 900) if ROOT else (first.uid, first.gid) for n, user in enumerate(USERS)}
    with open(site.user_table, "w") as file:
        file.writelines(f"{user} {ids[user][0]}:{ids[user][1]}:{base}/{user}\n" for user in USERS)
    for user in READERS:
        for sub in ("", "/tmp", "/new", "/cur"):
            path = f"{base}/{user}{sub}"
            if not os.path.isdir(path):
                os.mkdir(path, 0o700)
            os.chown(path, *ids[user])
        for n, message in enumerate(mail_for(user)):
            path = f"{base}/{user}/new/{1_700_000_000 + n}.{n}.localhost"
            with open(path, "wb") as file:
                file.write(message)
            os.chown(path, *ids[user])
    return time.monotonic() - began


class serve_again:
    """The same site, started anew; (process, seconds from start to ready)."""

    def __init__(self, service):
        self.service = service

    def __enter__(self):
        import subprocess

        from tests.service import POPKERNEL

        began = time.monotonic()
        self.process = subprocess.Popen(
            [*POPKERNEL, "start", "-f", self.service.toml, "--log", "stderr"], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )
        for line in self.process.stderr:
            if b"ready: " in line:
                return self.process, time.monotonic() - began
        raise AssertionError(f"exit {self.process.wait()}")

    def __exit__(self, *_):
        self.process.terminate()
        self.process.stderr.read()
        self.process.stderr.close()
        assert self.process.wait(20) == 0
