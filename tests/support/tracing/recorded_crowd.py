"""Record a busy service for the replay tests: many sessions of all kinds, and a reload meanwhile."""

import contextlib
import pathlib
import poplib
import random
import smtplib
import subprocess
import threading

from popkernel.kernel.client import Client
from popkernel.kernel.replay.runner import replay
from popkernel.proto.trace.recording import end, header, pack, read

from tests.support.lmtp import Lmtp, socket_path
from tests.support.pop3 import RawPop3
from tests.support.service import POPKERNEL
from tests.support.waiting import wait_for

SMALL = b"Subject: new\r\n\r\nDelivered.\r\n" + b"line\r\n" * 20
LARGE = b"Subject: large\r\n\r\n" + b"a line of mail, of which there are many\r\n" * 2500
# replies to a client: refused, disconnected by the reload, too slow
TROUBLE = (OSError, poplib.error_proto, EOFError, AssertionError, smtplib.SMTPException)


class Recordings:
    """Run `trace --record` for each of `wishes` (name: arguments).

    All start at once; `results` ends and replays them.
    """

    def __init__(self, service, folder, wishes):
        self.paths = {name: pathlib.Path(folder, f"{name}.rec") for name in wishes}
        self.traces = {}
        for name, arguments in wishes.items():
            kind = _Follower if type(arguments) is int else _Trace
            self.traces[name] = service.keep(kind(service, self.paths[name], arguments))

    def results(self):
        for trace in self.traces.values():
            trace.stop()
        return {name: replay(read(path.read_bytes())) for name, path in self.paths.items()}


class _Follower:
    """Record a session that does not exist yet, as `trace --record` does."""

    def __init__(self, service, path, session):
        self._watcher = Client(service.config.run_dir).follow(session=session)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._write, args=(path,), daemon=True)
        self._thread.start()

    def _write(self, path):
        with self._watcher as watcher, pathlib.Path(path).open("wb") as file:
            file.write(pack(header(watcher.answer)))
            count = 0
            while not self._stop.is_set():
                while (frame := watcher.next_frame(0.05)) is not None:
                    file.write(pack(frame))
                    count += 1
            file.write(pack(end(count, watcher.lost)))

    def close(self):
        self._stop.set()
        self._thread.join(60)

    stop = close


class _Trace:
    def __init__(self, service, path, arguments):
        self.process = subprocess.Popen(
            [*POPKERNEL, "trace", "--run-dir", service.config.run_dir, "--record", str(path), *arguments],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        first = self.process.stderr.readline()
        assert "attached" in first, first

    def stop(self):
        self.process.terminate()
        rest = self.process.communicate(timeout=120)[1]
        assert self.process.returncode == 0, rest

    def close(self):
        with self.process:
            if self.process.poll() is None:
                self.process.kill()


def differences(results):
    """Return the differences as text, with their places."""
    return "\n".join(
        f"{name}: {r.actor} {d.where}: {d.title} {' '.join(d.lines)[:300]}"
        for name, found in results.items()
        for r in found
        for d in r.differences
    )


def crowd(service, users, sessions, at_once, *, reload=True, seed=1):
    """Run `sessions` sessions, `at_once` at a time.

    They log in with right and wrong passwords, read, remove, pipeline, vanish and idle, with deliveries
    between.
    """
    chance = random.Random(seed)
    jobs = [(chance.choice(_KINDS), chance.choice(users), chance.random()) for _ in range(sessions)]
    halfway = sessions // 2
    lock = threading.Lock()
    done = {"good": 0, "bad": 0}

    def work():
        while True:
            with lock:
                if not jobs:
                    return
                kind, user, luck = jobs.pop()
            try:
                kind(service, user, luck)
                done["good"] += 1
            except TROUBLE:
                done["bad"] += 1

    threads = [threading.Thread(target=work, daemon=True) for _ in range(at_once)]
    for thread in threads:
        thread.start()
    try:
        if reload:
            wait_for(lambda: len(jobs) <= halfway, seconds=300)
            # the service may be too busy to answer
            wait_for(lambda: service.command("reload", check=False).returncode == 0, seconds=120)
    finally:
        for thread in threads:
            thread.join(300)
    return done


def _reads(service, user, luck):
    with contextlib.closing(service.pop3(user, timeout=60)) as pop:
        many = pop.stat()[0]
        pop.uidl(), pop.list()
        for number in range(1, min(many, 4) + 1):
            pop.retr(number)
        if many and luck < 0.5:
            pop.dele(1)
        pop.quit()


def _fails(service, user, luck):
    with contextlib.closing(service.pop3(login=False, timeout=60)) as pop:
        pop.user(user if luck < 0.7 else "nobody")
        with contextlib.suppress(Exception):
            pop.pass_("wrong")
        if luck < 0.3:
            pop.user(user)
            pop.pass_(service.site.passwords[user])
            pop.stat(), pop.quit()


def _vanishes(service, user, luck):
    with RawPop3(service, "tls" if luck < 0.5 else "stls", timeout=60) as raw:
        raw.send(b"USER %s\r\nPASS %s\r\n" % (user.encode(), service.site.passwords[user].encode()))
        if luck < 0.5:
            raw.line()
            raw.send(b"STAT\r\nRETR 1\r\nDELE 1\r\n")


def _pipelines(service, user, luck):
    del luck
    with RawPop3(service, "tls", user=user, timeout=60) as raw:
        raw.send(b"STAT\r\nUIDL\r\nRETR 1\r\nRETR 2\r\nDELE 2\r\nRSET\r\nLIST\r\nQUIT\r\n")
        raw.end()


def _idles(service, user, luck):
    """Idle long enough to be parked."""
    with contextlib.closing(service.pop3(user, timeout=60)) as pop:
        pop.stat()
        threading.Event().wait(1.5 + luck)
        pop.stat(), pop.quit()


def _delivers(service, user, luck):
    with contextlib.closing(Lmtp(socket_path(service), timeout=60)) as mda:
        others = [user] if luck < 0.7 else [user, *list(service.site.passwords)[:2]]
        mda.sendmail("sender@example.org", others, LARGE if luck < 0.2 else SMALL)
        if 0.3 < luck < 0.6:
            mda.sendmail("sender@example.org", [user, f"{user}+list"], SMALL)
        mda.quit()


_KINDS = (_reads, _reads, _reads, _fails, _fails, _vanishes, _pipelines, _idles, _delivers, _delivers)
