"""Start with ten thousand users in under a second, and read as 200 of them at once, every octet right."""

import contextlib
import os
import subprocess
import threading
import time

from tests.support.pop3 import RawPop3
from tests.support.service import POPKERNEL, ROOT, serve

USERS = [f"user{n:04d}" for n in range(10_000)]
READERS = USERS[::50]
STARTS = 8  # at most


def mail_for(user):
    return [b"Subject: %d of %b\n\n%b\n" % (n, user.encode(), user.encode() * 37 * n) for n in range(1, 11)]


class Readers:
    """Log in as each user; when all are in, read everything."""

    def __init__(self, service):
        self.service = service
        self.barrier = threading.Barrier(len(READERS))
        self.failures = []

    def read(self, user):
        try:
            with RawPop3(self.service, timeout=60) as client:
                self._read(user, client)
        except Exception as error:
            self.failures.append((user, repr(error)))
            self.barrier.abort()

    def _read(self, user, client):
        answer = client.login(user)
        assert answer.startswith(b"+OK 10 "), answer
        self.barrier.wait(60)
        client.send(b"".join(b"RETR %d\r\n" % n for n in range(1, 11)))
        want = b"".join(
            b"+OK %d octets\r\n%b.\r\n" % (len(w), w)
            for w in (m.replace(b"\n", b"\r\n") for m in mail_for(user))
        )
        assert client.take(len(want)) == want
        assert client.ask(b"QUIT").startswith(b"+OK")

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
        with serve_again(service, ready):
            readers = Readers(service)
            at = time.monotonic()
            readers.run()
            read = time.monotonic() - at
            assert readers.failures == []
            assert service.status()["users"] == len(USERS)
        # other load on the machine: the best of several starts counts
        while len(ready) < STARTS and min(ready) >= 1.0:
            with serve_again(service, ready):
                pass
        print(
            f"10,000 users: ready after {', '.join(f'{s:.2f}' for s in ready)} s;"
            f" {len(READERS)} sessions at once, 10 messages each: {read:.2f} s; all "
            f"{time.monotonic() - began:.1f} s (tables {made:.2f} s)"
        )
        assert min(ready) < 1.0


def widen(service):
    """Put all users into the site's tables and make the maildirs that are read; return the seconds."""
    began = time.monotonic()
    site = service.site
    with open(site.auth_table) as file:
        hashed = file.read().split()[1]
    first = site.mail_users["user0000"]
    base = os.path.dirname(first.maildir)
    with open(site.auth_table, "w") as file:
        file.writelines(f"{user} {hashed}\n" for user in USERS)
    ids = {
        user: (first.uid + n % 900, first.gid + n % 900) if ROOT else (first.uid, first.gid)
        for n, user in enumerate(USERS)
    }
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


@contextlib.contextmanager
def serve_again(service, ready):
    """Start the same site again; append the seconds from start to ready."""
    began = time.monotonic()
    command = [*POPKERNEL, "start", "-f", service.toml, "--log", "stderr"]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        try:
            assert any(b"ready: " in line for line in process.stderr), f"exit {process.wait(20)}"
            ready.append(time.monotonic() - began)
            yield
        finally:
            process.terminate()
            process.stderr.read()
        assert process.wait(20) == 0
