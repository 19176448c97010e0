"""Measure the logins of many users right after a start, when each password has to be checked.

`python -m benchmarks.cold_start [--users N] [--rate N] [--cost N]` starts a service with default settings on
a temporary site. All users are behind one address, and log in at `--rate` a second (0: all at once), as mail
programs that poll do: 10,000 users at 33 a second poll once in five minutes. Beside them, users at a second
address log in, one each second. No login is tried again.

It prints how many were refused and with which words, the median and the longest wait from PASS to its answer,
for each address, and what the server said meanwhile: its lines about load, and `logins` of its status.
"""

import argparse
import asyncio
import json
import resource
import statistics
import sys
import threading
import time
from collections import Counter
from typing import Any

from benchmarks.arguments import positive
from tests.support.service import Service

_SECONDS = 300.0  # that a client waits for an answer; the server's own bound is below
_OTHER = "127.0.0.2"
_STATUS = 30.0  # seconds between two questions for the status


class Address:
    """What happened to the logins of one address: seconds from PASS to +OK, and other replies."""

    def __init__(self, host: str, name: str) -> None:
        self.host, self.name = host, name
        self.took: list[float] = []
        self.refused: Counter[str] = Counter()

    def line(self) -> str:
        """Return the figures."""
        took = sorted(self.took) or [0.0]
        refused = sum(self.refused.values())
        said = "".join(f"\n    {many} times: {text}" for text, many in self.refused.most_common(5))
        return (
            f"{self.name}: {len(self.took)} logged in, {refused} refused; wait median"
            f" {statistics.median(took):.2f} s, 99 % {took[int(len(took) * 0.99) - 1]:.2f} s,"
            f" longest {took[-1]:.2f} s{said}"
        )


async def visit(port: int, user: str, address: Address) -> None:
    """Log in, ask for STAT and quit."""
    writer = None
    try:
        reader, writer = await asyncio.wait_for(
            asyncio.open_connection("127.0.0.1", port, local_addr=(address.host, 0)), _SECONDS
        )
        began = 0.0
        for said in (b"", b"USER " + user.encode(), b"PASS secret", b"STAT", b"QUIT"):
            if said:
                writer.write(said + b"\r\n")
            if said.startswith(b"PASS"):
                began = time.perf_counter()
            answer = await asyncio.wait_for(reader.readline(), _SECONDS)
            if not answer.startswith(b"+OK"):
                address.refused[answer.decode(errors="replace").strip() or "closed"] += 1
                return
            if said.startswith(b"PASS"):
                address.took.append(time.perf_counter() - began)
    except (OSError, TimeoutError) as error:
        address.refused[type(error).__name__] += 1
    finally:
        if writer is not None:
            writer.close()


async def crowd(port: int, users: list[str], others: list[str], rate: float) -> list[Address]:
    """Log all users in at that rate, and one of the others each second until the last has its answer."""
    many, few = Address("127.0.0.1", "the crowd"), Address(_OTHER, "the other address")
    began, tasks = time.perf_counter(), []

    async def come(number: int, user: str) -> None:
        await asyncio.sleep(max(0.0, began + number / rate - time.perf_counter()) if rate else 0.0)
        await visit(port, user, many)

    async def trickle() -> None:
        for number, user in enumerate(others):
            await asyncio.sleep(max(0.0, began + number - time.perf_counter()))
            tasks.append(asyncio.create_task(visit(port, user, few)))

    beside = asyncio.create_task(trickle())
    await asyncio.gather(*(come(number, user) for number, user in enumerate(users)))
    beside.cancel()
    await asyncio.gather(*tasks)
    return [many, few]


class Watch(threading.Thread):
    """Read the log, and ask for the status."""

    def __init__(self, service: Service) -> None:
        super().__init__(daemon=True)
        self.service, self.over = service, threading.Event()
        self.states: list[dict[str, Any]] = []

    def run(self) -> None:
        """Run until `over` is set."""
        due = time.monotonic() + _STATUS
        while not self.over.is_set():
            self.service.read_log(0.2)
            if time.monotonic() >= due:
                due += _STATUS
                self.states.append(self.service.status()["logins"])


def measure(users: int, rate: float, cost: int, **settings: Any) -> list[Address]:
    """Run it, print the figures, return them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    names = [f"user{n:05d}" for n in range(users)]
    others = [f"other{n:04d}" for n in range(1000)]
    site: dict[str, Any] = {"users": [*names, *others], "mail": [b"Subject: 1\n\nx\n"], "lmtp": False}
    site |= {"cost": cost, "penalty_seconds": 15, **settings}
    try:
        with Service(verbose=0, allow_plaintext=True, directory="/var/tmp", **site) as service:
            watch = Watch(service)
            watch.start()
            try:
                began = time.monotonic()
                addresses = asyncio.run(crowd(service.plain.port, names, others, rate))
                took = time.monotonic() - began
            finally:
                watch.over.set()
                watch.join()
            log = service.read_log(0.5)
            state = service.status()["logins"]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    lines = [line for line in log.splitlines() if "load:" in line]
    how = f"{rate:g} a second" if rate else "at once"
    print(f"{users} users {how}, bcrypt cost {cost}: {took:.0f} s")
    for address in addresses:
        print(address.line())
    print(f"{len(lines)} lines about load in the log:")
    shown = lines if len(lines) <= 6 else [*lines[:2], *lines[len(lines) // 2 :][:2], *lines[-2:]]
    for line in shown:
        print(f"    {line}")
    for logins in [*watch.states[:: max(1, len(watch.states) // 4)], state]:
        print(f"status: {json.dumps(logins)}")
    return addresses


def main() -> int:
    """Run the command; its exit code is 1 if anybody was refused."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--users", type=positive, default=10_000, help="users behind one address (default 10000)"
    )
    parser.add_argument(
        "--rate", type=float, default=33.0, help="logins a second (default 33); 0: all at once"
    )
    parser.add_argument("--cost", type=positive, default=10, help="bcrypt cost of the hashes (default 10)")
    options = parser.parse_args()
    addresses = measure(options.users, options.rate, options.cost)
    return 1 if any(address.refused for address in addresses) else 0


if __name__ == "__main__":
    sys.exit(main())
