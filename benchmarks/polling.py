"""Measure a site whose mail programs poll: how many logins find their actor warm, and what that costs.

`python -m benchmarks.polling [--users N] [--every SECONDS]` starts a service with default settings on a
temporary site. Each user logs in, asks for STAT and UIDL and quits, once in each round; the logins are spread
evenly over the round, in the same order each time, which is the worst for "the longest unused goes first".
With `--random` each is at a random time of its round. A round stands for five minutes: with `--every 60` it
takes one, and `warm_seconds` is shortened by as much, so that the arithmetic stays the same.

For each round it prints the share of logins that started no actor (counted in the log), the service's
processor time a session, the median time from PASS to its answer, and the memory (Pss) at its end. Last, all
users log in once more, as fast as forty connections can.
"""

import argparse
import contextlib
import queue
import random
import socket
import statistics
import sys
import threading
import time
from typing import Any

from popkernel.kernel.config.keys import key_of

from benchmarks.server import cpu_of, pss_of
from tests.support.processes import tree
from tests.support.service import Service

_ROUND = 300.0  # seconds that a round stands for
_CONNECTIONS = 40


class Poller:
    """Log users in from several threads, at given times."""

    def __init__(self, service: Service) -> None:
        self.address = (service.plain.host, service.plain.port)
        self.took: list[float] = []
        self.failed: list[str] = []

    def round(self, due: list[tuple[float, str]]) -> None:
        """Poll once for each (time, user), by the monotonic clock, in this order."""
        self.took.clear()
        waiting: queue.SimpleQueue[tuple[float, str] | None] = queue.SimpleQueue()
        for one in [*due, *[None] * _CONNECTIONS]:
            waiting.put(one)
        threads = [threading.Thread(target=self._work, args=(waiting,)) for _ in range(_CONNECTIONS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _work(self, waiting: "queue.SimpleQueue[tuple[float, str] | None]") -> None:
        while (one := waiting.get()) is not None:
            due, user = one
            time.sleep(max(0.0, due - time.monotonic()))
            try:
                self.took.append(self._poll(user))
            except (OSError, RuntimeError) as error:
                self.failed.append(f"{user}: {error}")

    def _poll(self, user: str) -> float:
        """Return the seconds from PASS to its answer."""
        with (
            contextlib.closing(socket.create_connection(self.address, timeout=30)) as sock,
            sock.makefile("rwb", 0) as file,
        ):
            file.readline()
            took = 0.0
            for said in (f"USER {user}", "PASS secret", "STAT", "UIDL", "QUIT"):
                began = time.perf_counter()
                file.write(f"{said}\r\n".encode())
                answer = file.readline()
                if not answer.startswith(b"+OK"):
                    raise RuntimeError(f"{said}: {answer!r}")
                if said == "PASS secret":
                    took = time.perf_counter() - began
                while said == "UIDL" and file.readline() != b".\r\n":
                    pass
        return took


class Log:
    """Read the service's log as it is written, and count the actors that were started."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        while not self._over.is_set():
            self._service.read_log(0.2)

    def started(self) -> int:
        """Return how many maildir actors have been started so far."""
        time.sleep(0.5)
        lines = self._service.log.split(b"\n")
        return sum(b" maildir." in line and b" serves (process" in line for line in lines)

    def close(self) -> None:
        """Stop reading."""
        self._over.set()
        self._thread.join()


def measure(users: int, every: float, rounds: int, *, shuffled: bool, **settings: Any) -> None:
    """Run all rounds and print their figures."""
    names = [f"user{n:05d}" for n in range(users)]
    warm = settings.pop("warm_seconds", key_of("warm_seconds").default)
    settings["warm_seconds"] = max(1, round(warm * every / _ROUND))
    site: dict[str, Any] = {"users": names, "mail": [b"Subject: 1\n\nx\n"], "lmtp": False, **settings}
    print(f"{users} users, a poll each {_ROUND:.0f} s in {every:.0f} s, {settings}")
    with Service(verbose=2, allow_plaintext=True, directory="/var/tmp", **site) as service:
        poller, log = Poller(service), Log(service)
        try:
            if "warm" in (status := service.status()):
                print(
                    f"the budget holds {status['warm']['holds']} of {status['warm']['memory_actor']} octets"
                )
            for number in range(1, rounds + 1):
                pids = tree(service.process.pid)
                before, cpu, began = log.started(), cpu_of(pids), time.monotonic()
                at = [random.random() * users if shuffled else n for n in range(users)]
                poller.round(
                    sorted((began + every * n / users, name) for n, name in zip(at, names, strict=True))
                )
                _print(f"round {number}", service, poller, log.started() - before, cpu, users)
            before, cpu, began = log.started(), cpu_of(tree(service.process.pid)), time.monotonic()
            poller.round([(0.0, name) for name in names])
            took = time.monotonic() - began
            _print(
                f"at once, {users / took:.0f} sessions/s", service, poller, log.started() - before, cpu, users
            )
        finally:
            log.close()
        for line in poller.failed[:5]:
            print(f"failed: {line}")


def _print(what: str, service: Service, poller: Poller, cold: int, cpu: float, users: int) -> None:
    pids = tree(service.process.pid)
    used = cpu_of(pids) - cpu
    median = 1000 * statistics.median(poller.took or [0.0])
    print(
        f"{what}: {100 * (1 - cold / users):.1f} % warm,"
        f" {1000 * used / users:.2f} ms of processor time a session, PASS {median:.1f} ms,"
        f" {pss_of(pids) / (1 << 20):.0f} MiB with {len(pids)} processes"
        + (f", {len(poller.failed)} failed" if poller.failed else ""),
        flush=True,
    )


def main() -> int:
    """Print the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--users", type=int, default=2000, help="users who poll (default 2000)")
    parser.add_argument("--every", type=float, default=_ROUND, help="seconds of a round (default 300)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds (default 3)")
    parser.add_argument("--random", action="store_true", help="at random times of each round")
    parser.add_argument("--warm-memory", help="warm_memory of the configuration (default: the server's)")
    options = parser.parse_args()
    more = {"warm_memory": options.warm_memory} if options.warm_memory else {}
    measure(options.users, options.every, options.rounds, shuffled=options.random, **more)
    return 0


if __name__ == "__main__":
    sys.exit(main())
