"""Flood a service: 10,000 silent connections, 2,000 slow ones, 200 that guess; 20 honest users go on.

Marked load: `pytest -m load tests/e2e/limits/test_floods.py -s` prints the figures. The flood comes from one
address, which the limit of its sessions stops, and from a thousand, which no limit by address does.
"""

import contextlib
import resource
import subprocess
import threading
import time

import pytest

from tests.support.faults.flood import COMMAND
from tests.support.pop3 import RawPop3
from tests.support.service import Service

pytestmark = pytest.mark.load
HONEST = [f"user{n}" for n in range(20)]
SECONDS = 10.0
BCRYPT_SECONDS = 0.01  # at cost 4, which the site has: 1 ms alone, more with both cores busy
FLOODS = (("silent", 10_000), ("drip", 2_000), ("guess", 200))
# the listener's octets with all clients: 12,200 connections of 12 KB each, and its own
MEMORY = 300 << 20


class Honest(threading.Thread):
    """Log in as one user, look and leave, repeatedly.

    Each time is from the first try to the reply to PASS, refusals included.
    """

    def __init__(self, service, user, end):
        super().__init__()
        self.service, self.user, self.end = service, user, end
        self.took, self.refused, self.failures = [], 0, []

    def run(self):
        while time.monotonic() < self.end:
            began = time.monotonic()
            while True:
                try:
                    self.visit(began)
                    break
                except (OSError, EOFError):
                    self.refused += 1
                    if time.monotonic() > self.end + 10:
                        self.failures.append("never got in")
                        return
                    time.sleep(0.05)
            time.sleep(0.2)

    def visit(self, began):
        with RawPop3(self.service, timeout=10, verify=False) as client:
            answer = client.greeting
            for line in (b"USER " + self.user.encode(), b"PASS secret", b"STAT", b"QUIT"):
                if not answer.startswith(b"+OK"):
                    raise ConnectionError(answer)
                answer = client.ask(line)
                if line == b"PASS secret" and answer.startswith(b"+OK"):
                    self.took.append(time.monotonic() - began)
            if not answer.startswith(b"+OK"):
                raise ConnectionError(answer)


def flood(kind, count, addresses, port):
    return subprocess.Popen(
        [*COMMAND, kind, str(count), str(addresses), str(port)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def resident(service, name):
    """Return the octets of all processes of a name."""
    total = 0
    for pid in service.pids():
        with (
            contextlib.suppress(OSError),
            open(f"/proc/{pid}/comm") as comm,
            open(f"/proc/{pid}/statm") as statm,
        ):
            if comm.read().startswith(name):
                total += int(statm.read().split()[1]) * resource.getpagesize()
    return total


def percentile(values, part):
    return sorted(values)[min(len(values) - 1, int(len(values) * part))]


def honest_work(service, seconds):
    end = time.monotonic() + seconds
    people = [Honest(service, user, end) for user in HONEST]
    for person in people:
        person.start()
    for person in people:
        person.join()
    assert not [failure for person in people for failure in person.failures]
    return [t for person in people for t in person.took], sum(person.refused for person in people)


@pytest.mark.parametrize(("addresses", "listeners"), [(1, 1), (1000, 2)])
def test_honest_users_go_on(addresses, listeners):
    """From a thousand addresses all clients get in; two listeners keep each below its descriptor limit."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard < 2 * 5000:
        pytest.skip(f"the hard limit of {hard} descriptors is too low for floods")
    with Service(users=HONEST, mail=[b"Subject: x\n\nx\n"], allow_plaintext=True, login_seconds=30, verbose=0,
                 listeners=listeners, max_sessions=15_000) as service:  # fmt: skip
        calm, _ = honest_work(service, 3.0)
        before = resident(service, "listener")
        floods = [
            flood(kind, count, addresses, (service.tls if kind == "silent" else service.plain).port)
            for kind, count in FLOODS
        ]
        stop = threading.Event()
        drainer = threading.Thread(target=lambda: [service.read_log(0.2) for _ in iter(stop.is_set, True)])
        drainer.start()
        try:
            for process in floods:
                assert process.stdout.readline().startswith("up"), "a flood did not start"
            took, refused = honest_work(service, SECONDS)
            during = resident(service, "listener")
        finally:
            said = []
            for process in floods:
                process.stdin.close()
                said.append(process.stdout.read().strip())
                process.stdout.close()
                process.wait(20)
            stop.set()
            drainer.join()
        after, _ = honest_work(service, 2.0)
        print(
            f"\nfloods from {addresses} addresses: {said}\n"
            f"login p50/p99 in ms: calm {percentile(calm, 0.5) * 1e3:.0f}/{percentile(calm, 0.99) * 1e3:.0f},"
            f" flooded {percentile(took, 0.5) * 1e3:.0f}/{percentile(took, 0.99) * 1e3:.0f} ({len(took)} "
            f"logins, {refused} refusals),"
            f" afterwards {percentile(after, 0.5) * 1e3:.0f}/{percentile(after, 0.99) * 1e3:.0f};"
            f" listener {before >> 20} MiB before, {during >> 20} MiB during"
        )
        assert len(took) > 20
        assert percentile(took, 0.99) < 1.0 + BCRYPT_SECONDS
        assert during < MEMORY
