"""`python -m benchmarks.trace`: what being watched costs, and what having been watched costs.

The same POP3 session against four servers: one without the tap's branches at all (untapped.py: "never traced"), one that nobody has
watched, one that was watched and is not any more, one that is. What is compared is instructions a command of the listener and the
maildir actor, counted by valgrind: a number that other work on the machine does not move, as it moves every clock. Two lengths of
session, and the difference between them, leave out what a start and a login cost. Equal runs still differ by up to 1 % (whether credit
for mail comes with the next command or before it is chance), so each is done four times, and medians are compared.

Without valgrind, or with --time, processor time is compared instead (tracetime.py), which a busy machine blurs.

Exit code 0: off is within 1 % of never. 1: it is not. 2: this run can't tell.
"""

import os
import shutil
import socket
import statistics
import sys
import tempfile
import threading

from popkernel.kernel.watcher import Watcher

from benchmarks import tracetime, untapped
from tests.service import Service, wait_for

HERE = os.path.dirname(os.path.abspath(__file__))
VARIANTS = ("never traced", "watched by nobody", "watched, off again", "watched")
SHORT, LONG = 400, 4400  # commands
RUNS = 4
LIMIT = 0.01


class Viewer:
    """Somebody who watches everything and reads all of it."""

    def __init__(self, service):
        self.seen = 0
        self._watcher = Watcher(service.config.run_dir)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._take)
        self._thread.start()

    def _take(self):
        while not self._over.is_set():
            self.seen += self._watcher.next_frame(0.05) is not None

    def close(self):
        self._over.set()
        self._thread.join()
        self._watcher.close()


class Session:
    """Logged in; one command after the other, each answer awaited."""

    def __init__(self, service):
        self._sock = socket.create_connection((service.plain.host, service.plain.port), timeout=60)
        for command in (b"", b"USER alice\r\n", b"PASS secret\r\n"):
            self._sock.sendall(command)
            assert self._sock.recv(4096).startswith(b"+OK")

    def _ask(self, command, end):
        self._sock.sendall(command)
        data = self._sock.recv(65536)
        while not data.endswith(end):
            data += self._sock.recv(65536)
        assert data.startswith(b"+OK"), data

    def commands(self, many):
        for n in range(many // 2):
            self._ask(b"LIST %d\r\n" % (n % 20 + 1), b"\r\n")
            self._ask(b"RETR %d\r\n" % ((n * 7) % 20 + 1), b"\r\n.\r\n")

    def close(self):
        self._sock.close()


def count(path):
    """Instructions of one process, from valgrind's report."""
    with open(path) as file:
        lines = [line for line in file if "refs:" in line]
    return int(lines[-1].split()[-1].replace(",", ""))


def instructions(variant, commands):
    """Instructions of listener and maildir actor, in all, for a session with so many commands; and frames that were seen."""
    with tempfile.TemporaryDirectory() as counts:
        os.chmod(counts, 0o777)
        program = [sys.executable, os.path.join(HERE, "untapped.py"), variant.partition(" ")[0], counts]
        service = Service(
            command=program, arguments=["--insecure-no-sandbox"], expect_ready=False, mail=tracetime.MAIL, verbose=0, **tracetime.SETTINGS,
        )
        try:
            service.wait_log("popkernel: ready:", seconds=untapped.PATIENCE)
            viewer = Viewer(service) if variant in VARIANTS[2:] else None
            session = Session(service)
            pids = [a["pid"] for a in service.status()["actors"] if a["name"].startswith(("listener.", "maildir."))]
            assert len(pids) == 2
            session.commands(SHORT)
            if variant == VARIANTS[2]:
                viewer.close()
            service.status()  # nobody has been watching for a while by now
            session.commands(commands)
            if variant == VARIANTS[3]:
                viewer.close()
            session.close()
            assert service.stop(60) == 0
            return sum(wait_for(lambda pid=pid: count(os.path.join(counts, str(pid)))) for pid in pids), viewer.seen if viewer else 0
        finally:
            service.close()


def each(variant):
    """Instructions a command."""
    (short, _), (long, seen) = instructions(variant, SHORT), instructions(variant, LONG)
    assert bool(seen) == (variant in VARIANTS[2:])
    return (long - short) / (LONG - SHORT)


def main():
    """Print the table."""
    if "--time" in sys.argv or not shutil.which("valgrind"):
        return tracetime.compare()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # on one processor who waits for whom is the same in every run
    print(f"instructions a command (LIST n, RETR n of 2 KB), listener and maildir actor together, user space; {RUNS} runs each", flush=True)
    found = {}
    for variant in VARIANTS:
        runs = found[variant] = sorted(each(variant) for _ in range(RUNS))
        more = statistics.median(runs) / statistics.median(found[VARIANTS[0]]) - 1
        print(f"{variant:20} {runs[0]:9.0f} .. {runs[-1]:9.0f}   median {statistics.median(runs):9.0f}  {more:+7.2%}", flush=True)
    never = statistics.median(found[VARIANTS[0]])
    if any(runs[RUNS // 2] - runs[RUNS // 2 - 1] > LIMIT / 2 * never for runs in list(found.values())[:3]):
        print("INCONCLUSIVE: even the middle ones of equal runs differ by more than half a per cent")
        return 2
    return int(any(statistics.median(found[variant]) / never - 1 > LIMIT for variant in VARIANTS[1:3]))


if __name__ == "__main__":
    sys.exit(main())
